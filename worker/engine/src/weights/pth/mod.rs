//! PyTorch's own files: the bytes of tensors, and a pickle that says which is which. They are read as data, without Python:
//! what a pickle would run is not run.

mod archive;
mod call;
mod legacy;
mod numbers;
mod pickle;
mod state;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::Path};

use candle_core::Tensor;

use self::{
    archive::Archive,
    legacy::Legacy,
    numbers::{Kind, Place},
    pickle::{Pickle, Value, View},
};
use super::format::{Format, OLD_PROTOCOL};
use crate::{Error, Result, nn};

/// Largest pickle, in bytes.
const MOST_PICKLE: u64 = 64 << 20;
/// What a pickle of protocol 2 or later begins with.
const PROTOCOL: u8 = 0x80;
/// How many times the bytes of the file all tensors may take together: some share what they are made of.
const MOST_SHARED: u64 = 16;

/// What is wrong with a file.
#[derive(Debug)]
enum Bad {
    /// It is damaged.
    NotWhole(String),
    /// It is something else than the tensors of a model.
    Other {
        /// What, as what is said of `weights`.
        what: String,
        /// What to do next.
        hint: String,
    },
}

impl From<String> for Bad {
    fn from(why: String) -> Self {
        Self::NotWhole(why)
    }
}

/// Tensors of a file of `size` bytes, under one of the usual keys or else at the top.
///
/// # Errors
/// A file that is not whole, or none of tensors by name.
pub(super) fn read(path: &Path, size: u64, format: Format) -> Result<Vec<(String, Tensor)>> {
    // The reader of archives is somebody else's: a panic in it is a bad file, not a bug of the run.
    let read = std::panic::catch_unwind(|| if format == Format::Pickle { old(path, size) } else { new(path, size) });
    let read = read.unwrap_or_else(|_| Err(Bad::NotWhole("the archive contradicts itself".into())));
    let shown = path.display();
    let found = read.map_err(|bad| match bad {
        Bad::NotWhole(why) => Error::user(
            format!("weights `{shown}` are not a whole file: {why}"),
            "bring the file again, or save it again: `torch.save(model.state_dict(), path)`",
        ),
        Bad::Other { what, hint } => Error::user(format!("weights `{shown}` {what}"), hint),
    })?;
    found.into_iter().map(|(name, place, values)| Ok((name, nn::tensor(values, &place.shape)?))).collect()
}

/// Name, place and elements of a tensor.
type Found = (String, Place, Vec<f32>);

fn new(path: &Path, size: u64) -> Result<Vec<Found>, Bad> {
    let mut archive = Archive::open(path)?;
    let bytes = archive.pickle()?;
    if bytes.first().is_some_and(|first| *first != PROTOCOL) {
        return Err(Bad::Other { what: OLD_PROTOCOL.0.into(), hint: OLD_PROTOCOL.1.into() });
    }
    tensors(&Pickle::read(&bytes)?, size, |key, len| archive.storage(key, len))
}

fn old(path: &Path, size: u64) -> Result<Vec<Found>, Bad> {
    let bytes = legacy::start(path)?;
    let (pickle, mut file) = Legacy::open(path, &bytes)?;
    tensors(&pickle, size, |key, len| file.storage(key, len))
}

/// What is wanted of a storage: so many bytes, and the tensors in them.
type Wanted<'a> = (usize, Vec<(&'a str, Place)>);

/// All tensors of a model, by the first bytes of each storage. What a tensor claims is taken before it is read, so none may
/// claim more than there is.
fn tensors(
    pickle: &Pickle<'_>,
    size: u64,
    mut storage: impl FnMut(&str, usize) -> Result<Vec<u8>, Bad>,
) -> Result<Vec<Found>, Bad> {
    // A storage is read once, though many tensors may lie in it.
    let mut places: BTreeMap<(&str, Kind), Wanted<'_>> = BTreeMap::new();
    let mut total = 0;
    for (name, view) in state::tensors(pickle)? {
        // Numbers of another kind are in none of our networks: one that is wanted is missed by its name.
        let Some(kind) = Kind::of(view.storage.kind) else { continue };
        let place = place(pickle, view, size / kind.width() as u64);
        let place = place.map_err(|why| Bad::NotWhole(format!("tensor `{name}` {why}")))?;
        total += 4 * place.count as u64;
        if total > MOST_SHARED.saturating_mul(size) {
            return Err(Bad::NotWhole(format!("its tensors are larger than {MOST_SHARED} such files")));
        }
        let (len, list) = places.entry((view.storage.key, kind)).or_default();
        *len = view.storage.count.saturating_mul(kind.width()).max(*len);
        list.push((name, place));
    }
    let mut found = Vec::new();
    for ((key, kind), (len, list)) in places {
        if len as u64 > size {
            return Err(Bad::NotWhole(format!("storage `{key}` is larger than the file")));
        }
        let stored = kind.floats(&storage(key, len)?);
        found.extend(list.into_iter().map(|(name, place)| {
            let values = place.gather(&stored);
            (name.to_owned(), place, values)
        }));
    }
    Ok(found)
}

/// Where a tensor of at most `most` elements lies.
fn place<'a>(pickle: &Pickle<'a>, view: &View<'a>, most: u64) -> Result<Place, &'static str> {
    let numbers = |list: Value<'a>| -> Option<Vec<usize>> {
        let number = |value: &Value<'a>| match value {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        };
        pickle.list(list).iter().take(65).map(number).collect()
    };
    let (Some(shape), Some(strides)) = (numbers(view.sizes), numbers(view.strides)) else {
        return Err("has a shape that is none");
    };
    let first = view.first.saturating_add(view.storage.first);
    Place::new(first, shape, strides, (usize::try_from(most).unwrap_or(usize::MAX), view.storage.count))
}
