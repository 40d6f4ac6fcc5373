//! NVIDIA's libraries, found and opened when they are first needed, so that a program that can use a GPU starts where there
//! is none, and what is missing or too old is an error that names it.
//!
//! Nothing is linked: neither building nor starting needs a driver, a toolkit or any of their libraries.
//!
//! * [`Library`] knows what each library is called and where it is looked for: first in the folders of `NVLIB_PATH`, then
//!   where the system's loader looks, then where containers and distributions are known to put it; everywhere for what fits
//!   the driver before what is too new for it. What it needs beside it comes along.
//! * [`driver`] asks the driver which GPUs there are.
//!
//! **Why not cudarc's own loading.** It panics where a library or a symbol is missing, and it never asks for `libnccl.so.2`,
//! the only name that NCCL's packages without headers have. Whoever uses cudarc opens the library here first: the system's
//! loader then hands cudarc the very same one by its soname, and an absent one was an error before cudarc could panic. Where it
//! hands cudarc another one, since that asks for names of headers first, [`Opened::expect`] says so.
//!
//! **Why not trampolines**, which satisfy `-lcuda` at link time and look the function up when it is called first: they are
//! needed where a crate asks for linking, as candle's `cuda` feature does, and are assembler for one architecture. Nothing
//! here asks for that.

mod answer;
mod beside;
pub mod driver;
mod elsewhere;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod library;
#[cfg(any(test, feature = "fake"))]
pub mod one_gpu;
mod version;

pub use elsewhere::Elsewhere;
pub use library::{Library, Missing, NoSymbol, Opened};
