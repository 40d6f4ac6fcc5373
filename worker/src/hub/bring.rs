//! Weights of a place on the hub, from the cache or over the network. Blocking: it runs on a thread of its own.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use hf_hub::Cache;
use tl_proto::spec::{Fetched, Hub, Source, SourceFile};

use super::{
    Error, Found, Told,
    store::{self, Shelf},
    web::{Head, Web},
};

/// What the engine reads beside weights, where it is there: shape and preprocessing, and how text becomes numbers.
const BESIDE: [&str; 3] = ["config.json", "preprocess.json", "tokenizer.json"];
/// Largest file of weights, in bytes: what the engine reads at most.
const MOST: u64 = 16 << 30;
/// Largest file beside them, in bytes.
const MOST_BESIDE: u64 = 64 << 20;
/// How often in a row nothing may come of a request.
const TRIES: u32 = 4;
/// Pause after the first of them; it doubles.
const PAUSE: Duration = Duration::from_millis(250);
/// Bytes between two reports of progress.
const REPORT: u64 = 4 << 20;

/// One errand.
pub struct Errand<'a> {
    /// The way to the hub.
    pub web: &'a Web,
    /// The cache.
    pub cache: &'a Cache,
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
            if look {
                return Ok(Found::Absent { bytes });
            }
            self.download(&hub, &shelf, &commit, &files, bytes)?;
        }
        match self.checked(&hub, &shelf, &commit) {
            Err(Error::Wrong(why)) if !look => {
                // What lies here may have been damaged since it came.
                (self.tell)(Told::Notice(&format!("{why}; it is fetched again")));
                let files = self.missing(&hub, &shelf, &commit, None)?;
                let bytes = files.iter().map(|(_, head)| head.bytes).sum();
                self.download(&hub, &shelf, &commit, &files, bytes)?;
                self.checked(&hub, &shelf, &commit)
            }
            other => other,
        }
    }

    /// The commit of a revision. Without the hub, the one that it stood for when it was last asked.
    fn commit(&self, hub: &Hub<'_>, shelf: &Shelf) -> Result<(String, Option<Head>), Error> {
        if hub.is_pinned() {
            return Ok((hub.revision.to_owned(), None));
        }
        match self.patiently(|| self.web.head(hub.repo, hub.revision, hub.file)) {
            Ok(head) => {
                shelf.remember(hub.revision, &head.commit).map_err(|e| disk(shelf.dir(), e))?;
                Ok((head.commit.clone(), Some(head)))
            }
            Err(e) if e.may_pass() => {
                let known = shelf.known(hub.revision).filter(|commit| self.complete(hub, shelf, commit));
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
        let snapshot = shelf.snapshot(commit);
        Self::names(hub).all(|(name, _)| snapshot.join(&name).is_file() || shelf.lacks(commit, &name))
    }

    /// Files that are not here, with what the hub says of them.
    fn missing(
        &self,
        hub: &Hub<'_>,
        shelf: &Shelf,
        commit: &str,
        mut known: Option<Head>,
    ) -> Result<Vec<(String, Head)>, Error> {
        let snapshot = shelf.snapshot(commit);
        let mut files = Vec::new();
        for (name, limit) in Self::names(hub) {
            if snapshot.join(&name).is_file() || shelf.lacks(commit, &name) {
                continue;
            }
            let first = name == hub.file;
            let head = match known.take_if(|_| first) {
                Some(head) => Ok(head),
                None => self.patiently(|| self.web.head(hub.repo, commit, &name)),
            };
            match head {
                Ok(head) if head.bytes > limit => {
                    return Err(Error::TooLarge { file: name, bytes: head.bytes, limit });
                }
                Ok(head) => files.push((name, head)),
                Err(Error::Missing(_)) if !first => {
                    shelf.note_lack(commit, &name).map_err(|e| disk(shelf.dir(), e))?;
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
        for (name, head) in files {
            let blob = shelf.blob(&head.etag);
            blob.parent().map_or(Ok(()), fs::create_dir_all).map_err(|e| disk(shelf.dir(), e))?;
            // Other agents of this machine share the cache; whoever waits here finds the file there.
            let _one = self.lock(&blob)?;
            if !fs::metadata(&blob).is_ok_and(|m| m.len() == head.bytes) {
                if !announced {
                    announced = true;
                    let (size, from) = (human(total), &self.web.endpoint);
                    let text = format!("downloads `{}` from {from}, at commit {commit}: {size}", self.place);
                    (self.tell)(Told::Notice(&text));
                }
                self.file(hub, commit, (name, head), &blob, (done, total))?;
            }
            done += head.bytes;
            shelf.place(commit, name, &head.etag).map_err(|e| disk(&blob, e))?;
        }
        Ok(())
    }

    fn lock(&self, blob: &Path) -> Result<File, Error> {
        let path = beside(blob, ".lock");
        let file = File::create(&path).map_err(|e| disk(&path, e))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => self.wait(PAUSE)?,
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
        fs::rename(&part, blob).map_err(|e| disk(blob, e))
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
        let (mut tries, mut pause) = (0, PAUSE);
        loop {
            let had = fs::metadata(part).map(|m| m.len());
            if had.as_ref().is_ok_and(|had| *had >= head.bytes) {
                break;
            }
            let had = had.unwrap_or(0);
            let why = match self.transfer(hub, commit, (name, head), part, (before, total)) {
                Ok(()) => break,
                Err(e) if !e.may_pass() => return Err(e),
                Err(e) => e,
            };
            let has = fs::metadata(part).map_or(0, |m| m.len());
            if has > had {
                (tries, pause) = (0, PAUSE);
                continue;
            }
            tries += 1;
            if tries >= TRIES {
                return Err(why);
            }
            self.wait(pause)?;
            pause *= 2;
        }
        let (sha256, bytes) = store::digest(part).map_err(|e| disk(part, e))?;
        let wrong = if bytes != head.bytes {
            Some(format!("`{name}` came with {bytes} bytes, and the hub had announced {}", head.bytes))
        } else if store::is_sha256(&head.etag) && sha256 != head.etag {
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

    /// What is here, with its digests, which are those of the tags where tags are digests.
    fn checked(&self, hub: &Hub<'_>, shelf: &Shelf, commit: &str) -> Result<Found, Error> {
        let snapshot = shelf.snapshot(commit);
        let mut files = Vec::new();
        for (name, _) in Self::names(hub) {
            let path = snapshot.join(&name);
            if !path.is_file() {
                continue;
            }
            let (sha256, bytes) = store::digest(&path).map_err(|e| disk(&path, e))?;
            let real: PathBuf = path.canonicalize().map_err(|e| disk(&path, e))?;
            let tag = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if store::is_sha256(&tag) && tag != sha256 {
                let _ = fs::remove_file(real);
                return Err(Error::Wrong(format!("`{name}` in the cache is damaged")));
            }
            files.push(SourceFile { name, bytes, sha256 });
        }
        let source = Source { place: self.place.to_owned(), pinned: hub.pinned(commit), files };
        Ok(Found::Here(Fetched { path: snapshot.join(hub.file), source }))
    }

    /// Tries again what may pass.
    fn patiently<T>(&self, ask: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let (mut tries, mut pause) = (1, PAUSE);
        loop {
            match ask() {
                Err(e) if e.may_pass() && tries < TRIES => {
                    tries += 1;
                    self.wait(pause)?;
                    pause *= 2;
                }
                other => return other,
            }
        }
    }

    fn wait(&self, pause: Duration) -> Result<(), Error> {
        std::thread::sleep(pause);
        if self.stop.load(Ordering::Relaxed) { Err(Error::Stopped) } else { Ok(()) }
    }
}

fn disk(path: &Path, e: std::io::Error) -> Error {
    Error::Disk(path.display().to_string(), e)
}

/// A size for people.
pub(super) fn human(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 1.0 { format!("{mib:.1} MiB") } else { format!("{:.1} KiB", bytes as f64 / 1024.0) }
}

/// A file beside a blob, for what is not whole yet.
fn beside(blob: &Path, ending: &str) -> PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
