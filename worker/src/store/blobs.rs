//! Files on their way to and from the blob store, and a few of them kept here.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tl_proto::{BLOB_CHUNK_BYTES, v1};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Status};

use super::{
    digests::{self, Digests, Sum},
    locks::Keyed,
};
use crate::session::remote::Remote;

/// Files that are kept, where there is room.
const KEEP: usize = 24;
/// How many files like the newest must have room on the disk: older ones are given up for it.
const ROOM: u64 = 4;
/// How often bytes may arrive wrong.
const WRONG: u32 = 3;
/// How often a slow transfer is told.
const TELL: Duration = Duration::from_secs(60);
/// Longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(2);
/// How long one call without progress may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a file did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk of this node.
    #[error("the disk of the node: {0}")]
    Disk(#[from] io::Error),
    /// The coordinator says no; asking again will not help.
    #[error("the blob store: {}", .0.message())]
    Refused(Box<Status>),
    /// The bytes are not those of the digest. What there is of them lies in the file.
    #[error("blob {0} is damaged")]
    Damaged(String),
}

/// Blobs that are here, and the way to the others.
#[derive(Clone)]
pub struct Blobs {
    dir: PathBuf,
    remote: Remote,
    bringing: Keyed,
    digests: Arc<Digests>,
}

impl Blobs {
    /// Blobs in `dir`, backed by the coordinator.
    pub fn new(dir: PathBuf, remote: Remote) -> Self {
        Self { dir, remote, bringing: Keyed::default(), digests: Arc::default() }
    }

    /// Uploads a file; tries again until the coordinator has it, or says no. `slow` is told why from time to time.
    ///
    /// # Errors
    /// The file cannot be read, or is refused.
    pub async fn upload(&self, path: &Path, slow: impl Fn(&str)) -> Result<v1::BlobRef, Error> {
        let owned = path.to_owned();
        let blob = blocking(move || digests::sha256(&owned).map(reference)).await?;
        self.keep(path, &blob);
        let (mut pause, mut wrong) = (Duration::from_millis(50), 0);
        let mut told = Instant::now();
        loop {
            let why = match tokio::time::timeout(PATIENCE.max(expected(blob.size)), self.put(path, &blob)).await {
                Ok(Ok(())) => return Ok(blob),
                Ok(Err(status)) => {
                    // Wrong bytes may have been damaged on the way; not again and again.
                    wrong += u32::from(status.code() == Code::InvalidArgument);
                    if is_final(status.code()) || wrong >= WRONG {
                        return Err(Error::Refused(Box::new(status)));
                    }
                    status.message().to_owned()
                }
                Err(_) => "no progress".to_owned(),
            };
            tracing::debug!("upload of {}: {why}", path.display());
            if told.elapsed() > TELL {
                told = Instant::now();
                slow(&why);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE);
        }
    }

