//! What the compiler has made of files of kernels, on disk: of the processes of a machine, which are many, none compiles
//! what another one has.
//!
//! A file is named by the digest of all that decides on its bytes: the text, the options, which name the compute capability, and
//! NVRTC: its version, and its file with its age, since releases that call themselves the same need not compile the same. It is
//! written aside and ends with a digest of its own. Whatever is wrong with it, or with the disk, the compiler is asked.

use std::{
    fs::{self, File, Permissions},
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use nvlib::Opened;

use crate::files;

/// What names the folder of a node's caches where nobody has said it.
const CACHES: &str = "TL_CACHE";
/// The folder within, and how the names of files end.
const FOLDER: &str = "kernels";
const END: &str = "cubin";
/// Bytes of all files. Those of one model of GPU and one NVRTC take one million.
const MOST: u64 = 64 << 20;

static CHOSEN: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Keeps what is compiled below a folder of caches: to be said before the first kernel is asked for. Else it is the one that
/// `TL_CACHE` names, or nothing is kept.
pub fn keep_kernels(caches: &Path) {
    let _ = CHOSEN.set(Some(caches.to_owned()));
}

/// Where one file lies, or is to lie.
pub(super) struct Kept {
    folder: PathBuf,
    name: String,
}

impl Kept {
    /// That of a text, compiled with options by an NVRTC; none where nothing is kept.
    pub fn of(text: &str, options: &[String], nvrtc: &Opened) -> Option<Self> {
        let named = || std::env::var_os(CACHES).filter(|folder| !folder.is_empty()).map(PathBuf::from);
        let caches = CHOSEN.get_or_init(named).as_ref()?;
        let about = fs::metadata(nvrtc.path()).ok()?;
        let age = about.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
        let compiler = [nvrtc.version()?, format!("{} {age} {}", about.len(), nvrtc.path().display())];
        let all = [text].into_iter().chain(options.iter().chain(&compiler).map(String::as_str));
        Some(Self { folder: caches.join(FOLDER), name: name(all) })
    }

    fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// What is there, if it is whole and nobody else can have written it.
    pub fn read(&self) -> Option<Vec<u8>> {
        // Opened once, so that what is looked at is what is read.
        let mut file = File::open(self.path()).ok()?;
        file.metadata().ok().filter(|about| about.len() <= MOST && is_ours(about))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        let cubin = files::unseal(bytes)?;
        // Its age is when it was last of use.
        let _ = file.set_modified(SystemTime::now());
        Some(cubin)
    }

    /// Puts it there, and removes what was not of use for longest where there is too much.
    pub fn write(&self, cubin: &[u8]) {
        let path = self.path();
        match files::write_whole(&path, &files::seal(cubin.to_vec())) {
            Ok(()) => {
                // Where the umask lets a group write, what it has made would not be read. If it cannot be said, it is not.
                let _ = fs::set_permissions(&path, Permissions::from_mode(0o644));
                trim(&self.folder, MOST);
            }
            Err(e) => tracing::debug!("what was compiled for a GPU is not kept: {e}"),
        }
    }
}

/// Whether a file is this user's and nobody else's to write: what is in it will run as this user.
fn is_ours(about: &fs::Metadata) -> bool {
    about.uid() == nix::unistd::geteuid().as_raw() && about.mode() & 0o022 == 0
}

fn name<'a>(all: impl Iterator<Item = &'a str>) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in all {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    format!("{}.{END}", hasher.finalize().to_hex())
}

/// Removes files, the oldest first, until they take `most` bytes at most.
fn trim(folder: &Path, most: u64) {
    let ours = |path: &PathBuf| {
        let end = path.extension().unwrap_or_default().to_string_lossy();
        // Also what a process has left that ended while it wrote.
        end == END || end.starts_with("aside-")
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(ours);
    let mut all: Vec<(SystemTime, u64, PathBuf)> = entries
        .filter_map(|path| {
            let about = fs::metadata(&path).ok()?;
            Some((about.modified().ok()?, about.len(), path))
        })
        .collect();
    all.sort();
    let mut total: u64 = all.iter().map(|(_, len, _)| len).sum();
    for (_, len, path) in all {
        if total <= most {
            return;
        }
        if fs::remove_file(&path).is_ok() {
            total -= len;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_file_comes_back_whole_or_not_at_all_and_has_a_name_for_all_that_decides_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let of = |parts: &[&str]| Kept { folder: dir.path().join(FOLDER), name: name(parts.iter().copied()) };
        let place = of(&["text", "--sm_90", "13.0"]);
        assert_eq!(place.read(), None);
        place.write(b"machine code");
        assert_eq!(place.read().as_deref(), Some(&b"machine code"[..]));
        for other in [&["text", "--sm_80", "13.0"], &["text", "--sm_90", "13.1"], &["text--sm_90", "", "13.0"]] {
            assert_eq!(of(other).read(), None, "{other:?}");
        }
        let whole = fs::read(place.path()).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[1..], b""] {
            fs::write(place.path(), damaged).unwrap();
            assert_eq!(place.read(), None);
        }
        // What others may write is not read, and what is written is nobody else's to write, whatever the umask.
        for (mode, is_read) in [(0o644, true), (0o664, false), (0o646, false), (0o600, true)] {
            place.write(b"machine code");
            assert_eq!(fs::metadata(place.path()).unwrap().mode() & 0o777, 0o644);
            fs::set_permissions(place.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(place.read().is_some(), is_read, "{mode:o}");
        }
        // Where nothing can be written, nothing is kept, and that is all.
        let blocked = Kept { folder: place.path(), name: name(["text"].into_iter()) };
        blocked.write(b"machine code");
        assert_eq!(blocked.read(), None);
    }

    #[test]
    fn what_was_not_of_use_for_longest_goes_first_and_what_is_somebody_elses_stays() {
        let dir = tempfile::tempdir().unwrap();
        let places = ["a", "b", "c"].map(|text| Kept { folder: dir.path().into(), name: name([text].into_iter()) });
        let theirs = dir.path().join("notes.txt");
        fs::write(&theirs, [0; 4096]).unwrap();
        for (age, place) in [300, 200, 100].into_iter().zip(&places) {
            place.write(&[7; 68]);
            let then = SystemTime::now() - Duration::from_secs(age);
            File::open(place.path()).unwrap().set_modified(then).unwrap();
        }
        // Of use just now.
        assert!(places[0].read().is_some());
        trim(dir.path(), 200);
        assert_eq!(places.each_ref().map(|place| place.path().exists()), [true, false, true]);
        assert!(theirs.exists());
    }
}
