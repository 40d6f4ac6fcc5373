//! PyTorch's files from 1.6 on: a zip archive, in which nothing is compressed, of a pickle and of the bytes of each storage.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use zip::{
    CompressionMethod, ZipArchive,
    read::{ArchiveOffset, Config},
};

use super::{Bad, MOST_PICKLE};

/// An archive that holds a pickle.
pub struct Archive {
    zip: ZipArchive<BufReader<File>>,
    /// What the names in it begin with.
    folder: String,
}

impl Archive {
    /// Opens a file.
    ///
    /// # Errors
    /// A file that is no archive, not the whole of one, or one of something else.
    pub fn open(path: &Path) -> Result<Self, Bad> {
        let file = File::open(path).map_err(|e| Bad::NotWhole(e.to_string()))?;
        // Nothing lies before it. Looked for, the directory is taken to end where the last record begins, and PyTorch has
        // records of 76 bytes between, which are as long as the entry of some names.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let zip = ZipArchive::with_config(config, BufReader::new(file)).map_err(|e| Bad::NotWhole(e.to_string()))?;
        let names: Vec<String> = zip.file_names_raw().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let other = |what: &str, hint: &str| Bad::Other { what: what.into(), hint: hint.into() };
        let mut folders = names.iter().filter_map(|name| name.strip_suffix("data.pkl"));
        let Some(folder) = folders.find(|folder| folder.is_empty() || folder.ends_with('/')) else {
            let has = |end: &str| names.iter().any(|name| name.ends_with(end));
            return Err(if has(".npy") {
                let hint = "save them under their names: `safetensors.numpy.save_file(dict(numpy.load(path)), other)`";
                other("are an archive of NumPy's", hint)
            } else if has("model.weights.h5") {
                other("are a `.keras` archive", "save the whole model as `.h5`: `model.save(\"NAME.h5\")`")
            } else {
                let hint = "give what `torch.save(model.state_dict(), path)` writes";
                other("are an archive without a pickle of PyTorch's", hint)
            });
        };
        if names.contains(&format!("{folder}constants.pkl")) {
            let hint = "save its tensors alone: `torch.save(torch.jit.load(path).state_dict(), other)`";
            return Err(other("are a program of TorchScript", hint));
        }
        let mut archive = Self { zip, folder: folder.to_owned() };
        let order = format!("{folder}byteorder");
        if names.contains(&order) && archive.entry(&order)? == b"big" {
            return Err(big_endian());
        }
        Ok(archive)
    }

    /// The bytes of the pickle.
    ///
    /// # Errors
    /// An archive that is not whole.
    pub fn pickle(&mut self) -> Result<Vec<u8>, Bad> {
        let name = format!("{}data.pkl", self.folder);
        self.entry(&name)
    }

    /// The first `len` bytes of a storage.
    ///
    /// # Errors
    /// As [`Self::pickle`].
    pub fn storage(&mut self, key: &str, len: usize) -> Result<Vec<u8>, Bad> {
        let name = format!("{}data/{key}", self.folder);
        self.first(&name, Some(len), u64::MAX)
    }

    fn entry(&mut self, name: &str) -> Result<Vec<u8>, Bad> {
        self.first(name, None, MOST_PICKLE)
    }

    /// An entry of at most `most` bytes, or its first `len`. Their checksum is not asked for: PyTorch can be told to write
    /// none, and asks for none.
    fn first(&mut self, name: &str, len: Option<usize>, most: u64) -> Result<Vec<u8>, Bad> {
        let bad = |why: &dyn std::fmt::Display| Bad::NotWhole(format!("`{name}` in it: {why}"));
        let mut entry = self.zip.by_name(name).map_err(|e| bad(&e))?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(Bad::Other {
                what: "are an archive that was packed again, with compression".into(),
                hint: "unpack it, and pack its folder as PyTorch does: `zip -0 -r other.pth FOLDER`".into(),
            });
        }
        let size = entry.size();
        let len = len.map_or(size, |len| len as u64);
        if len > size || size > most {
            return Err(bad(&format!("has {size} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(|e| bad(&e))?];
        entry.read_exact(&mut bytes).map_err(|e| bad(&e))?;
        Ok(bytes)
    }
}

/// A file with numbers in the other order.
pub fn big_endian() -> Bad {
    Bad::Other {
        what: "were written on a machine whose numbers begin with the most significant byte".into(),
        hint: "save them again on a usual machine: `torch.save(torch.load(path), other)`".into(),
    }
}
