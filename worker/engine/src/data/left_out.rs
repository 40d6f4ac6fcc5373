//! What a job leaves out of a folder: folders and files in it, and files that lists in it name.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use tl_proto::spec::Params;

use super::{list, stem, stray::Kind};
use crate::{Error, Result};

/// Most bytes of a file that tell whether it is text.
const START: u64 = 1024;

/// The parameter that says it.
pub(super) const WITHOUT: &str = "without";

/// What one path stands for.
enum Out {
    /// All that lies in a folder.
    Folder(String),
    /// A file that is itself left out.
    File(String),
    /// Files that a list names, perhaps without their endings.
    List(BTreeSet<String>),
}

impl Out {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => {
                name.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::File(file) => file == name,
            Self::List(files) => files.contains(name) || files.contains(stem(name)),
        }
    }

    /// Whether it is a list for sure, and no notes or license: it names samples, or has a folder or a number in every line.
    fn is_list(&self, kind: &Kind) -> bool {
        let Self::List(files) = self else { return false };
        let like_path = |name: &String| name.contains('/') || name.bytes().any(|b| b.is_ascii_digit());
        !files.is_empty() && (files.iter().any(|name| kind.names(name)) || files.iter().all(like_path))
    }
}

/// Whether a file is no text.
fn is_binary(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(START).read_to_end(&mut start));
    read.is_ok() && start.contains(&0)
}

/// What is left out of a folder, by the paths that the job names.
pub(super) struct LeftOut(Vec<(String, Out)>);

impl LeftOut {
    /// Looks at what the job names. What is not there is passed over but in training samples: `val` may lie in another folder,
    /// and has the same parameters.
    ///
    /// # Errors
    /// A path that leads out of the folder, or that nothing is at; a list that is none.
    pub fn open(place: &str, part: &str, params: &Params, kind: &Kind) -> Result<Self> {
        let said = params.get(WITHOUT).and_then(serde_json::Value::as_array).into_iter().flatten();
        let mut all = Vec::new();
        for said in said.filter_map(serde_json::Value::as_str) {
            let bad = |why: &str| {
                Error::user(
                    format!("`params.{WITHOUT}` names `{said}`, which {why}"),
                    "it has paths below the folder: of folders, of files, or of lists of files",
                )
            };
            let name = list::inside(said).ok_or_else(|| bad(&format!("leads out of `{place}`")))?;
            let path = Path::new(place).join(&name);
            let out = match std::fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => Out::Folder(name),
                Ok(_) if kind.is(&name, &path) || is_binary(&path) => Out::File(name),
                Ok(_) => Out::List(list::names(&path)?),
                Err(_) if part != "train" => continue,
                Err(e) => return Err(bad(&format!("cannot be opened in `{place}`: {e}"))),
            };
            all.push((said.to_owned(), out));
        }
        Ok(Self(all))
    }

    /// Whether a file, or a folder with all that lies in it, is left out.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(_, out)| out.has(name))
    }

    /// Takes it out of what was found.
    ///
    /// # Errors
    /// A list that nothing was found of, in training samples: it begins elsewhere.
    pub fn apply(&self, place: &str, part: &str, found: &mut Vec<(String, PathBuf)>, kind: &Kind) -> Result<()> {
        let idle = |out: &Out| part == "train" && out.is_list(kind) && !found.iter().any(|(name, _)| out.has(name));
        if let Some((said, _)) = self.0.iter().find(|(_, out)| idle(out)) {
            return Err(Error::user(
                format!("nothing in `{place}` is left out by `{said}` of `params.{WITHOUT}`"),
                "paths of a list begin from the folder that it is to leave something out of",
            ));
        }
        found.retain(|(name, _)| !self.has(name));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::files::Files;

    const KIND: Kind = Kind { what: "sound", endings: &["wav"], begins: |_| false };

    /// What is left of five files.
    fn left(without: &[&str], part: &str) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let mut found = Vec::new();
        for name in ["no/1.wav", "no/2.wav", "noise/hum.wav", "yes/1.wav", "yes/2.wav"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, name).unwrap();
            found.push((name.to_owned(), path));
        }
        std::fs::write(dir.path().join("val.txt"), "no/1.wav\nyes/2 7\nyes/gone.wav\n").unwrap();
        std::fs::write(dir.path().join("elsewhere.txt"), "data/no/1.wav\n").unwrap();
        let (place, params) = (dir.path().display().to_string(), [(WITHOUT.to_owned(), json!(without))].into());
        LeftOut::open(&place, part, &params, &KIND)?.apply(&place, part, &mut found, &KIND)?;
        Ok(found.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn folders_files_and_what_lists_name_are_left_out() {
        assert_eq!(left(&["val.txt", "noise/"], "train").unwrap(), ["no/2.wav", "yes/1.wav"]);
        assert_eq!(left(&["no"], "train").unwrap(), ["noise/hum.wav", "yes/1.wav", "yes/2.wav"], "no part of a name");
        assert_eq!(left(&["no/2.wav", "yes"], "train").unwrap(), ["no/1.wav", "noise/hum.wav"]);
        assert_eq!(left(&["test.txt", "val.txt", "elsewhere.txt"], "val").unwrap().len(), 3);
    }

    #[test]
    fn folders_without_samples_and_files_that_are_none_can_be_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("no/1.wav", "1"),
            ("yes/1.wav", "2"),
            ("yes/2.wav", "3"),
            ("meta/info.csv", "a,b\n"),
            ("yes/Thumbs.db", "old 1\0\0"),
            ("LICENSE", "Use it\nand/or leave it, since 1999\n"),
            ("all_of_no.txt", "no/1\n"),
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let classes = |without: &[&str]| {
            let params = [(WITHOUT.to_owned(), json!(without))].into();
            Files::open(&dir.path().display().to_string(), "train", &params, &KIND).map(|files| files.classes)
        };
        assert_eq!(classes(&["yes/Thumbs.db", "LICENSE", "meta/info.csv"]).unwrap(), ["meta", "no", "yes"]);
        assert_eq!(classes(&["meta"]).unwrap(), ["no", "yes"]);
        assert_eq!(classes(&["meta", "all_of_no.txt"]).unwrap(), ["yes"], "a list of all of a class leaves it out");
    }

    #[test]
    fn what_leaves_nothing_out_of_training_samples_is_refused() {
        for (said, why) in [
            ("test.txt", "`test.txt`, which cannot be opened"),
            ("elsewhere.txt", "left out by `elsewhere.txt`"),
            ("../val.txt", "leads out of"),
            ("/etc", "leads out of"),
        ] {
            let error = left(&[said], "train").unwrap_err().to_string();
            assert!(error.contains(why), "{said}: {error}");
        }
    }
}
