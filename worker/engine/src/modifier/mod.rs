//! Hooks on a run that are independent of its objective. A new one is a file here and a line in [`ALL`].

mod mixup;

use tl_proto::{catalog::Entry, spec::Params};

use crate::num::rng::Philox;

/// How the samples of a grain are mixed: each with its mirror image in the grain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Weight of the sample itself.
    pub keep: f32,
}

/// One modifier.
pub struct Modifier {
    /// What the catalog says.
    pub entry: fn() -> Entry,
    /// How the grain is mixed, if this modifier mixes.
    pub mix: fn(&Params, &Philox, step: u64, grain: u32) -> Option<Mix>,
}

/// Every modifier.
pub const ALL: &[Modifier] = &[mixup::MODIFIER];

/// The modifier of a name.
pub fn find(name: &str) -> Option<&'static Modifier> {
    ALL.iter().find(|m| (m.entry)().name == name)
}

impl Mix {
    /// `keep·x_i + (1−keep)·x_{n−1−i}` for rows of `width`.
    pub fn apply(self, rows: &[f32], width: usize) -> Vec<f32> {
        let n = rows.len() / width;
        let mut out = Vec::with_capacity(rows.len());
        for i in 0..n {
            let (a, b) = (&rows[i * width..(i + 1) * width], &rows[(n - 1 - i) * width..(n - i) * width]);
            out.extend(a.iter().zip(b).map(|(a, b)| self.keep * a + (1.0 - self.keep) * b));
        }
        out
    }
}

/// What the catalog says.
pub fn catalog() -> Vec<Entry> {
    ALL.iter().map(|m| (m.entry)()).collect()
}
