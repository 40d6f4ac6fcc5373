//! One other rank: a thread that writes what is queued, one that reads what comes.
//!
//! The reader takes frames off the wire at once, so that a peer never waits for our arithmetic. The writer says that we
//! are alive when there is nothing else to say, even while we compute. Neither ever makes the caller of
//! [`Peer::send`] wait.

use std::{
    io::BufReader,
    net::{Shutdown, TcpStream},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::Duration,
};

use super::{
    Payload,
    frame::{self, Said},
};

enum Outgoing {
    Message(u32, Payload),
    Abort(String),
}

/// A connection to another rank.
pub(super) struct Peer {
    stream: TcpStream,
    out: Option<Sender<Outgoing>>,
    heard: Receiver<Result<(u32, Vec<u8>), String>>,
    sent: u32,
    received: u32,
    /// Ends when the writer has written everything, or failed.
    written: Receiver<()>,
    /// Ends when the peer says nothing more.
    read: Receiver<()>,
}

impl Peer {
    /// Takes a connection over.
    pub fn start(stream: TcpStream, beat: Duration, silence: Duration) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        // A peer that takes nothing off the wire for so long is stopped, not slow: its reader thread would.
        stream.set_write_timeout(Some(silence))?;
        let (mut output, input) = (stream.try_clone()?, stream.try_clone()?);
        let (out, queue) = mpsc::channel();
        let (tell, heard) = mpsc::channel();
        let (writing, written) = mpsc::channel::<()>();
        let (reading, read) = mpsc::channel::<()>();
        let blame = tell.clone();
        std::thread::Builder::new().name("peer-writer".into()).spawn(move || {
            let _writing = writing;
            loop {
                let done = match queue.recv_timeout(beat) {
                    Ok(Outgoing::Message(sequence, body)) => frame::write_message(&mut output, sequence, &body),
                    Ok(Outgoing::Abort(why)) => frame::write_abort(&mut output, &why),
                    Err(RecvTimeoutError::Timeout) => frame::write_beat(&mut output),
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                if let Err(e) = done {
                    // Whoever waits for this peer hears of it; nobody may be waiting any more.
                    let _ = blame.send(Err(format!("cannot be written to: {e}")));
                    return;
                }
            }
        })?;
        std::thread::Builder::new().name("peer-reader".into()).spawn(move || {
            let _reading = reading;
            let mut input = BufReader::with_capacity(1 << 16, input);
            loop {
                let said = match frame::read(&mut input) {
                    Ok(Said::Beat) => continue,
                    Ok(Said::Message { sequence, body }) => Ok((sequence, body)),
                    Ok(Said::Abort(why)) => Err(format!("it gave up: {why}")),
                    Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                        Err(format!("silent for {} ms", silence.as_millis()))
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err("its connection was closed".into()),
                    Err(e) => Err(e.to_string()),
                };
                let over = said.is_err();
                if tell.send(said).is_err() || over {
                    return;
                }
            }
        })?;
        Ok(Self { stream, out: Some(out), heard, sent: 0, received: 0, written, read })
    }

    /// Queues a message.
    ///
    /// # Errors
    /// Why the peer is lost.
    pub fn send(&mut self, body: Payload) -> Result<(), String> {
        let queued = self.out.as_ref().map(|out| out.send(Outgoing::Message(self.sent, body)));
        self.sent = self.sent.wrapping_add(1);
        match queued {
            Some(Ok(())) => Ok(()),
            // The reader may know better than a failed write why.
            _ => Err(self.heard.try_iter().find_map(Result::err).unwrap_or_else(|| "its connection was closed".into())),
        }
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

    /// Queues the last words.
    pub fn abort(&self, why: &str) {
        let _ = self.out.as_ref().map(|out| out.send(Outgoing::Abort(why.to_owned())));
    }

    /// Says no more after what is queued has been written, or after `patience`.
    pub fn finish(&mut self, patience: Duration) {
        self.out = None;
        // Nothing is ever sent: this ends with the writer.
        let _ = self.written.recv_timeout(patience);
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection once the peer has ended it too, or after `patience`. Closed earlier, its next sign of life
    /// would make the system throw away what it has not yet taken off the wire.
    pub fn close(&mut self, patience: Duration) {
        let _ = self.read.recv_timeout(patience);
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
