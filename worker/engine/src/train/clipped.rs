//! Whether clips are heard whole: what lies beyond `seconds` is cut off, and no figure says so.

use rayon::prelude::*;

use super::samples::Samples;
use crate::weights::Contract;

/// Clips that are looked at, spread over all of them.
const LOOKED_AT: usize = 32;

/// A clip is longer than what is heard of it if it lasts so many times that. So little may be cut off unsaid.
const LONGER: f64 = 1.1;

/// What there is to say of clips that a network of this contract hears a part of, where they are more than a tenth.
pub(super) fn warning(samples: &Samples, contract: &Contract) -> Option<String> {
    let heard = contract.audio.as_ref()?.seconds;
    let (n, some) = (samples.count(), samples.count().min(LOOKED_AT));
    // What cannot be decoded is somebody else's to tell.
    let seconds = |k: usize| {
        let clip = samples.dataset.clip(k * n / some).ok()?;
        Some(clip.samples.len() as f64 / f64::from(clip.rate))
    };
    let last: Vec<f64> = (0..some).into_par_iter().filter_map(seconds).collect();
    let longer = last.iter().filter(|seconds| **seconds > LONGER * heard).count();
    if 10 * longer <= last.len() {
        return None;
    }
    let longest = (10.0 * last.iter().copied().fold(0.0, f64::max)).round() / 10.0;
    let (all, key) = (last.len(), samples.key());
    Some(format!(
        "{longer} of {all} clips of `{key}` that were looked at last longer than the {heard} s that are heard of each, up to \
         {longest} s: both ends are cut off; `{}.params.seconds` says how much is heard, unless weights do",
        section(&key)
    ))
}

/// The section that says how the samples of a part are heard: a network hears all of its own alike.
fn section(key: &str) -> &'static str {
    if key.starts_with("data.pairs.") { "data.pairs" } else { "data" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_heard_is_said_once_for_each_network() {
        let wanted = [
            ("data.train", "data"),
            ("data.target.train", "data"),
            ("tasks.a.train", "data"),
            ("data.pairs.train", "data.pairs"),
        ];
        wanted.iter().for_each(|(key, of)| assert_eq!(section(key), *of, "{key}"));
    }
}
