//! A driver and an NCCL that need no GPU, for tests of whoever uses the real ones. They show that calls are made as they
//! should be; what a GPU does with them they do not show.

use std::{io, path::Path, process::Command};

/// What the driver calls its GPUs.
pub const GPU: &str = "Fake GPU";

const SOURCES: [(&str, &str); 2] = [("libcuda.so.1", include_str!("cuda.c")), ("libnccl.so.2", include_str!("nccl.c"))];

/// Compiles both into a folder; `NVLIB_PATH` or [`crate::Library::open_from`] make a process take them.
///
/// # Errors
/// There is no C compiler, or it refuses.
pub fn build(dir: &Path) -> io::Result<()> {
    for (soname, text) in SOURCES {
        let source = dir.join(soname).with_extension("c");
        std::fs::write(&source, text)?;
        let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        cc.args(["-shared", "-fPIC", "-O1", "-pthread", "-o"]).arg(dir.join(soname)).arg(&source);
        let done = cc.arg(format!("-Wl,-soname,{soname}")).status()?;
        if !done.success() {
            return Err(io::Error::other(format!("{soname} cannot be compiled")));
        }
    }
    Ok(())
}
