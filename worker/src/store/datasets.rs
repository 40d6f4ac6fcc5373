//! Pushed data sets of this node: fetched once, unpacked, shared by its ranks, and given up when they are many or the
//! disk is full.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tl_proto::v1;

use super::{
    blobs::{Blobs, Error, is_full},
    locks::Keyed,
};

/// Data sets that are kept although no rank reads them.
const KEEP: usize = 8;

/// The data sets of a node.
pub struct DataSets {
    dir: PathBuf,
    /// Ranks that read each data set.
    readers: Arc<Mutex<BTreeMap<String, usize>>>,
    /// Held while one is brought: the next rank that wants it finds it there.
    bringing: Keyed,
}

/// A data set that stays until this is dropped.
pub struct Lease {
    folder: PathBuf,
    digest: String,
    readers: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Lease {
    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut readers = lock(&self.readers);
        if let Some(n) = readers.get_mut(&self.digest) {
            *n -= 1;
        }
        readers.retain(|_, n| *n > 0);
    }
}

fn lock(readers: &Mutex<BTreeMap<String, usize>>) -> MutexGuard<'_, BTreeMap<String, usize>> {
    readers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DataSets {
    /// Data sets in `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, readers: Arc::default(), bringing: Keyed::default() }
    }

    /// The data set in an archive; fetched and unpacked unless it is here.
    ///
    /// # Errors
    /// There is no such blob, or the disk refuses.
    pub async fn take(&self, blob: &v1::BlobRef, blobs: &Blobs, slow: impl Fn(&str)) -> Result<Lease, Error> {
        let _one = self.bringing.lock(&blob.digest).await;
        let folder = self.dir.join(&blob.digest);
        // Counted as read before it is there, so that nobody makes room with it.
        *lock(&self.readers).entry(blob.digest.clone()).or_default() += 1;
        let lease = Lease { folder: folder.clone(), digest: blob.digest.clone(), readers: self.readers.clone() };
        if folder.is_dir() {
            // Its age is when it was last wanted.
            let _ = File::open(&folder).and_then(|f| f.set_modified(SystemTime::now()));
        } else {
            self.give_up(KEEP - 1).await;
            let archive = match blobs.fetch(blob, &slow).await {
                // A full disk may have room without what nobody reads.
                Err(Error::Disk(e)) if is_full(&e) => {
                    self.give_up(0).await;
                    blobs.fetch(blob, &slow).await?
                }
                other => other?,
            };
            let mut unpacked = self.unpack(&archive, &folder).await;
            let full = unpacked.as_ref().is_err_and(is_full);
            if full {
                self.give_up(0).await;
                blobs.make_room(Some(&archive));
            }
            // Others make room, too: then it is brought once more.
            if full || (unpacked.is_err() && !archive.exists()) {
                let again = blobs.fetch(blob, &slow).await?;
                unpacked = self.unpack(&again, &folder).await;
            }
            // Its files are here now; the archive would only take their room once more.
            let _ = fs::remove_file(archive);
            unpacked?;
        }
        Ok(lease)
    }

    /// Unpacks an archive aside, and gives it its name once every file of it is on the disk.
    async fn unpack(&self, archive: &Path, folder: &Path) -> io::Result<()> {
        let aside = folder.with_extension(ulid::Ulid::new().to_string());
        let (from, folder) = (archive.to_owned(), folder.to_owned());
        blocking(move || {
            let done = unpack(&from, &aside).and_then(|()| flush(&aside)).and_then(|()| fs::rename(&aside, &folder));
            if done.is_err() {
                let _ = fs::remove_dir_all(&aside);
            }
            done
        })
        .await
    }

    /// Gives up all but `keep` of what nobody reads.
    pub async fn give_up(&self, keep: usize) {
        let victims = self.victims(keep);
        let _ = blocking(move || {
            victims.iter().for_each(|v| drop(fs::remove_dir_all(v)));
            Ok(())
        })
        .await;
    }

    /// What nobody reads, oldest first, but for `keep` of it, under names under which nobody finds it any more; and what an
    /// agent that was killed has left half unpacked.
    fn victims(&self, keep: usize) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let readers = lock(&self.readers);
        let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // Named `DIGEST`, or `DIGEST.ULID` while it is unpacked.
        let read = |p: &Path| readers.contains_key(name(p).split('.').next().unwrap_or_default());
        let unread = entries.flatten().filter(|e| !read(&e.path()));
        let aged = unread.filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())));
        let (half, mut whole): (Vec<_>, Vec<_>) = aged.partition(|(_, p)| p.extension().is_some());
        whole.sort();
        let many = whole.len().saturating_sub(keep);
        // While nobody can begin to read it: who wants it from now on brings it anew.
        let renamed = whole.into_iter().take(many).filter_map(|(_, path)| {
            let aside = path.with_extension(ulid::Ulid::new().to_string());
            fs::rename(&path, &aside).ok().map(|()| aside)
        });
        half.into_iter().map(|(_, path)| path).chain(renamed).collect()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// Brings the files of a folder to the disk: what has its name is trusted from then on.
