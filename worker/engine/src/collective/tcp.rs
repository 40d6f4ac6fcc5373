//! Ranks connected by TCP, every one with every other.
//!
//! A reader thread per peer takes frames off the wire, so that a peer never waits for our arithmetic; a beat thread
//! says that we are alive even while we compute. A peer that is gone (end of stream) or silent (no frame within the
//! deadline) turns every wait into [`Error::LostPeer`]; a slow one that still beats is waited for.

use std::{
    io::{BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use super::{Collective, Frame, frame};
use crate::{Error, Result};

/// Who takes part, and how long to wait.
pub struct MeshConfig {
    /// This rank.
    pub rank: usize,
    /// Where each rank listens, by rank.
    pub addresses: Vec<String>,
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

struct Peer {
    writer: Arc<Mutex<TcpStream>>,
    frames: Receiver<Result<(u32, Vec<u8>), String>>,
}

/// A group of ranks over TCP.
pub struct Mesh {
    rank: usize,
    peers: Vec<Option<Peer>>,
    sequence: u32,
    stopped: Arc<AtomicBool>,
}

fn lock(m: &Mutex<TcpStream>) -> MutexGuard<'_, TcpStream> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
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
        let deadline = Instant::now() + config.rendezvous;
        let world = config.addresses.len();
        let mut streams: Vec<Option<TcpStream>> = (0..world).map(|_| None).collect();
        for (peer, stream) in streams.iter_mut().enumerate().take(config.rank) {
            *stream = Some(call(config, peer, deadline)?);
        }
        let internal = |e: std::io::Error| Error::Internal(format!("the listener failed: {e}"));
        listener.set_nonblocking(true).map_err(internal)?;
        while let Some(missing) = (config.rank + 1..world).find(|r| streams[*r].is_none()) {
            match listener.accept() {
                Ok((stream, _)) => {
                    if let Some((peer, stream)) = answer(config, stream) {
                        streams[peer] = Some(stream);
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
        let stopped = Arc::new(AtomicBool::new(false));
        let peers: Vec<Option<Peer>> = streams
            .into_iter()
            .map(|s| s.map(|stream| start(stream, config, &stopped)).transpose())
            .collect::<std::io::Result<_>>()
            .map_err(internal)?;
        let writers: Vec<_> = peers.iter().flatten().map(|p| p.writer.clone()).collect();
        let (stop, beat) = (stopped.clone(), config.beat);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for writer in &writers {
                    // A writer in use is sending data, which says the same.
                    if let Ok(mut w) = writer.try_lock() {
                        let _ = frame::write(&mut *w, 0, 0, &[]);
                    }
                }
                std::thread::sleep(beat);
            }
        });
        Ok(Self { rank: config.rank, peers, sequence: 0, stopped })
    }

    /// Tells the others that this rank gives up.
    pub fn abort(&mut self, why: &str) {
        for peer in self.peers.iter().flatten() {
            let _ = frame::write(&mut *lock(&peer.writer), 2, 0, why.as_bytes());
        }
    }
}

fn call(config: &MeshConfig, peer: usize, deadline: Instant) -> Result<TcpStream> {
    let mut cause = "nobody answers there".to_owned();
    while Instant::now() < deadline {
        let attempt = || -> std::io::Result<TcpStream> {
            let mut addresses = std::net::ToSocketAddrs::to_socket_addrs(&config.addresses[peer])?;
            let address = addresses.next().ok_or(std::io::ErrorKind::AddrNotAvailable)?;
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.write_all(&greeting(config, config.rank, peer))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let mut reply = [0; 36];
            std::io::Read::read_exact(&mut stream, &mut reply)?;
            if reply != greeting(config, peer, config.rank) {
                return Err(std::io::Error::other("another attempt answers there"));
            }
            Ok(stream)
        };
        match attempt() {
            Ok(stream) => return Ok(stream),
            Err(e) => cause = e.to_string(),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(Error::LostPeer { peer, cause: format!("no rendezvous at {}: {cause}", config.addresses[peer]) })
}

/// Checks who calls; strangers are dropped.
fn answer(config: &MeshConfig, mut stream: TcpStream) -> Option<(usize, TcpStream)> {
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
    Some((from, stream))
}

fn start(stream: TcpStream, config: &MeshConfig, stopped: &Arc<AtomicBool>) -> std::io::Result<Peer> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(config.silence))?;
    // A peer that takes nothing off the wire for so long is stopped, not slow: its reader thread would.
    stream.set_write_timeout(Some(config.silence))?;
    let writer = Arc::new(Mutex::new(stream.try_clone()?));
    let (tell, frames) = mpsc::channel();
    let (stopped, silence) = (stopped.clone(), config.silence);
    std::thread::spawn(move || {
        let mut input = BufReader::with_capacity(1 << 16, stream);
        loop {
            let said = match frame::read(&mut input) {
                Ok(Frame::Beat) => continue,
                Ok(Frame::Data { sequence, body }) => Ok((sequence, body)),
                Ok(Frame::Abort(why)) => Err(format!("it gave up: {why}")),
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    Err(format!("silent for {} ms", silence.as_millis()))
                }
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err("its connection was closed".into()),
                Err(e) => Err(e.to_string()),
            };
            let over = said.is_err() || stopped.load(Ordering::Relaxed);
            if tell.send(said).is_err() || over {
                return;
            }
        }
    });
    Ok(Peer { writer, frames })
}

impl Collective for Mesh {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.peers.len()
    }

    fn exchange(&mut self, mut out: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let (sequence, rank) = (self.sequence, self.rank);
        let own = std::mem::take(&mut out[rank]);
        // Everybody's reader drains the wire, so sending one after the other cannot lock up; each starts with its
        // right neighbour so that no one is the first target of all.
        let world = self.peers.len();
        for step in 1..world {
            let to = (rank + step) % world;
            if let Some(peer) = &self.peers[to] {
                let sent = frame::write(&mut *lock(&peer.writer), 1, sequence, &out[to]);
                if let Err(e) = sent {
                    return Err(self.blame(to, format!("cannot be written to: {e}")));
                }
            }
        }
        let mut all: Vec<Vec<u8>> = vec![Vec::new(); world];
        all[rank] = own;
        for from in (0..world).filter(|r| *r != rank) {
            all[from] = self.receive(from, sequence)?;
        }
        Ok(all)
    }
}

