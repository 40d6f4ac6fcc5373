//! The job file: its shape, how it is read, and the checks that need nothing but itself and the catalog.

mod check;
mod check_adapter;
mod check_model;
mod check_pairs;
mod check_params;
mod check_stage;
mod episodes;
mod hub;
mod model;
mod nets;
mod pairs;
mod parse;
mod paths;
mod pipeline;
mod precision;
mod recipe;
mod sampling;
mod schema;
mod stage;

pub use check::{check, check_shape};
pub use check_pairs::TOWER;
pub use episodes::{EpisodeShape, EpisodesSection, Rotations};
pub use hub::{Fetched, HUB_FILE, Hub, Source, SourceFile};
pub use model::*;
pub use pairs::{PairedBy, PairsSection};
pub use parse::{SpecError, parse, set_override};
pub use paths::Pushed;
pub use pipeline::{CompareSection, StepSection};
pub use precision::Precision;
pub use recipe::RecipeSection;
pub use sampling::*;
pub use schema::schema;
pub use stage::*;
