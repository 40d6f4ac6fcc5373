//! Blobs in a folder of this machine.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{Error, Shelf, checked};

/// The folder.
pub(super) struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// Blobs in `dir`, which is there.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }
}

impl Shelf for Folder {
    fn size(&self, digest: &str) -> Result<Option<u64>, Error> {
        let path = self.dir.join(digest);
        let Ok(meta) = fs::metadata(&path) else { return Ok(None) };
        // Where its age cannot be changed it is as old as it is.
        let _ = File::open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        Ok(Some(meta.len()))
    }

    fn put(&self, digest: &str, file: &Path) -> Result<(), Error> {
        fs::rename(file, self.dir.join(digest))?;
        Ok(File::open(&self.dir)?.sync_all()?)
    }

    fn read(&self, digest: &str, offset: u64, most: usize) -> Result<Vec<u8>, Error> {
        let mut file = File::open(self.dir.join(digest))?;
        file.seek(SeekFrom::Start(offset))?;
        let mut data = Vec::with_capacity(most.min(1 << 22));
        file.take(most as u64).read_to_end(&mut data)?;
        Ok(data)
    }

    fn remove(&self, digest: &str) {
        let _ = fs::remove_file(self.dir.join(digest));
    }

    fn list(&self) -> Result<Vec<(String, SystemTime)>, Error> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Another thread may have taken it away meanwhile.
            if let (Ok(_), Ok(since)) = (checked(&name), entry.metadata().and_then(|m| m.modified())) {
                all.push((name, since));
            }
        }
        Ok(all)
    }

    fn asked(&self, digest: &str) -> Option<SystemTime> {
        fs::metadata(self.dir.join(digest)).and_then(|m| m.modified()).ok()
    }
}