    async fn put(&self, path: &Path, blob: &v1::BlobRef) -> Result<(), Status> {
        let mut client = self.remote.blobs();
        let stat = client.stat(v1::StatRequest { digest: blob.digest.clone() }).await?.into_inner();
        if stat.complete {
            return Ok(());
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let (path, blob, start) = (path.to_owned(), blob.clone(), stat.received);
        let reader = tokio::task::spawn_blocking(move || -> io::Result<()> {
            let mut file = File::open(path)?;
            let mut offset = file.seek(SeekFrom::Start(start))?;
            let mut first = Some(blob);
            loop {
                let mut data = Vec::with_capacity(BLOB_CHUNK_BYTES);
                (&mut file).take(BLOB_CHUNK_BYTES as u64).read_to_end(&mut data)?;
                if data.is_empty() && first.is_none() {
                    return Ok(());
                }
                let len = data.len() as u64;
                // The receiver is gone when the call has failed.
                if sender.blocking_send(v1::PutChunk { blob: first.take(), offset, data }).is_err() {
                    return Ok(());
                }
                offset += len;
            }
        });
        client.put(ReceiverStream::new(receiver)).await?;
        let read = reader.await.map_err(|e| Status::internal(e.to_string()))?;
        read.map_err(|e| Status::internal(e.to_string()))
    }

    /// The file of a blob, from here or from the coordinator; tries again until it is here or the coordinator says no.
    /// `slow` is told why from time to time. A download that was broken off goes on where it ended, also after a restart.
    ///
    /// # Errors
    /// There is no such blob, or it is damaged.
    pub async fn fetch(&self, blob: &v1::BlobRef, slow: impl Fn(&str)) -> Result<PathBuf, Error> {
        // One at a time brings a blob; the next one finds it here.
        let _one = self.bringing.lock(&blob.digest).await;
        let path = self.dir.join(&blob.digest);
        let (kept, digests) = (path.clone(), self.digests.clone());
        // What was written here since is read again, for the times of a file say so; what a disk spoils beneath them shows
        // when the agent starts anew. The coordinator's is as good.
        if blocking(move || digests.of(&kept).map(reference)).await.is_ok_and(|found| found == *blob) {
            return Ok(path);
        }
        let aside = self.dir.join(format!("{}.part", blob.digest));
        let mut pause = Duration::from_millis(50);
        let (mut told, mut made_room) = (Instant::now(), false);
        loop {
            match self.get(blob, &aside).await {
                Ok(()) => break,
                Err(Error::Disk(e)) if is_full(&e) && !made_room => {
                    made_room = true;
                    self.make_room(None);
                    continue;
                }
                Err(Error::Refused(status)) if !is_final(status.code()) => {
                    tracing::debug!("download of {}: {status}", blob.digest);
                    if told.elapsed() > TELL {
                        told = Instant::now();
                        slow(status.message());
                    }
                }
                Err(e) => {
                    let _ = fs::remove_file(&aside);
                    return Err(e);
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE);
        }
        let here = aside.clone();
        let whole = blocking(move || digests::sha256(&here).map(reference)).await? == *blob;
        fs::rename(&aside, &path)?;
        self.prune(&path);
        if whole { Ok(path) } else { Err(Error::Damaged(blob.digest.clone())) }
    }

    /// Brings a blob, and gives its file a name of the caller's, under which it stays when others need its room here.
    ///
    /// # Errors
    /// There is no such blob, it is damaged, or the disk refuses.
    pub async fn place(&self, blob: &v1::BlobRef, at: &Path, slow: impl Fn(&str)) -> Result<(), Error> {
        loop {
            let found = self.fetch(blob, &slow).await?;
            match link(&found, at) {
                // Room was made with it before it had that name.
                Err(e) if e.kind() == ErrorKind::NotFound && !found.exists() => {}
                placed => return Ok(placed?),
            }
        }
    }

    async fn get(&self, blob: &v1::BlobRef, into: &Path) -> Result<(), Error> {
        let refused = |s: Status| Error::Refused(Box::new(s));
        let mut file = fs::OpenOptions::new().create(true).append(true).open(into)?;
        let mut received = file.metadata()?.len();
        let request = v1::ReadRequest { digest: blob.digest.clone(), offset: received };
        let mut stream = self.remote.blobs().read(request).await.map_err(refused)?.into_inner();
        loop {
            let chunk = tokio::time::timeout(PATIENCE, stream.next()).await;
            let chunk = chunk.map_err(|_| refused(Status::deadline_exceeded("no progress")))?;
            let Some(chunk) = chunk.transpose().map_err(refused)? else { return Ok(()) };
            received += chunk.data.len() as u64;
            if received > blob.size {
                // Longer than announced is damaged all the same; the digest says so.
                return Ok(());
            }
            file.write_all(&chunk.data)?;
        }
    }

    /// Where a blob would lie here.
    pub fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(digest)
    }

    /// Forgets the blob of a file that nobody here will ask for.
    pub fn forget(&self, digest: &str) {
        let _ = fs::remove_file(self.path(digest));
    }

    /// Keeps a file that was made here, so that it need not come back over the network.
    fn keep(&self, path: &Path, blob: &v1::BlobRef) {
        let kept = self.dir.join(&blob.digest);
        // Without links it comes back over the network: slower, and no less right.
        if !kept.exists() {
            let _ = fs::hard_link(path, &kept);
        }
        self.prune(&kept);
    }

    /// Gives up every file that is kept here, but for one: for a disk that is full. Those of ranks that run have links
    /// elsewhere.
    pub fn make_room(&self, but: Option<&Path>) {
        self.prune_while(but.unwrap_or(Path::new("")), || true);
    }

    /// Gives up the oldest files, but not the one that was just brought: those that are too many, and more of them where the
    /// disk has little room for others of its size.
    fn prune(&self, fresh: &Path) {
        let size = fs::metadata(fresh).map_or(0, |m| m.len());
        self.prune_while(fresh, || free(&self.dir).is_some_and(|free| free < size.saturating_mul(ROOM)));
    }

    fn prune_while(&self, fresh: &Path, is_tight: impl Fn() -> bool) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut all: Vec<_> =
            entries.flatten().filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path()))).collect();
        all.sort();
        let many = all.len().saturating_sub(KEEP);
        for (n, (_, path)) in all.into_iter().enumerate().filter(|(_, (_, path))| path != fresh) {
            // What is still on its way here is wanted.
            if n < many || (path.extension().is_none() && is_tight()) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Bytes that are free on the disk of a folder; `None` where the system does not say.
fn free(dir: &Path) -> Option<u64> {
    let disk = nix::sys::statvfs::statvfs(dir).ok()?;
    // Counts are narrower on some systems.
    let bytes = u128::from(disk.blocks_available()) * u128::from(disk.fragment_size());
    Some(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// Whether the disk, or what this user may have of it, is full.
pub fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Gives a kept file a second name, which stays when the first one goes.
pub fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(|_| ()))
}

/// A minute for each gigabyte, at least.
fn expected(size: u64) -> Duration {
    Duration::from_secs(60 * (1 + size / (1 << 30)))
}

/// A refused token is not final: what asks here was welcome once, and the agent tries on too.
fn is_final(code: Code) -> bool {
    matches!(code, Code::NotFound | Code::OutOfRange)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

fn reference((digest, size): Sum) -> v1::BlobRef {
    v1::BlobRef { digest, size }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::SystemTime};

    use super::*;

    #[tokio::test]
    async fn old_files_go_when_they_are_many_and_for_room_and_never_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(dir.path().into(), Remote::new("127.0.0.1:1", None).unwrap());
        let start = SystemTime::now() - Duration::from_secs(1_000);
        let add = |n: usize, name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, "x").unwrap();
            File::open(&path).unwrap().set_modified(start + Duration::from_secs(n as u64)).unwrap();
            path
        };
        let names = || {
            let mut all: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            all.sort();
            all
        };
        let files: Vec<PathBuf> = (0..KEEP + 2).map(|n| add(n, &format!("{n:02}"))).collect();
        let newest = files.last().unwrap();
        blobs.prune_while(newest, || false);
        assert_eq!((names().len(), names()[0].to_str()), (KEEP, Some("02")));
        // There is room once three more are gone.
        let asked = Cell::new(0);
        blobs.prune_while(newest, || asked.replace(asked.get() + 1) < 3);
        assert_eq!((names().len(), names()[0].to_str()), (KEEP - 3, Some("05")));
        add(0, "brought.part");
        blobs.prune_while(newest, || true);
        assert_eq!(names(), ["25", "brought.part"]);
        // For a rank whose disk was full, the newest goes too.
        let other = add(1, "other");
        blobs.make_room(Some(&other));
        assert_eq!(names(), ["brought.part", "other"]);
        blobs.make_room(None);
        assert_eq!(names(), ["brought.part"]);
        add(1, "25");
        blobs.forget("25");
        assert_eq!(names(), ["brought.part"]);
        assert!(free(dir.path()).is_some_and(|free| free > 0) && free(&dir.path().join("none")).is_none());
    }

    #[tokio::test]
    async fn what_was_placed_stays_when_room_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, own) = (dir.path().join("kept"), dir.path().join("own"));
        fs::create_dir(&kept).unwrap();
        let blobs = Blobs::new(kept, Remote::new("127.0.0.1:1", None).unwrap());
        fs::write(&own, "weights").unwrap();
        let blob = digests::sha256(&own).map(reference).unwrap();
        blobs.keep(&own, &blob);
        let placed = dir.path().join("input");
        blobs.place(&blob, &placed, |_| ()).await.unwrap();
        blobs.make_room(None);
        assert!(!blobs.path(&blob.digest).exists());
        assert_eq!(fs::read(placed).unwrap(), b"weights");
        // What cannot be placed is no reason to bring it for ever.
        blobs.keep(&own, &blob);
        let nowhere = dir.path().join("none/input");
        assert!(matches!(blobs.place(&blob, &nowhere, |_| ()).await, Err(Error::Disk(_))));
    }
}
