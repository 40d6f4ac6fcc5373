//! The job file: its shape, how it is read, and the checks that need nothing but itself and the catalog.

mod check;
mod model;
mod parse;

pub use check::{check, check_names};
pub use model::*;
pub use parse::{SpecError, parse, set_override};
