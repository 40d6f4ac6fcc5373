//! Files below a folder or in a list, of any kind: which there are, in which order, and of which class each is.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde_json::Value;
use tl_proto::{
    catalog::{Param, integer, paths, pattern, place},
    spec::{Params, name_pattern},
};

use super::{
    left_out::{LeftOut, WITHOUT},
    list::{self, List},
    read_file,
    stray::Kind,
    tree,
};
use crate::{Error, Result};

/// Largest file, in bytes.
pub(super) const MAX_FILE: u64 = 256 << 20;

/// The parameters of a format of files.
pub(super) fn params() -> Vec<Param> {
    vec![
        integer(
            "depth",
            1,
            1,
            8,
            "how deep the folders of classes lie: with 2, those of `Greek/character01` are a class of that name",
        ),
        pattern(
            "label",
            "regular expression whose first group is the class of a file, by its path below the folder; without it the \
             class is the one that a list says, or its folder",
        ),
        pattern(
            "held_out",
            "regular expression of paths below the folder: files that match are for validation alone, the others for \
             training alone, so that both parts can lie in one folder",
        ),
        place("root", "the folder that the paths of a list begin from; without it, the one that the list lies in"),
        place("val_root", "the same for validation samples, where it is another one"),
        paths(
            WITHOUT,
            "paths below the folder that are left out: folders, files, or lists, of which all files are; a list in its \
             place says itself what is in it",
        ),
    ]
}

/// Files and their classes.
pub(super) struct Files {
    pub classes: Vec<String>,
    pub labels: Vec<usize>,
    /// Path below the root, and where it lies.
    pub files: Vec<(String, PathBuf)>,
    pub digests: Vec<[u8; 32]>,
    /// What is to be said of files that lay there and are no samples.
    pub passed_over: Option<String>,
}

impl Files {
    /// The files of one part, with their classes.
    ///
    /// # Errors
    /// A folder or a list that cannot be read; a file whose class is not said; folders of which it is not said whether they
    /// are classes.
    pub fn open(place: &str, part: &str, params: &Params, kind: &Kind) -> Result<Self> {
        let by_name = pattern_of(params, "label")?;
        let depth = params.get("depth").and_then(Value::as_f64).map(|d| d as usize);
        if by_name.is_some() && depth.is_some() {
            return Err(Error::user(
                "`params.depth` says in which folders classes are, and `params.label` that they are in names",
                "remove one of them",
            ));
        }
        let (levels, by_folder) = (depth.unwrap_or(1), by_name.is_none() && !is_list(place));
        let mut found =
            if by_folder { Found::by_folder(place, levels)? } else { Found::all(place, part, params, kind)? };
        found.choose(place, part, params, kind)?;
        if by_folder {
            tree::check_apart(Path::new(place), &found.folders, &found.files)?;
        }
        if by_folder && depth.is_none() {
            found.check_folders(place)?;
        }
        // What the job says goes before what a list does.
        let said = if by_name.is_none() && depth.is_none() { found.said? } else { BTreeMap::new() };
        let class_of = |name: &String| {
            if let Some(by_name) = &by_name {
                let group = by_name.captures(name.as_bytes()).and_then(|c| c.get(1));
                let class = group.map(|g| String::from_utf8_lossy(g.as_bytes()).into_owned()).filter(|c| !c.is_empty());
                return class.ok_or_else(|| {
                    Error::user(
                        format!("the name of `{name}` in `{place}` does not say its class by `params.label`"),
                        "its first group, in parentheses, must match a part of every name",
                    )
                });
            }
            if let Some(class) = said.get(name) {
                return Ok(class.clone());
            }
            let folders: Vec<&str> = name.split('/').collect();
            let class = folders.get(..levels).filter(|_| folders.len() > levels).map(|folders| folders.join("/"));
            class.ok_or_else(|| {
                Error::user(
                    format!("`{place}` says no class of `{name}`, and it lies in no folder of one"),
                    "write the class behind the path, or say by `params.label` where it is in the name",
                )
            })
        };
        let names = found.files.iter().map(|(name, _)| class_of(name)).collect::<Result<Vec<String>>>()?;
        let mut classes = found.folders;
        classes.extend(names.iter().cloned());
        classes.sort_unstable();
        classes.dedup();
        let class = |name: &String| classes.binary_search(name).map_err(|_| Error::Internal("a class is gone".into()));
        let labels = names.iter().map(class).collect::<Result<_>>()?;
        let (files, passed_over) = (found.files, found.passed_over);
        Ok(Self { digests: digests(&files)?, classes, labels, files, passed_over })
    }

