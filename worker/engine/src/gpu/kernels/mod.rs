//! The files of kernels, and what NVRTC makes of them. They are compiled on the machine that has the GPU, once for each
//! compute capability of it, when the first kernel of a file is asked for.

mod kept;

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_int},
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::nvrtc::{
    result::{self, NvrtcError},
    sys,
};
use nvlib::Library;

use self::kept::Kept;
use super::{Fault, bound};

pub use self::kept::keep_kernels;

/// Stands before each file, in this order.
const SHARED: [&str; 3] = [include_str!("common.cuh"), include_str!("math.cuh"), include_str!("philox.cuh")];

/// Declares the files, one name a line.
macro_rules! sources {
    ($($(#[$doc:meta])* $name:ident = $file:literal,)*) => {
        /// A file of kernels.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(in crate::gpu) enum Source {
            $($(#[$doc])* $name,)*
        }

        impl Source {
            const fn file(self) -> &'static str {
                match self {
                    $(Self::$name => $file,)*
                }
            }

            const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => include_str!($file),)*
                }
            }
        }
    };
}

sources! {
    Cast = "cast.cu",
    Depthwise = "depthwise.cu",
    Dropout = "dropout.cu",
    Elementwise = "elementwise.cu",
    Embedding = "embedding.cu",
    Frames = "frames.cu",
    LayerNorm = "layer_norm.cu",
    Layout = "layout.cu",
    Lstm = "lstm.cu",
    Norm = "norm.cu",
    Optimizer = "optimizer.cu",
    Patches = "patches.cu",
    Pool = "pool.cu",
    Rows = "rows.cu",
    Softmax = "softmax.cu",
    Towards = "towards.cu",
}

/// A file for a compute capability, as the driver takes it.
type Cubins = BTreeMap<(Source, (i32, i32)), Arc<Vec<u8>>>;

/// A file, compiled for a compute capability, by this process or one before it.
///
/// # Errors
/// NVRTC is not there, or does not know the GPU.
pub(in crate::gpu) fn compiled(source: Source, capability: (i32, i32)) -> Result<Arc<Vec<u8>>, Fault> {
    cubin(source, capability, false)
}

/// The same, compiled now: the driver refuses what there was.
///
/// # Errors
/// As [`compiled`].
pub(in crate::gpu) fn compiled_anew(source: Source, capability: (i32, i32)) -> Result<Arc<Vec<u8>>, Fault> {
    cubin(source, capability, true)
}

fn cubin(source: Source, capability: (i32, i32), anew: bool) -> Result<Arc<Vec<u8>>, Fault> {
    static KNOWN: Mutex<Cubins> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cubin) = known.get(&(source, capability)).filter(|_| !anew) {
        return Ok(cubin.clone());
    }
    bound::open(Library::Nvrtc)?;
    let text = SHARED.concat() + source.text();
    let options = options(capability);
    let kept = Kept::of(&text, &options, Library::Nvrtc.open()?);
    let cubin = match kept.as_ref().filter(|_| !anew).and_then(Kept::read) {
        Some(cubin) => cubin,
        None => {
            let made = compile(source, text, &options, capability)?;
            kept.iter().for_each(|kept| kept.write(&made));
            made
        }
    };
    let cubin = Arc::new(cubin);
    known.insert((source, capability), cubin.clone());
    Ok(cubin)
}

/// Machine code for just that GPU: intermediate code of a newer NVRTC than the driver would not load.
fn options((major, minor): (i32, i32)) -> [String; 3] {
    [format!("--gpu-architecture=sm_{major}{minor}"), "--fmad=false".into(), "--std=c++17".into()]
}

#[expect(unsafe_code, reason = "calls the compiler")]
fn compile(source: Source, text: String, options: &[String], capability: (i32, i32)) -> Result<Vec<u8>, Fault> {
    let answered = |e: NvrtcError| Library::Nvrtc.answer(e.0 as c_int);
    let refused = |e: NvrtcError| Fault::Refused { library: Library::Nvrtc, answer: answered(e) };
    let text = CString::new(text).map_err(|_| Fault::shape("a file of kernels holds a zero"))?;
    let program = Program(result::create_program(&text, None).map_err(refused)?);
    // SAFETY: the program lives, and so does its text.
    if unsafe { result::compile_program(program.0, options) }.is_err() {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) }.map_err(refused)?;
        let bytes: Vec<u8> = log.iter().map(|c| *c as u8).collect();
        let log = CStr::from_bytes_until_nul(&bytes).map(|l| l.to_string_lossy().trim().to_owned()).unwrap_or_default();
        let (major, minor) = capability;
        return Err(Fault::Compiler { file: source.file(), capability: format!("{major}.{minor}"), log });
    }
    let mut size = 0;
    // SAFETY: writes one number; then as many bytes as it has said.
    unsafe {
        sys::nvrtcGetCUBINSize(program.0, &mut size).result().map_err(refused)?;
        let mut cubin = vec![0u8; size];
        sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()).result().map_err(refused)?;
        Ok(cubin)
    }
}

/// A program of the compiler's, which is destroyed with it.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    #[expect(unsafe_code, reason = "calls the compiler")]
    fn drop(&mut self) {
        // SAFETY: made by `create_program`, and destroyed once. That it cannot be is no reason to stop.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
