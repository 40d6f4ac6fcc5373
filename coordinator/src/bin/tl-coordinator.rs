//! `tl-coordinator`: see `--help`.

use clap::Parser;

/// Takes jobs, places them on nodes, shows a dashboard.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    args: tl_coordinator::cli::Args,
}

fn main() -> std::process::ExitCode {
    tl_coordinator::cli::logging();
    match tl_coordinator::cli::main(Cli::parse().args) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}
