//! Files that may be packed by gzip: in one member, or in several one behind the other, as `cat`, `bgzip` and writers of
//! parts leave them.

use std::{io::Read, path::Path};

use flate2::bufread::GzDecoder;

use super::read_file;
use crate::{Error, Result};

/// What a member begins with (RFC 1952).
const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What a file has in it, unpacked where it is packed; at most `limit` bytes, packed or not.
///
/// # Errors
/// A file that cannot be read, is too large, is cut off, or has something else than zeros behind its last member.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let bytes = read_file(path, limit)?;
    if bytes.starts_with(&MAGIC) { unpacked(&bytes, &path.display().to_string(), limit) } else { Ok(bytes) }
}

/// All members, one after the other.
fn unpacked(bytes: &[u8], shown: &str, limit: u64) -> Result<Vec<u8>> {
    let (mut rest, mut out) = (bytes, Vec::new());
    while rest.starts_with(&MAGIC) {
        let room = limit.saturating_sub(out.len() as u64).saturating_add(1);
        let read = GzDecoder::new(&mut rest).take(room).read_to_end(&mut out);
        read.map_err(|e| Error::user(format!("`{shown}` is not a whole gzip file: {e}"), "fetch it again"))?;
        if out.len() as u64 > limit {
            return Err(Error::user(format!("`{shown}` unpacks to more than {limit} bytes"), "split it"));
        }
        // What is kept in blocks is filled up with zeros.
        rest = &rest[rest.iter().take_while(|byte| **byte == 0).count()..];
    }
    if rest.is_empty() {
        return Ok(out);
    }
    Err(Error::user(
        format!("the last {} bytes of `{shown}` are no gzip, and what lies in front of them is", rest.len()),
        "fetch it again, or unpack it and give what comes out",
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn member(text: &str) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn every_member_is_read_and_zeros_behind_one_are_not() {
        let zeros = vec![0; 300];
        // `bgzip` ends with a member that has nothing in it.
        for (parts, wanted) in [
            (vec![member("a\n")], "a\n"),
            (vec![member("a\n"), member("b\n"), member("c")], "a\nb\nc"),
            (vec![member("a\n"), zeros.clone()], "a\n"),
            (vec![member("a\n"), zeros, member("b\n"), member("")], "a\nb\n"),
        ] {
            let out = unpacked(&parts.concat(), "x", 6).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), wanted);
        }
    }

    #[test]
    fn what_is_not_whole_or_no_gzip_or_too_long_is_refused() {
        let (first, second) = (member("one text"), member("another text"));
        let cut = second[..second.len() - 1].to_vec();
        for (second, says) in [(cut, "not a whole gzip"), (b"text".to_vec(), "the last 4 bytes of `x` are no gzip")] {
            let error = unpacked(&[first.clone(), second].concat(), "x", 100).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let both = [first, second].concat();
        assert_eq!(unpacked(&both, "x", 20).unwrap().len(), 20);
        let error = unpacked(&both, "x", 19).unwrap_err().to_string();
        assert!(error.contains("more than 19 bytes"), "{error}");
    }
}
