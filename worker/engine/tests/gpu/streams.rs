//! The streams beside that of a GPU: who waits for whom. cudarc keeps no events that would see to it. The driver in C aborts the
//! process where memory of its pools is used or given back by who has not waited, in these tests and in all others, as far as
//! `nvlib::fake` says that it knows.

use cudarc::driver::CudaStream;
use nvlib::fake::{self, Streams};
use tl_engine::{
    gpu::{Device, Fault, ops},
    nn::Act,
};

use crate::{apart, device, is_fake, nccl, numbers, same, up};

/// Says to that driver whether it has pools.
const POOLS: &str = "FAKE_POOLS";
/// Says to a process of these tests when nobody is to wait.
const HASTE: &str = "TL_TEST_WAITS_FOR_NOBODY";

/// What this thread has done with streams; of a real driver that is not known, which is said.
fn streams() -> Option<Streams> {
    let told = fake::streams();
    if told.is_none() {
        eprintln!("left out: a real driver does not tell who waits for whom");
    }
    told
}

/// How often a stream was told to wait for another one.
fn crossed() -> u64 {
    fake::streams().unwrap().crossed
}

/// Behind which stream memory was given back last.
fn freed() -> u64 {
    fake::streams().unwrap().freed
}

#[test]
fn what_went_up_aside_is_waited_for_once_and_given_back_behind_what_reads_it() {
    let Some(device) = device() else { return };
    if streams().is_none() {
        return;
    }
    drop(up(device, &[1.0], &[1]));
    let own = freed();
    let mut aside = device.staging_aside(12).unwrap();
    let before = crossed();
    let sent = aside.upload(&numbers(1, 12), &[3, 4]).unwrap();
    assert_eq!(crossed(), before, "it waits for nothing");
    let array = device.adopt(sent).unwrap();
    assert_eq!((crossed(), array.shape()), (before + 1, &[3, 4][..]));
    same(device, &array, &numbers(1, 12));
    drop(array);
    assert_eq!(freed(), own);
    drop(aside.upload(&numbers(1, 12), &[12]).unwrap());
    assert_ne!(freed(), own, "what nobody takes over stays aside");
    let mut straight = device.staging(5).unwrap();
    let array = device.adopt(straight.upload(&numbers(2, 5), &[5]).unwrap()).unwrap();
    assert_eq!(crossed(), before + 1, "there is nothing to wait for");
    same(device, &array, &numbers(2, 5));
}

/// Nothing was made, since an array is of another stream.
fn foreign<T>(outcome: Result<T, Fault>) {
    assert!(outcome.is_err_and(|fault| matches!(fault, Fault::Foreign)));
}

#[test]
fn arrays_of_another_stream_are_refused_by_whatever_would_read_or_write_them() {
    let Some(device) = device() else { return };
    let other = Device::open(0).unwrap();
    let (values, shape) = (numbers(1, 12), [1, 2, 2, 3]);
    let (x, mut strange) = (up(device, &values, &shape), up(&other, &values, &shape));
    foreign(ops::activate(device, Act::Relu, &strange));
    foreign(ops::round_bf16_run(device, &strange, 0..4, &[4]));
    foreign(ops::add_into(device, &mut strange, &x));
    foreign(ops::add_run(device, &mut strange, 0, &x));
    let w = |of: &Device| up(of, &numbers(2, 6), &[2, 3]);
    foreign(ops::linear(device, &strange, &w(device)));
    foreign(ops::linear(device, &x, &w(&other)));
    foreign(ops::linear_weights(device, &up(device, &numbers(3, 8), &[4, 2]), &x, &mut w(&other)));
    let how = ops::Convolution { stride: 1, pad: (0, 0), groups: 1 };
    let kernels = |of: &Device| up(of, &numbers(2, 6), &[2, 1, 1, 3]);
    foreign(ops::conv(device, &strange, &kernels(device), how));
    foreign(ops::conv(device, &x, &kernels(&other), how));
    foreign(device.copy(&strange));
    foreign(device.part(&strange, 0..4, &[4]));
    foreign(device.download(&strange));
    same(&other, &strange, &values);
    // What is on its way up is anybody's who waits for it.
    let sent = other.staging(12).unwrap().upload(&values, &shape).unwrap();
    same(device, &device.adopt(sent).unwrap(), &values);
}

