//! `tlctl`.

mod args;
mod compared;
mod data;
mod earlier;
mod jobs;
#[cfg(feature = "local")]
mod local;
mod nodes;
mod offline;
mod output;
mod plan;
mod settings;
#[cfg(feature = "local")]
mod verify;

use std::process::ExitCode;

use clap::Parser;
use tl_proto::catalog::Catalog;

use self::{
    args::{Cli, Command},
    output::Output,
    settings::Settings,
};
use crate::{Client, Error};

/// The exit code of a job that failed, of one that was cancelled, and of an interrupted command.
const FAILED: u8 = 1;
const CANCELLED: u8 = 3;
const INTERRUPTED: u8 = 130;

/// Runs `tlctl` with the arguments of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(feature = "local")]
    let cli = match local::role(cli) {
        Ok(code) => return code,
        Err(cli) => *cli,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    };
    let output = Output::new(cli.global.output);
    // On this thread, which lives as long as the process: local workers die with the thread that started them.
    let result = runtime.block_on(run(cli, &output));
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            output.error(&e);
            ExitCode::from(e.exit_code())
        }
    }
}

async fn run(cli: Cli, output: &Output) -> Result<u8, Error> {
    let settings = Settings::read(&cli.global)?;
    let connect = async || Client::connect(&settings.coordinator, settings.token.as_deref()).await;
    match cli.command {
        Command::Submit(a) => jobs::submit(&connect().await?, a, output).await,
        Command::Watch(a) => jobs::watch(&connect().await?, &a.job, output).await,
        Command::Ls(a) => jobs::list(&connect().await?, &a, output).await,
        Command::Show(a) => jobs::show(&connect().await?, &a.job, output).await,
        Command::Why(a) => jobs::why(&connect().await?, &a.job, output).await,
        Command::Logs(a) => jobs::logs(&connect().await?, &a, output).await,
        Command::Cancel(a) => jobs::cancel(&connect().await?, &a.job, output).await,
        Command::Retry(a) => jobs::retry(&connect().await?, &a.job, output).await,
        Command::Rm(a) => jobs::remove(&connect().await?, &a.job, output).await,
        Command::Fetch(a) => jobs::fetch(&connect().await?, &a, output).await,
        Command::Plan(a) => plan::run(&connect().await?, &a, output).await,
        Command::Data(a) => data::run(&connect().await?, a, output).await,
        Command::Nodes => nodes::list(&connect().await?, output).await,
        Command::Drain(a) => nodes::drain(&connect().await?, &a, output).await,
        Command::Catalog => offline::catalog(catalog(&connect).await?, output),
        Command::Schema => offline::schema(&catalog(&connect).await?, output),
        Command::Check(a) => offline::check(&a, &catalog(&connect).await?, output),
        Command::Init(a) => offline::init(&a, output),
        Command::Completions(a) => Ok(offline::completions(&a)),
        #[cfg(feature = "local")]
        Command::Predict(a) => local::predict(&a, output),
        #[cfg(feature = "local")]
        Command::Evaluate(a) => local::evaluate(&a, output),
        #[cfg(feature = "local")]
        Command::Verify(a) => verify::run(&a, output),
        #[cfg(feature = "local")]
        Command::Local(a) => local::run(a.command, output).await,
        #[cfg(feature = "local")]
        Command::Coordinator(_) | Command::Worker(_) | Command::Rank | Command::Look(_) => Ok(FAILED),
    }
}

/// What this build can do, or, without an engine in it, what the coordinator's workers can.
async fn catalog(connect: &impl AsyncFn() -> Result<Client, Error>) -> Result<Catalog, Error> {
    if cfg!(feature = "local") {
        #[cfg(feature = "local")]
        return Ok(tl_worker::rank::catalog());
    }
    connect().await?.catalog().await
}

/// What the coordinator's workers can do; where none has told yet, what this build can, if it has an engine.
async fn told(client: &Client) -> Catalog {
    #[cfg(feature = "local")]
    let own = tl_worker::rank::catalog;
    #[cfg(not(feature = "local"))]
    let own = Catalog::default;
    client.catalog().await.unwrap_or_else(|_| own())
}
