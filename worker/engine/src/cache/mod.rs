//! Outputs of what is frozen, by content: computed once per sample and view, reused by later epochs, stages and jobs.
//!
//! A *space* is a folder named by everything that determines the numbers but the sample: preprocessing, the layers and
//! weights of the prefix. Within it, segments hold records keyed by sample content and view. Segments are immutable and
//! sealed; one that is not whole is a miss.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{Result, collective, files};

/// Names one output: sample content and view.
pub type Key = [u8; 32];

/// The key of a sample under a transform.
pub fn key(digest: &[u8; 32], view: &str) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(digest).update(view.as_bytes());
    *hasher.finalize().as_bytes()
}

/// A folder of segments.
#[derive(Debug)]
pub struct Space {
    dir: PathBuf,
    width: usize,
}

/// Largest segment that is read, in bytes.
const MAX_SEGMENT: u64 = 4 << 30;

impl Space {
    /// The space `name` below `root` for records of `width` numbers.
    pub fn new(root: &Path, name: &str, width: usize) -> Self {
        Self { dir: root.join(name), width }
    }

    /// Numbers of one record.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Every whole record, and how many segments were not whole.
    pub fn read(&self) -> (BTreeMap<Key, Vec<f32>>, usize) {
        let (mut records, mut damaged) = (BTreeMap::new(), 0);
        let Ok(listing) = std::fs::read_dir(&self.dir) else { return (records, 0) };
        for file in listing.flatten().filter(|f| f.path().extension().is_some_and(|e| e == "seg")) {
            let small = file.metadata().is_ok_and(|m| m.len() <= MAX_SEGMENT);
            let bytes = if small { std::fs::read(file.path()).ok() } else { None };
            match bytes.and_then(files::unseal).and_then(|b| self.decode(&b)) {
                Some(found) => records.extend(found),
                None => {
                    damaged += 1;
                    // It can never become whole; out of the way, so that it is reported once.
                    let _ = std::fs::remove_file(file.path());
                }
            }
        }
        (records, damaged)
    }

    /// Adds a segment.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, records: &[(Key, &[f32])]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut bytes = (self.width as u64).to_le_bytes().to_vec();
        for (key, values) in records {
            bytes.extend(key);
            bytes.extend(collective::to_bytes(values));
        }
        let sealed = files::seal(bytes);
        let name =
            blake3::Hash::from_slice(&sealed[sealed.len() - 32..]).map(|h| h.to_hex().to_string()).unwrap_or_default();
        files::write_whole(&self.dir.join(format!("{name}.seg")), &sealed)
    }

    fn decode(&self, bytes: &[u8]) -> Option<Vec<(Key, Vec<f32>)>> {
        let (width, rest) = bytes.split_first_chunk::<8>()?;
        let record = 32 + 4 * self.width;
        if u64::from_le_bytes(*width) != self.width as u64 || !rest.len().is_multiple_of(record) {
            return None;
        }
        rest.chunks_exact(record)
            .map(|r| Some((*r.first_chunk::<32>()?, collective::from_bytes(&r[32..]).ok()?)))
            .collect()
    }
}

/// A name for the machine's cache folder that its ranks share and others do not.
///
/// # Errors
/// The disk refuses.
pub fn identity(root: &Path) -> Result<String> {
    let path = root.join("identity");
    if let Ok(text) = std::fs::read_to_string(&path) {
        return Ok(text);
    }
    let fresh = format!("{:?}-{}-{:?}", std::time::SystemTime::now(), std::process::id(), path);
    std::fs::create_dir_all(root).map_err(crate::Error::disk(format!("create `{}`", root.display())))?;
    // Of two ranks that come first, one wins the link; both read the winner's.
    let aside = root.join(format!("identity-{}", std::process::id()));
    std::fs::write(&aside, blake3::hash(fresh.as_bytes()).to_hex().as_bytes())
        .map_err(crate::Error::disk(format!("write `{}`", aside.display())))?;
    let _ = std::fs::hard_link(&aside, &path);
    let _ = std::fs::remove_file(&aside);
    std::fs::read_to_string(&path).map_err(crate::Error::disk(format!("read `{}`", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_a_damaged_segment_is_a_miss() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::new(dir.path(), "s", 2);
        let (a, b) = (key(&[1; 32], "x"), key(&[1; 32], "y"));
        assert_ne!(a, b);
        space.write(&[(a, &[1.0, 2.0])]).unwrap();
        space.write(&[(b, &[3.0, 4.0])]).unwrap();
        let (records, damaged) = space.read();
        assert_eq!((records.len(), damaged, &records[&b][..]), (2, 0, &[3.0f32, 4.0][..]));
        let victim = std::fs::read_dir(dir.path().join("s")).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(&victim).unwrap();
        std::fs::write(&victim, &bytes[..bytes.len() - 3]).unwrap();
        let (records, damaged) = space.read();
        assert_eq!((records.len(), damaged), (1, 1));
        assert_eq!(identity(dir.path()).unwrap(), identity(dir.path()).unwrap());
    }
}
