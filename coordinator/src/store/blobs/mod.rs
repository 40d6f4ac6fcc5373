//! Files by the SHA-256 of their content: uploaded in chunks, resumable, committed only when the digest is right.
//!
//! Uploads gather on the coordinator's disk. Whole blobs lie on a [`Shelf`]: a folder beside them, or a bucket.

mod bucket;
mod folder;

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use sha2::{Digest, Sha256};

use self::{bucket::Bucket, folder::Folder};
use super::{Error, room::Room};

/// Where whole blobs lie. Digests are checked before they come here.
trait Shelf: Send + Sync {
    /// The bytes of a blob that is there. It counts as new from then on: whoever asks will refer to it soon.
    fn size(&self, digest: &str) -> Result<Option<u64>, Error>;

    /// Takes a file in; it is durable, under its name, when this returns.
    fn put(&self, digest: &str, file: &Path) -> Result<(), Error>;

    /// Up to `most` bytes from `offset` on; none at its end.
    fn read(&self, digest: &str, offset: u64, most: usize) -> Result<Vec<u8>, Error>;

    /// Throws a blob away, now or soon. What cannot be removed is swept another time.
    fn remove(&self, digest: &str);

    /// Names of all blobs, and when each came there or counted as new.
    fn list(&self) -> Result<Vec<(String, SystemTime)>, Error>;

    /// When somebody last asked for a blob, as far as is known here and now.
    fn asked(&self, digest: &str) -> Option<SystemTime>;
}

/// The blobs. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    partial: PathBuf,
    shelf: Arc<dyn Shelf>,
    /// Bytes of the disk that uploads leave free.
    reserve: u64,
}

/// The most that uploads leave free for the log, in bytes, and the share of a disk that is as good where it is small: without
/// room for the log no job begins, ends or is cancelled.
const RESERVE: (u64, u64) = (256 << 20, 16);
/// Largest blob, in bytes.
pub const MAX_BLOB: u64 = 64 << 30;

fn checked(digest: &str) -> Result<&str, Error> {
    let good = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if good { Ok(digest) } else { Err(Error::Refused("a digest is 64 lower-case hexadecimal digits".into())) }
}