    /// Every file of one part at any depth, without a class.
    ///
    /// # Errors
    /// A folder or a list that cannot be read.
    pub fn bare(place: &str, part: &str, params: &Params, kind: &Kind) -> Result<Self> {
        let mut found = Found::all(place, part, params, kind)?;
        found.choose(place, part, params, kind)?;
        let (files, passed_over) = (found.files, found.passed_over);
        Ok(Self { classes: Vec::new(), labels: vec![0; files.len()], digests: digests(&files)?, files, passed_over })
    }
}

/// What lies at a place.
struct Found {
    files: Vec<(String, PathBuf)>,
    /// Classes that have a folder there.
    folders: Vec<String>,
    /// Files that lie beside those folders.
    loose: Vec<(String, PathBuf)>,
    /// Classes that a list says of files, or why it does not.
    said: Result<BTreeMap<String, String>>,
    passed_over: Option<String>,
}

impl Found {
    /// The files of a list, or all that lie below a folder.
    fn all(place: &str, part: &str, params: &Params, kind: &Kind) -> Result<Self> {
        let List { files, classes } = if is_list(place) {
            list::read(Path::new(place), root(part, params), kind)?
        } else {
            List { files: tree::files(Path::new(place), "")?, classes: Ok(BTreeMap::new()) }
        };
        Ok(Self { files, folders: Vec::new(), loose: Vec::new(), said: classes, passed_over: None })
    }

    /// Those of each folder, which is a class.
    fn by_folder(place: &str, levels: usize) -> Result<Self> {
        let (mut files, mut folders, mut loose) = (Vec::new(), Vec::new(), Vec::new());
        for (class, dir) in tree::folders(Path::new(place), "", levels, &mut loose)? {
            files.extend(tree::files(&dir, &class)?);
            folders.push(class);
        }
        if folders.is_empty() {
            return Err(Error::user(
                format!("`{place}` has no folders in it"),
                "put the files of each class into a folder named after it, say by `params.label` where its name is, or give \
                 a list of the files with their classes",
            ));
        }
        Ok(Self { files, folders, loose, said: Ok(BTreeMap::new()), passed_over: None })
    }

    /// Leaves what is a sample of the part. All that a list names is meant.
    fn choose(&mut self, place: &str, part: &str, params: &Params, kind: &Kind) -> Result<()> {
        if !is_list(place) {
            let strays = kind.sift(&mut self.files);
            let out = LeftOut::open(place, part, params, kind)?;
            let levels = self.folders.first().map_or(0, |folder| folder.split('/').count());
            let with_files = |files: &[(String, PathBuf)]| -> BTreeSet<String> {
                files.iter().map(|(name, _)| name.split('/').take(levels).collect::<Vec<_>>().join("/")).collect()
            };
            let before = with_files(&self.files);
            out.apply(place, part, &mut self.files, kind)?;
            // A class of which everything is left out is left out, and one that had nothing is told.
            let left = with_files(&self.files);
            self.folders.retain(|folder| !out.has(folder) && (left.contains(folder) || !before.contains(folder)));
            self.loose.retain(|(name, path)| !out.has(name) && kind.is(name, path));
            self.passed_over = strays.into_iter().chain(self.outside()).reduce(|one, other| format!("{one}; {other}"));
        }
        if let Some(held_out) = pattern_of(params, "held_out")? {
            self.files.retain(|(name, _)| held_out.is_match(name.as_bytes()) == (part != "train"));
        }
        Ok(())
    }

    /// What there is to say of samples that lie beside the folders of classes.
    fn outside(&self) -> Option<String> {
        let (first, _) = self.loose.first()?;
        let lie = match self.loose.len() {
            1 => "1 file lies".to_owned(),
            n => format!("{n} files lie"),
        };
        Some(format!("{lie} in no folder of a class, first `{first}`: passed over"))
    }

    /// Whether folders are classes: none of them has a file of its own where they are what classes lie in.
    fn check_folders(&self, place: &str) -> Result<()> {
        let mut inner: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, _) in &self.files {
            let mut parts = name.split('/');
            let (Some(class), Some(folder), Some(_)) = (parts.next(), parts.next(), parts.next()) else {
                return Ok(());
            };
            inner.entry(class).or_default().insert(folder);
        }
        match inner.iter().find(|(_, folders)| folders.len() > 1) {
            None => Ok(()),
            Some((class, folders)) => Err(Error::user(
                format!("no folder of `{place}` has files of its own, and `{class}` has {} folders", folders.len()),
                "set `params.depth = 2` if those are the classes, or `params.depth = 1` if they are not",
            )),
        }
    }
}

