//! The cache of the hub's files, laid out as Hugging Face's own libraries do it, and shared with them: what any of them has
//! brought is not brought again.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

/// The files of one repository.
pub struct Shelf {
    cache: Cache,
    repo: String,
    dir: PathBuf,
}

/// The cache that the environment names (`HF_HUB_CACHE`, `HF_HOME`, the usual folder), or one in `fallback`.
pub fn cache(fallback: PathBuf) -> Cache {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || {
        let usual = var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
        var("HF_HOME").or_else(|| Some(usual?.join("huggingface")))
    };
    Cache::new(var("HF_HUB_CACHE").or_else(|| Some(home()?.join("hub"))).unwrap_or(fallback))
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
        Some(commit.trim().to_owned()).filter(|c| c.len() == 40 && c.bytes().all(|b| b.is_ascii_hexdigit()))
    }

    /// Remembers what a revision stands for.
    pub fn remember(&self, revision: &str, commit: &str) -> io::Result<()> {
        let repo = Repo::with_revision(self.repo.clone(), RepoType::Model, revision.to_owned());
        self.cache.repo(repo).create_ref(commit)
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
        self.dir.join("blobs").join(etag)
    }

    /// Gives bytes their name in a commit.
    pub fn place(&self, commit: &str, file: &str, etag: &str) -> io::Result<()> {
        let path = self.snapshot(commit).join(file);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        let up = "../".repeat(2 + file.split('/').count() - 1);
        let _ = fs::remove_file(&path);
        #[cfg(unix)]
        return std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), path);
        #[cfg(not(unix))]
        return fs::hard_link(self.blob(etag), path);
    }
}

/// SHA-256 of a file, hexadecimal, and its size.
pub fn digest(path: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer, mut size) = (Sha256::new(), vec![0; 1 << 16], 0);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        size += n as u64;
    }
    Ok((hasher.finalize().iter().map(|b| format!("{b:02x}")).collect(), size))
}

/// Whether a tag is the SHA-256 of what it names, as those of large files are.
pub fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
