//! The agent of a node: keeps a session with the coordinator, and ranks as the coordinator wants them.

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, TcpListener, ToSocketAddrs, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tl_proto::{
    hardware::{Device, Hardware},
    v1::{self, agent_message::Body},
};
use tokio::sync::watch;
use tonic::Code;

use crate::{
    machine::{
        inventory::{self, Offer},
        quarantine::Ward,
        threads::Threads,
    },
    rank,
    session::{
        control::{Identity, Session},
        outbox::Outbox,
        remote::Remote,
        report::Reporter,
    },
    store::{
        blobs::Blobs,
        datasets::DataSets,
        folder::{self, Home},
        hub::Models,
        roots::Roots,
    },
    supervise::{
        command::RankCommand,
        process::Context,
        spawner::Spawner,
        supervisor::{Census, Slot, Supervisor},
    },
};

/// First and longest pause between two tries to reach the coordinator.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long another agent may be connected under our identity before we give up: longer than any lease.
const TWIN: Duration = Duration::from_secs(20);

/// How long a node that is to go waits for a coordinator that is away, and one that has nothing to tell it.
const FAREWELLS: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(2));

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the coordinator is.
    pub coordinator: String,
    /// Its node token.
    pub token: Option<String>,
    /// The node's folder.
    pub data: PathBuf,
    /// The feature cache; in the node's folder without it.
    pub cache: Option<PathBuf>,
    /// A label; the host's name without it.
    pub name: Option<String>,
    /// Ranks on the CPU at once, beside those on GPUs.
    pub slots: u32,
    /// Which GPUs are offered, one rank on each.
    pub gpus: Offer,
    /// Whether that is so where another agent has them.
    pub share_gpus: bool,
    /// Threads per rank; 0 shares the cores among the slots.
    pub threads: usize,
    /// Cores that are shared, where not all of the machine's.
    pub cores: Option<u32>,
    /// Folders that jobs may read.
    pub roots: Vec<PathBuf>,
    /// The address under which other nodes reach this one; found out without it.
    pub advertise: Option<IpAddr>,
    /// The command line of a rank.
    pub command: RankCommand,
    /// Bytes that the feature cache may take.
    pub cache_bytes: u64,
}

