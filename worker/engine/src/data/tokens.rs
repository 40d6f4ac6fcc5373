//! Text to token ids, by a tokenizer in the format of Hugging Face's `tokenizer.json`: that of pretrained weights, or the
//! words of the training samples.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use tokenizers::{Tokenizer, TruncationParams};

use crate::{Error, Result, backbone::Shape, nn::tensor};

/// Stands for words that the vocabulary does not have.
const UNKNOWN: &str = "[UNK]";

/// How text becomes ids: what the image side's contract is for pixels.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// Most tokens of a text, with its marks; what follows is cut off.
    pub max_length: usize,
    /// The shape of the network, where the weights have said one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
    /// The text of `tokenizer.json`; empty where it is still to be made.
    pub tokenizer: String,
    #[serde(skip)]
    ready: Ready,
}

/// Parsed once.
#[derive(Clone, Default)]
struct Ready(Arc<OnceLock<Result<Tokenizer, String>>>);

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ready")
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        (self.max_length, &self.shape, &self.tokenizer) == (other.max_length, &other.shape, &other.tokenizer)
    }
}

impl Text {
    /// A contract around the text of a `tokenizer.json`.
    pub fn new(max_length: usize, shape: Option<Shape>, tokenizer: String) -> Self {
        Self { max_length, shape, tokenizer, ready: Ready::default() }
    }

    /// The same with another limit.
    pub fn limited_to(self, max_length: usize) -> Self {
        Self::new(max_length, self.shape, self.tokenizer)
    }

    /// Checks that the tokenizer can be used.
    ///
    /// # Errors
    /// Names `shown`.
    pub fn check(&self, shown: &str) -> Result<()> {
        let hint = "give the `tokenizer.json` that `save_pretrained` writes";
        self.parsed().map(|_| ()).map_err(|e| Error::user(format!("`{shown}` has no usable tokenizer: {e}"), hint))
    }

    fn parsed(&self) -> Result<&Tokenizer, String> {
        let parse = || {
            let mut tokenizer: Tokenizer = self.tokenizer.parse().map_err(|e: tokenizers::Error| e.to_string())?;
            let cut = TruncationParams { max_length: self.max_length, ..TruncationParams::default() };
            tokenizer.with_truncation(Some(cut)).map_err(|e| e.to_string())?;
            tokenizer.with_padding(None);
            Ok(tokenizer)
        };
        self.ready.0.get_or_init(parse).as_ref().map_err(Clone::clone)
    }

    /// The ids of a text as a network takes them, at least one and at most `max_length`.
    ///
    /// # Errors
    /// A text without any tokens.
    pub fn ids(&self, text: &str) -> Result<Vec<f32>, String> {
        let encoding = self.parsed()?.encode_fast(text, true).map_err(|e| e.to_string())?;
        let ids: Vec<f32> = encoding.get_ids().iter().map(|id| *id as f32).collect();
        if ids.is_empty() { Err("it has no words".into()) } else { Ok(ids) }
    }

    /// How many ids each of some texts would have if nothing were cut off, with their marks.
    ///
    /// # Errors
    /// A text that cannot be read.
    pub fn lengths(&self, texts: &[&str]) -> Result<Vec<usize>, String> {
        let mut whole = self.parsed()?.clone();
        whole.with_truncation(None).map_err(|e| e.to_string())?;
        let length = |text: &&str| whole.encode_fast(*text, true).map(|e| e.get_ids().len()).map_err(|e| e.to_string());
        texts.iter().map(length).collect()
    }

    /// Ids of several texts as a network takes them, `[n, t]` with −1 behind the end. `whole` makes room for the longest
    /// text that the network takes, else for the longest of these.
    ///
    /// # Errors
    /// None that can be caused from outside.
    pub fn batch(&self, texts: &[Vec<f32>], whole: bool) -> Result<Tensor> {
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let room = if whole { self.max_length.max(longest) } else { longest };
        let mut ids = vec![-1.0; texts.len() * room];
        for (out, text) in ids.chunks_exact_mut(room).zip(texts) {
            out[..text.len()].copy_from_slice(text);
        }
        tensor(ids, &[texts.len(), room])
    }

    /// What changes ids, as text: part of the key of cached features.
    pub fn describe(&self) -> String {
        format!("text:{}:{}", self.max_length, blake3::hash(self.tokenizer.as_bytes()).to_hex())
    }
}

/// A tokenizer of words in lower case, split at spaces and punctuation.
fn by_words(vocabulary: &BTreeMap<&str, usize>) -> String {
    let empty = serde_json::Value::Null;
    serde_json::json!({
        "version": "1.0", "truncation": empty, "padding": empty, "added_tokens": [],
        "normalizer": { "type": "Lowercase" }, "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": empty, "decoder": empty,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN },
    })
    .to_string()
}

/// The tokenizer of the most frequent words of `texts`, at most `most` with the unknown one: by count, then by bytes.
///
/// # Errors
/// None that can be caused from outside.
pub fn learn<'a>(texts: impl Iterator<Item = &'a str>, most: usize) -> Result<String> {
    let internal = |e: tokenizers::Error| Error::Internal(e.to_string());
    let splitter: Tokenizer = by_words(&[(UNKNOWN, 0)].into()).parse().map_err(internal)?;
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for text in texts {
        for (from, to) in splitter.encode(text, false).map_err(internal)?.get_offsets() {
            if let Some(word) = text.get(*from..*to) {
                *counts.entry(word.chars().flat_map(char::to_lowercase).collect()).or_default() += 1;
            }
        }
    }
    let mut words: Vec<(&str, u64)> = counts.iter().map(|(w, n)| (w.as_str(), *n)).collect();
    words.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let known = words.iter().map(|w| w.0).filter(|w| *w != UNKNOWN);
    Ok(by_words(&std::iter::once(UNKNOWN).chain(known).take(most.max(1)).zip(0..).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_numbered_by_count_and_then_by_bytes() {
        let texts = ["b a A!", "Straße c", "a b"];
        let text = Text::new(5, None, learn(texts.into_iter(), 5).unwrap());
        // a 3, b 2, then once each in the order of bytes: `!`, `c`; no room for the last.
        assert_eq!(text.ids("A, b! c STRASSE a a a").unwrap(), [1.0, 0.0, 2.0, 3.0, 4.0]);
        assert_eq!(learn(texts.into_iter(), 5).unwrap(), text.tokenizer);
        assert!(text.ids("  ").is_err());
        assert_eq!(text.lengths(&["a", "", "A, b! c STRASSE a a a"]).unwrap(), [1, 0, 9]);
        assert_eq!(text.ids("a a a a a a").unwrap().len(), 5, "it is still cut off");
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_refused() {
        for bad in ["", "{}", "[1]", "{\"model\": 3}"] {
            let error = Text::new(8, None, bad.into()).check("t.json").unwrap_err().to_string();
            assert!(error.starts_with("`t.json` has no usable tokenizer"), "{error}");
        }
    }
}
