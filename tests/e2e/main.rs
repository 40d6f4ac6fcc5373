//! End-to-end tests. The architecture of the tree is one of them.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod aimed;
mod architecture;
mod bad_input;
mod bench_script;
mod commands;
mod dashboard;
mod datasets;
mod elastic;
mod faults;
mod gpu_script;
mod hub;
mod odd_calls;
mod pairs;
mod pipelines;
mod teaching;
mod transfer;

/// The program whose mains the sandbox runs.
const PROGRAM: &str = env!("CARGO_BIN_EXE_tl-sandbox");
