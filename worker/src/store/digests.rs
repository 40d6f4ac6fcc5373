//! What files hold that are kept here: their digests, remembered while an agent runs. Every rank that starts wants to know
//! them, and to hash gigabytes takes longer than all the rest of its start.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// SHA-256 of a file, hexadecimal, and its size.
pub type Sum = (String, u64);

/// How long nobody must have written to a file before its digest is remembered: what is written twice in a moment has the
/// same times.
const SETTLED: Duration = Duration::from_secs(2);

/// What changes with whoever writes to a file, puts another in its place, or sets its times back: device, number, size, and
/// the times of the last change of bytes and of anything.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mark([i128; 5]);

#[cfg(unix)]
impl Mark {
    fn of(meta: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let nanos = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        let (written, changed) = (nanos(meta.mtime(), meta.mtime_nsec()), nanos(meta.ctime(), meta.ctime_nsec()));
        Some(Self([meta.dev().into(), meta.ino().into(), meta.size().into(), written, changed]))
    }

    /// Whether nothing has changed for a while at `now`.
    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(SETTLED).as_nanos();
        let last = self.0[3].max(self.0[4]);
        i128::try_from(now).is_ok_and(|now| last < now)
    }
}

#[cfg(not(unix))]
impl Mark {
    fn of(_: &Metadata) -> Option<Self> {
        None
    }

    fn is_settled(&self, _: SystemTime) -> bool {
        false
    }
}

/// Digests by path, each with the mark of the file that it is of.
#[derive(Default)]
pub struct Digests(Mutex<HashMap<PathBuf, (Mark, Sum)>>);

impl Digests {
    /// The digest of a file; it is read only if it is not the one that was read before.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(&self, path: &Path) -> io::Result<Sum> {
        self.known(path, SystemTime::now(), sha256)
    }

    fn known(&self, path: &Path, now: SystemTime, read: impl FnOnce(&Path) -> io::Result<Sum>) -> io::Result<Sum> {
        let mark = Mark::of(&fs::metadata(path)?);
        if let Some((known, sum)) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path)
            && Some(*known) == mark
        {
            return Ok(sum.clone());
        }
        let sum = read(path)?;
        let same = |mark: &Mark| fs::metadata(path).is_ok_and(|m| Mark::of(&m) == Some(*mark));
        if let Some(mark) = mark.filter(|m| m.is_settled(now) && same(m)) {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(path.to_owned(), (mark, sum.clone()));
        }
        Ok(sum)
    }
}

/// SHA-256 of a file, read now.
///
/// # Errors
/// It cannot be read.
pub fn sha256(path: &Path) -> io::Result<Sum> {
    let mut hasher = Sha256::new();
    let size = feed(path, &mut hasher)?;
    Ok((hex(&hasher.finalize()), size))
}

/// Whether a file, of which the digest is known, is what the hub's tag of it says: SHA-256 for large ones, for others
/// git's name of their bytes. Caches on the way to the hub know nothing of git and take SHA-1 alone. Of any other tag
/// nothing is known.
///
/// # Errors
/// It cannot be read.
pub fn is_tagged(path: &Path, tag: &str, (sha256, size): &Sum) -> io::Result<bool> {
    if is_sha256(tag) {
        return Ok(tag == sha256);
    }
    if !is_sha1(tag) {
        return Ok(true);
    }
    let mut git = Sha1::new_with_prefix(format!("blob {size}\0"));
    feed(path, &mut git)?;
    if hex(&git.finalize()) == tag {
        return Ok(true);
    }
    let mut plain = Sha1::new();
    feed(path, &mut plain)?;
    Ok(hex(&plain.finalize()) == tag)
}

fn feed(path: &Path, hasher: &mut impl Digest) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let (mut buffer, mut size) = (vec![0; 1 << 16], 0);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(size);
        }
        hasher.update(&buffer[..n]);
        size += n as u64;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_sha256(tag: &str) -> bool {
    tag.len() == 64 && is_hex(tag)
}

/// Whether a text is a SHA-1 in full, as commits and the tags of small files are.
pub fn is_sha1(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_tag_is_sha256_or_gits_name_or_nothing_that_could_be_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, "hello\n").unwrap();
        let sum = sha256(&path).unwrap();
        // `git hash-object`, `sha1sum` and `sha256sum` say so.
        for (tag, right) in [
            ("ce013625030ba8dba906f756967f9e9ca394464a", true),
            ("f572d396fae9206628714fb2ce00f72e94f2258f", true),
            ("ce013625030ba8dba906f756967f9e9ca394464b", false),
            ("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03", true),
            ("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be04", false),
            ("some-other-tag", true),
        ] {
            assert_eq!(is_tagged(&path, tag, &sum).unwrap(), right, "{tag}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_is_read_again_only_if_somebody_may_have_written_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, digests, reads) = (dir.path().join("w"), Digests::default(), Cell::new(0));
        let ask = |now| {
            let read = |path: &Path| {
                reads.set(reads.get() + 1);
                sha256(path)
            };
            digests.known(&path, now, read).unwrap()
        };
        let (now, later) = (SystemTime::now(), SystemTime::now() + Duration::from_secs(60));
        fs::write(&path, "first").unwrap();
        // Just written: it may be written to again within the same tick of the clock.
        ask(now);
        ask(now);
        assert_eq!(reads.get(), 2);
        let first = ask(later);
        assert_eq!((ask(later), reads.get()), (first.clone(), 3));
        // As many bytes, and the time of the last write set back.
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "other").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(written - Duration::from_secs(1)).unwrap();
        assert_ne!(ask(later), first);
        // Another file in its place.
        fs::write(dir.path().join("x"), "third").unwrap();
        fs::rename(dir.path().join("x"), &path).unwrap();
        ask(later);
        assert_eq!(reads.get(), 5);
    }
}
