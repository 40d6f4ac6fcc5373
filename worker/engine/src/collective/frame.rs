//! What travels between two ranks: a header of 16 bytes, then a body of bounded size.

use std::io::{self, Read, Write};

use crate::{Error, Result};

/// Largest body, in bytes.
const MAX_BODY: u64 = 2 << 30;

/// One message.
#[derive(Debug, PartialEq)]
pub enum Frame {
    /// "I am here."
    Beat,
    /// Part of exchange `sequence`.
    Data {
        /// Which exchange.
        sequence: u32,
        /// Its bytes.
        body: Vec<u8>,
    },
    /// The sender gives up, and says why.
    Abort(String),
}

const MAGIC: u32 = 0x316c_7463;

/// Kind, sequence and length of a body.
///
/// # Errors
/// Bytes that no rank of ours would send.
pub fn parse_header(h: &[u8; 16]) -> Result<(u8, u32, u64)> {
    let word = |at: usize| u32::from_le_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
    // Eight bits of kind, forty of length.
    let (kind, high) = (h[4], u64::from(h[5]));
    let len = u64::from(word(12)) | (high << 32);
    if word(0) != MAGIC || kind > 2 || h[6] != 0 || h[7] != 0 || len > MAX_BODY {
        return Err(Error::Internal("a peer sent a frame that is none of ours".into()));
    }
    Ok((kind, word(8), len))
}

/// Writes a frame.
pub(super) fn write(out: &mut impl Write, kind: u8, sequence: u32, body: &[u8]) -> io::Result<()> {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4] = kind;
    header[5] = (body.len() as u64 >> 32) as u8;
    header[8..12].copy_from_slice(&sequence.to_le_bytes());
    header[12..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    out.write_all(&header)?;
    out.write_all(body)
}

/// Reads a frame; a body is allocated as it arrives, not as it is announced.
pub(super) fn read(input: &mut impl Read) -> io::Result<Frame> {
    let mut header = [0; 16];
    input.read_exact(&mut header)?;
    let (kind, sequence, len) =
        parse_header(&header).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
    let mut body = Vec::new();
    let got = input.take(len).read_to_end(&mut body)? as u64;
    if got != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(match kind {
        0 => Frame::Beat,
        1 => Frame::Data { sequence, body },
        _ => Frame::Abort(String::from_utf8_lossy(&body).into_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_round_trips() {
        let mut bytes = Vec::new();
        write(&mut bytes, 1, 7, b"hello").unwrap();
        assert_eq!(read(&mut &bytes[..]).unwrap(), Frame::Data { sequence: 7, body: b"hello".to_vec() });
        assert!(read(&mut &bytes[..bytes.len() - 1]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_or_allocate_what_is_not_there(bytes in proptest::collection::vec(0u8.., 0..64), ours: bool) {
            let mut bytes = bytes;
            if ours && bytes.len() >= 8 {
                bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
                (bytes[4], bytes[5], bytes[6], bytes[7]) = (bytes[4] % 3, 0, 0, 0);
            }
            let _ = read(&mut &bytes[..]);
        }
    }
}
