//! A folder as one file: a tar archive whose bytes depend on names and contents only, so that the same data set has the
//! same digest wherever it is pushed from.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tl_proto::v1;

use crate::Error;

/// What will be in an archive.
#[derive(Debug)]
pub struct Archive {
    /// Names in the archive and where the files lie, by name, bytewise.
    files: Vec<(PathBuf, PathBuf)>,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Archive {
    /// Lists a folder, or a single file. Hidden files are left out; links are followed.
    ///
    /// # Errors
    /// A path that is not there or holds nothing.
    pub fn list(path: &Path) -> Result<Self, Error> {
        let root = path.canonicalize().map_err(Error::file(path))?;
        let mut files = Vec::new();
        if root.is_file() {
            let name = root.file_name().map(PathBuf::from).unwrap_or_default();
            files.push((name, root));
        } else {
            walk(&root, Path::new(""), 0, &mut files)?;
        }
        // Bytewise, so that the order is no matter of the machine.
        files.sort_by(|a, b| a.0.as_os_str().as_encoded_bytes().cmp(b.0.as_os_str().as_encoded_bytes()));
        if files.is_empty() {
            return Err(Error::input(
                format!("`{}` holds no files", path.display()),
                "push a folder with the data set in it",
            ));
        }
        let size = |f: &PathBuf| fs::metadata(f).map(|m| m.len()).map_err(Error::file(f));
        let bytes = files.iter().map(|(_, f)| size(f)).sum::<Result<u64, Error>>()?;
        Ok(Self { files, bytes })
    }

    /// How many files there are.
    pub fn files(&self) -> u64 {
        self.files.len() as u64
    }

    /// Writes the archive, and tells `done` how many bytes of files are in it so far.
    ///
    /// # Errors
    /// A file that is gone, or a writer that refuses.
    pub fn write(&self, out: impl Write, mut done: impl FnMut(u64)) -> io::Result<()> {
        let mut builder = tar::Builder::new(out);
        let mut written = 0;
        for (name, path) in &self.files {
            let file = File::open(path)?;
            let size = file.metadata()?.len();
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_size(size);
            builder.append_data(&mut header, name, io::Read::take(file, size))?;
            written += size;
            done(written);
        }
        builder.finish()
    }

    /// Digest and size of the archive, without keeping it.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn blob(&self, done: impl FnMut(u64)) -> io::Result<v1::BlobRef> {
        let mut sink = Hashing { hasher: Sha256::new(), size: 0 };
        self.write(&mut sink, done)?;
        let digest = sink.hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Ok(v1::BlobRef { digest, size: sink.size })
    }
}

/// Deepest folder that is looked into: a link to a folder above would have no end.
const MAX_DEPTH: usize = 32;

fn walk(dir: &Path, inside: &Path, depth: usize, files: &mut Vec<(PathBuf, PathBuf)>) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::input(
            format!("`{}` is more than {MAX_DEPTH} folders deep", dir.display()),
            "is there a link to a folder above?",
        ));
    }
    for entry in fs::read_dir(dir).map_err(Error::file(dir))? {
        let entry = entry.map_err(Error::file(dir))?;
        let (name, path) = (inside.join(entry.file_name()), entry.path());
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let kind = fs::metadata(&path).map_err(Error::file(&path))?;
        if kind.is_dir() {
            walk(&path, &name, depth + 1, files)?;
        } else if kind.is_file() {
            files.push((name, path));
        }
    }
    Ok(())
}

struct Hashing {
    hasher: Sha256,
    size: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_are_the_same_archive_whenever_and_wherever_they_were_made() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (dir, order) in dirs.iter().zip([["b/2", "a/1"], ["a/1", "b/2"]]) {
            for name in order {
                let path = dir.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, name).unwrap();
                File::open(&path).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
            }
            fs::write(dir.path().join(".DS_Store"), "hidden").unwrap();
        }
        let archives = dirs.each_ref().map(|d| Archive::list(d.path()).unwrap());
        let blobs = archives.each_ref().map(|a| a.blob(|_| ()).unwrap());
        assert_eq!(blobs[0], blobs[1]);
        assert_eq!((archives[0].files(), archives[0].bytes), (2, 6));
        let mut bytes = Vec::new();
        archives[0].write(&mut bytes, |_| ()).unwrap();
        let mut names = tar::Archive::new(&bytes[..]);
        let names: Vec<_> = names.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [Path::new("a/1"), Path::new("b/2")]);
        fs::write(dirs[1].path().join("a/1"), "a/2").unwrap();
        assert_ne!(Archive::list(dirs[1].path()).unwrap().blob(|_| ()).unwrap(), blobs[0]);
    }

    #[test]
    fn an_empty_folder_and_a_link_to_above_are_refused_and_a_file_is_taken_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Archive::list(dir.path()).unwrap_err().exit_code(), 2);
        fs::write(dir.path().join("model.safetensors"), "w").unwrap();
        assert_eq!(Archive::list(&dir.path().join("model.safetensors")).unwrap().files(), 1);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
        assert!(Archive::list(dir.path()).unwrap_err().to_string().contains("folders deep"));
    }
}
