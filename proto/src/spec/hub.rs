//! Weights on the Hugging Face hub, as a job names them: `hf://OWNER/REPO[@REVISION][#FILE]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SpecError;

/// What the name of such weights begins with.
const SCHEME: &str = "hf://";

/// The file that is meant where a job names none.
pub const HUB_FILE: &str = "model.safetensors";

/// How endings of files that can be weights are written.
const ENDINGS: [&str; 8] = [".safetensors", ".pth", ".pt", ".th", ".bin", ".pth.tar", ".ckpt", ".h5"];

/// A file in a repository of the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hub<'a> {
    /// `OWNER/REPO`.
    pub repo: &'a str,
    /// A branch, a tag or a commit; the repository's `main` branch where the job says nothing.
    pub revision: &'a str,
    /// The file of weights; what belongs to it lies beside it.
    pub file: &'a str,
}

impl<'a> Hub<'a> {
    /// Reads `hf://OWNER/REPO[@REVISION][#FILE]`; `None` for a place that is none of the hub's.
    ///
    /// # Errors
    /// A name that cannot be one of the hub's.
    pub fn parse(place: &'a str) -> Result<Option<Self>, SpecError> {
        let Some(rest) = place.strip_prefix(SCHEME) else { return Ok(None) };
        let bad = |why: &str| {
            let hint = "write `hf://OWNER/REPO`, `hf://OWNER/REPO@REVISION` or `hf://OWNER/REPO@REVISION#FILE`";
            Err(SpecError::new(format!("`{place}` names no weights on the hub: {why}"), hint))
        };
        let (rest, file) = rest.split_once('#').unwrap_or((rest, HUB_FILE));
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let mut parts = repo.split('/');
        if !matches!((parts.next(), parts.next(), parts.next()), (Some(a), Some(b), None) if plain(a) && plain(b)) {
            return bad("a repository is an owner and a name");
        }
        // Both become parts of addresses and of paths in a cache.
        if revision.len() > 120 || !revision.split('/').all(plain) {
            return bad("the revision is no branch, tag or commit");
        }
        if file.len() > 200 || !file.split('/').all(plain) {
            return bad("the file is not in the repository");
        }
        if !ENDINGS.iter().any(|end| file.ends_with(end)) {
            return bad("the file is none of weights");
        }
        Ok(Some(Self { repo, revision, file }))
    }

    /// The name by which the same bytes are found for ever.
    pub fn pinned(&self, commit: &str) -> String {
        format!("{SCHEME}{}@{commit}#{}", self.repo, self.file)
    }

    /// Whether the revision is a commit: what it stands for never changes.
    pub fn is_pinned(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    }
}

/// A part of a path that means itself, everywhere.
fn plain(part: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !part.is_empty() && part.len() <= 100 && !part.starts_with('.') && part.chars().all(known)
}

/// Where weights came from: what a report says of them, and by what later ranks find the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// As the job names them.
    pub place: String,
    /// The same with the commit that its revision stood for.
    pub pinned: String,
    /// The file of weights first, then what lies beside it.
    pub files: Vec<SourceFile>,
}

/// Weights that are on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// The file of weights; what belongs to it lies beside it.
    pub path: PathBuf,
    /// Where it came from.
    pub source: Source,
}

/// A file that was brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its name in the repository.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of what is in it.
    pub sha256: String,
}

impl Source {
    /// Whether `pinned` is `place` at some commit, and nothing else.
    pub fn is_sound(&self) -> bool {
        let (Ok(Some(place)), Ok(Some(pinned))) = (Hub::parse(&self.place), Hub::parse(&self.pinned)) else {
            return false;
        };
        let same = (place.repo, place.file) == (pinned.repo, pinned.file);
        same && pinned.is_pinned() && (!place.is_pinned() || place.revision == pinned.revision)
    }

    /// Bytes of all its files; of sizes that cannot be, as many as there are.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, f| sum.saturating_add(f.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_pins_its_own_place_and_its_size_never_overflows() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let file = |bytes| SourceFile { name: "w.pth".into(), bytes, sha256: String::new() };
        let source =
            |place: &str, pinned: String| Source { place: place.into(), pinned, files: vec![file(u64::MAX), file(2)] };
        let sound = |place: &str, pinned: String| source(place, pinned).is_sound();
        assert!(sound("hf://a/b@v1#w.pth", format!("hf://a/b@{commit}#w.pth")));
        assert!(sound("hf://a/b", format!("hf://a/b@{commit}")));
        let other = commit.replace('0', "1");
        for (place, pinned) in [
            ("hf://a/b", "hf://a/b@main".to_owned()),
            ("hf://a/b", format!("hf://a/c@{commit}")),
            ("hf://a/b", format!("hf://a/b@{commit}#w.pth")),
            ("hf://a/b", "/etc/passwd".into()),
            ("hf://a/b", "hf://".into()),
            (&*format!("hf://a/b@{commit}"), format!("hf://a/b@{other}")),
        ] {
            assert!(!sound(place, pinned.clone()), "{place} {pinned}");
        }
        assert_eq!(source("", String::new()).bytes(), u64::MAX);
    }

    #[test]
    fn a_name_has_an_owner_a_revision_and_a_file_and_says_nothing_about_folders() {
        let parse = |text| Hub::parse(text).unwrap().map(|h: Hub<'_>| (h.repo, h.revision, h.file, h.is_pinned()));
        assert_eq!(parse("/srv/hf://a/b"), None);
        assert_eq!(parse("hf://timm/r50.a1_in1k"), Some(("timm/r50.a1_in1k", "main", HUB_FILE, false)));
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let whole = format!("hf://a/b@{commit}#onnx/w.pth");
        assert_eq!(parse(&whole), Some(("a/b", commit, "onnx/w.pth", true)));
        assert_eq!(parse("hf://a/b@refs/pr/1#w.h5"), Some(("a/b", "refs/pr/1", "w.h5", false)));
        assert_eq!(parse("hf://a/b#best.pth.tar"), Some(("a/b", "main", "best.pth.tar", false)));
        assert_eq!(Hub::parse("hf://a/b@v1#w.pth").unwrap().unwrap().pinned("c0"), "hf://a/b@c0#w.pth");
        for bad in [
            "hf://",
            "hf://a",
            "hf://a/b/c",
            "hf://../b",
            "hf://a/b@",
            "hf://a/b@../x",
            "hf://a/b#../w.pth",
            "hf://a/b#/etc/w.pth",
            "hf://a/b#notes.md",
            "hf://a/b#",
            "hf://a/b c",
            "hf://a/b@x?y",
        ] {
            assert!(Hub::parse(bad).is_err(), "{bad}");
        }
    }
}
