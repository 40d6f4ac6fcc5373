//! An agent's data folder: its identity, a lock, and where things lie.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use tl_proto::ids::{JobId, NodeId, PhaseId};

/// The folder.
pub struct Home {
    /// Who this node is; as long-lived as the folder.
    pub node: NodeId,
    dir: PathBuf,
    _lock: File,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent holds it.
    #[error("another agent uses `{0}`; give this one a folder of its own with `--data`")]
    Locked(String),
    /// The disk refuses.
    #[error("`{0}` cannot be used: {1}")]
    Disk(String, io::Error),
    /// Its identity is damaged.
    #[error("`{0}` does not hold a node's id; remove it, and the node is a new one")]
    Identity(String),
}

impl Home {
    /// Opens a folder, and makes it one of a new node if it is empty.
    ///
    /// # Errors
    /// It is in use, or cannot be used.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let dir = std::path::absolute(dir).map_err(|e| Error::Disk(dir.display().to_string(), e))?;
        let shown = dir.display().to_string();
        let disk = |e| Error::Disk(shown.clone(), e);
        fs::create_dir_all(&dir).map_err(disk)?;
        let lock = File::create(dir.join("lock")).map_err(disk)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::Locked(shown)),
            Err(fs::TryLockError::Error(e)) => return Err(disk(e)),
        }
        let path = dir.join("node-id");
        let node = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| Error::Identity(path.display().to_string()))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let node = NodeId::from_bits(ulid::Ulid::new().0);
                let aside = dir.join("node-id.new");
                fs::write(&aside, node.as_str()).map_err(disk)?;
                fs::rename(&aside, &path).map_err(disk)?;
                node
            }
            Err(e) => return Err(disk(e)),
        };
        for part in ["work", "cache", "blobs", "data"] {
            fs::create_dir_all(dir.join(part)).map_err(disk)?;
        }
        Ok(Self { node, dir, _lock: lock })
    }

    /// Where ranks work.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The folder of one rank of one attempt.
    pub fn rank(&self, job: &JobId, phase: &PhaseId, generation: u64, rank: u32) -> PathBuf {
        let phase = phase.0.replace('/', ".");
        self.work().join(job.as_str()).join(phase).join(generation.to_string()).join(rank.to_string())
    }

    /// The feature cache.
    pub fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    /// Pushed data sets, unpacked.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Weights of the hub, where the environment names no cache of its own for them.
    pub fn hub(&self) -> PathBuf {
        self.dir.join("hub")
    }

    /// Blobs that are here already.
    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }
}

/// Held while folders of ranks come and go: one above may not go between its making and that of the rank's in it.
static RANKS: Mutex<()> = Mutex::new(());

/// Makes the folder of a rank, and those above it.
///
/// # Errors
/// The disk refuses.
pub fn make(rank: &Path) -> io::Result<()> {
    let _alone = RANKS.lock().unwrap_or_else(PoisonError::into_inner);
    fs::create_dir_all(rank)
}

/// Removes the folders of generation, phase and job above that of a rank, as far as no other rank has one in them.
pub fn remove_empty(rank: &Path) {
    let _alone = RANKS.lock().unwrap_or_else(PoisonError::into_inner);
    rank.ancestors().skip(1).take(3).take_while(|above| fs::remove_dir(above).is_ok()).for_each(drop);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_rank_gets_its_folder_while_another_one_takes_those_above_along() {
        let dir = tempfile::tempdir().unwrap();
        let (above, done) = (dir.path().join("job/phase/1"), AtomicBool::new(false));
        let made = std::thread::scope(|s| {
            s.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    remove_empty(&above.join("0"));
                }
            });
            let mut ranks = (0..1_000).map(|n| above.join(n.to_string()));
            let made = ranks.all(|rank| make(&rank).is_ok() && fs::remove_dir(&rank).is_ok());
            done.store(true, Ordering::Relaxed);
            made
        });
        assert!(made);
    }

    #[test]
    fn a_folder_keeps_its_identity_and_serves_one_agent_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Home::open(dir.path()).unwrap();
        assert!(matches!(Home::open(dir.path()), Err(Error::Locked(_))));
        let node = first.node.clone();
        drop(first);
        assert_eq!(Home::open(dir.path()).unwrap().node, node);
        fs::write(dir.path().join("node-id"), "garbage").unwrap();
        assert!(matches!(Home::open(dir.path()), Err(Error::Identity(_))));
    }
}
