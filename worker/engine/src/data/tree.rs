//! What lies below a folder: its files and folders by name, bytewise, so that the order is the same on every machine.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Deepest folder that is looked into; a class's own is the first.
const MAX_DEPTH: usize = 16;

/// What systems put beside people's files, which are passed over as hidden ones are: thumbnails of a Synology, and what macOS
/// adds to an archive.
const NOT_THEIRS: [&str; 2] = ["@eaDir", "__MACOSX"];

/// What lies in a folder, by name, but for what is hidden.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let fail = |e: std::io::Error| {
        Error::user(
            format!("`{}` cannot be listed: {e}", dir.display()),
            "give a folder: with one folder per class, or, where no labels are wanted, with the samples; or a list of files",
        )
    };
    let mut found = Vec::new();
    for item in std::fs::read_dir(dir).map_err(fail)? {
        let item = item.map_err(fail)?;
        let name = item.file_name();
        if name.as_encoded_bytes().starts_with(b".") || NOT_THEIRS.iter().any(|other| name == *other) {
            continue;
        }
        let name = match name.into_string() {
            Ok(name) => name,
            // Two such names may look the same, and would be one class.
            Err(_) if item.path().is_dir() => {
                return Err(Error::user(
                    format!("the name of `{}` is not UTF-8", item.path().display()),
                    "rename it, as `convmv -f latin1 -t utf8 -r --notest FOLDER` does with names in Latin-1 (`-f gbk`: in GBK)",
                ));
            }
            // A file is one sample, whatever it is called, if it is one at all.
            Err(name) => name.as_encoded_bytes().escape_ascii().to_string(),
        };
        found.push((name, item.path()));
    }
    found.sort();
    Ok(found)
}

/// Folders that lie `depth` folders deep, under names that begin with `name`; files on the way go to `loose`.
///
/// # Errors
/// What cannot be listed; a folder whose name is not UTF-8; a broken link.
pub(super) fn folders(
    dir: &Path,
    name: &str,
    depth: usize,
    loose: &mut Vec<(String, PathBuf)>,
) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for (own, path) in entries(dir)? {
        let (kind, name) = (follow(&path)?, below(name, own));
        if kind.is_file() {
            loose.push((name, path));
        } else if kind.is_dir() && depth <= 1 {
            found.push((name, path));
        } else if kind.is_dir() && !path.is_symlink() {
            found.extend(folders(&path, &name, depth - 1, loose)?);
        }
    }
    Ok(found)
}

/// The files below a folder, under names that begin with `name`. Links to files are samples; links to folders are not
/// followed, so that nothing is counted twice and nothing goes round in circles.
///
/// # Errors
/// As [`folders`], and a folder that is too deep.
pub(super) fn files(dir: &Path, name: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    walk(dir, name, 1, &mut found)?;
    found.sort();
    Ok(found)
}

fn walk(dir: &Path, name: &str, depth: usize, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::user(
            format!("`{}` is more than {MAX_DEPTH} folders deep", dir.display()),
            "put the files of a class closer to its folder",
        ));
    }
    for (own, path) in entries(dir)? {
        let (kind, name) = (follow(&path)?, below(name, own));
        if kind.is_file() {
            found.push((name, path));
        } else if kind.is_dir() && !path.is_symlink() {
            walk(&path, &name, depth + 1, found)?;
        }
    }
    Ok(())
}

fn below(name: &str, own: String) -> String {
    if name.is_empty() { own } else { format!("{name}/{own}") }
}

/// What a path is, or what it links to.
fn follow(path: &Path) -> Result<std::fs::Metadata> {
    std::fs::metadata(path).map_err(|e| gone(path, &e))
}

fn gone(path: &Path, e: &std::io::Error) -> Error {
    let what = if path.is_symlink() { "is a broken link" } else { "cannot be opened" };
    Error::user(format!("`{}` {what}: {e}", path.display()), "mend it, or remove it")
}

