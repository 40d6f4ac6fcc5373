//! The job file: its shape, how it is read, and the checks that need nothing but itself and the catalog.

mod baseline;
mod check;
mod check_adapter;
mod check_model;
mod check_params;
mod check_pipeline;
mod check_stage;
mod gate;
mod handed;
mod hub;
mod metric;
mod model;
mod parse;
mod paths;
mod pipeline;
mod precision;
mod recipe;
mod runs;
mod sampling;
mod schema;
mod stage;

pub use baseline::{BaselineSection, baselines};
pub use check::{check, check_shape};
pub use gate::{Gate, Gates, Side};
pub use handed::Handed;
pub use hub::{Fetched, HUB_FILE, Hub, Source, SourceFile};
pub use metric::{METRICS, Metric};
pub use model::*;
pub use parse::{SpecError, parse, set_override};
pub use paths::Pushed;
pub use pipeline::{CompareSection, StepSection};
pub use precision::Precision;
pub use recipe::RecipeSection;
pub use sampling::*;
pub use schema::schema;
pub use stage::*;
