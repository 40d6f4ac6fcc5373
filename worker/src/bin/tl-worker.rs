//! `tl-worker`: see `--help`.

use std::process::ExitCode;

use clap::Parser;

/// Offers this machine to a coordinator.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    args: tl_worker::cli::Args,
}

#[derive(clap::Subcommand)]
enum Role {
    /// Look at this machine, and try what a rank does
    Doctor(tl_worker::machine::doctor::Args),
    /// One rank, started by an agent
    #[command(hide = true)]
    Rank,
    /// A look at GPUs for an agent
    #[command(hide = true)]
    Look(tl_worker::machine::look::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tl_worker::cli::logging();
    match cli.role {
        Some(Role::Rank) => return tl_worker::rank::main(),
        Some(Role::Look(args)) => return tl_worker::machine::look::main(&args),
        Some(Role::Doctor(args)) if tl_worker::machine::doctor::main(&args) => return ExitCode::SUCCESS,
        Some(Role::Doctor(_)) => return ExitCode::FAILURE,
        None => {}
    }
    match tl_worker::cli::main(cli.args, vec!["rank".into()]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
