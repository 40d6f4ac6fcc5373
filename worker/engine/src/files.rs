//! Files that are whole or absent: written aside, flushed, renamed.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use crate::{Error, Result};

/// Writes `bytes` to `path` so that a crash leaves the old file, the new one, or none.
///
/// # Errors
/// The disk refuses; nothing is left behind then.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let shown = path.display();
    let aside = path.with_extension(format!("aside-{}", std::process::id()));
    let attempt = || -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    };
    attempt().map_err(|e| {
        let _ = fs::remove_file(&aside);
        Error::disk(format!("write `{shown}`"))(e)
    })
}

/// Adds a trailer by which [`unseal`] knows that the bytes are whole.
pub fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let digest = blake3::hash(&bytes);
    bytes.extend(digest.as_bytes());
    bytes
}

/// The bytes without their trailer; `None` if they are not what was sealed.
pub fn unseal(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let body = bytes.len().checked_sub(32)?;
    let whole = blake3::hash(&bytes[..body]).as_bytes()[..] == bytes[body..];
    whole.then(|| {
        bytes.truncate(body);
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_or_changed_file_is_not_whole() {
        let sealed = seal(vec![1, 2, 3]);
        assert_eq!(unseal(sealed.clone()), Some(vec![1, 2, 3]));
        assert_eq!(unseal(sealed[..sealed.len() - 1].to_vec()), None);
        let mut changed = sealed;
        changed[0] ^= 1;
        assert_eq!(unseal(changed), None);
        assert_eq!(unseal(vec![0; 5]), None);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("file");
        std::fs::write(&blocked, b"x").unwrap();
        assert!(write_whole(&blocked.join("below"), b"y").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
