//! Segments of several spaces in one file, on their way from the node that has computed them to those that need them.

use std::path::Path;

use super::{Key, Space, touch};
use crate::{Result, files};

/// Characters of the name of a space, and of a segment: a digest.
const NAME: usize = 64;
/// The folder beside the spaces that has, for each parcel that was unpacked, the places of its segments.
const UNPACKED: &str = "unpacked";

/// What is packed.
#[derive(Debug, Default)]
pub struct Parcel {
    bytes: Vec<u8>,
}

impl Parcel {
    /// Adds records of a space as a segment.
    pub fn add(&mut self, space: &Space, records: &[(Key, &[f32])]) {
        if records.is_empty() {
            return;
        }
        let (segment, sealed) = space.sealed(records);
        self.bytes.extend(space.name().as_bytes());
        self.bytes.extend(segment.as_bytes());
        self.bytes.extend((sealed.len() as u64).to_le_bytes());
        self.bytes.extend(sealed);
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The file.
    pub fn into_bytes(self) -> Vec<u8> {
        files::seal(self.bytes)
    }
}

/// Puts the segments of the parcel `name` in their places below `root`; whether it was whole. Segments have names for what is
/// in them: one that is here already is of use again, and else left alone.
///
/// # Errors
/// The disk refuses.
pub fn unpack(root: &Path, name: &str, bytes: Vec<u8>) -> Result<bool> {
    let Some(bytes) = files::unseal(bytes) else { return Ok(false) };
    let (mut rest, mut places) = (&bytes[..], String::new());
    while !rest.is_empty() {
        let Some((space, segment, sealed, after)) = first(rest) else { return Ok(false) };
        let place = format!("{space}/{segment}.seg");
        let path = root.join(&place);
        if path.exists() {
            touch(&path);
        } else {
            files::write_whole(&path, sealed)?;
        }
        places += &place;
        places.push('\n');
        rest = after;
    }
    files::write_whole(&root.join(UNPACKED).join(name), places.as_bytes())?;
    Ok(true)
}

/// Whether all that the parcel `name` brought is still below `root`; then it is of use again.
pub fn has(root: &Path, name: &str) -> bool {
    let Ok(places) = std::fs::read_to_string(root.join(UNPACKED).join(name)) else { return false };
    let all = places.lines().all(|place| root.join(place).is_file());
    if all {
        places.lines().for_each(|place| touch(&root.join(place)));
    }
    all
}

/// Forgets parcels of which something has gone.
pub(super) fn forget(root: &Path) {
    for mark in std::fs::read_dir(root.join(UNPACKED)).into_iter().flatten().flatten() {
        let places = std::fs::read_to_string(mark.path()).unwrap_or_default();
        // The folder may hold what is none of ours.
        let ours = places.lines().next().is_some_and(|place| place.len() > 2 * NAME && place.ends_with(".seg"));
        if ours && !places.lines().all(|place| root.join(place).is_file()) {
            let _ = std::fs::remove_file(mark.path());
        }
    }
}

/// Space, name and bytes of the first segment, and what follows.
fn first(bytes: &[u8]) -> Option<(&str, &str, &[u8], &[u8])> {
    let (space, rest) = bytes.split_at_checked(NAME)?;
    let (segment, rest) = rest.split_at_checked(NAME)?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (sealed, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    // They become paths.
    let name = |bytes| std::str::from_utf8(bytes).ok().filter(|name| name.bytes().all(|b| b.is_ascii_hexdigit()));
    Some((name(space)?, name(segment)?, sealed, rest))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cache::key;

    #[test]
    fn what_one_node_packs_another_one_reads_in_its_own_folder() {
        let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
        let names = ["a", "b"].map(|c| c.repeat(NAME));
        let space = |dir: usize, which: usize| Space::new(dirs[dir].path(), &names[which], which + 1);
        let keys = [key(&[1; 32], "x"), key(&[2; 32], "x")];
        let mut parcel = Parcel::default();
        parcel.add(&space(0, 0), &[]);
        assert!(parcel.is_empty());
        parcel.add(&space(0, 0), &[(keys[0], &[1.0]), (keys[1], &[2.0])]);
        parcel.add(&space(0, 1), &[(keys[1], &[3.0, 4.0])]);
        let bytes = parcel.into_bytes();
        for _ in 0..2 {
            assert!(unpack(dirs[1].path(), "one", bytes.clone()).unwrap());
            let wanted = BTreeSet::from(keys);
            let read = |which| space(1, which).read(&wanted);
            assert_eq!((read(0).1, read(0).0[&keys[1]][..].to_vec()), (0, vec![2.0]));
            assert_eq!((read(1).0.len(), read(1).0[&keys[1]][..].to_vec()), (1, vec![3.0, 4.0]));
            assert_eq!(std::fs::read_dir(dirs[1].path().join(&names[0])).unwrap().count(), 1, "once");
        }
    }

    #[test]
    fn what_was_unpacked_is_known_until_some_of_it_goes_and_stays_while_it_is_of_use() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let names = ["a", "b"].map(|c| c.repeat(NAME));
        for (name, values) in names.iter().zip([[1.0], [2.0]]) {
            let mut parcel = Parcel::default();
            parcel.add(&Space::new(root, name, 1), &[(key(&[1; 32], "x"), &values)]);
            assert!(!has(root, name));
            assert!(unpack(root, name, parcel.into_bytes()).unwrap() && has(root, name));
        }
        // Somebody else's file in a folder of this name.
        let theirs = root.join(UNPACKED).join("notes");
        std::fs::write(&theirs, "to do").unwrap();
        let segment = |name: &str| std::fs::read_dir(root.join(name)).unwrap().next().unwrap().unwrap().path();
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(1000);
        for (name, age) in names.iter().zip([1, 0]) {
            let file = std::fs::File::open(segment(name)).unwrap();
            file.set_modified(old - std::time::Duration::from_secs(age)).unwrap();
        }
        // The older one is asked for, so that the other one makes room.
        assert!(has(root, &names[0]));
        crate::cache::trim(root, 8 + 36 + 32);
        assert_eq!(names.each_ref().map(|name| has(root, name)), [true, false]);
        assert!(!root.join(UNPACKED).join(&names[1]).exists() && theirs.exists());
    }

    #[test]
    fn a_parcel_that_is_not_whole_or_names_another_place_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut parcel = Parcel::default();
        parcel.add(&Space::new(dir.path(), &"a".repeat(NAME), 1), &[(key(&[1; 32], "x"), &[1.0])]);
        let bytes = parcel.into_bytes();
        assert!(!unpack(dir.path(), "one", bytes[..bytes.len() - 1].to_vec()).unwrap());
        let body = files::unseal(bytes).unwrap();
        // Sealed by somebody all the same: too short, and with a name that leads out of the folder.
        let cut = files::seal(body[..body.len() - 1].to_vec());
        let mut out = body;
        out[..3].copy_from_slice(b"../");
        for odd in [cut, files::seal(out)] {
            assert!(!unpack(dir.path(), "one", odd).unwrap());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
