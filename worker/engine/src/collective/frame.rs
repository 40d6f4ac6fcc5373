//! What travels between two ranks: a header of 16 bytes, then a body of bounded size. A message is one frame, or
//! several of which all but the last say that more is to come. The body of a large one may lie in memory that both share.

use std::io::{self, IoSlice, Read, Write};

use super::shared::{Inlet, LEAST, Outlet};
use crate::{Error, Result};

/// Largest body of a frame, in bytes.
const MAX_BODY: usize = 8 << 20;
/// Largest message, in bytes: more than any state that fits a rank's memory.
const MAX_MESSAGE: usize = 64 << 30;
/// Memory is taken in such steps, as bytes arrive.
const STEP: usize = 1 << 20;

/// What the frames of a peer come to.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// "I am here."
    Beat,
    /// Message number `sequence`.
    Message {
        /// Counts the messages from one rank to another, from 0.
        sequence: u32,
        /// Its bytes.
        body: Vec<u8>,
    },
    /// The sender gives up, and says why.
    Abort(String),
}

const MAGIC: u32 = 0x336c_7463;
const BEAT: u8 = 0;
const LAST: u8 = 1;
const ABORT: u8 = 2;
const MORE: u8 = 3;
/// The only frame of a message, whose body lies in memory that both share.
const SHARED: u8 = 4;

/// Kind, sequence and length of a body.
///
/// # Errors
/// Bytes that no rank of ours would send.
pub fn parse_header(h: &[u8; 16]) -> Result<(u8, u32, usize)> {
    let word = |at: usize| u32::from_le_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
    let (kind, len) = (h[4], word(12) as usize);
    let known = matches!(kind, BEAT | LAST | ABORT | MORE | SHARED);
    if word(0) != MAGIC || !known || h[5..8] != [0; 3] || len > MAX_BODY {
        return Err(Error::Internal("a peer sent a frame that is none of ours".into()));
    }
    Ok((kind, word(8), len))
}

fn header(kind: u8, sequence: u32, len: usize) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4] = kind;
    header[8..12].copy_from_slice(&sequence.to_le_bytes());
    header[12..].copy_from_slice(&(len as u32).to_le_bytes());
    header
}

