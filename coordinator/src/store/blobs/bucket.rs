//! Blobs in a bucket: S3 and what speaks like it, Google's and Azure's (feature `cloud`), or a folder that several
//! machines see.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path as Key};
use tokio::runtime::Handle;
use tokio_stream::StreamExt;

use super::{Error, Shelf, checked};

/// How long one call may take; the library tries again by itself within it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of one part of an upload: S3 takes at most 10 000 parts, and this makes 64 GiB of them.
const PART: usize = 8 << 20;

/// The bucket, and the folder in it.
pub(super) struct Bucket {
    store: Arc<dyn ObjectStore>,
    folder: Key,
    runtime: Handle,
    known: Arc<Mutex<Known>>,
}

/// What is known of blobs without asking the bucket.
#[derive(Default)]
struct Known {
    /// When somebody last asked for a blob: a bucket remembers only when it was put there.
    asked: BTreeMap<String, SystemTime>,
    /// Bytes of blobs, which never change.
    sizes: BTreeMap<String, u64>,
    /// Blobs that are being removed: no longer there, and not to be put again before they are gone.
    going: BTreeSet<String>,
}

/// What the variables of the environment begin with that may say how to reach a bucket.
const SETTINGS: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

impl Bucket {
    /// Opens the bucket at a URL, with credentials from the environment. Blobs lie in a folder of `owner`: what others
    /// have put there is theirs, and never swept.
    pub fn open(url: &str, owner: &str) -> Result<Self, Error> {
        let parsed = url::Url::parse(url).map_err(|e| Error::Refused(format!("`{url}` is no URL: {e}")))?;
        if let Ok(path) = parsed.to_file_path() {
            std::fs::create_dir_all(path)?;
        }
        let settings =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let settings = settings.filter(|(name, _)| SETTINGS.iter().any(|s| name.starts_with(s)));
        let settings = settings.map(|(name, value)| (name.to_lowercase(), value));
        let opened = object_store::parse_url_opts(&parsed, settings);
        let (store, folder) = opened.map_err(|e| {
            let hint = if cfg!(feature = "cloud") { "" } else { " (built without the feature `cloud`)" };
            Error::Refused(format!("the blob store `{url}` cannot be used{hint}: {e}"))
        })?;
        let folder = folder.join(owner);
        Ok(Self { store: store.into(), folder, runtime: Handle::current(), known: Arc::default() })
    }

    fn key(&self, digest: &str) -> Key {
        self.folder.clone().join(digest)
    }

    /// Waits for a call, on a thread that may wait.
    fn wait<T>(&self, call: impl Future<Output = object_store::Result<T>>) -> Result<T, Error> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, call).await });
        match answer {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(e)) => Err(std::io::Error::from(e).into()),
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self, digest: &str, size: u64) {
        let mut known = self.known();
        known.asked.insert(digest.to_owned(), SystemTime::now());
        known.sizes.insert(digest.to_owned(), size);
    }

    /// The bytes of a blob, by memory or by asking.
    fn look(&self, digest: &str) -> Result<Option<u64>, Error> {
        if self.known().going.contains(digest) {
            return Ok(None);
        }
        let known = self.known().sizes.get(digest).copied();
        if known.is_some() {
            return Ok(known);
        }
        let key = self.key(digest);
        self.wait(async {
            match self.store.head(&key).await {
                Ok(meta) => Ok(Some(meta.size)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(e),
            }
        })
    }
}

impl Shelf for Bucket {
    fn size(&self, digest: &str) -> Result<Option<u64>, Error> {
        let found = self.look(digest)?;
        if let Some(size) = found {
            self.renew(digest, size);
        }
        Ok(found)
    }

    fn put(&self, digest: &str, file: &Path) -> Result<(), Error> {
        // What is on its way out would take the new one with it.
        let deadline = Instant::now() + PATIENCE;
        while self.known().going.contains(digest) {
            if Instant::now() > deadline {
                return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let (key, mut input) = (self.key(digest), File::open(file)?);
        let size = input.metadata()?.len();
        let mut part = move || -> Result<Vec<u8>, Error> {
            let mut bytes = Vec::with_capacity(PART);
            (&mut input).take(PART as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let first = part()?;
        if first.len() < PART {
            self.wait(self.store.put(&key, PutPayload::from(first)))?;
        } else {
            let mut upload = self.wait(self.store.put_multipart(&key))?;
            let mut next = first;
            while !next.is_empty() {
                if let Err(e) = self.wait(upload.put_part(PutPayload::from(next))) {
                    // What is there of it would be paid for; if this fails too, the bucket's own rules clear it away.
                    let _ = self.wait(upload.abort());
                    return Err(e);
                }
                next = part()?;
            }
            self.wait(upload.complete())?;
        }
        self.renew(digest, size);
        Ok(std::fs::remove_file(file)?)
    }

    fn read(&self, digest: &str, offset: u64, most: usize) -> Result<Vec<u8>, Error> {
        let size = self.look(digest)?.ok_or(std::io::Error::from(std::io::ErrorKind::NotFound))?;
        self.known().sizes.insert(digest.to_owned(), size);
        let end = offset.saturating_add(most as u64).min(size);
        if offset >= end {
            return Ok(Vec::new());
        }
        let key = self.key(digest);
        Ok(self.wait(self.store.get_range(&key, offset..end))?.to_vec())
    }

    fn remove(&self, digest: &str) {
        let (store, key, known, digest) = (self.store.clone(), self.key(digest), self.known.clone(), digest.to_owned());
        {
            let mut known = self.known();
            known.sizes.remove(&digest);
            known.asked.remove(&digest);
            known.going.insert(digest.clone());
        }
        // The writer of the state does not wait for a network.
        self.runtime.spawn(async move {
            if let Err(e) = store.delete(&key).await {
                tracing::warn!("blob {key} stays until the next sweep: {e}");
            }
            known.lock().unwrap_or_else(PoisonError::into_inner).going.remove(&digest);
        });
    }

    fn list(&self) -> Result<Vec<(String, SystemTime)>, Error> {
        let mut all = Vec::new();
        let mut entries = self.store.list(Some(&self.folder));
        while let Some(meta) = self.wait(async { entries.next().await.transpose() })? {
            let name = meta.location.filename().unwrap_or_default().to_owned();
            if checked(&name).is_ok() {
                all.push((name, SystemTime::from(meta.last_modified)));
            }
        }
        Ok(all)
    }

    fn asked(&self, digest: &str) -> Option<SystemTime> {
        self.known().asked.get(digest).copied()
    }
}
