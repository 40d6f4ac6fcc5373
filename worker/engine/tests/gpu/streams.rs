//! The streams beside that of a GPU: who waits for whom. cudarc keeps no events that would see to it.

use nvlib::fake::{self, Streams};
use tl_engine::{
    gpu::{Device, Fault, ops},
    nn::Act,
};

use crate::{device, nccl, numbers, same, up};

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

#[test]
fn what_went_up_aside_is_waited_for_once_and_given_back_behind_what_reads_it() {
    let Some(device) = device() else { return };
    if streams().is_none() {
        return;
    }
    device.synchronize().unwrap();
    let own = fake::streams().unwrap().synchronized;
    let mut aside = device.staging_aside(12).unwrap();
    let before = crossed();
    let sent = aside.upload(&numbers(1, 12), &[3, 4]).unwrap();
    assert_eq!(crossed(), before, "it waits for nothing");
    let array = device.adopt(sent).unwrap();
    assert_eq!((crossed(), array.shape()), (before + 1, &[3, 4][..]));
    same(device, &array, &numbers(1, 12));
    // Before it frees memory this driver has the stream waited for that the memory is of.
    drop(array);
    assert_eq!(fake::streams().unwrap().synchronized, own);
    drop(aside.upload(&numbers(1, 12), &[12]).unwrap());
    assert_ne!(fake::streams().unwrap().synchronized, own, "what nobody takes over stays aside");
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
