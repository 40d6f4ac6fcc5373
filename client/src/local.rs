//! A whole cluster on this machine: a coordinator and workers, each a process of its own that dies with this one.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{Client, Error};

/// How long processes may take to be there, and to go. Workers look at their machine besides.
const PATIENCE: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(5);

/// What to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where coordinator and workers keep their things.
    pub data: PathBuf,
    /// Feature cache that the workers share.
    pub cache: PathBuf,
    /// How many workers, of one rank each.
    pub workers: u32,
    /// Where gRPC listens; `127.0.0.1:0` takes a free port.
    pub listen: String,
    /// Where the dashboard listens.
    pub http: String,
    /// Where the processes log to; to this one's standard error without it.
    pub log: Option<PathBuf>,
}

/// Processes of a cluster. They end when this is dropped, and when this process ends in whatever way.
pub struct Cluster {
    coordinator: Child,
    workers: Vec<Child>,
    /// Where gRPC listens.
    pub grpc: String,
    /// Where the dashboard listens.
    pub http: Option<String>,
}

/// Where the coordinator says that it listens.
#[derive(Deserialize)]
struct Bound {
    grpc: String,
    http: Option<String>,
}

impl Cluster {
    /// Starts a cluster and waits until all of it is there. Must be called from a thread that lives as long as the
    /// cluster: on Linux the workers are killed when it ends.
    ///
    /// # Errors
    /// A process that does not start, with its last words.
    pub async fn start(config: &Config) -> Result<Self, Error> {
        std::fs::create_dir_all(&config.data).map_err(Error::file(&config.data))?;
        let arguments: Vec<OsString> = vec![
            "coordinator".into(),
            "--child".into(),
            "--listen".into(),
            config.listen.clone().into(),
            "--http".into(),
            config.http.clone().into(),
            "--data".into(),
            config.data.join("coordinator").into(),
        ];
        let mut coordinator = spawn(config, arguments, true)?;
        let bound = listening(&mut coordinator, config).await?;
        let mut cluster = Self { coordinator, workers: Vec::new(), grpc: bound.grpc, http: bound.http };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cores = (cores / config.workers.max(1) as usize).max(1);
        for n in 1..=config.workers {
            // Each has a GPU of its own, as far as there are any, and the CPU for jobs of more ranks than GPUs. It shares its
            // part of the cores out between them.
            let gpu = format!("{}?", n - 1);
            let arguments: Vec<OsString> = vec![
                "worker".into(),
                "--child".into(),
                "--coordinator".into(),
                cluster.grpc.clone().into(),
                "--name".into(),
                format!("local-{n}").into(),
                "--data".into(),
                config.data.join(format!("worker-{n}")).into(),
                "--cache".into(),
                config.cache.clone().into(),
                "--cores".into(),
                cores.to_string().into(),
                "--slots".into(),
                "1".into(),
                "--gpus".into(),
                gpu.into(),
                // Whoever starts a cluster here may read what the jobs may read.
                "--data-root".into(),
                "/".into(),
            ];
            cluster.workers.push(spawn(config, arguments, false)?);
        }
        cluster.complete(config).await?;
        Ok(cluster)
    }

    /// A client of the cluster.
    ///
    /// # Errors
    /// The coordinator is gone.
    pub async fn client(&self) -> Result<Client, Error> {
        let token = std::env::var("TL_USER_TOKEN").ok();
        Client::connect(&self.grpc, token.as_deref()).await
    }

    /// Waits until every worker has said hello.
    async fn complete(&mut self, config: &Config) -> Result<(), Error> {
        let client = self.client().await?;
        let deadline = Instant::now() + PATIENCE + tl_worker::machine::inventory::LONGEST;
        loop {
            let ready = client.nodes().await?.iter().filter(|n| n.status == "ready").count();
            if ready >= self.workers.len() {
                return Ok(());
            }
            for worker in &mut self.workers {
                if let Ok(Some(status)) = worker.try_wait() {
                    return Err(died("a worker", &status.to_string(), config));
                }
            }
            if Instant::now() > deadline {
                return Err(died("a worker", "it did not connect in time", config));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns when a process of the cluster has ended, which none should.
    pub async fn broken(&mut self) -> Error {
        loop {
            let all = self.workers.iter_mut().chain([&mut self.coordinator]);
            for child in all {
                if let Ok(Some(status)) = child.try_wait() {
                    return Error::Local(format!("a process of the local cluster ended: {status}"));
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Ends all processes, and returns when they are gone.
    pub async fn stop(mut self) {
        for child in self.workers.iter_mut().chain([&mut self.coordinator]) {
            // The end of its standard input is the order to end.
            drop(child.stdin.take());
        }
        for child in self.workers.iter_mut().chain([&mut self.coordinator]) {
            if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }
}

fn spawn(config: &Config, arguments: Vec<OsString>, listen: bool) -> Result<Child, Error> {
    let program = std::env::current_exe().map_err(|e| Error::Local(format!("this program is not to be found: {e}")))?;
    let log = match &config.log {
        Some(path) => {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(Error::file(path))?;
            Stdio::from(file)
        }
        None => Stdio::inherit(),
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stderr(log).kill_on_drop(true);
    // Of its own group, so that Ctrl-C reaches us alone and we end it in order.
    command.stdout(if listen { Stdio::piped() } else { Stdio::null() }).process_group(0);
    command.spawn().map_err(|e| Error::Local(format!("a process cannot be started: {e}")))
}

async fn listening(coordinator: &mut Child, config: &Config) -> Result<Bound, Error> {
    let stdout = coordinator.stdout.take().ok_or_else(|| Error::Local("the coordinator has no output".into()))?;
    let mut lines = BufReader::new(stdout).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
    match line {
        Ok(Ok(Some(line))) => {
            serde_json::from_str(&line).map_err(|e| Error::Local(format!("the coordinator said something odd: {e}")))
        }
        Ok(_) => {
            let status = coordinator.wait().await.map_or_else(|e| e.to_string(), |s| s.to_string());
            Err(died("the coordinator", &status, config))
        }
        Err(_) => Err(died("the coordinator", "it did not start in time", config)),
    }
}

fn died(who: &str, how: &str, config: &Config) -> Error {
    let words = config.log.as_deref().map(last_line).unwrap_or_default();
    Error::Local(if words.is_empty() { format!("{who} did not start: {how}") } else { words })
}

/// The last line that says what was wrong.
fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().find_map(|l| l.strip_prefix("error: ")).unwrap_or_default().to_owned()
}
