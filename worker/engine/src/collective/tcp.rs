//! Ranks connected by TCP, every one with every other; those of one machine share memory too, for what is large.
//!
//! A peer that is gone (end of stream) or silent (no frame within the deadline) turns every wait into
//! [`Error::LostPeer`]; a slow one that still beats is waited for.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Collective, alarm::Alarm, peer::Peer, shared::Shared};
use crate::{Error, Result};

/// Who takes part, and how long to wait.
pub struct MeshConfig {
    /// This rank.
    pub rank: usize,
    /// Where each rank listens, by rank.
    pub addresses: Vec<String>,
    /// How much each rank can do, by rank.
    pub weights: Vec<u32>,
    /// Names job, phase and generation: ranks of another attempt are turned away.
    pub attempt: String,
    /// Proves that a rank belongs to the attempt.
    pub secret: String,
    /// How long to wait for all to arrive.
    pub rendezvous: Duration,
    /// How often to say that we are alive.
    pub beat: Duration,
    /// Silence after which a peer is lost.
    pub silence: Duration,
}

/// A group of ranks over TCP.
pub struct Mesh {
    rank: usize,
    weights: Vec<u32>,
    peers: Vec<Option<Peer>>,
    messages: u64,
    neighbours: usize,
    silence: Duration,
    /// A peer was lost: what was sent to the others is of no use any more.
    broken: bool,
    /// Raised by whoever reads what peers say.
    alarm: Arc<Alarm>,
}

/// What a rank says first: digest of attempt and secret, then its number.
fn greeting(config: &MeshConfig, from: usize, to: usize) -> [u8; 36] {
    let text = format!("{}\n{}\n{from}\n{to}", config.attempt, config.secret);
    let mut out = [0; 36];
    out[..32].copy_from_slice(blake3::hash(text.as_bytes()).as_bytes());
    out[32..].copy_from_slice(&(from as u32).to_le_bytes());
    out
}

impl Mesh {
    /// Meets the other ranks: calls those below, answers those above.
    ///
    /// # Errors
    /// [`Error::LostPeer`] naming the first one that did not arrive in time.
    pub fn connect(listener: &TcpListener, config: &MeshConfig) -> Result<Self> {
        Self::meet(listener, config, true)
    }

    /// The same of ranks that have another way for what is large, and share no memory.
    ///
    /// # Errors
    /// As [`Mesh::connect`].
    pub fn connect_apart(listener: &TcpListener, config: &MeshConfig) -> Result<Self> {
        Self::meet(listener, config, false)
    }

