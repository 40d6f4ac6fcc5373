//! Blobs in a bucket: S3 and what speaks like it, Google's and Azure's (feature `cloud`), or a folder that several
//! machines see.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
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
    /// When somebody last asked for a blob: a bucket remembers only when it was put there.
    asked: Mutex<BTreeMap<String, SystemTime>>,
}

impl Bucket {
    /// Opens the bucket at a URL, with credentials from the environment.
    pub fn open(url: &str) -> Result<Self, Error> {
        let parsed = url::Url::parse(url).map_err(|e| Error::Refused(format!("`{url}` is no URL: {e}")))?;
        if let Ok(path) = parsed.to_file_path() {
            std::fs::create_dir_all(path)?;
        }
        let settings = std::env::vars().map(|(name, value)| (name.to_lowercase(), value));
        let opened = object_store::parse_url_opts(&parsed, settings);
        let (store, folder) = opened.map_err(|e| {
            let hint = if cfg!(feature = "cloud") { "" } else { " (built without the feature `cloud`)" };
            Error::Refused(format!("the blob store `{url}` cannot be used{hint}: {e}"))
        })?;
        Ok(Self { store: store.into(), folder, runtime: Handle::current(), asked: Mutex::default() })
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

    fn renew(&self, digest: &str) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.insert(digest.to_owned(), SystemTime::now());
    }
}

impl Shelf for Bucket {
    fn size(&self, digest: &str) -> Result<Option<u64>, Error> {
        let key = self.key(digest);
        let found = self.wait(async {
            match self.store.head(&key).await {
                Ok(meta) => Ok(Some(meta.size)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(e),
            }
        })?;
        if found.is_some() {
            self.renew(digest);
        }
        Ok(found)
    }

    fn put(&self, digest: &str, file: &Path) -> Result<(), Error> {
        let (key, mut input) = (self.key(digest), File::open(file)?);
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
        self.renew(digest);
        Ok(std::fs::remove_file(file)?)
    }

    fn read(&self, digest: &str, offset: u64, most: usize) -> Result<Vec<u8>, Error> {
        let key = self.key(digest);
        self.wait(async {
            let size = self.store.head(&key).await?.size;
            let end = offset.saturating_add(most as u64).min(size);
            if offset >= end {
                return Ok(Vec::new());
            }
            Ok(self.store.get_range(&key, offset..end).await?.to_vec())
        })
    }

    fn remove(&self, digest: &str) {
        let (store, key) = (self.store.clone(), self.key(digest));
        // The writer of the state does not wait for a network.
        self.runtime.spawn(async move {
            if let Err(e) = store.delete(&key).await {
                tracing::warn!("blob {key} stays until the next sweep: {e}");
            }
        });
    }

    fn list(&self) -> Result<Vec<(String, SystemTime)>, Error> {
        let mut all = Vec::new();
        let mut entries = self.store.list(Some(&self.folder));
        while let Some(meta) = self.wait(async { entries.next().await.transpose() })? {
            let name = meta.location.filename().unwrap_or_default().to_owned();
            if checked(&name).is_ok() {
                let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied();
                let put = SystemTime::from(meta.last_modified);
                all.push((name, asked.map_or(put, |a| a.max(put))));
            }
        }
        Ok(all)
    }
}
