//! Which GPUs and libraries there are. Makes no context on any GPU.

use nccl_rs::{Nccl, Standing};
use nvlib::{Library, driver};
use tl_proto::hardware::Gpu;

use super::{Found, Gpus};

/// Asks the driver, and looks for the libraries.
pub fn look() -> Gpus {
    let libraries = Library::ALL.into_iter().map(found).collect::<Vec<_>>();
    // One that cannot be used is none to bring ranks together by.
    let usable = |l: &&Found| l.name == Library::Nccl.name() && Nccl::open().is_ok();
    let nccl = libraries.iter().find(usable).map(|l| l.version.clone());
    let mut all = Gpus { libraries, nccl: nccl.unwrap_or_default(), ..Gpus::default() };
    match driver::probe() {
        Err(e) => all.note = e.to_string(),
        Ok(found) => {
            all.note = match found.gpus.len() {
                0 => "the NVIDIA driver is there and sees no GPU".into(),
                _ => String::new(),
            };
            all.cuda = found.cuda.to_string();
            // In a container the module's version may be out of sight.
            all.driver = if found.module.is_empty() { format!("for CUDA {}", found.cuda) } else { found.module };
            all.gpus = found.gpus.into_iter().map(gpu).collect();
        }
    }
    all
}

fn gpu(found: driver::Gpu) -> Gpu {
    let compute = format!("{}.{}", found.compute.0, found.compute.1);
    let (index, name, uuid, memory) = (found.index, found.name, found.uuid, found.memory);
    Gpu { index, name, uuid, memory, compute, ..Gpu::default() }
}

fn found(library: Library) -> Found {
    let name = library.name().to_owned();
    let opened = match library.open() {
        Ok(opened) => opened,
        Err(missing) => return Found { name, problem: missing.to_string(), ..Found::default() },
    };
    let (path, version) = (opened.path().display().to_string(), opened.version().unwrap_or_default());
    let problem = if library == Library::Nccl { nccl_problem() } else { String::new() };
    Found { name, version, path, problem }
}

/// What is wrong with the NCCL that is there.
fn nccl_problem() -> String {
    match Nccl::open() {
        Err(e) => e.to_string(),
        Ok(nccl) => match nccl.version().standing() {
            Standing::Warned(why) => why.to_owned(),
            _ => String::new(),
        },
    }
}
