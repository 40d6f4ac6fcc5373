//! The cache of the hub's files, laid out as Hugging Face's own libraries do it, and shared with them: what any of them has
//! brought is not brought again.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::store::digests::is_sha1;
use hf_hub::{Cache, Repo, RepoType};

/// The files of one repository.
pub struct Shelf {
    cache: Cache,
    repo: String,
    dir: PathBuf,
}

fn var(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The cache that the environment names (`HF_HUB_CACHE`, `HF_HOME`, the usual folder), or one in `fallback`.
pub fn cache(fallback: PathBuf) -> Cache {
    Cache::new(var("HF_HUB_CACHE").or_else(|| Some(home(var)?.join("hub"))).unwrap_or(fallback))
}

/// What a login has left.
pub fn token() -> Option<String> {
    let text = fs::read_to_string(token_file(var)?).ok()?;
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

/// Where a login leaves its token: not where the files are, which may be anywhere.
fn token_file(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    var("HF_TOKEN_PATH").or_else(|| Some(home(var)?.join("token")))
}

/// The folder of Hugging Face's own libraries.
fn home(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let usual = || var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    var("HF_HOME").or_else(|| Some(usual()?.join("huggingface")))
}

impl Shelf {
    /// The files of `repo` in a cache.
    pub fn new(cache: &Cache, repo: &str) -> Self {
        let dir = cache.path().join(Repo::new(repo.to_owned(), RepoType::Model).folder_name());
        Self { cache: cache.clone(), repo: repo.to_owned(), dir }
    }

    /// The repository's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        let repo = Repo::new(self.repo.clone(), RepoType::Model);
        self.cache.repo(repo).pointer_path(commit)
    }

    /// The commit that a revision stood for when it was last asked for.
    pub fn known(&self, revision: &str) -> Option<String> {
        let commit = fs::read_to_string(self.dir.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|c| is_sha1(c))
    }

    /// Remembers what a revision stands for, where that is news.
    pub fn remember(&self, revision: &str, commit: &str) -> io::Result<()> {
        if self.known(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        self.put(&self.dir.join("refs").join(revision), |path| fs::write(path, commit))
    }

    /// Makes a file or a link whole before it gets its name: others read here without asking anybody.
    fn put(&self, path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        let unique = format!(".tl-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let new = self.dir.join(unique);
        // Containers that share a folder can have the same process ids; what an earlier one has left is in the way.
        let _ = fs::remove_file(&new);
        let done = make(&new).and_then(|()| fs::rename(&new, path));
        if done.is_err() {
            let _ = fs::remove_file(&new);
        }
        done
    }

    /// Whether a file of a commit is here.
    pub fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// Whether it is known that a commit has no such file.
    pub fn lacks(&self, commit: &str, file: &str) -> bool {
        self.dir.join(".no_exist").join(commit).join(file).exists()
    }

    /// Remembers that a commit has no such file.
    pub fn note_lack(&self, commit: &str, file: &str) -> io::Result<()> {
        let path = self.dir.join(".no_exist").join(commit).join(file);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        File::create(path).map(drop)
    }

    /// Where the bytes of a tag lie, or will.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.blobs().join(etag)
    }

    /// Where all bytes lie.
    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    /// Gives bytes their name in a commit.
    pub fn place(&self, commit: &str, file: &str, etag: &str) -> io::Result<()> {
        let path = self.snapshot(commit).join(file);
        #[cfg(unix)]
        {
            let to = PathBuf::from(format!("{}blobs/{etag}", "../".repeat(2 + file.split('/').count() - 1)));
            // Somebody may be reading through it.
            if fs::read_link(&path).is_ok_and(|old| old == to) {
                return Ok(());
            }
            self.put(&path, |new| std::os::unix::fs::symlink(to, new))
        }
        #[cfg(not(unix))]
        self.put(&path, |new| fs::hard_link(self.blob(etag), new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lies_where_a_login_leaves_it_wherever_the_files_are() {
        let file = |set: &[(&str, &str)]| {
            let var = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v));
            token_file(var).map(|p| p.display().to_string())
        };
        let all = [("HF_TOKEN_PATH", "/t"), ("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h"), ("HOME", "/u")];
        assert_eq!(file(&all).as_deref(), Some("/t"));
        assert_eq!(file(&all[1..]).as_deref(), Some("/h/token"));
        assert_eq!(file(&[all[1], all[3]]).as_deref(), Some("/u/.cache/huggingface/token"));
        assert_eq!(file(&[]), None);
    }

    #[test]
    #[cfg(unix)]
    fn a_link_that_is_right_is_left_alone_and_one_that_is_wrong_is_replaced() {
        use std::os::unix::fs::MetadataExt;

        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(&Cache::new(dir.path().into()), "a/b");
        let commit = "0".repeat(40);
        fs::create_dir_all(shelf.blobs()).unwrap();
        for etag in ["one", "two"] {
            fs::write(shelf.blob(etag), etag).unwrap();
        }
        let link = shelf.snapshot(&commit).join("x/w.pth");
        shelf.place(&commit, "x/w.pth", "one").unwrap();
        let inode = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
        let first = inode(&link);
        shelf.place(&commit, "x/w.pth", "one").unwrap();
        assert_eq!(inode(&link), first);
        shelf.place(&commit, "x/w.pth", "two").unwrap();
        assert_eq!(fs::read_to_string(&link).unwrap(), "two");
        shelf.remember("refs/pr/1", &commit).unwrap();
        let file = shelf.dir().join("refs/refs/pr/1");
        let first = inode(&file);
        shelf.remember("refs/pr/1", &commit).unwrap();
        assert_eq!((inode(&file), shelf.known("refs/pr/1")), (first, Some(commit)));
        let left = fs::read_dir(shelf.dir()).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count();
        assert_eq!(left, 0, "nothing half done stays");
    }
}
