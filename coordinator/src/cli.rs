//! The command line of `tl-coordinator`; `tlctl` runs it too.

use std::{net::SocketAddr, path::PathBuf};

use tl_proto::deadlines::Deadlines;

use crate::config::{Config, Tokens};

/// Takes jobs, places them on nodes, shows a dashboard.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where gRPC listens
    #[arg(long, default_value = "127.0.0.1:7070", env = "TL_LISTEN")]
    listen: SocketAddr,
    /// Where the dashboard listens
    #[arg(long, default_value = "127.0.0.1:7080", env = "TL_HTTP")]
    http: SocketAddr,
    /// Folder for the log, the series and the blobs
    #[arg(long, default_value = "tl-data/coordinator", env = "TL_DATA")]
    data: PathBuf,
    /// Bucket for checkpoints, models and data sets, such as `s3://bucket/folder` [default: in the data folder]
    #[arg(long, env = "TL_BLOBS")]
    blobs: Option<String>,
    /// Token of users; needed off loopback
    #[arg(long, env = "TL_USER_TOKEN", hide_env_values = true)]
    user_token: Option<String>,
    /// Token of nodes; needed off loopback
    #[arg(long, env = "TL_NODE_TOKEN", hide_env_values = true)]
    node_token: Option<String>,
    /// A TOML file with deadlines that differ from the defaults
    #[arg(long)]
    deadlines: Option<PathBuf>,
    /// Print where it listens as one line of JSON, and end when standard input does
    #[arg(long, hide = true)]
    child: bool,
}

/// Runs a coordinator until it is interrupted.
///
/// # Errors
/// It cannot start, or its server fails.
pub fn main(args: Args) -> anyhow::Result<()> {
    let deadlines = match &args.deadlines {
        None => Deadlines::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|e| anyhow::anyhow!("`{}` cannot be read: {e}", path.display()))?;
            toml::from_str(&text).map_err(|e| anyhow::anyhow!("`{}`: {}", path.display(), e.message()))?
        }
    };
    let config = Config {
        listen: args.listen,
        http: Some(args.http),
        data: args.data,
        blobs: args.blobs,
        tokens: Tokens { user: args.user_token, node: args.node_token },
        deadlines,
    };
    let child = args.child;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ready = move |bound: crate::Bound| {
        tracing::info!("gRPC on {}", bound.grpc);
        if let Some(http) = bound.http {
            tracing::info!("dashboard on http://{http}");
        }
        if child {
            println!("{}", serde_json::to_string(&bound).unwrap_or_default());
        }
    };
    let result = runtime.block_on(crate::run(config, ready, stop(child)));
    // Stores are closed; a stream that is still open must not hold the process.
    runtime.shutdown_background();
    Ok(result?)
}

/// Done when the process is asked to end.
async fn stop(child: bool) {
    use tokio::signal::unix::{SignalKind, signal};
    let parent = async {
        if !child {
            return std::future::pending().await;
        }
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        // Nothing is ever written: the end of the stream is the end of the parent.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            drop(ended);
        });
        let _ = end.await;
    };
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        () = parent => {}
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Logs to standard error, as `TL_LOG` says (`info` without it).
pub fn logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TL_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
