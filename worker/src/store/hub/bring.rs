//! Weights of a place on the hub, from the cache or over the network. Blocking: it runs on a thread of its own.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use hf_hub::Cache;
use tl_proto::{
    spec::{Fetched, Hub, Source, SourceFile},
    words,
};

use super::{
    Error, Found, Told,
    cache::Shelf,
    patience::Patience,
    web::{Head, Web},
};
use crate::store::digests::{self, Digests};

/// What the engine reads beside weights, where it is there: shape and preprocessing, and how text becomes numbers.
const BESIDE: [&str; 3] = ["config.json", "preprocess.json", "tokenizer.json"];
/// Largest file of weights, in bytes: what the engine reads at most.
const MOST: u64 = 16 << 30;
/// Largest file beside them, in bytes.
const MOST_BESIDE: u64 = 64 << 20;
/// How often in a row nothing may come of a request: half a minute.
const TRIES: u32 = 8;
/// The same where there is a way without: two seconds.
const FEW: u32 = 4;
/// How often is looked whether another agent is done, or nobody wants it any more.
const LOOK: Duration = Duration::from_millis(250);
/// Bytes between two reports of progress.
const REPORT: u64 = 4 << 20;

/// One errand.
pub struct Errand<'a> {
    /// The way to the hub.
    pub web: &'a Web,
    /// The cache.
    pub cache: &'a Cache,
    /// What is known of the files in it.
    pub digests: &'a Digests,
    /// The weights, as the job names them.
    pub place: &'a str,
    /// Told of what takes time.
    pub tell: &'a dyn Fn(Told<'_>),
    /// Set when nobody wants it any more.
    pub stop: &'a AtomicBool,
}