/// Why an agent does not start, or gives up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its folder.
    #[error(transparent)]
    Home(#[from] folder::Error),
    /// What it was told.
    #[error("{0}")]
    Config(String),
    /// The coordinator will never take it.
    #[error("the coordinator refuses this node: {0}")]
    Refused(String),
    /// The system.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Runs an agent until `stop` is done; then empties the node, says so and ends.
///
/// # Errors
/// It cannot start, or the coordinator refuses it for good.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let home = Home::open(&config.data)?;
    let roots = Roots::open(&config.roots).map_err(Error::Config)?;
    let remote = Remote::new(&config.coordinator, config.token.as_deref()).map_err(Error::Config)?;
    let cache = config.cache.clone().unwrap_or_else(|| home.cache());
    let trial = config.command.clone().caching(cache.clone());
    let (offer, program) = (config.gpus.clone(), trial.clone());
    // A driver takes its time.
    let hardware = tokio::task::spawn_blocking(move || inventory::offered(&offer, &program)).await;
    let mut hardware = hardware.map_err(|e| Error::Config(format!("this machine cannot be looked at: {e}")))?;
    hardware.cores = hardware.cores.min(config.cores.unwrap_or(u32::MAX)).max(1);
    if config.share_gpus {
        // Nobody can tell then that it is the same.
        hardware.gpus.iter_mut().for_each(|gpu| gpu.uuid.clear());
    }
    if !hardware.note.is_empty() {
        tracing::info!("trains on CPUs: {}", hardware.note);
    }
    for number in config.gpus.unknown(&hardware) {
        tracing::warn!("`--gpus` names GPU {number}, and there is none of that number here");
    }
    inventory::broken(&hardware).for_each(|gpu| tracing::warn!("{}; it is not offered", gpu.problem));
    let devices = devices(config.slots, &hardware)?;
    let slots = slots(&config, &devices)?;
    let threads = match config.threads {
        0 => Threads::shared(hardware.cores as usize, &devices),
        threads => Threads::each(threads),
    };
    let identity = identity(&config, &home, &slots, (hardware, threads))?;
    let (outbox, reporter) = (Outbox::default(), Reporter::default());
    reporter.adopt(&home.work());
    let reports = tokio::spawn(reporter.clone().run(remote.clone()));
    let context = Arc::new(Context {
        blobs: Blobs::new(home.blobs(), remote.clone()),
        cache,
        data: DataSets::new(home.data()),
        models: Models::from_env(home.hub()).map_err(|e| Error::Config(e.to_string()))?,
        home,
        roots,
        ward: Ward::new(outbox.clone(), trial, &slots),
        outbox: outbox.clone(),
        reporter,
        spawner: Spawner::start(tokio::runtime::Handle::current())?,
        command: config.command.clone(),
        cache_bytes: config.cache_bytes,
        threads,
    });
    let (desired, assignment) = watch::channel(Vec::new());
    let (census, running) = watch::channel(Census::default());
    let supervisor = tokio::spawn(Supervisor::new(context, slots, census).run(assignment));
    let shown: Vec<String> = devices.iter().map(Device::to_string).collect();
    tracing::info!("node {} ({}) offers {} to {}", identity.name, identity.node, shown.join(", "), config.coordinator);

    let session = Session { identity: &identity, outbox: &outbox, desired: &desired, census: running.clone() };
    let (talking, talks) = watch::channel(false);
    let farewell = async {
        outbox.push(Body::Draining(v1::Draining {}));
        outbox.empty().await;
        // What is stopped for that saves its state first, and its files are taken to the blob store.
        let mut running = running.clone();
        let _ = running.wait_for(|census| census.unfinished == 0).await;
        outbox.empty().await;
        outbox.push(Body::Leaving(v1::Leaving {}));
        outbox.empty().await;
    };
    let leave = async {
        stop.await;
        tracing::info!("this node empties itself and goes; once more ends it at once");
        let patience = patience(running.borrow().unfinished, outbox.after(0).len());
        tokio::select! {
            () = farewell => {}
            () = away(talks, patience) => {
                tracing::warn!("the coordinator is away: this node goes without a word");
            }
        }
    };
    let result = tokio::select! {
        error = connect(&session, &remote, &talking) => Err(error),
        () = leave => Ok(()),
    };
    drop(desired);
    let _ = tokio::time::timeout(Duration::from_secs(5), supervisor).await;
    reports.abort();
    result
}

/// How long a node that is to go waits for a coordinator that is away: briefly where no rank is unfinished and no message has
/// yet to arrive.
fn patience(unfinished: usize, unsaid: usize) -> Duration {
    if unfinished + unsaid > 0 { FAREWELLS.0 } else { FAREWELLS.1 }
}

/// Returns when there has been no session for so long.
async fn away(mut talks: watch::Receiver<bool>, patience: Duration) {
    while talks.wait_for(|talks| !talks).await.is_ok() {
        if tokio::time::timeout(patience, talks.wait_for(|talks| *talks)).await.is_err() {
            return;
        }
    }
}

/// Whether a coordinator that says this will never have us. One that has had us may have been started with other tokens by
/// mistake: what runs here is not given up for that.
fn is_final(code: Code, was_welcome: bool) -> bool {
    match code {
        Code::FailedPrecondition | Code::InvalidArgument => true,
        Code::Unauthenticated | Code::PermissionDenied => !was_welcome,
        _ => false,
    }
}

/// What was complained of since there was a session: each kind of trouble once, for an outage may go from one to another.
#[derive(Default)]
struct Complaints(Vec<Code>);

impl Complaints {
    /// Whether a trouble has not been told yet; it counts as told from then on.
    fn is_new(&mut self, code: Code) -> bool {
        let is_new = !self.0.contains(&code);
        if is_new {
            self.0.push(code);
        }
        is_new
    }
}