/// Whether a place is a list, and no folder.
pub(super) fn is_list(place: &str) -> bool {
    std::fs::metadata(place).is_ok_and(|meta| meta.is_file())
}

/// Where the paths of a list begin, if the job says so.
fn root<'a>(part: &str, params: &'a Params) -> Option<&'a Path> {
    let said = |name: &str| params.get(name).and_then(Value::as_str).filter(|path| !path.is_empty());
    let own = if part == "train" { None } else { said("val_root") };
    own.or_else(|| said("root")).map(Path::new)
}

/// The files with an ending below a folder, in order, or the one file that the place is.
///
/// # Errors
/// A place that cannot be read; a folder without such files.
pub(super) fn all(place: &str, ending: &str) -> Result<Vec<(String, PathBuf)>> {
    let path = Path::new(place);
    let is_file = std::fs::metadata(path).is_ok_and(|meta| meta.is_file());
    if let Some(name) = path.file_name().filter(|_| is_file) {
        return Ok(vec![(name.to_string_lossy().into_owned(), path.to_owned())]);
    }
    let mut found = tree::files(path, "")?;
    found.retain(|(name, _)| name.ends_with(ending));
    if found.is_empty() {
        let hint = "give such a file, or a folder of them";
        return Err(Error::user(format!("`{place}` has no `{ending}` files in it"), hint));
    }
    Ok(found)
}

/// The pattern that a parameter gives, if it does.
pub(super) fn pattern_of(params: &Params, name: &str) -> Result<Option<regex::bytes::Regex>> {
    let Some(text) = params.get(name).and_then(Value::as_str) else { return Ok(None) };
    name_pattern(&format!("re:{text}")).map_err(|e| Error::user(format!("`params.{name}`: {}", e.message), e.hint))
}