/// Header and body go out in one piece, without a copy.
fn frame(out: &mut impl Write, kind: u8, sequence: u32, body: &[&[u8]]) -> io::Result<()> {
    let header = header(kind, sequence, body.iter().map(|part| part.len()).sum());
    let mut all: Vec<IoSlice<'_>> =
        std::iter::once(&header[..]).chain(body.iter().copied()).map(IoSlice::new).collect();
    let mut rest = &mut all[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match out.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes a sign of life.
pub(super) fn write_beat(out: &mut impl Write) -> io::Result<()> {
    frame(out, BEAT, 0, &[])
}

/// Writes the last words.
pub(super) fn write_abort(out: &mut impl Write, why: &str) -> io::Result<()> {
    frame(out, ABORT, 0, &[&why.as_bytes()[..why.len().min(MAX_BODY)]])
}

/// Writes a message: its parts one after the other, through `outlet` if they are large and there is room.
pub(super) fn write_message(
    out: &mut impl Write,
    outlet: Option<&mut Outlet>,
    sequence: u32,
    parts: &[&[u8]],
) -> io::Result<()> {
    let len = parts.iter().map(|part| part.len()).sum();
    if len >= LEAST && outlet.is_some_and(|outlet| outlet.put(parts)) {
        return out.write_all(&header(SHARED, sequence, len));
    }
    if len <= MAX_BODY {
        return frame(out, LAST, sequence, parts);
    }
    let mut frames = parts.iter().flat_map(|part| part.chunks(MAX_BODY)).peekable();
    while let Some(body) = frames.next() {
        frame(out, if frames.peek().is_some() { MORE } else { LAST }, sequence, &[body])?;
    }
    Ok(())
}

/// Reads what a peer says next, into `spare` if that is a message. Memory is taken as bytes arrive, not as they are
/// announced.
pub(super) fn read(input: &mut impl Read, inlet: Option<&mut Inlet>, spare: &mut Vec<u8>) -> io::Result<Said> {
    let mut len = 0;
    let bad = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let mut begun: Option<u32> = None;
    loop {
        let mut header = [0; 16];
        input.read_exact(&mut header)?;
        let (kind, sequence, more) = parse_header(&header).map_err(|e| bad(&e.to_string()))?;
        if begun.is_some_and(|s| s != sequence || !matches!(kind, LAST | MORE)) {
            return Err(bad("a peer broke off a message"));
        }
        if kind == SHARED {
            spare.resize(more, 0);
            inlet.ok_or_else(|| bad("a peer shares memory that it was not offered"))?.take(spare)?;
            return Ok(Said::Message { sequence, body: std::mem::take(spare) });
        }
        let whole = len + more;
        if whole > MAX_MESSAGE {
            return Err(bad("a peer sent a message without an end"));
        }
        while len < whole {
            let next = whole.min(len + STEP);
            // What is there already is not made zero first.
            if spare.len() < next {
                spare.resize(next, 0);
            }
            input.read_exact(&mut spare[len..next])?;
            len = next;
        }
        match kind {
            BEAT => return Ok(Said::Beat),
            MORE => begun = Some(sequence),
            _ => {
                let mut body = std::mem::take(spare);
                body.truncate(len);
                return Ok(match kind {
                    LAST => Said::Message { sequence, body },
                    _ => Said::Abort(String::from_utf8_lossy(&body).into_owned()),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_one_and_of_several_frames_come_back() {
        for len in [0, 5, STEP, STEP + 1, MAX_BODY, 2 * MAX_BODY + 3] {
            let sent: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            for cut in [0, len / 3, len] {
                let mut bytes = Vec::new();
                write_message(&mut bytes, None, 7, &[&sent[..cut], &sent[cut..]]).unwrap();
                for spare in [0, 3, 3 * STEP] {
                    let said = read(&mut &bytes[..], None, &mut vec![9; spare]).unwrap();
                    assert_eq!(said, Said::Message { sequence: 7, body: sent.clone() });
                }
                assert!(read(&mut &bytes[..bytes.len() - 1], None, &mut Vec::new()).is_err());
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_large_goes_through_shared_memory_while_there_is_room() {
        let (mut one, mut two) = super::super::shared::tests::pair();
        let sent: Vec<Vec<u8>> = [5, LEAST - 1, LEAST, 1 << 20, 1 << 20, 3 << 20, LEAST, MAX_BODY + 1]
            .map(|len| (0..len).map(|i| (i * 3 + len) as u8).collect())
            .into();
        let (mut bytes, mut lengths) = (Vec::new(), Vec::new());
        for (i, body) in sent.iter().enumerate() {
            let before = bytes.len();
            let (left, right) = body.split_at(body.len() / 3);
            write_message(&mut bytes, Some(&mut one.outlet), i as u32, &[left, right]).unwrap();
            lengths.push(bytes.len() - before);
        }
        // The second of the largest two that would fit finds no room, the small one after it does.
        let wire = |len: usize| 16 + len;
        let want = [5, LEAST - 1, 0, 0, 1 << 20, 3 << 20, 0].map(wire);
        assert_eq!(lengths[..7], want);
        let mut input = &bytes[..];
        for (i, body) in sent.iter().enumerate() {
            let said = read(&mut input, Some(&mut two.inlet), &mut vec![9; i * 1000]).unwrap();
            assert!(said == Said::Message { sequence: i as u32, body: body.clone() }, "message {i}");
        }
        // Word of what is not there.
        for inlet in [None, Some(&mut two.inlet)] {
            assert!(read(&mut &header(SHARED, 9, LEAST)[..], inlet, &mut Vec::new()).is_err());
        }
    }

    #[test]
    fn another_message_inside_a_message_is_refused() {
        let mut bytes = Vec::new();
        frame(&mut bytes, MORE, 1, &[b"a"]).unwrap();
        write_beat(&mut bytes).unwrap();
        assert_eq!(read(&mut &bytes[..], None, &mut Vec::new()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_or_allocate_what_is_not_there(bytes in proptest::collection::vec(0u8.., 0..64), ours: bool) {
            let mut bytes = bytes;
            if ours && bytes.len() >= 8 {
                bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
                (bytes[4], bytes[5], bytes[6], bytes[7]) = (bytes[4] % 5, 0, 0, 0);
            }
            let _ = read(&mut &bytes[..], None, &mut Vec::new());
        }
    }
}
