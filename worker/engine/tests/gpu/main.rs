//! The device side against the layers, optimizers and rounding of the CPU.
//!
//! On a GPU where there is one. Elsewhere on fakes of the driver, NVRTC, cuBLAS and cuDNN (`nvlib::fake`): the kernels are
//! compiled by the machine's C++ compiler, and started through the same bindings by the same code.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod adapters;
mod between;
mod bf16;
mod early;
mod elementwise;
mod faults;
mod fingerprint;
mod flat;
mod fours;
mod full;
mod halves;
mod image_layers;
mod images;
mod kept;
mod layers;
mod memory;
mod nccl;
mod networks;
mod norms;
mod patches;
mod place;
mod pools;
mod sequences;
mod stay;
mod step;
mod streams;
mod teaching;
mod text;
mod tf32;
mod towards;
mod updates;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, OnceLock},
};

use nvlib::{Library, driver::ProbeError};
use tl_engine::{
    gpu::{Array, Device, Place, ops::Element},
    nn::{BufferId, DropoutDraw, Gradients, Layer, Layout, Pass, Store, Tape, array, host},
    num::rng::Philox,
    train,
};
use tl_proto::spec::JobSpec;

/// The GPU, or a fake one; nothing where there is neither, which it says.
fn device() -> Option<&'static Device> {
    shared().map(|device| &**device)
}

/// The same, to be kept beside arrays.
fn shared() -> Option<&'static Arc<Device>> {
    static DEVICE: OnceLock<Option<Arc<Device>>> = OnceLock::new();
    DEVICE.get_or_init(|| open().map(Arc::new)).as_ref()
}

fn open() -> Option<Device> {
    match nvlib::driver::probe() {
        Ok(driver) if driver.gpus.is_empty() => skip("this machine has a driver and no GPU"),
        Ok(driver) => {
            eprintln!("on {}", driver.gpus[0].name);
            Some(Device::open(0).unwrap())
        }
        Err(ProbeError::Missing(why)) => {
            assert!(!nvlib::fake::is_barred(), "{why}");
            fake(Path::new(env!("CARGO_TARGET_TMPDIR")))
        }
        Err(e) => skip(&e.to_string()),
    }
}

#[test]
fn where_only_a_real_gpu_counts_nothing_stands_for_it() {
    let Some(device) = device() else { return };
    if nvlib::fake::is_barred() || !is_fake(device) {
        eprintln!("left out: this is a GPU of the machine's own");
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "where_only_a_real_gpu_counts_nothing_stands_for_it", "--nocapture"]);
    let ended = again.env("TL_GPU_REAL", "1").env_remove("NVLIB_PATH").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("(libcuda.so.1) was not found in "), "{said}");
}

/// To `tests/gpu/run.sh` this says that nothing was tried. A test that is left out by itself says so in other words.
fn skip(why: &str) -> Option<Device> {
    eprintln!("skipped: {why}");
    None
}

/// What is compiled stays there, for the next time.
fn fake(root: &Path) -> Option<Device> {
    let cxx = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    if !Command::new(&cxx).arg("--version").output().is_ok_and(|o| o.status.success()) {
        return skip("there is no C++ compiler to run kernels with");
    }
    let dir: PathBuf = root.join("gpu");
    std::fs::create_dir_all(&dir).unwrap();
    if let Err(e) = nvlib::fake::build_computing(&dir) {
        return skip(&e.to_string());
    }
    for library in [Library::Driver, Library::Nccl, Library::Nvrtc, Library::Cublas, Library::Cudnn] {
        library.open_from(std::slice::from_ref(&dir)).unwrap();
    }
    let device = Device::open(0).unwrap();
    match is_fake(&device) {
        true => Some(device),
        false => skip("this machine has a driver of its own under another name"),
    }
}

/// Whether libraries in C stand for the GPU's: how these round is known.
fn is_fake(device: &Device) -> bool {
    device.stream().context().name().is_ok_and(|name| name == nvlib::fake::GPU)
}

