//! A sandbox for end-to-end tests: real processes on loopback, a data folder for each, real kills.

pub mod data;
pub mod jobs;
mod sandbox;

pub use sandbox::{Sandbox, Series, Worker, alone, alone_blocking, eventually, processes};
