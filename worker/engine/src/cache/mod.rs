//! Outputs of what is frozen, by content: computed once per sample and view, reused by later epochs, stages and jobs.
//!
//! A *space* is a folder named by everything that determines the numbers but the sample: preprocessing, the layers and
//! weights of the prefix. Within it, segments hold records keyed by sample content and view. Segments are immutable and
//! sealed; one that is not whole is a miss.

mod packed;
mod parcel;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

pub use packed::{Packed, Top};
pub use parcel::{Parcel, has, unpack};

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

    /// What it is called.
    fn name(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Numbers of one record.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The segments that are here and not too large, in the order of their names.
    fn segments(&self) -> Vec<PathBuf> {
        let listing = std::fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|f| f.path());
        let mut segments: Vec<PathBuf> = listing.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
        segments.retain(|p| !std::fs::metadata(p).is_ok_and(|m| m.len() > MAX_SEGMENT));
        segments.sort();
        segments
    }

    /// How many of the wanted records are here, as far as their keys tell: only those are read, and nothing is changed.
    pub fn holds(&self, wanted: &BTreeSet<Key>) -> usize {
        let keys = self.segments().into_iter().flat_map(|path| self.keys(&path).unwrap_or_default());
        keys.filter(|key| wanted.contains(key)).collect::<BTreeSet<Key>>().len()
    }

    /// The keys of a segment; none of one that cannot be whole.
    fn keys(&self, path: &Path) -> std::io::Result<Vec<Key>> {
        let mut file = BufReader::new(File::open(path)?);
        let (mut width, values) = ([0; 8], 4 * self.width as u64);
        file.read_exact(&mut width)?;
        // Beside the records there are the width and the seal.
        let bytes = file.get_ref().metadata()?.len().saturating_sub(8 + 32);
        if u64::from_le_bytes(width) != self.width as u64 || !bytes.is_multiple_of(32 + values) {
            return Ok(Vec::new());
        }
        let mut one = || -> std::io::Result<Key> {
            let mut key = Key::default();
            file.read_exact(&mut key)?;
            file.seek_relative(values as i64)?;
            Ok(key)
        };
        (0..bytes / (32 + values)).map(|_| one()).collect()
    }

    /// The wanted records that are here, and how many segments were not whole.
    pub fn read(&self, wanted: &BTreeSet<Key>) -> (BTreeMap<Key, Vec<f32>>, usize) {
        let (mut records, mut damaged) = (BTreeMap::new(), 0);
        for path in self.segments() {
            // What cannot be read now may be readable another time.
            let Ok(bytes) = std::fs::read(&path) else { continue };
            let whole = files::unseal(bytes);
            match whole.as_ref().and_then(|bytes| self.decode(bytes)) {
                Some(found) => {
                    let before = records.len();
                    for (key, values) in found.filter(|(key, _)| wanted.contains(key)) {
                        records.entry(key).or_insert(values);
                    }
                    if records.len() > before {
                        touch(&path);
                    }
                }
                None => {
                    damaged += 1;
                    // It can never become whole; out of the way, so that it is reported once.
                    let _ = std::fs::remove_file(&path);
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
        let (name, sealed) = self.sealed(records);
        files::write_whole(&self.dir.join(format!("{name}.seg")), &sealed)
    }

    /// Records as a segment: what it is called, and its bytes.
    fn sealed(&self, records: &[(Key, &[f32])]) -> (String, Vec<u8>) {
        let mut bytes = (self.width as u64).to_le_bytes().to_vec();
        for (key, values) in records {
            bytes.extend(key);
            bytes.extend(collective::to_bytes(values));
        }
        let sealed = files::seal(bytes);
        let name =
            blake3::Hash::from_slice(&sealed[sealed.len() - 32..]).map(|h| h.to_hex().to_string()).unwrap_or_default();
        (name, sealed)
    }

    fn decode<'b>(&'b self, bytes: &'b [u8]) -> Option<impl Iterator<Item = (Key, Vec<f32>)> + use<'b>> {
        let (width, rest) = bytes.split_first_chunk::<8>()?;
        let record = 32 + 4 * self.width;
        let fits = u64::from_le_bytes(*width) == self.width as u64 && rest.len().is_multiple_of(record);
        let one = |r: &[u8]| Some((*r.first_chunk::<32>()?, collective::from_bytes(&r[32..]).ok()?));
        fits.then(|| rest.chunks_exact(record).filter_map(one))
    }
}

/// Makes a file young: its age is when it was last of use.
fn touch(path: &Path) {
    let _ = File::open(path).and_then(|f| f.set_modified(SystemTime::now()));
}

/// Removes segments below `root` until they take at most `limit` bytes, those first that were not of use for longest.
/// Who reads one at this moment has it in memory, or misses it and computes.
pub fn trim(root: &Path, limit: u64) {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    // The folder may hold what is none of ours: only spaces, and in them only segments, are looked at.
    let name = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().into_owned();
    let is_space = |e: &std::fs::DirEntry| name(e).len() == 64 && name(e).bytes().all(|b| b.is_ascii_hexdigit());
    let is_segment = |e: &std::fs::DirEntry| name(e).ends_with(".seg") || name(e).contains(".aside-");
    let spaces = entries(root).filter(|e| is_space(e) && e.path().is_dir());
    let segments = spaces.flat_map(|space| entries(&space.path())).filter(is_segment);
    let mut all: Vec<(SystemTime, u64, PathBuf)> = segments
        .filter_map(|e| {
            let meta = e.metadata().ok()?;
            Some((meta.modified().ok()?, meta.len(), e.path()))
        })
        .collect();
    all.sort();
    let mut total: u64 = all.iter().map(|(_, len, _)| len).sum();
    if total <= limit {
        return;
    }
    for (_, len, path) in all {
        if total <= limit {
            break;
        }
        if std::fs::remove_file(&path).is_ok() {
            total -= len;
            // Goes only if it is empty.
            let _ = path.parent().map(std::fs::remove_dir);
        }
    }
    parcel::forget(root);
}

/// A name for the machine's cache folder that its ranks share and others do not. A folder that cannot be written has no
/// name that another rank could know: then this is one of this process alone.
pub fn identity(root: &Path) -> String {
    let path = root.join("identity");
    let fresh = format!("{:?}-{}-{:?}", SystemTime::now(), std::process::id(), path);
    let fresh = blake3::hash(fresh.as_bytes()).to_hex().to_string();
    let shared = || -> std::io::Result<String> {
        if !path.exists() {
            std::fs::create_dir_all(root)?;
            // Of two ranks that come first, one wins the link; both read the winner's.
            let aside = root.join(format!("identity-{}", std::process::id()));
            std::fs::write(&aside, &fresh)?;
            let _ = std::fs::hard_link(&aside, &path);
            let _ = std::fs::remove_file(&aside);
        }
        std::fs::read_to_string(&path)
    };
    shared().unwrap_or(fresh)
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
        let both = BTreeSet::from([a, b]);
        assert_eq!(space.read(&BTreeSet::from([a])).0.len(), 1, "only what is wanted");
        let (records, damaged) = space.read(&both);
        assert_eq!((records.len(), damaged, &records[&b][..]), (2, 0, &[3.0f32, 4.0][..]));
        assert_eq!((space.holds(&both), space.holds(&BTreeSet::from([b, key(&[2; 32], "x")]))), (2, 1));
        assert_eq!(Space::new(dir.path(), "s", 3).holds(&both), 0, "of another width");
        let victim = std::fs::read_dir(dir.path().join("s")).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(&victim).unwrap();
        std::fs::write(&victim, &bytes[..bytes.len() - 3]).unwrap();
        assert_eq!((space.holds(&both), victim.exists()), (1, true), "who only counts removes nothing");
        let (records, damaged) = space.read(&both);
        assert_eq!((records.len(), damaged), (1, 1));
        let packed = Packed { half: true, top: Some(Top { count: 2, temperature: 4.0 }) };
        let small = Space::new(dir.path(), "p", packed.words(40));
        small.write(&[(a, &packed.pack(&[1.5; 40]).unwrap())]).unwrap();
        let mut back = Vec::new();
        packed.unpack(&small.read(&BTreeSet::from([a])).0[&a], 40, &mut back).unwrap();
        assert_eq!(back, [1.5; 40]);
        let file = std::fs::read_dir(dir.path().join("p")).unwrap().next().unwrap().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8 + 32 + 16 + 32, "three halves and two places, in whole words");
        assert_eq!(identity(dir.path()), identity(dir.path()));
        let nowhere = dir.path().join("s").join("file");
        std::fs::write(&nowhere, "").unwrap();
        assert_ne!(identity(&nowhere), identity(dir.path()));
    }

    #[test]
    fn what_was_not_of_use_for_longest_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a", "b"].map(|c| c.repeat(64));
        let spaces = names.each_ref().map(|name| Space::new(dir.path(), name, 1));
        // A folder that somebody has named as the cache by mistake loses nothing.
        let theirs = [dir.path().join("alice/paper.tar"), dir.path().join(&names[0]).join("notes.txt")];
        for path in &theirs {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![0; 4096]).unwrap();
            File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        let keys: Vec<Key> = (0..4u8).map(|i| key(&[i; 32], "")).collect();
        for (i, k) in keys.iter().enumerate() {
            spaces[i % 2].write(&[(*k, &[i as f32])]).unwrap();
        }
        let everything: BTreeSet<Key> = keys.iter().copied().collect();
        for space in &names {
            for file in std::fs::read_dir(dir.path().join(space)).unwrap() {
                let file = file.unwrap();
                let long_ago = SystemTime::now() - std::time::Duration::from_secs(1000);
                File::open(file.path()).unwrap().set_modified(long_ago).unwrap();
            }
        }
        // Used just now: it stays, although it is as old as the others.
        assert_eq!(spaces[0].read(&BTreeSet::from([keys[2]])).0.len(), 1);
        let one = 8 + 36 + 32;
        trim(dir.path(), one);
        assert_eq!(spaces[0].read(&everything).0.keys().collect::<Vec<_>>(), [&keys[2]]);
        assert!(spaces[1].read(&everything).0.is_empty() && !dir.path().join(&names[1]).exists());
        trim(dir.path(), one);
        assert_eq!(spaces[0].read(&everything).0.len(), 1, "within the limit nothing goes");
        assert!(theirs.iter().all(|path| path.exists()));
    }
}
