//! Files by the SHA-256 of their content: uploaded in chunks, resumable, committed only when the digest is right.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::Error;

/// A folder of blobs.
#[derive(Clone, Debug)]
pub struct Blobs {
    dir: PathBuf,
}

/// Largest blob, in bytes.
pub const MAX_BLOB: u64 = 64 << 30;

impl Blobs {
    /// Opens the blobs in `dir`.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let dir = dir.join("blobs");
        fs::create_dir_all(dir.join("partial"))?;
        Ok(Self { dir })
    }

    fn checked(digest: &str) -> Result<&str, Error> {
        let good = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if good { Ok(digest) } else { Err(Error::Refused("a digest is 64 lower-case hexadecimal digits".into())) }
    }

    /// Where a blob lies, once it is whole.
    ///
    /// # Errors
    /// Something that is no digest.
    pub fn path(&self, digest: &str) -> Result<PathBuf, Error> {
        Ok(self.dir.join(Self::checked(digest)?))
    }

    fn partial(&self, digest: &str) -> Result<PathBuf, Error> {
        Ok(self.dir.join("partial").join(Self::checked(digest)?))
    }

    /// Whether a blob is whole, and how many bytes of it are there.
    ///
    /// # Errors
    /// Something that is no digest.
    pub fn stat(&self, digest: &str) -> Result<(bool, u64), Error> {
        let len = |p: PathBuf| fs::metadata(p).map(|m| m.len()).ok();
        Ok(match len(self.path(digest)?) {
            Some(n) => (true, n),
            None => (false, len(self.partial(digest)?).unwrap_or(0)),
        })
    }

    /// Adds a chunk at `offset`, which must be where the upload stands.
    ///
    /// # Errors
    /// A gap, too much, or a disk that refuses.
    pub fn write(&self, digest: &str, size: u64, offset: u64, data: &[u8]) -> Result<(), Error> {
        if size > MAX_BLOB || offset + data.len() as u64 > size {
            return Err(Error::Refused(format!("{} bytes at {offset} do not fit a blob of {size}", data.len())));
        }
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(self.partial(digest)?)?;
        let there = file.metadata()?.len();
        if offset > there {
            return Err(Error::Refused(format!("the upload stands at {there}, not at {offset}")));
        }
        file.seek(SeekFrom::Start(offset))?;
        Ok(file.write_all(data)?)
    }

    /// Makes an upload a blob, if its bytes are those of its name.
    ///
    /// # Errors
    /// Other bytes, which are thrown away.
    pub fn commit(&self, digest: &str, size: u64) -> Result<(), Error> {
        let (partial, path) = (self.partial(digest)?, self.path(digest)?);
        if path.exists() {
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
        fs::rename(&partial, &path)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(())
    }

    /// Up to `most` bytes of a whole blob from `offset` on; none at its end.
    ///
    /// # Errors
    /// No such blob, or a disk that refuses.
    pub fn read(&self, digest: &str, offset: u64, most: usize) -> Result<Vec<u8>, Error> {
        let mut file = File::open(self.path(digest)?)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut data = Vec::with_capacity(most);
        file.take(most as u64).read_to_end(&mut data)?;
        Ok(data)
    }

    /// Throws a blob away.
    pub fn remove(&self, digest: &str) {
        if let Ok(path) = self.path(digest) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_resumes_and_wrong_bytes_never_count() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        blobs.write(digest, 5, 0, b"hel").unwrap();
        assert_eq!(blobs.stat(digest).unwrap(), (false, 3));
        assert!(blobs.write(digest, 5, 4, b"o").is_err(), "a gap");
        assert!(blobs.write(digest, 5, 3, b"lo!").is_err(), "too much");
        blobs.write(digest, 5, 3, b"lO").unwrap();
        assert!(blobs.commit(digest, 5).is_err());
        assert_eq!(blobs.stat(digest).unwrap(), (false, 0));
        blobs.write(digest, 5, 0, b"hello").unwrap();
        blobs.commit(digest, 5).unwrap();
        assert_eq!(blobs.stat(digest).unwrap(), (true, 5));
        assert!(blobs.path("../../etc/passwd").is_err());
    }
}
