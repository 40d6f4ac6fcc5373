//! PyTorch's files before 1.6: five pickles one behind the other, of a number, a version, the machine, what is saved, and
//! the keys of its storages; then those storages in that order, each behind the number of its elements.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use super::{
    Bad, MOST_PICKLE,
    archive::big_endian,
    numbers,
    pickle::{Object, Pickle, Value},
};

/// The number that such a file begins with, within its first pickle.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The part of a file that its pickles are in.
///
/// # Errors
/// A file that cannot be read.
pub fn start(path: &Path) -> Result<Vec<u8>, Bad> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_PICKLE).read_to_end(&mut bytes));
    read.map_err(|e| Bad::NotWhole(e.to_string()))?;
    Ok(bytes)
}

/// Where in a file each storage lies.
pub struct Legacy {
    file: File,
    /// Where it begins and how many bytes it has, by key.
    places: BTreeMap<String, (u64, u64)>,
}

impl Legacy {
    /// Reads the pickles that `bytes`, the start of the file, begin with.
    ///
    /// # Errors
    /// A file that PyTorch did not write, or not the whole of one.
    pub fn open<'a>(path: &Path, bytes: &'a [u8]) -> Result<(Pickle<'a>, Self), Bad> {
        if !bytes[..bytes.len().min(64)].windows(MAGIC.len()).any(|part| part == MAGIC) {
            return Err(Bad::Other {
                what: "are a pickle that PyTorch did not write".into(),
                hint: "save them with `torch.save`, as tensors by name".into(),
            });
        }
        let mut at = 0;
        let (_, _, machine) = (next(bytes, &mut at)?, next(bytes, &mut at)?, next(bytes, &mut at)?);
        let (saved, keys) = (next(bytes, &mut at)?, next(bytes, &mut at)?);
        let little = (Value::Text("little_endian"), Value::Flag(false));
        if machine.dict(machine.top).is_some_and(|said| said.contains(&little)) {
            return Err(big_endian());
        }
        let widths = saved.objects().iter().filter_map(|object| match object {
            Object::Storage(storage) => Some((storage.key, numbers::width(storage.kind)?)),
            _ => None,
        });
        let widths: BTreeMap<&str, usize> = widths.collect();
        let mut file = File::open(path).map_err(|e| Bad::NotWhole(e.to_string()))?;
        let (mut at, mut places) = (at as u64, BTreeMap::new());
        for key in keys.list(keys.top) {
            let Value::Text(key) = key else { return Err(lost()) };
            let width = *widths.get(key).ok_or_else(lost)? as u64;
            let mut count = [0; 8];
            let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut count));
            read.map_err(|e| Bad::NotWhole(e.to_string()))?;
            let len = u64::from_le_bytes(count).checked_mul(width).ok_or_else(lost)?;
            places.insert((*key).to_owned(), (at + 8, len));
            at = (at + 8).checked_add(len).ok_or_else(lost)?;
        }
        Ok((saved, Self { file, places }))
    }

    /// The first `len` bytes of a storage.
    ///
    /// # Errors
    /// A file that is not whole.
    pub fn storage(&mut self, key: &str, len: usize) -> Result<Vec<u8>, Bad> {
        let (at, has) = *self.places.get(key).ok_or_else(lost)?;
        if len as u64 > has {
            return Err(Bad::NotWhole(format!("storage `{key}` has {has} bytes")));
        }
        let mut bytes = vec![0; len];
        let read = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|e| Bad::NotWhole(e.to_string()))?;
        Ok(bytes)
    }
}

/// The pickle at `at`, which is then where it ends.
fn next<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Pickle<'a>, Bad> {
    let pickle = Pickle::read(&bytes[*at..])?;
    *at += pickle.len;
    Ok(pickle)
}

fn lost() -> Bad {
    Bad::NotWhole("its storages are not those of its tensors".into())
}