fn digests(files: &[(String, PathBuf)]) -> Result<Vec<[u8; 32]>> {
    files.iter().map(|(_, p)| Ok(*blake3::hash(&read_file(p, MAX_FILE)?).as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::testing::fill;

    const ANY: Kind = Kind { what: "file", endings: &[], begins: |_| true };
    const X: Kind = Kind { what: "sample", endings: &["x"], begins: |_| false };

    fn opened(dir: &Path, part: &str, params: Value) -> Result<Files> {
        Files::open(&dir.display().to_string(), part, &serde_json::from_value(params).unwrap(), &ANY)
    }

    fn names(files: &Files) -> Vec<&str> {
        files.files.iter().map(|f| f.0.as_str()).collect()
    }

    #[test]
    fn nested_folders_are_read_bytewise_and_links_to_folders_are_not() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["b/2.x", "b/1.X", "a/z.X", "a/x/y/0.x", "a/x.x", "a/.hidden/0.x", "a/.0.x", "readme"]);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/loop")).unwrap();
        let files = opened(dir.path(), "train", json!({})).unwrap();
        assert_eq!(names(&files), ["a/x.x", "a/x/y/0.x", "a/z.X", "b/1.X", "b/2.x"]);
        assert_eq!((files.labels, files.classes), (vec![0, 0, 0, 1, 1], vec!["a".into(), "b".into()]));
    }

    #[test]
    fn classes_may_lie_in_folders_of_folders() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["Greek/b/1.x", "Greek/a/0.x", "Greek/loose.x", "Latin/a/x/2.x"]);
        fill(dir.path(), &["@eaDir/a/1.x", "Greek/__MACOSX/1.x", "Greek/a/@eaDir/0.x"]);
        let files = opened(dir.path(), "train", json!({ "depth": 2 })).unwrap();
        assert_eq!(files.classes, ["Greek/a", "Greek/b", "Latin/a"]);
        assert_eq!(
            (names(&files), &files.labels[..]),
            (vec!["Greek/a/0.x", "Greek/b/1.x", "Latin/a/x/2.x"], &[0, 1, 2][..])
        );
    }

    #[test]
    fn samples_beside_the_folders_of_classes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["a/1.x", "b/1.x", "b/notes", "labels.csv", "out/1.x", "stray.x"]);
        let said = |without: Value| {
            let params = serde_json::from_value(json!({ "without": without })).unwrap();
            Files::open(&dir.path().display().to_string(), "train", &params, &X).unwrap().passed_over
        };
        let notes = "1 file is no sample, first `b/notes`: passed over";
        let loose = "1 file lies in no folder of a class, first `stray.x`: passed over";
        assert_eq!(said(json!([])), Some(format!("{notes}; {loose}")));
        assert_eq!(said(json!(["stray.x"])).as_deref(), Some(notes));
        fill(dir.path(), &["more.x"]);
        let two = said(json!(["out"])).unwrap();
        assert!(two.ends_with("; 2 files lie in no folder of a class, first `more.x`: passed over"), "{two}");
        // Where a class is in the name, they are samples like any other.
        let params = serde_json::from_value(json!({ "label": "([0-9a-z])[.]x$", "without": ["out"] })).unwrap();
        let files = Files::open(&dir.path().display().to_string(), "train", &params, &X).unwrap();
        assert_eq!(files.classes, ["1", "e", "y"]);
        assert_eq!(files.passed_over.unwrap(), "2 files are no samples, first `b/notes`: passed over");
    }

    #[test]
    fn folders_of_classes_that_links_make_one_are_refused_unless_left_out() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["set/ants/1.x", "set/bees/1.x", "elsewhere/1.x"]);
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, dir.path().join("set").join(name)).unwrap();
        let open = |params: Value| opened(&dir.path().join("set"), "train", params).map(|files| files.classes);
        link("../elsewhere", "wasps");
        assert_eq!(open(json!({})).unwrap(), ["ants", "bees", "wasps"]);
        for (to, name, says) in [
            (".", "all", "`all` is the folder"),
            ("ants", "more", "`ants` and `more`"),
            ("..", "up", "`up` is the folder"),
        ] {
            link(to, name);
            let error = open(json!({})).unwrap_err().to_string();
            assert!(error.contains(says), "{to}: {error}");
            assert_eq!(open(json!({ "without": [name] })).unwrap(), ["ants", "bees", "wasps"]);
            std::fs::remove_file(dir.path().join("set").join(name)).unwrap();
        }
    }

    #[test]
    fn a_list_that_is_unclear_about_classes_will_do_where_it_is_not_asked_for_them() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["a/1.x", "b/2.x"]);
        let list = dir.path().join("list.csv");
        let place = list.display().to_string();
        for text in ["image,width,species\na/1.x,4,ant\nb/2.x,4,bee\n", "a/1.x,ant\nb/2.x,\"\"\n"] {
            std::fs::write(&list, text).unwrap();
            assert!(Files::open(&place, "train", &Params::new(), &X).is_err(), "{text}");
            let by_folder = serde_json::from_value(json!({ "depth": 1 })).unwrap();
            assert_eq!(Files::open(&place, "train", &by_folder, &X).unwrap().classes, ["a", "b"]);
            assert_eq!(Files::bare(&place, "train", &Params::new(), &X).unwrap().files.len(), 2);
        }
    }

    #[test]
    fn a_class_can_stand_in_the_name_and_parts_share_a_folder_without_sharing_files() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["7_ann_0.x", "7_ann_1.x", "10_bob_0.x", "more/7_bob_1.x", "more/10_ann_1.x"]);
        let params = json!({ "label": r"([0-9]+)_[^/]*$", "held_out": r"_0\.x$" });
        let (train, val) =
            (opened(dir.path(), "train", params.clone()).unwrap(), opened(dir.path(), "val", params).unwrap());
        assert_eq!(names(&train), ["7_ann_1.x", "more/10_ann_1.x", "more/7_bob_1.x"]);
        assert_eq!((train.labels, &train.classes[..]), (vec![1, 0, 1], &["10".to_owned(), "7".to_owned()][..]));
        assert_eq!((names(&val), val.labels.clone()), (vec!["10_bob_0.x", "7_ann_0.x"], vec![0, 1]));
        let folders = opened(dir.path(), "val", json!({ "held_out": "ann" })).unwrap();
        assert_eq!((names(&folders), folders.classes.clone()), (vec!["more/10_ann_1.x"], vec!["more".to_owned()]));
    }

    #[test]
    fn a_part_may_be_a_list_and_the_other_what_the_folder_has_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["no/1.x", "no/2.x", "yes/1.x", "yes/2.x", "yes/3.x", "noise/hum.x", "no/notes"]);
        std::fs::write(dir.path().join("val.txt"), "yes/3.x\nno/1.x\n").unwrap();
        let open = |place: &Path, part: &str| {
            let params = json!({ "without": ["val.txt", "noise"] });
            Files::open(&place.display().to_string(), part, &serde_json::from_value(params).unwrap(), &X).unwrap()
        };
        let (train, val) = (open(dir.path(), "train"), open(&dir.path().join("val.txt"), "val"));
        assert_eq!(names(&train), ["no/2.x", "yes/1.x", "yes/2.x"]);
        assert_eq!((train.classes, train.labels), (vec!["no".into(), "yes".into()], vec![0, 1, 1]));
        assert_eq!(train.passed_over.unwrap(), "1 file is no sample, first `no/notes`: passed over");
        assert_eq!((names(&val), &val.labels[..]), (vec!["yes/3.x", "no/1.x"], &[1, 0][..]), "as the list has them");
        assert_eq!((val.classes, val.passed_over), (vec!["no".into(), "yes".into()], None));
    }

    #[test]
    fn a_class_is_what_the_job_says_then_what_the_list_says_then_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["images/a/7_1.x", "images/a/9_2.x", "more/0.x"]);
        let list = dir.path().join("list.txt");
        let open = |text: &str, part: &str, more: Value| {
            std::fs::write(&list, text).unwrap();
            let mut params: Params = serde_json::from_value(more).unwrap();
            params.insert("root".into(), dir.path().join("images").display().to_string().into());
            let files = Files::open(&list.display().to_string(), part, &params, &X).map_err(|e| e.to_string())?;
            Ok::<_, String>((files.classes, files.labels))
        };
        let classes = |of: &[&str]| of.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let said = "a/9_2.x dog\na/7_1.x cat\n";
        assert_eq!(open(said, "train", json!({})), Ok((classes(&["cat", "dog"]), vec![1, 0])));
        assert_eq!(open(said, "train", json!({ "depth": 1 })), Ok((classes(&["a"]), vec![0, 0])));
        assert_eq!(open(said, "val", json!({ "label": "([0-9])_" })), Ok((classes(&["7", "9"]), vec![1, 0])));
        assert_eq!(open("a/9_2\n", "val", json!({})), Ok((classes(&["a"]), vec![0])));
        let val_root = json!({ "val_root": dir.path().join("more").display().to_string() });
        assert_eq!(open("0.x cat\n", "val", val_root.clone()), Ok((classes(&["cat"]), vec![0])));
        assert!(open("0.x cat\n", "train", val_root.clone()).unwrap_err().contains("is not below"));
        assert!(open("0.x\n", "val", val_root).unwrap_err().contains("says no class of `0.x`"));
    }

    #[test]
    fn labels_of_a_list_are_out_of_reach_where_none_are_wanted() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["1.x", "2.x", "3.x"]);
        let list = dir.path().join("list.txt");
        std::fs::write(&list, "2.x 9\n1.x 4\n").unwrap();
        let place = list.display().to_string();
        let files = Files::bare(&place, "train", &Params::new(), &X).unwrap();
        assert_eq!((names(&files), &files.labels[..]), (vec!["2.x", "1.x"], &[0, 0][..]));
        assert!(files.classes.is_empty());
        // Another class is no other data.
        let digests = files.digests;
        std::fs::write(&list, "2.x 4\n1.x 4\n").unwrap();
        assert_eq!(Files::bare(&place, "train", &Params::new(), &X).unwrap().digests, digests);
    }

    #[test]
    fn folders_of_which_it_is_not_said_whether_they_are_classes_are_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["Greek/a/1.x", "Greek/b/1.x", "Latin/a/1.x", "Latin/Thumbs.db"]);
        let open = |params: Value| {
            let place = dir.path().display().to_string();
            Files::open(&place, "train", &serde_json::from_value(params).unwrap(), &X).map(|f| f.classes.len())
        };
        let Err(Error::User { message, hint }) = open(json!({})) else { panic!("no error") };
        assert!(message.contains("`Greek` has 2 folders") && hint.contains("`params.depth = 2`"), "{message}: {hint}");
        assert_eq!((open(json!({ "depth": 1 })).unwrap(), open(json!({ "depth": 2 })).unwrap()), (2, 3));
        // One with a file of its own is a class, and so is one that has nothing but one folder.
        fill(dir.path(), &["Latin/0.x"]);
        assert_eq!(open(json!({})).unwrap(), 2);
        std::fs::remove_dir_all(dir.path().join("Greek/b")).unwrap();
        std::fs::remove_file(dir.path().join("Latin/0.x")).unwrap();
        assert_eq!(open(json!({})).unwrap(), 2);
    }

    #[test]
    fn a_name_without_a_class_and_a_pattern_that_is_none_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["7_a.x", "notes.txt"]);
        let both = opened(dir.path(), "train", json!({ "label": "^([0-9]+)_", "depth": 2 }));
        assert!(both.err().unwrap().to_string().contains("`params.depth`"));
        for (label, says) in
            [("^([0-9]+)_", "`notes.txt`"), ("_", "`7_a.x`"), ("(", "`params.label`"), ("(x*)", "`7_a.x`")]
        {
            let error = opened(dir.path(), "train", json!({ "label": label })).err().unwrap().to_string();
            assert!(error.contains(says), "{label}: {error}");
        }
    }
}
