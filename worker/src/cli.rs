//! The command line of `tl-worker`; `tlctl` runs it too.

use std::{ffi::OsString, net::IpAddr, path::PathBuf};

use crate::{
    agent::{self, Config},
    machine::inventory::Offer,
    supervise::command::RankCommand,
};

/// Offers this machine to a coordinator.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the coordinator is
    #[arg(long, default_value = "127.0.0.1:7070", env = "TL_COORDINATOR")]
    coordinator: String,
    /// Token of nodes
    #[arg(long, env = "TL_NODE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Folder for the identity of the node, caches and running work
    #[arg(long, default_value = "tl-data/worker", env = "TL_WORKER_DATA")]
    data: PathBuf,
    /// Folder for features of frozen networks, and for what is compiled for GPUs; may be shared by the nodes of a machine
    /// [default: in the data folder]
    #[arg(long, env = "TL_CACHE")]
    cache: Option<PathBuf>,
    /// Gigabytes that the feature cache may take; what was not used for longest goes first
    #[arg(long, default_value_t = 20)]
    cache_gib: u64,
    /// A label for the node [default: the host's name]
    #[arg(long)]
    name: Option<String>,
    /// Ranks that may run on the CPU at once, beside those on GPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=256))]
    slots: u32,
    /// GPUs to offer, of those that work, for a rank each: all, none, or their numbers, as in 0,2
    #[arg(long, default_value = "all")]
    gpus: Offer,
    /// Offer GPUs also where another worker of this machine has them, for tests of two ranks on one
    #[arg(long, hide = true)]
    share_gpus: bool,
    /// Threads of a rank; 0 shares the cores among the slots: where there are GPUs, half of them among CPU slots
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Cores to share [default: all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    cores: Option<u32>,
    /// A folder that jobs may read; may be given more than once
    #[arg(long = "data-root")]
    roots: Vec<PathBuf>,
    /// Address under which other nodes reach this one [default: the one used towards the coordinator]
    #[arg(long)]
    advertise: Option<IpAddr>,
    /// End when standard input does
    #[arg(long, hide = true)]
    child: bool,
}

/// Runs an agent until it is told to end. This program with the arguments `rank` is a rank.
///
/// # Errors
/// It cannot start, or the coordinator refuses it.
pub fn main(args: Args, rank: Vec<OsString>) -> anyhow::Result<()> {
    let config = Config {
        coordinator: args.coordinator,
        token: args.token,
        data: args.data,
        cache: args.cache,
        name: args.name,
        slots: args.slots,
        gpus: args.gpus,
        share_gpus: args.share_gpus,
        threads: args.threads,
        cores: args.cores,
        roots: args.roots,
        advertise: args.advertise,
        command: RankCommand::ourselves(rank)?,
        cache_bytes: args.cache_gib.saturating_mul(1 << 30),
    };
    if args.child {
        crate::supervise::orphans::die_with_parent();
        std::thread::spawn(|| {
            // Nothing is ever written: the end of the stream is the end of the parent.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            std::process::exit(1);
        });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (asked, wish) = tokio::sync::oneshot::channel::<()>();
        let twice = async {
            let mut asked = Some(asked);
            loop {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                // The first one is a wish, the second an order.
                match asked.take() {
                    Some(first) => drop(first),
                    None => return,
                }
            }
        };
        let stop = async {
            let _ = wish.await;
        };
        tokio::select! {
            result = agent::run(config, stop) => Ok(result?),
            () = twice => Ok(()),
        }
    });
    runtime.shutdown_background();
    result
}

/// Logs to standard error, as `TL_LOG` says (`info` without it).
pub fn logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TL_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
}