#[test]
fn operations_on_a_gpus_own_stream_record_nothing_and_wait_for_nothing() {
    let Some(device) = device() else { return };
    let (x, w) = (up(device, &numbers(1, 12), &[3, 4]), up(device, &numbers(2, 8), &[2, 4]));
    let work = || ops::activate(device, Act::Relu, &ops::linear(device, &x, &w).unwrap()).unwrap();
    // Libraries are opened and kernels loaded by then.
    work();
    let Some(before) = streams() else { return };
    let array = work();
    let after = fake::streams().unwrap();
    assert_eq!((after.recorded, after.crossed), (before.recorded, before.crossed));
    drop(array);
}

#[test]
fn a_sum_waits_for_its_numbers_and_what_comes_after_waits_for_the_sum() {
    if device().is_none() || streams().is_none() {
        return;
    }
    nccl::group(1, |mut group| {
        let device = device().unwrap();
        let flat = up(device, &numbers(1, 10), &[10]);
        let before = crossed();
        let mut buckets = group.begin(flat).unwrap();
        buckets.ready(0..10).unwrap();
        assert_eq!(crossed(), before + 1);
        let flat = buckets.finish().unwrap();
        assert_eq!(crossed(), before + 2);
        same(device, &flat, &numbers(1, 10));
    });
}

/// Has an array's own stream and another one wait, or not.
type Order = fn(&CudaStream, &CudaStream);

/// Lends an array to another stream, which copies it, and gives it back.
fn lend(device: &Device, before: Order, behind: Order) {
    let own = device.stream();
    let other = own.context().new_stream().unwrap();
    let array = own.clone_htod(&[1.0f32, 2.0]).unwrap();
    let mut copy = other.alloc_zeros::<f32>(2).unwrap();
    before(own, &other);
    other.memcpy_dtod(&array, &mut copy).unwrap();
    behind(own, &other);
    drop(array);
}

#[test]
fn an_array_is_lent_to_a_stream_that_has_waited_and_given_back_behind_one_that_has() {
    let Some(device) = device() else { return };
    if streams().is_none() {
        return;
    }
    let (lent, nobody): (Order, Order) = (|own, other| other.join(own).unwrap(), |_, _| {});
    let ways: [Order; 4] = [
        |own, other| own.join(other).unwrap(),
        |_, other| other.synchronize().unwrap(),
        |_, other| other.record_event(None).unwrap().synchronize().unwrap(),
        |own, other| {
            let third = own.context().new_stream().unwrap();
            third.join(other).unwrap();
            own.join(&third).unwrap();
        },
    ];
    if let Ok(when) = std::env::var(HASTE) {
        return if when == "before" { lend(device, nobody, ways[0]) } else { lend(device, lent, nobody) };
    }
    ways.into_iter().for_each(|behind| lend(device, lent, behind));
    if !device.stream().context().has_async_alloc() {
        // There the bindings wait before they give memory back.
        return;
    }
    let test = "streams::an_array_is_lent_to_a_stream_that_has_waited_and_given_back_behind_one_that_has";
    for (when, what) in [("before", "used"), ("behind", "given back")] {
        let ended = apart(&["--exact", test], &[(HASTE, when)]);
        let said = String::from_utf8_lossy(&ended.stderr);
        let why = format!("8 bytes are {what} on a stream that has not waited");
        assert!(!ended.status.success() && said.contains(&why), "{when}: {said}");
    }
}

#[test]
fn a_driver_without_memory_pools_is_asked_for_memory_in_the_other_way() {
    let Some(device) = device() else { return };
    if !is_fake(device) {
        eprintln!("left out: a real driver has pools or has not");
        return;
    }
    let without = std::env::var(POOLS).is_ok_and(|pools| pools == "0");
    assert_eq!(device.stream().context().has_async_alloc(), !without);
    if without {
        return;
    }
    let ended = apart(&["streams::", "memory::", "full::", "place::what_went_up"], &[(POOLS, "0")]);
    let [said, why] = [&ended.stdout, &ended.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(ended.status.success() && !said.contains(" 0 passed"), "{said}{why}");
}