/// Keeps a session, and begins a new one when it ends; returns only when the coordinator will never have us. `talking` says
/// whether there is one.
async fn connect(session: &Session<'_>, remote: &Remote, talking: &watch::Sender<bool>) -> Error {
    let (mut pause, mut twin): (_, Option<Instant>) = (PAUSES.0, None);
    let (mut complaints, mut was_welcome) = (Complaints::default(), false);
    loop {
        let mut welcome = false;
        let welcomed = || {
            welcome = true;
            talking.send_replace(true);
        };
        let result = session.run(remote, welcomed).await;
        talking.send_replace(false);
        if welcome {
            (pause, twin, complaints, was_welcome) = (PAUSES.0, None, Complaints::default(), true);
        }
        if let Err(status) = result {
            match status.code() {
                code if is_final(code, was_welcome) => return Error::Refused(status.message().to_owned()),
                // Our own former connection may take a moment to be given up.
                Code::AlreadyExists if twin.get_or_insert_with(Instant::now).elapsed() > TWIN => {
                    return Error::Refused(status.message().to_owned());
                }
                _ => {}
            }
            if complaints.is_new(status.code()) {
                tracing::warn!(
                    "no session with the coordinator: {}; ranks go on, and it is tried again",
                    status.message()
                );
            } else {
                tracing::debug!("no session: {}", status.message());
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// What the ranks of each slot run on: a GPU that works, then so many shares of the cores.
fn devices(shares: u32, hardware: &Hardware) -> Result<Vec<Device>, Error> {
    let gpus = hardware.gpus.iter().filter(|gpu| gpu.problem.is_empty()).map(|gpu| Device::Cuda(gpu.index));
    let devices: Vec<Device> = gpus.chain((0..shares).map(|_| Device::Cpu)).collect();
    if devices.is_empty() {
        let hint = "`--slots` offers CPU slots, and `tl-worker doctor` says what is wrong with GPUs";
        return Err(Error::Config(format!(
            "this node has nothing to offer: no CPU slot, and no GPU that works; {hint}"
        )));
    }
    Ok(devices)
}

/// Binds a socket per slot, where other nodes can reach it.
fn slots(config: &Config, devices: &[Device]) -> Result<Vec<Slot>, Error> {
    let advertise = match config.advertise {
        Some(address) => address,
        None => local_address(&config.coordinator)?,
    };
    let any = if advertise.is_loopback() { advertise } else { Ipv4Addr::UNSPECIFIED.into() };
    let any =
        if advertise.is_ipv6() && !advertise.is_loopback() { std::net::Ipv6Addr::UNSPECIFIED.into() } else { any };
    let slot = |(index, device): (u32, &Device)| {
        let listener = TcpListener::bind((any, 0))?;
        let address = std::net::SocketAddr::new(advertise, listener.local_addr()?.port()).to_string();
        Ok(Slot { index, device: *device, address, listener })
    };
    (0..).zip(devices).map(slot).collect()
}

/// The address that this machine uses towards the coordinator.
fn local_address(coordinator: &str) -> Result<IpAddr, Error> {
    let bare = coordinator.split_once("://").map_or(coordinator, |(_, rest)| rest).trim_end_matches('/');
    let cannot = |e: &dyn std::fmt::Display| {
        Error::Config(format!(
            "`{coordinator}` is not reachable: {e}; give the address of this node with `--advertise`"
        ))
    };
    let unknown =
        |e: std::io::Error| Error::Config(format!("the coordinator's address `{coordinator}` cannot be found: {e}"));
    let target = bare.to_socket_addrs().map_err(unknown)?.next().ok_or_else(|| cannot(&"no address"))?;
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    // Connecting a datagram socket sends nothing; it only chooses the way.
    let socket = UdpSocket::bind((any, 0)).and_then(|s| s.connect(target).map(|()| s)).map_err(|e| cannot(&e))?;
    Ok(socket.local_addr()?.ip())
}

fn identity(
    config: &Config,
    home: &Home,
    slots: &[Slot],
    (hardware, threads): (Hardware, Threads),
) -> Result<Identity, Error> {
    let host = || nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_else(|| "node".into());
    let catalog_json = serde_json::to_vec(&rank::catalog()).map_err(|e| Error::Config(e.to_string()))?;
    Ok(Identity {
        node: home.node.to_string(),
        name: config.name.clone().unwrap_or_else(host),
        incarnation: ulid::Ulid::new().to_string(),
        build: build(&config.command)?,
        slots: slots
            .iter()
            .map(|s| v1::Slot {
                index: s.index,
                device: s.device.to_string(),
                address: s.address.clone(),
                // GPUs of a gang are of one model: how many cores they have beside them is no measure of them.
                weight: if s.device == Device::Cpu { threads.cpu as u32 } else { 1 },
            })
            .collect(),
        hardware: hardware.into(),
        catalog_json,
    })
}

/// Version, a digest of the program itself, and the numbers that it computes here: ranks of one gang must be the same
/// code, and compute the same bits.
fn build(command: &RankCommand) -> Result<String, Error> {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(command.read()?);
    let short: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    Ok(format!("{}+{short}.{}", env!("CARGO_PKG_VERSION"), rank::numbers()))
}

#[cfg(test)]
mod tests {
    use tl_proto::hardware::Gpu;

    use super::*;

    #[tokio::test]
    async fn a_coordinator_is_away_when_no_session_came_back_in_time() {
        let (talking, talks) = watch::channel(false);
        away(talks.clone(), Duration::ZERO).await;
        let hour = Duration::from_secs(3_600);
        for talks_now in [true, false] {
            talking.send_replace(talks_now);
            let waited = tokio::time::timeout(Duration::ZERO, away(talks.clone(), hour)).await;
            assert!(waited.is_err(), "it may be back in an hour");
        }
        talking.send_replace(true);
        let (wait, gone) = (away(talks, Duration::ZERO), async { talking.send_replace(false) });
        assert_eq!(tokio::join!(wait, gone), ((), true));
    }

    #[test]
    fn a_token_that_is_rejected_after_the_connection_was_lost_is_told_too() {
        let mut complaints = Complaints::default();
        let lost = [Code::Unknown, Code::Unavailable, Code::Unknown, Code::Unauthenticated, Code::Unauthenticated];
        assert_eq!(lost.map(|code| complaints.is_new(code)), [true, true, false, true, false]);
    }

    #[test]
    fn a_node_with_nothing_to_hand_over_goes_sooner() {
        assert!(patience(0, 0) < patience(1, 0));
        assert_eq!(patience(0, 1), patience(1, 0));
    }

    #[test]
    fn a_wrong_token_ends_an_agent_that_was_never_welcome_and_no_other() {
        for code in [Code::Unauthenticated, Code::PermissionDenied] {
            assert!(is_final(code, false) && !is_final(code, true), "{code:?}");
        }
        assert!(is_final(Code::FailedPrecondition, true), "another release stays another");
        assert!(!is_final(Code::Unavailable, false) && !is_final(Code::ResourceExhausted, false));
    }

    #[test]
    fn a_node_offers_the_gpus_that_work_and_cpu_slots_beside_them() {
        let gpu = |index, problem: &str| Gpu { index, problem: problem.into(), ..Gpu::default() };
        let offered = |slots, gpus: &[Gpu]| {
            let hardware = Hardware { gpus: gpus.to_vec(), ..Hardware::default() };
            let devices = devices(slots, &hardware).map_err(|e| e.to_string())?;
            Ok::<_, String>(devices.iter().map(Device::to_string).collect::<Vec<_>>().join(" "))
        };
        let (works, broken) = (gpu(1, ""), gpu(0, "it is broken"));
        assert_eq!(offered(1, &[]).unwrap(), "cpu");
        assert_eq!(offered(3, std::slice::from_ref(&broken)).unwrap(), "cpu cpu cpu");
        assert_eq!(offered(1, &[broken.clone(), works.clone(), gpu(2, "")]).unwrap(), "cuda:1 cuda:2 cpu");
        assert_eq!(offered(0, &[broken.clone(), works]).unwrap(), "cuda:1");
        let nothing = offered(0, &[broken]).unwrap_err();
        assert!(nothing.starts_with("this node has nothing to offer: "), "{nothing}");
    }

    #[test]
    fn a_coordinator_that_is_not_found_is_no_matter_of_this_node_s_own_address() {
        let error = local_address("coordinator").unwrap_err().to_string();
        assert!(error.contains("`coordinator` cannot be found") && !error.contains("--advertise"), "{error}");
        assert!(local_address("127.0.0.1:7070").unwrap().is_loopback());
    }
}
