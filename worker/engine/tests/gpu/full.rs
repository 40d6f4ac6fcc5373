//! What is done where the memory of a GPU is short: what was freed goes back to the system, and it is done once more.

use nvlib::fake;
use tl_engine::gpu::{
    Device, Fault,
    ops::{self, Matrix},
};

use crate::{apart, device, fetched, is_fake, numbers, same, up};

// What cuBLAS answers, `CUBLAS_STATUS_…`: these where it finds no memory for a kernel.
const ALLOC_FAILED: i32 = 3;
const EXECUTION_FAILED: i32 = 13;
const INTERNAL_ERROR: i32 = 14;
// And these where it does not make such a product.
const INVALID_VALUE: i32 = 7;
const NOT_SUPPORTED: i32 = 15;

/// Bytes that are free, of which a library says little, and of which it has enough.
const LITTLE: u64 = 1 << 20;
const ENOUGH: u64 = u64::MAX;

/// A way to a product, from the call to numbers of the host.
type Way<'a> = &'a dyn Fn() -> Result<Vec<f32>, Fault>;

/// The GPU, open once more: what is given back of it is nothing to other tests.
fn own() -> Option<Device> {
    device().map(|_| Device::open(0).unwrap())
}

#[test]
fn products_for_which_there_is_no_room_are_made_once_more_or_say_that_memory_is_full() {
    let Some(own) = own() else { return };
    if fake::refuse_products(0, 0).is_none() {
        eprintln!("left out: a real cuBLAS cannot be told what to refuse");
        return;
    }
    let device = &own;
    let of = |seed: u32, shape: &[usize]| up(device, &numbers(seed, shape.iter().product()), shape);
    let (x, w, bias, dy) = (of(1, &[3, 4]), of(2, &[5, 4]), of(3, &[5]), of(4, &[3, 5]));
    let (left, right) = (of(5, &[2, 3, 4]), of(6, &[2, 4, 5]));
    let [low_x, low_w] = [&x, &w].map(|array| ops::to_bf16(device, array).unwrap());
    let ways: [(&str, Way<'_>); 4] = [
        ("one", &|| Ok(fetched(device, &ops::linear(device, &x, &w)?))),
        ("a batch", &|| {
            let pair = (Matrix::of(&left), Matrix::of(&right));
            Ok(fetched(device, &ops::multiplied(device, pair, (2, 3, 5, 4), &[2, 3, 5])?))
        }),
        ("one that begins with a bias", &|| Ok(fetched(device, &ops::linear_biased(device, &low_x, &low_w, &bias)?))),
        ("one that is added", &|| {
            let mut dw = of(7, &[5, 4]);
            ops::linear_weights(device, &dy, &x, &mut dw)?;
            Ok(fetched(device, &dw))
        }),
    ];
    for (name, way) in ways {
        let want = way().unwrap();
        let refused = |status: i32, times: u64, free: u64| {
            let _ = fake::free(free);
            let _ = fake::refuse_products(status, times);
            let came = way();
            let _ = fake::free(ENOUGH);
            let _ = fake::refuse_products(0, 0);
            came
        };
        for status in [ALLOC_FAILED, EXECUTION_FAILED, INTERNAL_ERROR] {
            assert_eq!(refused(status, 1, LITTLE).unwrap(), want, "{name}: {status} once");
            let always = refused(status, u64::MAX, LITTLE);
            assert!(matches!(always, Err(Fault::Memory)), "{name}: {status} always: {always:?}");
        }
        for (status, free) in [(INVALID_VALUE, LITTLE), (NOT_SUPPORTED, LITTLE), (EXECUTION_FAILED, ENOUGH)] {
            let other = refused(status, 1, free);
            assert!(matches!(other, Err(Fault::Refused { .. })), "{name}: {status}: {other:?}");
        }
    }
}

#[test]
fn a_kernel_for_which_there_is_no_room_is_loaded_once_more_or_says_that_memory_is_full() {
    let Some(own) = own() else { return };
    let device = &own;
    let (mut x, more) = (up(device, &[1.0, 2.0], &[2]), up(device, &[3.0, 4.0], &[2]));
    // By then the file is loaded in which all of these are.
    ops::scale(device, &mut x, 2.0).unwrap();
    if fake::full(0, 1).is_none() {
        eprintln!("left out: a real driver has room");
        return;
    }
    ops::divide(device, &mut x, 4.0).unwrap();
    same(device, &x, &[0.5, 1.0]);
    // Neither at once nor when what was freed has gone back.
    let _ = fake::full(0, 2);
    assert!(matches!(ops::add_into(device, &mut x, &more), Err(Fault::Memory)));
    same(device, &x, &[0.5, 1.0]);
    ops::add_into(device, &mut x, &more).unwrap();
    same(device, &x, &[3.5, 5.0]);
}

/// Says to a process of these tests that nobody else takes memory there.
const ALONE: &str = "TL_TEST_TAKES_MEMORY_ALONE";

#[test]
fn what_was_freed_stays_with_the_pool_until_memory_is_short() {
    let Some(device) = device() else { return };
    let context = device.stream().context();
    if !is_fake(device) || !context.has_async_alloc() {
        eprintln!("left out: a real GPU has other users, and one without pools has none");
        return;
    }
    if std::env::var_os(ALONE).is_none() {
        let test = "full::what_was_freed_stays_with_the_pool_until_memory_is_short";
        let ended = apart(&["--exact", test], &[(ALONE, "1")]);
        let [said, why] = [&ended.stdout, &ended.stderr].map(|text| String::from_utf8_lossy(text));
        assert!(ended.status.success() && said.contains("1 passed"), "{said}{why}");
        return;
    }
    let free = || context.mem_get_info().unwrap().0;
    drop(device.zeros::<f32>(&[1 << 20]).unwrap());
    device.synchronize().unwrap();
    let before = free();
    fake::full(0, 1).unwrap();
    let small = up(device, &[1.0], &[1]);
    assert!(free() >= before + (4 << 20) - 4, "{before} bytes were free, and {} are", free());
    same(device, &small, &[1.0]);
}
