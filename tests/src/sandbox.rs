//! Processes of a cluster that a test owns, and what it can do to them.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tl_client::{Client, Event, Job};
use tl_proto::{deadlines::Deadlines, spec::JobSpec, v1};
use tokio::sync::{Mutex, MutexGuard};

/// How long anything may take before a test gives it up: two minutes, or as many seconds as `TL_PATIENCE` says.
fn patience() -> Duration {
    let told = std::env::var("TL_PATIENCE").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(told.unwrap_or(120))
}

static ONE: Mutex<()> = Mutex::const_new(());

/// Clusters run one at a time: two on two cores would turn each other's deadlines into failures.
pub async fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().await
}

/// The same for a test that waits for processes by itself.
pub fn alone_blocking() -> MutexGuard<'static, ()> {
    ONE.blocking_lock()
}

/// Step, name and bits of every value that does not depend on time, in order.
pub type Series = BTreeMap<(u64, String), u64>;

/// Looks until `look` finds something.
///
/// # Panics
/// After two minutes, or as many seconds as `TL_PATIENCE` says.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What stands before the program of a worker.
enum Wrap<'a> {
    /// Nothing.
    Plain,
    /// A line of shell that is run first.
    Shell(&'a str),
    /// A network namespace.
    Namespace(&'a str),
}

/// A worker's agent and its folder.
pub struct Worker {
    child: Child,
    /// Its data folder.
    pub data: PathBuf,
}

/// A cluster.
pub struct Sandbox {
    dir: tempfile::TempDir,
    program: PathBuf,
    coordinator: Option<Child>,
    grpc: String,
    /// Where the dashboard listens.
    pub http: String,
    /// The workers, in the order in which they were started.
    pub workers: Vec<Worker>,
    tokens: Option<(String, String)>,
    /// What workers that are started from now on find in their environment.
    pub environment: Vec<(&'static str, String)>,
    /// Whether jobs may read the sandbox's folder.
    roots: bool,
}

impl Sandbox {
    /// A coordinator and `workers` agents of one slot each.
    pub async fn start(program: &str, workers: usize) -> Self {
        let mut sandbox = Self::bare(program, None).await;
        for _ in 0..workers {
            sandbox.add_worker(&[]);
        }
        sandbox.ready(workers).await;
        sandbox
    }

    /// The same with workers that let jobs read no folder at all.
    pub async fn start_rootless(program: &str, workers: usize) -> Self {
        let mut sandbox = Self::bare(program, None).await;
        sandbox.roots = false;
        for _ in 0..workers {
            sandbox.add_worker(&[]);
        }
        sandbox.ready(workers).await;
        sandbox
    }

    /// A coordinator alone, with a user and a node token if they are given.
    pub async fn bare(program: &str, tokens: Option<(&str, &str)>) -> Self {
        Self::bare_on(program, tokens, "127.0.0.1:0").await
    }

    /// The same, listening on an address of this machine.
    pub async fn bare_on(program: &str, tokens: Option<(&str, &str)>, listen: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let deadlines = Deadlines {
            lease_ms: 3_000,
            silence_ms: 2_000,
            grow_cooldown_ms: 1_500,
            // Ranks say why they have not met while somebody still listens.
            nccl_ready_ms: (patience() / 2).as_millis() as u64,
            ..Deadlines::default()
        };
        let text = toml::to_string(&deadlines).expect("a table");
        std::fs::write(dir.path().join("deadlines.toml"), text).expect("a file");
        let any = "127.0.0.1:0".to_owned();
        let tokens = tokens.map(|(u, n)| (u.to_owned(), n.to_owned()));
        let mut sandbox = Self {
            dir,
            program: program.into(),
            coordinator: None,
            grpc: listen.to_owned(),
            http: any,
            workers: Vec::new(),
            tokens,
            environment: Vec::new(),
            roots: true,
        };
        sandbox.start_coordinator();
        sandbox
    }

    /// The sandbox's folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where gRPC listens.
    pub fn address(&self) -> &str {
        &self.grpc
    }

    /// The coordinator's blobs.
    pub fn blobs(&self) -> PathBuf {
        self.dir.path().join("coordinator/blobs")
    }

    /// Starts the coordinator, on the ports that it had before if it had any.
    pub fn start_coordinator(&mut self) {
        let mut command = Command::new(&self.program);
        command.args(["coordinator", "--child", "--listen", &self.grpc, "--http", &self.http]);
        command.arg("--data").arg(self.dir.path().join("coordinator"));
        command.arg("--deadlines").arg(self.dir.path().join("deadlines.toml"));
        if let Some((user, node)) = &self.tokens {
            command.env("TL_USER_TOKEN", user).env("TL_NODE_TOKEN", node);
        }
        let mut child = self.spawn(command, "coordinator.log", true);
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let bound: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|_| {
            panic!(
                "no coordinator: {}",
                std::fs::read_to_string(self.dir.path().join("coordinator.log")).unwrap_or_default()
            )
        });
        self.grpc = bound["grpc"].as_str().expect("an address").into();
        self.http = bound["http"].as_str().expect("an address").into();
        self.coordinator = Some(child);
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill_coordinator(&mut self) {
        let mut child = self.coordinator.take().expect("a coordinator");
        child.kill().expect("a signal");
        child.wait().expect("an end");
    }

    /// Starts the coordinator anew with other deadlines.
    pub fn change_deadlines(&mut self, change: impl FnOnce(&mut Deadlines)) {
        self.kill_coordinator();
        let path = self.dir.path().join("deadlines.toml");
        let text = std::fs::read_to_string(&path).expect("a file");
        let mut deadlines: Deadlines = toml::from_str(&text).expect("a table");
        change(&mut deadlines);
        std::fs::write(&path, toml::to_string(&deadlines).expect("a table")).expect("a file");
        self.start_coordinator();
    }

    fn spawn(&self, mut command: Command, log: &str, stdout: bool) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join(log)).expect("a log");
        command.env("TL_LOG", "info,tl_worker=debug,tl_coordinator=debug").stdin(Stdio::piped()).stderr(log);
        command.stdout(if stdout { Stdio::piped() } else { Stdio::null() }).spawn().expect("a process")
    }

    /// Starts one more worker; returns its number.
    pub fn add_worker(&mut self, arguments: &[&str]) -> usize {
        let n = self.workers.len();
        let data = self.dir.path().join(format!("worker-{n}"));
        let child = self.agent(n, &data, arguments, Wrap::Plain);
        self.workers.push(Worker { child, data });
        n
    }

    /// Starts one more worker under `sh -c`, which runs `before` first.
    pub fn add_limited_worker(&mut self, before: &str) -> usize {
        let n = self.workers.len();
        let data = self.dir.path().join(format!("worker-{n}"));
        let child = self.agent(n, &data, &[], Wrap::Shell(before));
        self.workers.push(Worker { child, data });
        n
    }

    /// Starts one more worker in a network namespace.
    pub fn add_worker_in(&mut self, namespace: &str) -> usize {
        let n = self.workers.len();
        let data = self.dir.path().join(format!("worker-{n}"));
        let child = self.agent(n, &data, &[], Wrap::Namespace(namespace));
        self.workers.push(Worker { child, data });
        n
    }

    /// Starts the agent of a worker anew, in its old folder.
    pub fn restart_worker(&mut self, n: usize) {
        let data = self.workers[n].data.clone();
        self.workers[n].child = self.agent(n, &data, &[], Wrap::Plain);
    }

    fn agent(&self, n: usize, data: &Path, arguments: &[&str], wrap: Wrap<'_>) -> Child {
        let mut command = match wrap {
            Wrap::Plain => Command::new(&self.program),
            Wrap::Namespace(name) => {
                let mut ip = Command::new("ip");
                ip.args(["netns", "exec", name]).arg(&self.program);
                ip
            }
            Wrap::Shell(before) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("{before}; exec \"$0\" \"$@\"")]).arg(&self.program);
                shell
            }
        };
        command.args(["worker", "--child", "--coordinator", &self.grpc, "--name", &format!("w{n}")]);
        if !arguments.contains(&"--threads") {
            command.args(["--threads", "1"]);
        }
        command.arg("--data").arg(data).args(arguments);
        if self.roots {
            command.arg("--data-root").arg(self.dir.path());
        }
        if let Some((_, node)) = &self.tokens {
            command.env("TL_NODE_TOKEN", node);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.spawn(command, &format!("worker-{n}.log"), false)
    }

    /// `kill -9` on an agent; waits until it is gone.
    pub fn kill_worker(&mut self, n: usize) {
        self.workers[n].child.kill().expect("a signal");
        self.workers[n].child.wait().expect("an end");
    }

    /// A signal to an agent.
    pub fn signal_worker(&self, n: usize, signal: Signal) {
        kill(Pid::from_raw(self.workers[n].child.id() as i32), signal).expect("a signal");
    }

    /// Waits for an agent to end by itself.
    pub async fn worker_ends(&mut self, n: usize) -> std::process::ExitStatus {
        let child = &mut self.workers[n].child;
        eventually("the end of a worker", async || child.try_wait().expect("a status")).await
    }

    /// Processes of the ranks of a worker.
    pub fn ranks(&self, n: usize) -> Vec<i32> {
        let agent = self.workers[n].child.id() as i32;
        processes()
            .into_iter()
            .filter(|(_, parent, words)| *parent == agent && words.ends_with(" rank"))
            .map(|p| p.0)
            .collect()
    }

    /// A client.
    pub async fn client(&self) -> Client {
        let token = self.tokens.as_ref().map(|(user, _)| user.as_str());
        Client::connect(&self.grpc, token).await.expect("a coordinator")
    }

    /// Waits until `n` nodes are ready.
    pub async fn ready(&self, n: usize) {
        let client = self.client().await;
        eventually("ready nodes", async || {
            let nodes = client.nodes().await.ok()?;
            (nodes.iter().filter(|n| n.status == "ready").count() == n).then_some(())
        })
        .await;
    }

    /// Submits a job.
    pub async fn submit(&self, spec: &JobSpec) -> Job {
        self.client().await.submit(spec).await.expect("a job")
    }

    /// Waits until a training phase has passed `step`.
    pub async fn passes(&self, job: &Job, step: u64) {
        let mut watch = job.watch(0);
        let wait = async {
            while let Some(event) = watch.next().await.expect("events") {
                match event {
                    Event::Metric(row) if row.step >= step => return,
                    _ => {}
                }
            }
            panic!("the job ended before step {step}");
        };
        tokio::time::timeout(patience(), wait).await.unwrap_or_else(|_| panic!("step {step} did not come in time"));
    }

    /// Waits for the end of a job; what it was, its series, and the digest of its model if there is one.
    pub async fn ends(&self, job: &Job) -> (v1::Job, Series, Option<String>) {
        let mut watch = job.watch(0);
        let wait = async {
            let (mut series, mut last) = (Series::new(), None);
            while let Some(event) = watch.next().await.expect("events") {
                match event {
                    Event::Metric(row) => add(&mut series, &row),
                    Event::Job(job) => last = Some(*job),
                    Event::Activity(_) | Event::Away(_) => {}
                }
            }
            (last.expect("an end"), series)
        };
        let (ended, series) = match tokio::time::timeout(patience(), wait).await {
            Ok(found) => found,
            Err(_) => panic!("the job did not end in time: {:#?}\n{}", job.get().await, self.logs()),
        };
        let artifacts = job.artifacts().await.expect("artifacts");
        let model = artifacts.into_iter().rfind(|a| a.name == "model.safetensors");
        (ended, series, model.and_then(|a| Some(a.blob?.digest)))
    }

    /// What all processes have logged.
    pub fn logs(&self) -> String {
        let files = std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten().map(|e| e.path());
        let logs = files.filter(|p| p.extension().is_some_and(|e| e == "log"));
        logs.map(|p| format!("== {}\n{}", p.display(), std::fs::read_to_string(&p).unwrap_or_default())).collect()
    }
}

/// Adds what does not depend on time.
fn add(series: &mut Series, row: &v1::MetricRow) {
    for (name, value) in row.values.iter().filter(|(name, _)| *name != "samples_per_s") {
        series.insert((row.step, name.clone()), value.to_bits());
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let children = self.workers.iter_mut().map(|w| &mut w.child).chain(&mut self.coordinator);
        for child in children {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// Every process: id, parent, command line. Zombies are not counted.
pub fn processes() -> Vec<(i32, i32, String)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let read = |e: std::fs::DirEntry| {
        let id: i32 = e.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(e.path().join("stat")).ok()?;
        let mut after = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, parent) = (after.next()?, after.next()?.parse().ok()?);
        let words = std::fs::read(e.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).replace('\0', " ").trim_end().to_owned();
        (state != "Z").then_some((id, parent, words))
    };
    entries.filter_map(read).collect()
}