impl Blobs {
    /// Opens the blobs in `dir`.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let (partial, reserve) = uploads(dir)?;
        Ok(Self { partial, shelf: Arc::new(Folder::new(dir.join("blobs"))), reserve })
    }

    /// Opens blobs that lie in a bucket: any URL that the `object_store` library takes. Credentials come from the
    /// environment, as its documentation says. Within it they lie in a folder of this coordinator's, whose name is kept
    /// in `dir`. Must be called inside a runtime.
    ///
    /// # Errors
    /// A URL that this build cannot use.
    pub fn open_at(dir: &Path, url: &str) -> Result<Self, Error> {
        let (partial, reserve) = uploads(dir)?;
        Ok(Self { partial, shelf: Arc::new(Bucket::open(url, &owner(dir)?)?), reserve })
    }

    fn partial(&self, digest: &str) -> Result<PathBuf, Error> {
        Ok(self.partial.join(checked(digest)?))
    }

    /// Whether a blob is whole, and how many bytes of it are there. A whole one counts as new from then on.
    ///
    /// # Errors
    /// Something that is no digest, or a shelf that does not answer.
    pub fn stat(&self, digest: &str) -> Result<(bool, u64), Error> {
        let partial = self.partial(digest)?;
        Ok(match self.shelf.size(digest)? {
            Some(n) => (true, n),
            None => (false, fs::metadata(partial).map_or(0, |m| m.len())),
        })
    }

    /// Adds a chunk at `offset`, which must be where the upload stands. Does nothing where another upload of the same blob
    /// was faster.
    ///
    /// # Errors
    /// A gap, too much, or a disk that refuses, because it is full or would not leave enough to the log: what has arrived is
    /// thrown away then, for others need its room too.
    pub fn write(&self, digest: &str, size: u64, offset: u64, data: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(data.len() as u64);
        if size > MAX_BLOB || end.is_none_or(|end| end > size) {
            return Err(Error::Refused(format!("{} bytes at {offset} do not fit a blob of {size}", data.len())));
        }
        let partial = self.partial(digest)?;
        let there = fs::metadata(&partial).map_or(0, |m| m.len());
        if offset > there {
            // The upload that was faster has taken the file with it.
            return match self.shelf.size(digest)? {
                Some(_) => Ok(()),
                None => Err(Error::Gap { there, at: offset }),
            };
        }
        let written = if Room::of(&self.partial).is_some_and(|room| room.free < self.reserve) {
            Err(Error::Tight(self.reserve))
        } else {
            write_at(&partial, offset, data).map_err(Error::from)
        };
        if written.as_ref().is_err_and(|e| e.is_full()) {
            let _ = fs::remove_file(partial);
        }
        written
    }

    /// Makes an upload a blob, if its bytes are those of its name.
    ///
    /// # Errors
    /// Other bytes, which are thrown away; or a shelf that does not take it: the upload stays.
    pub fn commit(&self, digest: &str, size: u64) -> Result<(), Error> {
        let partial = self.partial(digest)?;
        if self.shelf.size(digest)?.is_some() {
            let _ = fs::remove_file(partial);
            return Ok(());
        }
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&partial)?;
        let (mut hasher, mut buffer, mut total) = (Sha256::new(), vec![0; 1 << 16], 0u64);
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            total += n as u64;
        }
        let got: String = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
        if got != digest || total != size {
            fs::remove_file(&partial)?;
            return Err(Error::Refused(format!("the bytes sent are not those of {digest}; send them again")));
        }
        file.sync_all()?;
        self.shelf.put(digest, &partial)
    }

    /// Up to `most` bytes of a whole blob from `offset` on; none at its end.
    ///
    /// # Errors
    /// No such blob, or a shelf that does not answer.
    pub fn read(&self, digest: &str, offset: u64, most: usize) -> Result<Vec<u8>, Error> {
        self.shelf.read(checked(digest)?, offset, most)
    }

    /// Throws a blob away.
    pub fn remove(&self, digest: &str) {
        if let Ok(digest) = checked(digest) {
            self.shelf.remove(digest);
        }
    }

    /// Throws away what is not `needed` and older than that: blobs that were never referred to, or no longer are, and
    /// uploads that were given up.
    ///
    /// # Errors
    /// A shelf that does not answer.
    pub fn sweep(&self, needed: impl Fn(&str) -> bool, older_than: Duration) -> Result<(), Error> {
        let now = SystemTime::now();
        let old = move |since: SystemTime| now.duration_since(since).is_ok_and(|age| age > older_than);
        for (digest, _) in self.shelf.list()?.into_iter().filter(|(d, since)| !needed(d) && old(*since)) {
            // Somebody may have asked for it since it was listed.
            if self.shelf.asked(&digest).is_none_or(old) {
                tracing::info!("blob {digest} is removed: nothing refers to it");
                self.shelf.remove(&digest);
            }
        }
        for (digest, _) in Folder::new(self.partial.clone()).list()?.into_iter().filter(|(_, since)| old(*since)) {
            if let Ok(path) = self.partial(&digest) {
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }
}

fn write_at(partial: &Path, offset: u64, data: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(offset == 0).truncate(false).write(true).open(partial)?;
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(data)
}

/// The name of this coordinator's folder in a bucket; as long-lived as its data folder.
fn owner(dir: &Path) -> Result<String, Error> {
    let path = dir.join("bucket-folder");
    match fs::read_to_string(&path) {
        Ok(name) => Ok(name.trim().to_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let name = format!("tl-{}", ulid::Ulid::new());
            let aside = dir.join("bucket-folder.new");
            fs::write(&aside, &name)?;
            File::open(&aside)?.sync_all()?;
            fs::rename(&aside, &path)?;
            Ok(name)
        }
        Err(e) => Err(e.into()),
    }
}

/// The folder in which uploads gather, and the bytes of its disk that they leave free.
fn uploads(dir: &Path) -> Result<(PathBuf, u64), Error> {
    let partial = dir.join("blobs").join("partial");
    fs::create_dir_all(&partial)?;
    let (most, share) = RESERVE;
    let reserve = Room::of(&partial).map_or(0, |room| most.min(room.all / share));
    Ok((partial, reserve))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    /// What holds for every shelf.
    fn uploads_resume_and_wrong_bytes_never_count(blobs: &Blobs) {
        blobs.write(HELLO, 5, 0, b"hel").unwrap();
        assert_eq!(blobs.stat(HELLO).unwrap(), (false, 3));
        assert!(blobs.write(HELLO, 5, 4, b"o").is_err(), "a gap");
        assert!(blobs.write(HELLO, 5, 3, b"lo!").is_err(), "too much");
        blobs.write(HELLO, 5, 3, b"lO").unwrap();
        assert!(blobs.commit(HELLO, 5).is_err());
        assert_eq!(blobs.stat(HELLO).unwrap(), (false, 0));
        blobs.write(HELLO, 5, 0, b"hello").unwrap();
        blobs.commit(HELLO, 5).unwrap();
        assert_eq!(blobs.stat(HELLO).unwrap(), (true, 5));
        blobs.commit(HELLO, 5).unwrap();
        assert_eq!(blobs.read(HELLO, 1, 3).unwrap(), b"ell");
        assert_eq!(blobs.read(HELLO, 3, 99).unwrap(), b"lo");
        assert!(blobs.read(HELLO, 5, 99).unwrap().is_empty(), "its end");
        assert!(blobs.read(&"0".repeat(64), 0, 1).is_err(), "no such blob");
        assert!(blobs.stat("../../etc/passwd").is_err());
        blobs.sweep(|d| d == HELLO, Duration::ZERO).unwrap();
        assert!(blobs.stat(HELLO).unwrap().0, "it is needed");
        blobs.sweep(|_| false, Duration::from_secs(60)).unwrap();
        assert!(blobs.stat(HELLO).unwrap().0, "somebody has just asked for it");
    }

    #[test]
    fn a_folder_keeps_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        uploads_resume_and_wrong_bytes_never_count(&blobs);
        blobs.remove(HELLO);
        assert_eq!(blobs.stat(HELLO).unwrap(), (false, 0));
    }

    #[test]
    fn of_two_uploads_of_the_same_the_slower_one_is_done_too() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        // Both have sent a part when the first one is done.
        blobs.write(HELLO, 5, 0, b"hel").unwrap();
        blobs.write(HELLO, 5, 0, b"he").unwrap();
        blobs.write(HELLO, 5, 3, b"lo").unwrap();
        blobs.commit(HELLO, 5).unwrap();
        for at in 2..5 {
            blobs.write(HELLO, 5, at, b"").unwrap();
        }
        blobs.commit(HELLO, 5).unwrap();
        assert_eq!(blobs.read(HELLO, 0, 9).unwrap(), b"hello");
        assert_eq!(fs::read_dir(&blobs.partial).unwrap().count(), 0, "nothing is left of the slower one");
        let other = "0".repeat(64);
        assert!(blobs.write(&other, 5, 3, b"lo").is_err() && blobs.write(&other, 5, u64::MAX, b"lo").is_err());
        assert_eq!(fs::read_dir(&blobs.partial).unwrap().count(), 0, "a gap leaves no file");
    }

    #[test]
    fn an_upload_that_would_leave_the_log_too_little_room_ends_and_gives_its_own_back() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        blobs.write(HELLO, 5, 0, b"hel").unwrap();
        let full = Blobs { reserve: u64::MAX, ..blobs.clone() };
        let refused = full.write(HELLO, 5, 3, b"lo").unwrap_err();
        assert!(refused.is_full() && refused.to_string().contains("which the log needs"), "{refused}");
        assert_eq!(blobs.stat(HELLO).unwrap(), (false, 0));
        // Another upload of the same does not know; what was given back is room for it now.
        let other = blobs.write(HELLO, 5, 3, b"lo");
        assert!(matches!(other, Err(Error::Gap { there: 0, at: 3 })), "{other:?}");
        blobs.write(HELLO, 5, 0, b"hello").unwrap();
        blobs.commit(HELLO, 5).unwrap();
        assert_eq!(full.read(HELLO, 0, 9).unwrap(), b"hello", "what is there is not the matter");
    }

    #[test]
    fn a_bucket_keeps_blobs_for_one_coordinator_and_another_one_leaves_them_alone() {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _inside = runtime.enter();
        let url = format!("file://{}/shared", dirs[2].path().display());
        let blobs = Blobs::open_at(dirs[0].path(), &url).unwrap();
        std::thread::scope(|s| {
            s.spawn(|| uploads_resume_and_wrong_bytes_never_count(&blobs)).join().unwrap();
            let again = Blobs::open_at(dirs[0].path(), &url).unwrap();
            s.spawn(move || assert_eq!(again.read(HELLO, 0, 9).unwrap(), b"hello")).join().unwrap();
            let other = Blobs::open_at(dirs[1].path(), &url).unwrap();
            s.spawn(move || {
                assert!(!other.stat(HELLO).unwrap().0);
                other.sweep(|_| false, Duration::ZERO).unwrap();
            });
            let again = Blobs::open_at(dirs[0].path(), &url).unwrap();
            s.spawn(move || assert!(again.stat(HELLO).unwrap().0)).join().unwrap();
            s.spawn(|| {
                blobs.remove(HELLO);
                let deadline = std::time::Instant::now() + Duration::from_secs(10);
                while blobs.stat(HELLO).unwrap().0 {
                    assert!(std::time::Instant::now() < deadline, "it is not removed");
                    std::thread::yield_now();
                }
            });
        });
        for (url, says) in
            [("no url", "is no URL"), ("ftp://x/y", "cannot be used"), ("s3://bucket/x", "cannot be used")]
        {
            let error = Blobs::open_at(dirs[0].path(), url).err().unwrap().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn what_nobody_needs_is_swept_when_it_is_old_and_not_when_somebody_has_just_asked_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let [needed, left, asked, given_up, fresh] = ["a", "b", "c", "d", "e"].map(|c| c.repeat(64));
        let hour = Duration::from_secs(3_600);
        let whole = |digest: &String| dir.path().join("blobs").join(digest);
        for (path, age) in [
            (whole(&needed), 9),
            (whole(&left), 9),
            (whole(&asked), 9),
            (whole(&fresh), 0),
            (blobs.partial(&given_up).unwrap(), 9),
            (blobs.partial(&fresh).unwrap(), 0),
        ] {
            fs::write(&path, "x").unwrap();
            File::open(&path).unwrap().set_modified(SystemTime::now() - hour * age).unwrap();
        }
        assert_eq!(blobs.stat(&asked).unwrap(), (true, 1));
        blobs.sweep(|digest| digest == needed, hour).unwrap();
        let there = [&needed, &left, &asked, &given_up, &fresh].map(|d| blobs.stat(d).unwrap());
        assert_eq!(there, [(true, 1), (false, 0), (true, 1), (false, 0), (true, 1)]);
        blobs.remove(&fresh);
        assert_eq!(blobs.stat(&fresh).unwrap(), (false, 1), "its upload goes on");
    }
}
