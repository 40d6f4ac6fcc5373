//! The job file: its shape, how it is read, and the checks that need nothing but itself and the catalog.

mod check;
mod model;
mod parse;
mod paths;
mod schema;

pub use check::{check, check_shape};
pub use model::*;
pub use parse::{SpecError, parse, set_override};
pub use paths::Pushed;
pub use schema::schema;
