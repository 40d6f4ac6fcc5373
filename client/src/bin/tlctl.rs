//! The command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!("tlctl is not built yet; the README says what is");
    ExitCode::from(2)
}
