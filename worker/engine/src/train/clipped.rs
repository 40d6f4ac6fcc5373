//! Whether samples are taken whole: what lies beyond `seconds` of a clip, or beyond the tokens that a network reads of a
//! text, is cut off, and no figure says so.

use rayon::prelude::*;

use super::samples::Samples;
use crate::{data::tokens::Text, link::Notice, weights::Contract};

/// Samples that are looked at, spread over all of them.
const LOOKED_AT: usize = 32;

/// A clip is longer than what is heard of it if it lasts so many times that. So little may be cut off unsaid.
const LONGER: f64 = 1.1;

/// What is to be said of samples of which a part is not seen.
pub(super) struct Clipped {
    /// What it is in the history of a job.
    pub notice: Notice,
    /// For people.
    pub text: String,
}

/// What there is to say of samples that a network of this contract takes a part of, where they are more than a tenth.
pub(super) fn warning(samples: &Samples, contract: &Contract) -> Option<Clipped> {
    let (notice, text) = match contract {
        Contract { audio: Some(audio), .. } => (Notice::ClipsCut, clips(samples, audio.seconds)?),
        Contract { text: Some(text), .. } => (Notice::TextsCut, texts(samples, text)?),
        _ => return None,
    };
    Some(Clipped { notice, text })
}

/// Indices of those that are looked at.
fn spread(samples: &Samples) -> impl IndexedParallelIterator<Item = usize> {
    let (n, some) = (samples.count(), samples.count().min(LOOKED_AT));
    (0..some).into_par_iter().map(move |k| k * n / some)
}

fn clips(samples: &Samples, heard: f64) -> Option<String> {
    // What cannot be decoded is somebody else's to tell.
    let seconds = |index: usize| {
        let clip = samples.dataset.clip(index).ok()?;
        Some(clip.samples.len() as f64 / f64::from(clip.rate))
    };
    let last: Vec<f64> = spread(samples).filter_map(seconds).collect();
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

fn texts(samples: &Samples, text: &Text) -> Option<String> {
    let some: Vec<usize> = spread(samples).collect();
    let some: Vec<&str> = some.into_iter().filter_map(|index| samples.dataset.text(index)).collect();
    // A tokenizer that is not here yet, or cannot be used, is somebody else's to tell.
    let lengths = text.lengths(&some).ok()?;
    let (read, longest) = (text.max_length, lengths.iter().max()?);
    let longer = lengths.iter().filter(|length| **length > read).count();
    if 10 * longer <= lengths.len() {
        return None;
    }
    let (all, key) = (lengths.len(), samples.key());
    let network = if key.starts_with("data.pairs.") { "`input` of the network in `[nets]`" } else { "`model.input`" };
    Some(format!(
        "{longer} of {all} texts of `{key}` that were looked at have more than the {read} tokens that are read of each, up to \
         {longest}: their ends are cut off; {network} says how many are read"
    ))
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