/// Runs tests of this program once more, in a process of its own with these variables, on the libraries in C.
fn apart(tests: &[&str], variables: &[(&str, &str)]) -> Output {
    let libraries = step::copied(&[]);
    let mut other = Command::new(std::env::current_exe().unwrap());
    other.args(tests).env("NVLIB_PATH", libraries.path()).envs(variables.iter().copied());
    other.output().unwrap()
}

/// Reproducible normal numbers.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut stream = Philox::new(seed, "gpu").stream(count as u64, 0);
    (0..count).map(|_| stream.normal()).collect()
}

/// A run of a job in a folder of its own, with its cache there.
fn config(spec: JobSpec, work: PathBuf, place: Place) -> train::Config {
    std::fs::create_dir_all(&work).unwrap();
    train::Config {
        spec,
        inputs: Default::default(),
        pushed: Default::default(),
        hub: Default::default(),
        absent: Default::default(),
        look: false,
        cache: work.join("cache"),
        work,
        cache_bytes: 1 << 26,
        features: Vec::new(),
        resume: Vec::new(),
        place,
    }
}

/// `a·b` of so many rows, columns and numbers of a sum.
fn product(
    (m, n, k): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let sum = |row, column| (0..k).map(|d| f64::from(a(row, d)) * f64::from(b(d, column))).sum::<f64>() as f32;
    (0..m * n).map(|i| sum(i / n, i % n)).collect()
}

fn up(device: &Device, values: &[f32], shape: &[usize]) -> Array {
    device.upload(values, shape).unwrap()
}

/// What a GPU has in either type, as f32 has it.
fn fetched<T: Element + Clone + Default + Into<f32>>(device: &Device, array: &Array<T>) -> Vec<f32> {
    device.download(array).unwrap().into_iter().map(Into::into).collect()
}

/// Refuses any other bits; a zero may have either sign, and a NaN is one.
fn same<T: Element + Clone + Default + Into<f32>>(device: &Device, got: &Array<T>, want: &[f32]) {
    let got = fetched(device, got);
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g == w || g.is_nan() && w.is_nan(), "number {i}: {g} instead of {w}");
    }
}

fn close<T: Element + Clone + Default + Into<f32>>(device: &Device, got: &Array<T>, want: &[f32], tolerance: f32) {
    let got = fetched(device, got);
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * (1.0 + w.abs()), "number {i}: {g} instead of {w}");
    }
}

/// What a layer of the CPU makes of an input, and of a slope of its output.
struct Ran {
    y: Vec<f32>,
    shape: Vec<usize>,
    dy: Vec<f32>,
    dx: Vec<f32>,
    /// The gradients of its parameters, then the sums of its batch-norms.
    flat: Vec<f32>,
}

/// Runs a layer that trains everything and, if `statistics`, takes those of the batch.
fn run(
    layer: &dyn Layer,
    store: &Store,
    (x, shape): (&[f32], &[usize]),
    dropout: Option<DropoutDraw<'_>>,
    statistics: bool,
) -> Ran {
    let (mut params, mut norms) = (Vec::new(), Vec::new());
    layer.params(&mut params);
    layer.norms(&mut norms);
    let norms: Vec<BufferId> = norms.iter().filter(|_| statistics).map(|n| n.0).collect();
    let layout = Layout::new(store, &params, &norms);
    let pass = Pass { layout: Some(&layout), dropout, ..Pass::eval(store) };
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    let y = layer.forward(&array(x.to_vec(), shape).unwrap(), &pass, &mut tape).unwrap();
    let dy = numbers(77, y.count());
    let slope = array(dy.clone(), y.dims()).unwrap();
    let dx = layer.backward(&slope, &pass, &mut tape, &mut grads, true).unwrap();
    let dx = dx.map(|dx| host(&dx).unwrap().to_vec()).unwrap_or_default();
    Ran { y: host(&y).unwrap().to_vec(), shape: y.dims().to_vec(), dy, dx, flat: grads.flat }
}
