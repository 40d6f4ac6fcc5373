//! Whether the calls of other bindings go to the library that was opened.

use std::{ffi::c_void, path::PathBuf};

use crate::{Library, Opened};

/// Other bindings have loaded another file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{library} was found as `{}`, and the system's loader gives `{}` to what calls it", opened.display(), called.display())]
pub struct Elsewhere {
    /// Of which library.
    pub library: Library,
    /// The file that was opened.
    pub opened: PathBuf,
    /// The other one; empty where the system does not tell.
    pub called: PathBuf,
}

impl Opened {
    /// That a function of this name, which other bindings have `found`, is this library's.
    ///
    /// # Errors
    /// It is another one's.
    #[expect(unsafe_code, reason = "asks for an address")]
    pub fn expect(&self, name: &'static str, found: *const c_void) -> Result<(), Elsewhere> {
        // SAFETY: an address, which nobody calls.
        let ours = unsafe { self.function::<*const c_void>(name) };
        if ours.is_ok_and(|ours| ours == found) {
            return Ok(());
        }
        let called = file_at(found as usize).unwrap_or_default();
        Err(Elsewhere { library: self.library(), opened: self.path().to_owned(), called })
    }
}

/// The file that is mapped at an address.
fn file_at(address: usize) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let number = |hex: &str| usize::from_str_radix(hex, 16).ok();
    let around = |line: &&str| {
        let (from, rest) = line.split_once('-')?;
        let (to, _) = rest.split_once(' ')?;
        Some((number(from)?..number(to)?).contains(&address))
    };
    let line = maps.lines().find(|line| around(line).unwrap_or(false))?;
    line.find('/').map(|at| PathBuf::from(&line[at..]))
}
