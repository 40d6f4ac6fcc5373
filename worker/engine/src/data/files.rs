//! Files below a folder, of any kind: which there are, in which order, and of which class each is.

use std::path::{Path, PathBuf};

use tl_proto::{
    catalog::{Param, integer, pattern},
    spec::{Params, name_pattern},
};

use super::read_file;
use crate::{Error, Result};

/// Largest file, in bytes.
pub(super) const MAX_FILE: u64 = 256 << 20;
/// Deepest folder that is looked into; a class's own is the first.
const MAX_DEPTH: usize = 16;

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
             class is its folder",
        ),
        pattern(
            "held_out",
            "regular expression of paths below the folder: files that match are for validation alone, the others for \
             training alone, so that both parts can lie in one folder",
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
}

impl Files {
    /// The files of one part, with their classes.
    ///
    /// # Errors
    /// A folder that cannot be read; a file whose class is not said.
    pub fn open(place: &str, part: &str, params: &Params) -> Result<Self> {
        let by_name = pattern_of(params, "label")?;
        if by_name.is_some() && params.contains_key("depth") {
            return Err(Error::user(
                "`params.depth` says in which folders classes are, and `params.label` that they are in names",
                "remove one of them",
            ));
        }
        let depth = params.get("depth").and_then(serde_json::Value::as_f64).map_or(1, |d| d as usize);
        let (mut classes, mut found) = (Vec::new(), Vec::new());
        if by_name.is_some() {
            walk(Path::new(place), "", 1, &mut found)?;
            found.sort();
        } else {
            for (class, dir) in folders(Path::new(place), depth)? {
                let mut own = Vec::new();
                walk(&dir, &class, 1, &mut own)?;
                own.sort();
                found.extend(own);
                classes.push(class);
            }
            if classes.is_empty() {
                return Err(Error::user(
                    format!("`{place}` has no folders in it"),
                    "put the files of each class into a folder named after it, or say by `params.label` where its name is",
                ));
            }
        }
        let files = of_part(found, part, params)?;
        let names = files.iter().map(|(name, _)| {
            let Some(by_name) = &by_name else {
                return Ok(name.split('/').take(depth).collect::<Vec<_>>().join("/"));
            };
            let group = by_name.captures(name.as_bytes()).and_then(|c| c.get(1));
            let class = group.map(|g| String::from_utf8_lossy(g.as_bytes()).into_owned()).filter(|c| !c.is_empty());
            class.ok_or_else(|| {
                Error::user(
                    format!("the name of `{name}` in `{place}` does not say its class by `params.label`"),
                    "its first group, in parentheses, must match a part of every name",
                )
            })
        });
        let names = names.collect::<Result<Vec<String>>>()?;
        classes.extend(names.iter().cloned());
        classes.sort_unstable();
        classes.dedup();
        let class = |name: &String| classes.binary_search(name).map_err(|_| Error::Internal("a class is gone".into()));
        let labels = names.iter().map(class).collect::<Result<_>>()?;
        Ok(Self { digests: digests(&files)?, classes, labels, files })
    }

    /// Every file of one part at any depth, without a class.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn bare(place: &str, part: &str, params: &Params) -> Result<Self> {
        let mut found = Vec::new();
        walk(Path::new(place), "", 1, &mut found)?;
        found.sort();
        let files = of_part(found, part, params)?;
        Ok(Self { classes: Vec::new(), labels: vec![0; files.len()], digests: digests(&files)?, files })
    }
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
    let mut found = Vec::new();
    walk(path, "", 1, &mut found)?;
    found.retain(|(name, _)| name.ends_with(ending));
    found.sort();
    if found.is_empty() {
        let hint = "give such a file, or a folder of them";
        return Err(Error::user(format!("`{place}` has no `{ending}` files in it"), hint));
    }
    Ok(found)
}

/// The pattern that a parameter gives, if it does.
pub(super) fn pattern_of(params: &Params, name: &str) -> Result<Option<regex::bytes::Regex>> {
    let Some(text) = params.get(name).and_then(serde_json::Value::as_str) else { return Ok(None) };
    name_pattern(&format!("re:{text}")).map_err(|e| Error::user(format!("`params.{name}`: {}", e.message), e.hint))
}