/// Refuses folders of classes that links make one: of the `classes` below a place, by name, none may be another one, have one
/// of the `files` of another one, or have all of them in it. The same samples would be of two classes.
///
/// # Errors
/// The first two that are one, by name; a folder that is gone.
pub(super) fn check_apart(place: &Path, classes: &[String], files: &[(String, PathBuf)]) -> Result<()> {
    let real = |path: &Path| path.canonicalize().map_err(|e| gone(path, &e));
    let refused = |why: String| {
        let hint = "remove the link between them, or leave a class out by `params.without`";
        Err(Error::user(format!("the same samples of `{}` are in several classes: {why}", place.display()), hint))
    };
    let whole = real(place)?;
    let one = |class: &String| Ok::<_, Error>((real(&place.join(class))?, class.clone()));
    let mut all = classes.iter().map(one).collect::<Result<Vec<_>>>()?;
    if let Some((_, class)) = all.iter().find(|(path, _)| whole.starts_with(path)) {
        return refused(format!("`{class}` is the folder that the others lie in"));
    }
    // What lies in a folder follows it.
    all.sort_unstable();
    let mut around: Vec<&(PathBuf, String)> = Vec::new();
    for one in &all {
        let (inner, second) = one;
        around.retain(|(outer, _)| inner.starts_with(outer));
        for (outer, first) in &around {
            let Ok(rest) = inner.strip_prefix(outer) else { continue };
            if rest.as_os_str().is_empty() {
                return refused(format!("`{first}` and `{second}` are one folder"));
            }
            // All of it may be left out.
            let within = format!("{first}/{}/", rest.display());
            if files.iter().any(|(name, _)| name.starts_with(&within)) {
                return refused(format!("`{second}` lies in `{first}`"));
            }
        }
        around.push(one);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use super::*;
    use crate::data::testing::fill;

    #[test]
    fn a_broken_link_and_a_folder_too_deep_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let deep = (2..=MAX_DEPTH).fold("a".to_owned(), |path, _| path + "/n");
        fill(dir.path(), &[&format!("{deep}/0.x")]);
        let count = || files(&dir.path().join("a"), "a").map(|found| found.len());
        assert_eq!(count().unwrap(), 1);
        fill(dir.path(), &[&format!("{deep}/n/0.x")]);
        assert!(count().unwrap_err().to_string().contains("16 folders deep"));
        std::fs::remove_dir_all(dir.path().join(format!("{deep}/n"))).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("a/gone.jpg")).unwrap();
        let error = count().unwrap_err().to_string();
        assert!(error.contains("a/gone.jpg` is a broken link"), "{error}");
    }

    #[test]
    fn folders_whose_names_are_not_utf_8_are_refused_and_no_two_names_become_one() {
        let dir = tempfile::tempdir().unwrap();
        // In GBK: a dog, a bird. Shown as UTF-8 both would be the same two signs.
        let [dog, bird] = [b"\xb9\xb7", b"\xc4\xf1"].map(|name| dir.path().join(OsStr::from_bytes(name)));
        std::fs::create_dir(&dog).unwrap();
        let all = || folders(dir.path(), "", 1, &mut Vec::new());
        let error = all().unwrap_err().to_string();
        assert!(error.contains("is not UTF-8"), "{error}");
        std::fs::rename(&dog, dir.path().join("dog")).unwrap();
        assert_eq!(all().unwrap().len(), 1);
        // A file is no class, and may be no sample either.
        for file in [dog, bird] {
            std::fs::write(file, "").unwrap();
        }
        let names: Vec<String> = files(dir.path(), "").unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [r"\xb9\xb7", r"\xc4\xf1"]);
    }

    #[test]
    fn what_systems_add_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["a/1.x", "a/@eaDir/1.x", "__MACOSX/a/._1.x", ".cache/1.x", "a/@other/2.x"]);
        let names: Vec<String> = files(dir.path(), "").unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a/1.x", "a/@other/2.x"]);
    }

    #[test]
    fn a_class_that_lies_in_another_one_is_told_by_both_names() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["ants/red/1.x", "ants-b/1.x", "bees/1.x"]);
        std::os::unix::fs::symlink("ants/red", dir.path().join("red")).unwrap();
        let checked = |names: &[&str], without: Option<&str>| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let all = names.iter().map(|name| files(&dir.path().join(name), name).unwrap());
            let mut all: Vec<_> = all.collect::<Vec<_>>().concat();
            all.retain(|(name, _)| !without.is_some_and(|folder| name.starts_with(folder)));
            check_apart(dir.path(), &names, &all).map_err(|e| e.to_string())
        };
        assert_eq!(checked(&["ants", "ants-b", "bees"], None), Ok(()));
        assert_eq!(checked(&["ants-b", "bees", "red"], None), Ok(()));
        let all = ["ants", "ants-b", "bees", "red"];
        assert!(checked(&all, None).unwrap_err().ends_with("`red` lies in `ants`"));
        // What is left out of one of them is not in both; what lies behind it may be.
        assert_eq!(checked(&all, Some("ants/red/")), Ok(()));
        fill(dir.path(), &["ants/wild/1.x"]);
        std::os::unix::fs::symlink("ants/wild", dir.path().join("wild")).unwrap();
        let more = ["ants", "red", "wild"];
        assert!(checked(&more, Some("ants/red/")).unwrap_err().ends_with("`wild` lies in `ants`"));
    }
}