impl Mesh {
    fn receive(&self, from: usize, sequence: u32) -> Result<Vec<u8>> {
        let Some(peer) = &self.peers[from] else {
            return Err(Error::Internal(format!("rank {from} has no connection")));
        };
        // No deadline here: the reader reports silence by itself, and while it does not, the peer is alive and slow.
        match peer.frames.recv() {
            Ok(Ok((got, body))) if got == sequence => Ok(body),
            Ok(Ok((got, _))) => Err(Error::Internal(format!("rank {from} is at exchange {got} instead of {sequence}"))),
            Ok(Err(cause)) => Err(Error::LostPeer { peer: from, cause }),
            Err(_) => Err(Error::LostPeer { peer: from, cause: "its connection was closed".into() }),
        }
    }

    /// The reader may know better than a failed write why a peer is gone.
    fn blame(&self, peer: usize, cause: String) -> Error {
        let known = self.peers[peer].as_ref().and_then(|p| p.frames.try_iter().find_map(Result::err));
        Error::LostPeer { peer, cause: known.unwrap_or(cause) }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for peer in self.peers.iter().flatten() {
            let _ = lock(&peer.writer).shutdown(Shutdown::Both);
        }
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
            attempt: "a/1".into(),
            secret: "s".into(),
            rendezvous: Duration::from_secs(5),
            beat: Duration::from_millis(20),
            silence: Duration::from_millis(silence),
        };
        (listeners, (0..world).map(config).collect())
    }

    #[test]
    fn three_ranks_reduce_to_the_bits_of_one() {
        let (grains, len) = (8, 5000);
        let leaf = |g: usize| (0..len).map(|i| ((g * 31 + i) as f32).sin()).collect::<Vec<f32>>();
        let run = |group: &mut dyn Collective| {
            let own = super::super::partition::partition(grains, group.world())[group.rank()].clone();
            let mut stack = Vec::new();
            own.for_each(|g| super::super::tree::push(&mut stack, super::super::tree::Node::leaf(g, leaf(g)), grains));
            super::super::reduce(group, stack, grains, len).unwrap()
        };
        let alone = run(&mut super::super::Solo);
        let (listeners, configs) = configs(3, 5000);
        std::thread::scope(|s| {
            for (l, c) in listeners.iter().zip(&configs) {
                s.spawn(|| {
                    let mut mesh = Mesh::connect(l, c).unwrap();
                    assert!(run(&mut mesh) == alone);
                    assert_eq!(mesh.broadcast(vec![c.rank as u8], 2).unwrap(), [2]);
                    mesh.barrier().unwrap();
                });
            }
        });
    }

    #[test]
    fn a_peer_that_leaves_or_falls_silent_is_a_typed_error_within_the_deadline() {
        for silent in [false, true] {
            let (listeners, configs) = configs(2, 300);
            let started = Instant::now();
            std::thread::scope(|s| {
                s.spawn(|| {
                    let mesh = Mesh::connect(&listeners[1], &configs[1]).unwrap();
                    if silent {
                        mesh.stopped.store(true, Ordering::Relaxed);
                        // Keeps the sockets open past the deadline without a word.
                        let _ = mesh.receive(0, u32::MAX);
                    }
                });
                let mut mesh = Mesh::connect(&listeners[0], &configs[0]).unwrap();
                mesh.sequence = u32::MAX - 2;
                let error = loop {
                    if let Err(e) = mesh.exchange(vec![vec![0], vec![]]) {
                        break e;
                    }
                };
                assert!(matches!(error, Error::LostPeer { peer: 1, .. }), "{error}");
            });
            assert!(started.elapsed() < Duration::from_secs(4));
        }
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