/// Those of the found files that belong to a part.
fn of_part(mut found: Vec<(String, PathBuf)>, part: &str, params: &Params) -> Result<Vec<(String, PathBuf)>> {
    if let Some(held_out) = pattern_of(params, "held_out")? {
        found.retain(|(name, _)| held_out.is_match(name.as_bytes()) == (part != "train"));
    }
    Ok(found)
}

fn digests(files: &[(String, PathBuf)]) -> Result<Vec<[u8; 32]>> {
    files.iter().map(|(_, p)| Ok(*blake3::hash(&read_file(p, MAX_FILE)?).as_bytes())).collect()
}

/// What lies in a folder, by name, but for what is hidden: bytewise, so that the order is the same on every machine.
fn list(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let fail = |e: std::io::Error| {
        Error::user(
            format!("`{}` cannot be listed: {e}", dir.display()),
            "give a folder: with one folder per class, or, where no labels are wanted, with the samples",
        )
    };
    let mut found = Vec::new();
    for item in std::fs::read_dir(dir).map_err(fail)? {
        let item = item.map_err(fail)?;
        let name = item.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            found.push((name, item.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Folders that lie `depth` folders deep, by the names of those on the way.
fn folders(dir: &Path, depth: usize) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for (name, path) in list(dir)? {
        if !follow(&path)?.is_dir() {
            continue;
        }
        if depth <= 1 {
            found.push((name, path));
        } else if !path.is_symlink() {
            let below = folders(&path, depth - 1)?;
            found.extend(below.into_iter().map(|(class, path)| (format!("{name}/{class}"), path)));
        }
    }
    Ok(found)
}

/// What a path is, or what it links to.
fn follow(path: &Path) -> Result<std::fs::Metadata> {
    std::fs::metadata(path).map_err(|e| {
        let what = if path.is_symlink() { "is a broken link" } else { "cannot be opened" };
        Error::user(format!("`{}` {what}: {e}", path.display()), "mend it, or remove it")
    })
}

/// Adds the files below `dir`, under names that begin with `name`. Links to files are samples; links to folders are not
/// followed, so that nothing is counted twice and nothing goes round in circles.
fn walk(dir: &Path, name: &str, depth: usize, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::user(
            format!("`{}` is more than {MAX_DEPTH} folders deep", dir.display()),
            "put the files of a class closer to its folder",
        ));
    }
    for (file, path) in list(dir)? {
        let kind = follow(&path)?;
        let name = if name.is_empty() { file } else { format!("{name}/{file}") };
        if kind.is_file() {
            found.push((name, path));
        } else if kind.is_dir() && !path.is_symlink() {
            walk(&path, &name, depth + 1, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fill(dir: &Path, names: &[&str]) {
        for name in names {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
    }

    fn opened(dir: &Path, part: &str, params: serde_json::Value) -> Result<Files> {
        Files::open(&dir.display().to_string(), part, &serde_json::from_value(params).unwrap())
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
        let files = opened(dir.path(), "train", json!({ "depth": 2 })).unwrap();
        assert_eq!(files.classes, ["Greek/a", "Greek/b", "Latin/a"]);
        assert_eq!(
            (names(&files), &files.labels[..]),
            (vec!["Greek/a/0.x", "Greek/b/1.x", "Latin/a/x/2.x"], &[0, 1, 2][..])
        );
    }

    #[test]
    fn a_broken_link_and_a_folder_too_deep_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let deep = (2..=MAX_DEPTH).fold("a".to_owned(), |path, _| path + "/n");
        fill(dir.path(), &[&format!("{deep}/0.x")]);
        let count = || opened(dir.path(), "train", json!({})).map(|f| f.files.len());
        assert_eq!(count().unwrap(), 1);
        fill(dir.path(), &[&format!("{deep}/n/0.x")]);
        assert!(count().unwrap_err().to_string().contains("16 folders deep"));
        std::fs::remove_dir_all(dir.path().join(format!("{deep}/n"))).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("a/gone.jpg")).unwrap();
        let error = count().unwrap_err().to_string();
        assert!(error.contains("a/gone.jpg` is a broken link"), "{error}");
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
