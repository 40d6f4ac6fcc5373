//! Real photos and weights, which are no part of the repository.

use std::path::PathBuf;

/// The folder with test data: `TL_TEST_DATA`, or `../shared/data` beside the checkout. `None` only if
/// `TL_TEST_DATA=none` says that there is none: a test that was skipped by accident proves nothing.
///
/// # Panics
/// It is not there.
pub fn folder() -> Option<PathBuf> {
    let named = std::env::var("TL_TEST_DATA").ok();
    if named.as_deref() == Some("none") {
        eprintln!("skipped: TL_TEST_DATA=none");
        return None;
    }
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let dir = PathBuf::from(named.unwrap_or_else(|| beside.into()));
    let found = dir.canonicalize().ok().filter(|d| d.join("hymenoptera/train").is_dir());
    Some(found.unwrap_or_else(|| {
        panic!("no test data in `{}`; set TL_TEST_DATA to its folder, or to `none` to go without", dir.display())
    }))
}