    fn meet(listener: &TcpListener, config: &MeshConfig, shares: bool) -> Result<Self> {
        let deadline = Instant::now() + config.rendezvous;
        let world = config.addresses.len();
        let mut streams: Vec<Option<(TcpStream, Option<Shared>)>> = (0..world).map(|_| None).collect();
        for (peer, stream) in streams.iter_mut().enumerate().take(config.rank) {
            *stream = Some(call(config, peer, deadline, shares)?);
        }
        let internal = |e: std::io::Error| Error::Internal(format!("the listener failed: {e}"));
        listener.set_nonblocking(true).map_err(internal)?;
        while let Some(missing) = (config.rank + 1..world).find(|r| streams[*r].is_none()) {
            match listener.accept() {
                Ok((stream, _)) => {
                    if let Some((peer, connection)) = answer(config, stream) {
                        streams[peer] = Some(connection);
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    if Instant::now() > deadline {
                        return Err(Error::LostPeer {
                            peer: missing,
                            cause: "it did not come to the rendezvous".into(),
                        });
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(e) => return Err(internal(e)),
            }
        }
        let neighbours = streams.iter().flatten().filter(|(_, shared)| shared.is_some()).count();
        let alarm = Arc::new(Alarm::default());
        let start = |(peer, connection): (usize, Option<(TcpStream, Option<Shared>)>)| {
            let alarm = alarm.clone();
            let lost = move |cause: &str| alarm.raise(peer, cause);
            connection.map(|(s, shared)| Peer::start(s, shared, config.beat, config.silence, lost)).transpose()
        };
        let peers: Vec<Option<Peer>> =
            streams.into_iter().enumerate().map(start).collect::<std::io::Result<_>>().map_err(internal)?;
        let (rank, weights, silence) = (config.rank, config.weights.clone(), config.silence);
        Ok(Self { rank, weights, peers, messages: 0, neighbours, silence, broken: false, alarm })
    }

    /// Has something done as soon as a peer is lost, by a thread of the mesh: for who waits for something else by then. At once
    /// if one is lost already; what was to be done before is not.
    pub fn when_lost(&self, act: impl FnOnce() + Send + 'static) {
        self.alarm.set(act);
    }

    /// The peer that was lost first; waits for as long as one may be silent.
    pub fn lost(&self) -> Option<Error> {
        self.alarm.lost(self.silence)
    }
}

/// How long last words may take to be written: a peer that is stopped would hold them for long.
const LAST_WORDS: Duration = Duration::from_millis(300);

fn call(config: &MeshConfig, peer: usize, deadline: Instant, shares: bool) -> Result<(TcpStream, Option<Shared>)> {
    let mut cause = "nobody answers there".to_owned();
    while Instant::now() < deadline {
        let attempt = || -> std::io::Result<(TcpStream, Option<Shared>)> {
            let mut addresses = std::net::ToSocketAddrs::to_socket_addrs(&config.addresses[peer])?;
            let address = addresses.next().ok_or(std::io::ErrorKind::AddrNotAvailable)?;
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.write_all(&greeting(config, config.rank, peer))?;
            // It may not have started yet; its listener has, and keeps us until then. Calling again would leave it a dead
            // connection in front of the live one.
            stream.set_read_timeout(Some(
                deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)),
            ))?;
            let mut reply = [0; 36];
            std::io::Read::read_exact(&mut stream, &mut reply)?;
            if reply != greeting(config, peer, config.rank) {
                return Err(std::io::Error::other("another attempt answers there"));
            }
            let shared = Shared::offer(&mut stream, &reply, shares)?;
            Ok((stream, shared))
        };
        match attempt() {
            Ok(connection) => return Ok(connection),
            Err(e) => cause = e.to_string(),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(Error::LostPeer { peer, cause: format!("no rendezvous at {}: {cause}", config.addresses[peer]) })
}

/// Checks who calls; strangers are dropped.
fn answer(config: &MeshConfig, mut stream: TcpStream) -> Option<(usize, (TcpStream, Option<Shared>))> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    let mut got = [0; 36];
    std::io::Read::read_exact(&mut stream, &mut got).ok()?;
    let from = u32::from_le_bytes([got[32], got[33], got[34], got[35]]) as usize;
    let known = from > config.rank && from < config.addresses.len() && got == greeting(config, from, config.rank);
    if !known {
        return None;
    }
    stream.write_all(&greeting(config, config.rank, from)).ok()?;
    let shared = Shared::accept(&mut stream).ok()?;
    Some((from, (stream, shared)))
}

impl Collective for Mesh {
    fn rank(&self) -> usize {
        self.rank
    }

    fn weights(&self) -> &[u32] {
        &self.weights
    }

    fn messages(&self) -> u64 {
        self.messages
    }

    fn neighbours(&self) -> usize {
        self.neighbours
    }

    fn send_parts(&mut self, to: usize, parts: &[&[u8]]) -> Result<()> {
        self.with(to, |peer| peer.send(parts))
    }

    fn receive(&mut self, from: usize) -> Result<Vec<u8>> {
        self.with(from, Peer::receive)
    }

    fn reuse(&mut self, from: usize, bytes: Vec<u8>) {
        if let Some(Some(peer)) = self.peers.get(from) {
            peer.reuse(bytes);
        }
    }

    fn abort(&mut self, why: &str) {
        self.peers.iter().flatten().for_each(|peer| peer.abort(why, LAST_WORDS));
        self.end(LAST_WORDS);
    }
}

impl Mesh {
    fn end(&mut self, patience: Duration) {
        self.peers.iter_mut().flatten().for_each(Peer::finish);
        self.peers.iter_mut().flatten().for_each(|peer| peer.close(patience));
    }

    fn with<T>(&mut self, peer: usize, act: impl FnOnce(&mut Peer) -> Result<T, String>) -> Result<T> {
        self.messages += 1;
        let Some(connection) = self.peers.get_mut(peer).and_then(Option::as_mut) else {
            return Err(Error::Internal(format!("rank {peer} has no connection")));
        };
        act(connection).map_err(|cause| {
            self.broken = true;
            Error::LostPeer { peer, cause }
        })
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // What was written for the others may be their last message: they take it off the wire first.
        let patience = if self.broken { Duration::ZERO } else { self.silence };
        self.end(patience);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configs(world: usize, silence: u64) -> (Vec<TcpListener>, Vec<MeshConfig>) {
        let listeners: Vec<_> = (0..world).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        let config = |rank| MeshConfig {
            rank,
            addresses: addresses.clone(),
            weights: vec![1; world],
            attempt: "a/1".into(),
            secret: "s".into(),
            rendezvous: Duration::from_secs(5),
            beat: Duration::from_millis(20),
            silence: Duration::from_millis(silence),
        };
        (listeners, (0..world).map(config).collect())
    }

    #[test]
    fn ranks_reduce_to_the_bits_of_one() {
        let cases = [(3, 8, 900), (3, 8, 5000), (3, 3, (1 << 20) + 77), (2, 8, 300_001), (2, 5, 7000), (2, 1, 9000)];
        for (world, grains, len) in cases {
            let leaf = |g: usize| (0..len).map(|i| ((g * 31 + i) as f32).sin()).collect::<Vec<f32>>();
            let run = |group: &mut dyn Collective| {
                let own = group.shares(grains)[group.rank()].clone();
                let mut stack = Vec::new();
                own.for_each(|g| {
                    super::super::tree::push(&mut stack, super::super::tree::Node::leaf(g, leaf(g)), grains)
                });
                super::super::reduce(group, stack, grains, len).unwrap()
            };
            let alone = run(&mut super::super::Solo);
            let (listeners, configs) = configs(world, 5000);
            std::thread::scope(|s| {
                for (l, c) in listeners.iter().zip(&configs) {
                    s.spawn(|| {
                        let mut mesh = Mesh::connect(l, c).unwrap();
                        assert!(run(&mut mesh) == alone);
                        assert_eq!(mesh.broadcast(vec![c.rank as u8], 1).unwrap(), [1]);
                        mesh.barrier().unwrap();
                    });
                }
            });
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn ranks_of_one_machine_share_memory_unless_they_have_another_way() {
        let large: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8).collect();
        for apart in [false, true] {
            let (listeners, configs) = configs(2, 5000);
            let meet = |at: usize| match apart {
                true => Mesh::connect_apart(&listeners[at], &configs[at]).unwrap(),
                false => Mesh::connect(&listeners[at], &configs[at]).unwrap(),
            };
            std::thread::scope(|s| {
                s.spawn(|| {
                    let mut mesh = meet(1);
                    assert_eq!(mesh.neighbours(), usize::from(!apart));
                    mesh.send(0, &large).unwrap();
                    mesh.barrier().unwrap();
                });
                let mut mesh = meet(0);
                assert_eq!(mesh.neighbours(), usize::from(!apart));
                assert!(mesh.receive(1).unwrap() == large);
                mesh.barrier().unwrap();
            });
        }
    }

    #[test]
    fn a_rank_that_starts_late_is_waited_for_by_the_one_that_called_it() {
        let (listeners, configs) = configs(2, 2000);
        std::thread::scope(|s| {
            let early = s.spawn(|| Mesh::connect(&listeners[1], &configs[1]).unwrap().barrier());
            // Longer than any single try of the caller: its connection waits in the listener's queue.
            std::thread::sleep(Duration::from_millis(2500));
            Mesh::connect(&listeners[0], &configs[0]).unwrap().barrier().unwrap();
            early.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_peer_that_leaves_or_falls_silent_is_a_typed_error_within_the_deadline() {
        for silent in [false, true] {
            let (listeners, mut configs) = configs(2, 300);
            if silent {
                configs[1].beat = Duration::from_secs(60);
            }
            let started = Instant::now();
            std::thread::scope(|s| {
                s.spawn(|| {
                    let mut mesh = Mesh::connect(&listeners[1], &configs[1]).unwrap();
                    if silent {
                        // Keeps its sockets open past the deadline without a word.
                        while mesh.receive(0).is_ok() {}
                    }
                });
                let mut mesh = Mesh::connect(&listeners[0], &configs[0]).unwrap();
                let error = loop {
                    if let Err(e) = mesh.barrier() {
                        break e;
                    }
                };
                assert!(matches!(error, Error::LostPeer { peer: 1, .. }), "{error}");
                assert!(!silent || error.to_string().contains("silent for 300 ms"), "{error}");
            });
            assert!(started.elapsed() < Duration::from_secs(4));
        }
    }

    #[test]
    fn what_was_queued_last_arrives_although_the_sender_ends_at_once() {
        let (listeners, configs) = configs(2, 5000);
        let big = vec![7u8; 24 << 20];
        std::thread::scope(|s| {
            s.spawn(|| Mesh::connect(&listeners[1], &configs[1]).unwrap().send(0, &big).unwrap());
            let mut mesh = Mesh::connect(&listeners[0], &configs[0]).unwrap();
            assert!(mesh.receive(1).unwrap() == big, "also while signs of life go the other way");
        });
    }

    #[test]
    fn a_rank_that_gives_up_says_why() {
        let (listeners, configs) = configs(2, 2000);
        std::thread::scope(|s| {
            s.spawn(|| Mesh::connect(&listeners[1], &configs[1]).unwrap().abort("the loss is NaN"));
            let mut mesh = Mesh::connect(&listeners[0], &configs[0]).unwrap();
            let error = mesh.barrier().unwrap_err().to_string();
            assert_eq!(error, "rank 1 was lost: it gave up: the loss is NaN");
        });
    }

    #[test]
    fn the_loss_of_a_peer_is_told_at_once_to_who_waits_for_something_else() {
        let (listeners, configs) = configs(2, 300);
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut mesh = Mesh::connect(&listeners[1], &configs[1]).unwrap();
                mesh.receive(0).unwrap();
                mesh.abort("the loss is NaN");
            });
            let mut mesh = Mesh::connect(&listeners[0], &configs[0]).unwrap();
            let (tell, told) = std::sync::mpsc::channel();
            let again = tell.clone();
            mesh.when_lost(move || tell.send(()).unwrap());
            assert!(mesh.lost().is_none() && told.try_recv().is_err(), "it is alive");
            mesh.send(1, b"go").unwrap();
            told.recv_timeout(Duration::from_secs(5)).unwrap();
            assert_eq!(mesh.lost().unwrap().to_string(), "rank 1 was lost: it gave up: the loss is NaN");
            mesh.when_lost(move || again.send(()).unwrap());
            told.try_recv().unwrap();
        });
    }

    #[test]
    fn strangers_at_the_rendezvous_are_dropped_and_the_ranks_meet() {
        let (listeners, configs) = configs(2, 2000);
        let mut draws = crate::num::rng::Philox::new(3, "strangers").stream(0, 0);
        let mut near = greeting(&configs[0], 1, 0);
        near[35] = 1;
        let mut said: Vec<Vec<u8>> = vec![vec![], b"GET / HTTP/1.1\r\n\r\n".to_vec(), near.to_vec(), vec![0xff; 36]];
        said.extend((0..20).map(|n| (0..n * 3).map(|_| (draws.uniform() * 256.0) as u8).collect()));
        let address = listeners[0].local_addr().unwrap();
        // They stay connected: nobody waits for what they may still say for longer than a moment.
        let strangers: Vec<TcpStream> = said
            .iter()
            .map(|bytes| {
                let mut stream = TcpStream::connect(address).unwrap();
                let _ = stream.write_all(bytes);
                stream
            })
            .collect();
        let _silent: Vec<TcpStream> = strangers.into_iter().take(3).collect();
        std::thread::scope(|s| {
            s.spawn(|| Mesh::connect(&listeners[1], &configs[1]).unwrap().barrier().unwrap());
            Mesh::connect(&listeners[0], &configs[0]).unwrap().barrier().unwrap();
        });
    }

    #[test]
    fn a_rank_of_another_attempt_is_turned_away() {
        let (listeners, mut configs) = configs(2, 300);
        configs[1].secret = "other".into();
        configs.iter_mut().for_each(|c| c.rendezvous = Duration::from_millis(300));
        std::thread::scope(|s| {
            let other = s.spawn(|| Mesh::connect(&listeners[1], &configs[1]).is_err());
            assert!(matches!(Mesh::connect(&listeners[0], &configs[0]), Err(Error::LostPeer { peer: 1, .. })));
            assert!(other.join().unwrap());
        });
    }
}