impl Errand<'_> {
    /// Weights and what lies beside them; with `look`, only where nothing has to be downloaded for it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(&self, look: bool) -> Result<Found, Error> {
        let hub = Hub::parse(self.place).map_err(|e| Error::Wrong(e.to_string()))?;
        let hub = hub.ok_or_else(|| Error::Wrong("it is none of the hub's".into()))?;
        let shelf = Shelf::new(self.cache, hub.repo);
        // Once for all ranks and attempts: what comes later has the commit in its name.
        let (commit, head) = self.commit(&hub, &shelf)?;
        if !self.complete(&hub, &shelf, &commit) {
            let files = self.missing(&hub, &shelf, &commit, head)?;
            let bytes = files.iter().map(|(_, head)| head.bytes).sum();
            if look && !files.is_empty() {
                return Ok(Found::Absent { bytes });
            }
            self.download(&hub, &shelf, &commit, &files, bytes)?;
        }
        match self.checked(&hub, &shelf, &commit, look) {
            Err(Error::Wrong(why)) if !look => {
                // What lies here may have been damaged since it came.
                (self.tell)(Told::Notice(&format!("{why}; it is fetched again")));
                let files = self.missing(&hub, &shelf, &commit, None)?;
                let bytes = files.iter().map(|(_, head)| head.bytes).sum();
                self.download(&hub, &shelf, &commit, &files, bytes)?;
                self.checked(&hub, &shelf, &commit, look)
            }
            other => other,
        }
    }

    /// The commit of a revision. Without the hub, the one that it stood for when it was last asked.
    fn commit(&self, hub: &Hub<'_>, shelf: &Shelf) -> Result<(String, Option<Head>), Error> {
        if hub.is_pinned() {
            return Ok((hub.revision.to_owned(), None));
        }
        let known = shelf.known(hub.revision).filter(|commit| shelf.has(commit, hub.file));
        let tries = if known.is_some() { FEW } else { TRIES };
        match self.patiently(tries, || self.web.head(hub.repo, hub.revision, hub.file)) {
            Ok(head) => {
                // Only later errands without the hub need it; a cache that is only to be read serves this one.
                if let Err(e) = shelf.remember(hub.revision, &head.commit) {
                    tracing::debug!("{}: {e}", shelf.dir().display());
                }
                Ok((head.commit.clone(), Some(head)))
            }
            Err(e) if e.is_silence() => {
                let commit = known.ok_or(e)?;
                let text =
                    format!("`{}` is taken from the cache, at commit {commit}: the hub does not answer", self.place);
                (self.tell)(Told::Notice(&text));
                Ok((commit, None))
            }
            Err(e) => Err(e),
        }
    }

    fn names(hub: &Hub<'_>) -> impl Iterator<Item = (String, u64)> {
        let folder = hub.file.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        let beside = BESIDE.map(|name| (format!("{folder}{name}"), MOST_BESIDE));
        std::iter::once((hub.file.to_owned(), MOST)).chain(beside)
    }

    /// Whether everything of a commit that matters is here.
    fn complete(&self, hub: &Hub<'_>, shelf: &Shelf, commit: &str) -> bool {
        Self::names(hub).all(|(name, _)| shelf.has(commit, &name) || shelf.lacks(commit, &name))
    }

    /// Files that are not here, with what the hub says of them.
    fn missing(
        &self,
        hub: &Hub<'_>,
        shelf: &Shelf,
        commit: &str,
        mut known: Option<Head>,
    ) -> Result<Vec<(String, Head)>, Error> {
        // Other tools bring the weights and do not ask for everything that we do.
        let here = shelf.has(commit, hub.file);
        let tries = if here { FEW } else { TRIES };
        let mut files = Vec::new();
        for (name, limit) in Self::names(hub) {
            if shelf.has(commit, &name) || shelf.lacks(commit, &name) {
                continue;
            }
            let first = name == hub.file;
            let head = match known.take_if(|_| first) {
                Some(head) => Ok(head),
                None => self.patiently(tries, || self.web.head(hub.repo, commit, &name)),
            };
            match head {
                Ok(head) if head.bytes > limit => {
                    return Err(Error::TooLarge { file: name, bytes: head.bytes, limit });
                }
                Ok(head) => files.push((name, head)),
                Err(Error::NoFile(_)) if !first => {
                    if let Err(e) = shelf.note_lack(commit, &name) {
                        tracing::debug!("{}: {e}", shelf.dir().display());
                    }
                }
                Err(e) if e.is_silence() && here => {
                    let place = self.place;
                    let text =
                        format!("`{place}` goes without `{name}`: it is not in the cache, and the hub does not answer");
                    (self.tell)(Told::Notice(&text));
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(files)
    }

    fn download(
        &self,
        hub: &Hub<'_>,
        shelf: &Shelf,
        commit: &str,
        files: &[(String, Head)],
        total: u64,
    ) -> Result<(), Error> {
        let (mut done, mut announced) = (0, false);
        // The weights last: where they are, what belongs to them is, too.
        for (name, head) in files.iter().rev() {
            let blob = shelf.blob(&head.etag);
            let whole = || fs::metadata(&blob).is_ok_and(|m| m.len() == head.bytes);
            if !whole() {
                // Other agents of this machine share the cache; whoever waits here finds the file there.
                let _one = self.lock(shelf, &blob)?;
                if !whole() {
                    if !announced {
                        announced = true;
                        let (size, from) = (words::size(total), &self.web.endpoint);
                        let text = format!("downloads `{}` from {from}, at commit {commit}: {size}", self.place);
                        (self.tell)(Told::Notice(&text));
                    }
                    self.file(hub, commit, (name, head), &blob, (done, total))?;
                }
            }
            done += head.bytes;
            shelf.place(commit, name, &head.etag).map_err(|e| disk(&blob, e))?;
        }
        Ok(())
    }

    fn lock(&self, shelf: &Shelf, blob: &Path) -> Result<File, Error> {
        fs::create_dir_all(shelf.blobs()).map_err(|e| disk(shelf.dir(), e))?;
        let path = beside(blob, ".lock");
        let file = File::create(&path).map_err(|e| disk(&path, e))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => self.wait(LOOK)?,
                Err(TryLockError::Error(e)) => return Err(disk(&path, e)),
            }
        }
    }

    /// One file, on from what there is of it.
    fn file(
        &self,
        hub: &Hub<'_>,
        commit: &str,
        (name, head): (&str, &Head),
        blob: &Path,
        (before, total): (u64, u64),
    ) -> Result<(), Error> {
        let part = beside(blob, ".part");
        let old = fs::metadata(&part).is_ok_and(|m| m.len() > 0);
        match self.fill(hub, commit, (name, head), &part, (before, total)) {
            // What an earlier try had left may be the wrong part; it is gone now.
            Err(Error::Wrong(_)) if old => self.fill(hub, commit, (name, head), &part, (before, total))?,
            other => other?,
        }
        // A name that outlives a loss of power is one of bytes that do.
        let kept = File::open(&part).and_then(|file| file.sync_all());
        kept.and_then(|()| fs::rename(&part, blob)).map_err(|e| disk(blob, e))
    }

    /// Fills `part` up, and looks whether it is what was announced.
    fn fill(
        &self,
        hub: &Hub<'_>,
        commit: &str,
        (name, head): (&str, &Head),
        part: &Path,
        (before, total): (u64, u64),
    ) -> Result<(), Error> {
        let mut patience = Patience::new(TRIES, self.web.pause);
        loop {
            let had = fs::metadata(part).map(|m| m.len());
            if had.as_ref().is_ok_and(|had| *had >= head.bytes) {
                break;
            }
            let had = had.unwrap_or(0);
            let why = match self.transfer(hub, commit, (name, head), part, (before, total)) {
                Ok(()) => break,
                Err(e) => e,
            };
            if fs::metadata(part).map_or(0, |m| m.len()) > had && why.is_silence() {
                patience = Patience::new(TRIES, self.web.pause);
                continue;
            }
            match patience.after(&why) {
                Some(pause) => self.wait(pause)?,
                None => return Err(why),
            }
        }
        let sum = digests::sha256(part).map_err(|e| disk(part, e))?;
        let right = digests::is_tagged(part, &head.etag, &sum).map_err(|e| disk(part, e))?;
        let wrong = if sum.1 != head.bytes {
            Some(format!("`{name}` came with {} bytes, and the hub had announced {}", sum.1, head.bytes))
        } else if !right {
            Some(format!("`{name}` came with other bytes than the hub had announced"))
        } else {
            None
        };
        if let Some(wrong) = wrong {
            // Going on from bytes that are wrong would never end well.
            let _ = fs::remove_file(part);
            return Err(Error::Wrong(wrong));
        }
        Ok(())
    }

    fn transfer(
        &self,
        hub: &Hub<'_>,
        commit: &str,
        (name, head): (&str, &Head),
        part: &Path,
        (before, total): (u64, u64),
    ) -> Result<(), Error> {
        let mut file = OpenOptions::new().create(true).append(true).open(part).map_err(|e| disk(part, e))?;
        let mut has = file.metadata().map_err(|e| disk(part, e))?.len();
        let (begins, mut body) = self.web.read(hub.repo, commit, name, has)?;
        if begins != has {
            file.set_len(0).map_err(|e| disk(part, e))?;
            has = 0;
            if begins != 0 {
                return Err(self.web.away("it sends another part than was asked for"));
            }
        }
        let (mut buffer, mut told) = (vec![0; 1 << 16], 0);
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let n = body.read(&mut buffer).map_err(|e| self.web.away(&e.to_string()))?;
            if n == 0 {
                break;
            }
            file.write_all(&buffer[..n]).map_err(|e| disk(part, e))?;
            has += n as u64;
            if has > head.bytes {
                // Longer than announced: not worth another byte.
                return Ok(());
            }
            if has - told.min(has) >= REPORT || has == head.bytes {
                told = has;
                (self.tell)(Told::Progress(before + has, total));
            }
        }
        if has < head.bytes { Err(self.web.away("the connection ended early")) } else { Ok(()) }
    }

    /// What is here, with its digests, which are those of the tags where tags are digests. What is damaged is thrown away,
    /// unless this is only a look.
    fn checked(&self, hub: &Hub<'_>, shelf: &Shelf, commit: &str, look: bool) -> Result<Found, Error> {
        let snapshot = shelf.snapshot(commit);
        let mut files = Vec::new();
        for (name, _) in Self::names(hub) {
            let path = snapshot.join(&name);
            if !path.is_file() {
                // Another agent may just have found it damaged.
                if name == hub.file || path.is_symlink() {
                    return Err(Error::Wrong(format!("`{name}` is no longer in the cache")));
                }
                continue;
            }
            let sum = self.digests.of(&path).map_err(|e| disk(&path, e))?;
            let real: PathBuf = path.canonicalize().map_err(|e| disk(&path, e))?;
            let tag = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !digests::is_tagged(&real, &tag, &sum).map_err(|e| disk(&path, e))? {
                if !look {
                    self.discard(shelf, &real, &tag)?;
                }
                return Err(Error::Wrong(format!("`{name}` in the cache is damaged")));
            }
            let (sha256, bytes) = sum;
            files.push(SourceFile { name, bytes, sha256 });
        }
        let source = Source { place: self.place.to_owned(), pinned: hub.pinned(commit), files };
        Ok(Found::Here(Fetched { path: snapshot.join(hub.file), source }))
    }

    /// Removes bytes that are not those of their tag: never what lies elsewhere, nor what another agent has mended.
    fn discard(&self, shelf: &Shelf, real: &Path, tag: &str) -> Result<(), Error> {
        let blobs = shelf.blobs().canonicalize();
        if !blobs.is_ok_and(|blobs| real.parent() == Some(&*blobs)) {
            return Ok(());
        }
        let _one = self.lock(shelf, &shelf.blob(tag))?;
        match digests::sha256(real).and_then(|sum| digests::is_tagged(real, tag, &sum)) {
            Ok(false) => fs::remove_file(real).map_err(|e| disk(real, e)),
            _ => Ok(()),
        }
    }

    /// Tries again what may pass.
    fn patiently<T>(&self, tries: u32, ask: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let mut patience = Patience::new(tries, self.web.pause);
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(e) => match patience.after(&e) {
                    Some(pause) => self.wait(pause)?,
                    None => return Err(e),
                },
            }
        }
    }

    fn wait(&self, mut pause: Duration) -> Result<(), Error> {
        loop {
            let part = pause.min(LOOK);
            std::thread::sleep(part);
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            pause -= part;
            if pause.is_zero() {
                return Ok(());
            }
        }
    }
}

fn disk(path: &Path, e: std::io::Error) -> Error {
    Error::Disk(path.display().to_string(), e)
}

/// A file beside a blob, for what is not whole yet.
fn beside(blob: &Path, ending: &str) -> PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
