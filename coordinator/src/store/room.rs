//! How much room a disk has.

use std::path::Path;

/// Bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Those that are free for this process.
    pub free: u64,
    /// All.
    pub all: u64,
}

impl Room {
    /// Of the disk that `path` lies on; `None` where the system does not say.
    pub fn of(path: &Path) -> Option<Self> {
        let disk = nix::sys::statvfs::statvfs(path).ok()?;
        // Counts are narrower on some systems.
        let block = u128::from(disk.fragment_size());
        let bytes = |blocks: u128| u64::try_from(blocks * block).unwrap_or(u64::MAX);
        Some(Self { free: bytes(disk.blocks_available().into()), all: bytes(disk.blocks().into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_more_than_is_free_of_it_and_what_is_no_path_has_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::of(dir.path()).unwrap();
        assert!(room.all > 0 && room.free <= room.all, "{room:?}");
        assert_eq!(Room::of(&dir.path().join("none")), None);
    }
}
