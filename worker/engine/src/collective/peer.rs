//! One other rank: a thread that reads what comes, and one that says that we are alive when there is nothing else to say,
//! even while we compute.
//!
//! The reader takes frames off the wire at once, so that a peer never waits for our arithmetic: that is why
//! [`Peer::send`] may write in the caller's own thread, without a copy and without waking anyone.

use std::{
    io::BufReader,
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex, PoisonError, TryLockError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use super::{
    frame::{self, Said},
    shared::{Outlet, Shared},
};

/// What is written to, and when that was last done.
struct Output {
    stream: TcpStream,
    /// Where what is large goes, if the peer is on this machine.
    outlet: Option<Outlet>,
    spoke: Instant,
    /// A frame may have been written in part: nothing can follow it.
    failed: bool,
}

impl Output {
    fn write(
        &mut self,
        what: impl FnOnce(&mut TcpStream, Option<&mut Outlet>) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        if self.failed {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        let done = what(&mut self.stream, self.outlet.as_mut());
        self.failed = done.is_err();
        self.spoke = Instant::now();
        done
    }
}

/// A connection to another rank.
pub(super) struct Peer {
    stream: TcpStream,
    output: Arc<Mutex<Output>>,
    heard: Receiver<Result<(u32, Vec<u8>), String>>,
    /// Messages that were read, for the reader to use their memory again.
    spare: Sender<Vec<u8>>,
    sent: u32,
    received: u32,
    /// Ends the signs of life when it is dropped.
    alive: Option<Sender<()>>,
    /// Ends when the peer says nothing more.
    read: Receiver<()>,
}

/// How long a failed write waits for the reader, who may know better why.
const REASON: Duration = Duration::from_millis(300);

impl Peer {
    /// Takes a connection over. When the peer is lost, `lost` is told why, whoever waits for what it says.
    pub fn start(
        stream: TcpStream,
        shared: Option<Shared>,
        beat: Duration,
        silence: Duration,
        lost: impl FnOnce(&str) + Send + 'static,
    ) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        // A peer that takes nothing off the wire for so long is stopped, not slow: its reader thread would.
        stream.set_write_timeout(Some(silence))?;
        let (outlet, mut inlet) = shared.map(|shared| (shared.outlet, shared.inlet)).unzip();
        let output = Output { stream: stream.try_clone()?, outlet, spoke: Instant::now(), failed: false };
        let (output, input) = (Arc::new(Mutex::new(output)), stream.try_clone()?);
        let (tell, heard) = mpsc::channel();
        let (spare, used) = mpsc::channel::<Vec<u8>>();
        let (alive, over) = mpsc::channel::<()>();
        let (reading, read) = mpsc::channel::<()>();
        let (blame, voice) = (tell.clone(), output.clone());
        std::thread::Builder::new().name("peer-beat".into()).spawn(move || {
            while over.recv_timeout(beat) == Err(RecvTimeoutError::Timeout) {
                let mut output = voice.lock().unwrap_or_else(PoisonError::into_inner);
                if output.spoke.elapsed() < beat {
                    continue;
                }
                if let Err(e) = output.write(|o, _| frame::write_beat(o)) {
                    // Whoever waits for this peer hears of it; nobody may be waiting any more.
                    let _ = blame.send(Err(format!("cannot be written to: {e}")));
                    return;
                }
            }
        })?;
        std::thread::Builder::new().name("peer-reader".into()).spawn(move || {
            let _reading = reading;
            let mut input = BufReader::with_capacity(1 << 16, input);
            let mut body = Vec::new();
            loop {
                if body.is_empty() {
                    body = used.try_recv().unwrap_or_default();
                }
                let said = match frame::read(&mut input, inlet.as_mut(), &mut body) {
                    Ok(Said::Beat) => continue,
                    Ok(Said::Message { sequence, body }) => Ok((sequence, body)),
                    Ok(Said::Abort(why)) => Err(format!("it gave up: {why}")),
                    Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                        Err(format!("silent for {} ms", silence.as_millis()))
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err("its connection was closed".into()),
                    Err(e) => Err(e.to_string()),
                };
                let why = said.as_ref().err().cloned();
                let told = tell.send(said).is_ok();
                if let Some(why) = why {
                    lost(&why);
                    return;
                }
                if !told {
                    return;
                }
            }
        })?;
        Ok(Self { stream, output, heard, spare, sent: 0, received: 0, alive: Some(alive), read })
    }

    /// Writes a message, whose parts go out one after the other.
    ///
    /// # Errors
    /// Why the peer is lost.
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), String> {
        let sequence = self.sent;
        self.sent = sequence.wrapping_add(1);
        let written = {
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            output.write(|o, outlet| frame::write_message(o, outlet, sequence, parts))
        };
        written.map_err(|e| {
            let until = Instant::now() + REASON;
            loop {
                match self.heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(Ok(_)) => {}
                    Ok(Err(why)) => return why,
                    Err(_) => return format!("cannot be written to: {e}"),
                }
            }
        })
    }

    /// The next message. No deadline here: the reader reports silence by itself, and while it does not, the peer is
    /// alive and slow.
    ///
    /// # Errors
    /// Why the peer is lost.
    pub fn receive(&mut self) -> Result<Vec<u8>, String> {
        let (sequence, body) = self.heard.recv().unwrap_or_else(|_| Err("its connection was closed".into()))?;
        let wanted = self.received;
        self.received = wanted.wrapping_add(1);
        if sequence == wanted { Ok(body) } else { Err(format!("it is at message {sequence} instead of {wanted}")) }
    }

    /// Takes a message back that is not needed any more.
    pub fn reuse(&self, body: Vec<u8>) {
        // A reader that has ended needs none.
        let _ = self.spare.send(body);
    }

    /// Says the last words, if that can be done within `patience`.
    pub fn abort(&self, why: &str, patience: Duration) {
        let until = Instant::now() + patience;
        loop {
            match self.output.try_lock() {
                Ok(mut output) => {
                    let _ = self.stream.set_write_timeout(Some(patience));
                    let _ = output.write(|o, _| frame::write_abort(o, why));
                    return;
                }
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(_) => return,
            }
        }
    }

    /// Says no more.
    pub fn finish(&mut self) {
        self.alive = None;
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection once the peer has ended it too, or after `patience`. Closed earlier, its next sign of life
    /// would make the system throw away what it has not yet taken off the wire.
    pub fn close(&mut self, patience: Duration) {
        let _ = self.read.recv_timeout(patience);
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