fn flush(folder: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    nix::unistd::syncfs(File::open(folder)?)?;
    #[cfg(not(target_os = "linux"))]
    nix::unistd::sync();
    Ok(())
}

/// Unpacks folders and plain files, and nothing else: a link could lead out.
fn unpack(archive: &Path, into: &Path) -> io::Result<()> {
    fs::create_dir_all(into)?;
    let mut archive = tar::Archive::new(File::open(archive)?);
    archive.set_preserve_permissions(false);
    archive.set_preserve_mtime(false);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if !(kind.is_file() || kind.is_dir()) {
            return Err(io::Error::other("the archive holds something that is neither a file nor a folder"));
        }
        if !entry.unpack_in(into)? {
            return Err(io::Error::other("the archive holds a path that leads out of it"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(path: &Path, build: impl FnOnce(&mut tar::Builder<File>)) {
        let mut builder = tar::Builder::new(File::create(path).unwrap());
        build(&mut builder);
        builder.finish().unwrap();
    }

    fn header(kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header
    }

    #[test]
    fn files_come_out_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let (path, out) = (dir.path().join("a.tar"), dir.path().join("out"));
        archive(&path, |b| {
            b.append_data(&mut header(tar::EntryType::Regular, 2), "ants/1.jpg", &b"hi"[..]).unwrap();
        });
        unpack(&path, &out).unwrap();
        assert_eq!(fs::read(out.join("ants/1.jpg")).unwrap(), b"hi");
        archive(&path, |b| {
            b.append_link(&mut header(tar::EntryType::Symlink, 0), "ants", "/etc").unwrap();
        });
        assert!(unpack(&path, &out).is_err());
        archive(&path, |b| {
            let mut header = header(tar::EntryType::Regular, 2);
            header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../escape");
            header.set_cksum();
            b.append(&header, &b"hi"[..]).unwrap();
        });
        assert!(unpack(&path, &out).is_err());
        assert!(!dir.path().join("escape").exists());
    }

    #[test]
    fn what_is_read_stays_and_the_oldest_of_the_rest_go() {
        let dir = tempfile::tempdir().unwrap();
        let sets = DataSets::new(dir.path().into());
        for n in 0..12 {
            let folder = dir.path().join(format!("{n:02}"));
            fs::create_dir(&folder).unwrap();
            let age = std::time::Duration::from_secs(1000 - n);
            File::open(&folder).unwrap().set_modified(SystemTime::now() - age).unwrap();
        }
        fs::create_dir(dir.path().join("03.half")).unwrap();
        lock(&sets.readers).insert("00".into(), 1);
        let victims = sets.victims(KEEP - 1);
        assert!(!dir.path().join("01").exists(), "a rank that wants it now does not find it half removed");
        victims.iter().for_each(|v| fs::remove_dir_all(v).unwrap());
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["00", "05", "06", "07", "08", "09", "10", "11"]);
    }
}
