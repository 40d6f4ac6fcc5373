//! Lists of files: text with a path on each line and, behind it, perhaps a class.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
};

use super::{classes::listed, lines, read_file, stem, stray::Kind, table};
use crate::{Error, Result};

/// Largest list, in bytes.
const MAX_LIST: u64 = 256 << 20;
/// Most bytes of one line, without its end.
const MAX_LINE: usize = 4096;
/// Most letters of a line that an error shows.
const SHOWN: usize = 80;
/// What the column of paths of a header may be called.
const PATHS: [&str; 20] = [
    "file",
    "file_name",
    "file_path",
    "filename",
    "filepath",
    "filepaths",
    "id",
    "id_code",
    "image",
    "image_file",
    "image_id",
    "image_index",
    "image_name",
    "image_path",
    "img",
    "img_name",
    "img_path",
    "name",
    "path",
    "paths",
];
/// The same for its column of classes.
const CLASSES: [&str; 4] = ["category", "class", "label", "target"];

/// What a list says.
#[derive(Debug)]
pub(super) struct List {
    /// Paths below the folder that they begin from, and where the files lie; in the order of the list.
    pub files: Vec<(String, PathBuf)>,
    /// Classes, by the paths of the files: of all or of none. An error where that is not so, or where a header has several
    /// columns and no class: it matters where classes are asked for.
    pub classes: Result<BTreeMap<String, String>>,
}

/// Reads a list. Paths begin from `root`, or, where there is none, from the folder that the list lies in.
///
/// # Errors
/// A sample in place of a list; a line that is none, or whose file is not there, lies elsewhere or was named before; by its
/// number.
pub(super) fn read(list: &Path, root: Option<&Path>, kind: &Kind) -> Result<List> {
    let fail = |path: &Path, e: std::io::Error| {
        Error::user(format!("`{}` cannot be opened: {e}", path.display()), "check the path, and `params.root`")
    };
    let real = list.canonicalize().map_err(|e| fail(list, e))?;
    let given = root.or(real.parent()).unwrap_or(Path::new("/"));
    if File::open(list).is_ok() && kind.is(&list.to_string_lossy(), list) {
        let message = format!("`{}` is one {}, and no list of files", list.display(), kind.what);
        return Err(Error::user(message, "give a folder, or a list of files"));
    }
    let root = given.canonicalize().map_err(|e| fail(given, e))?;
    let mut below = Below { given, root, kind, folders: BTreeMap::new() };
    let (mut files, mut classes, mut named) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
    let (mut column, mut begins) = (Some(1usize), true);
    let (mut unclear, mut silent): (Option<Error>, Option<(usize, String)>) = (None, None);
    each(list, |number, line| {
        let words = words(line).map_err(|why| bad(list, number, &why))?;
        let shown = |word: &str| word.chars().take(SHOWN).collect::<String>();
        let bad = |word: &str, why: &str| Err(bad(list, number, &format!("names `{}`, which {why}", shown(word))));
        // A path may have spaces in it.
        let whole = below.inside(line).filter(|_| words.len() > 1).and_then(|name| below.exactly(&name).ok().flatten());
        let class = column.and_then(|at| words.get(at)).filter(|class| whole.is_none() && !class.is_empty());
        let file = match whole {
            Some(file) => Ok(Some(file)),
            None => below.find(&words[0]),
        };
        let is_first = std::mem::take(&mut begins);
        let is_header = is_first && PATHS.contains(&words[0].to_lowercase().replace(' ', "_").as_str());
        let (name, path) = match file {
            Ok(Some(file)) => file,
            Ok(None) if is_header => {
                let named = words.iter().position(|word| CLASSES.contains(&word.to_lowercase().as_str()));
                column = named.or((words.len() == 2).then_some(1));
                if column.is_none() && words.len() > 2 {
                    unclear = Some(Error::user(
                        format!("`{}` names no column of classes: it has {}", list.display(), listed(&words)),
                        "call that column `class`, or set `params.depth = 1` if folders are the classes",
                    ));
                }
                return Ok(());
            }
            Ok(None) => {
                let header = if is_first { ", and is no header that is known, such as `path` or `image`" } else { "" };
                return bad(&words[0], &format!("is not below `{}`{header}", below.given.display()));
            }
            Err(why) => return bad(&words[0], &why),
        };
        if !named.insert(name.clone()) {
            return bad(&name, "was named before");
        }
        if let Some(class) = class {
            classes.insert(name.clone(), class.clone().into_owned());
        } else if silent.is_none() {
            silent = Some((number, name.clone()));
        }
        files.push((name, path));
        Ok(())
    })?;
    if files.is_empty() {
        return Err(Error::user(format!("`{}` names no files", list.display()), LINES));
    }
    if let Some((number, name)) = silent.filter(|_| !classes.is_empty()) {
        unclear = Some(Error::user(
            format!("line {number} of `{}` has no class for `{name}`, and other lines have one", list.display()),
            "give every line a class, or say by `params.label` or `params.depth` where classes are",
        ));
    }
    Ok(List { files, classes: unclear.map_or(Ok(classes), Err) })
}

/// The paths that a list names, whether their files are there or not.
///
/// # Errors
/// A line that is none, by its number.
pub(super) fn names(list: &Path) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    each(list, |_, line| {
        all.extend(inside(line));
        // It may be a text like any other, whose quotes are none of a list.
        all.extend(words(line).ok().and_then(|words| inside(words.first()?)));
        Ok(())
    })?;
    Ok(all)
}

/// A path without what says nothing in it; none where it leads out of the folder that it begins from, or nowhere.
pub(super) fn inside(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let stays = !path.starts_with('/') && !parts.contains(&"..") && !path.contains('\0');
    (stays && !parts.is_empty()).then(|| parts.join("/"))
}

/// How a list looks, for people.
const LINES: &str = "a line is the path of a file, and perhaps its class behind a tab, a comma or a space, where it is one word; \
                     paths begin from the folder of the list, or from `params.root`";

fn bad(list: &Path, number: usize, why: &str) -> Error {
    Error::user(format!("line {number} of `{}` {why}", list.display()), lines::hint(why, LINES))
}

/// Calls `take` with the number of each line that says something, and the line.
fn each(list: &Path, mut take: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    for (number, line) in (1..).zip(read_file(list, MAX_LIST)?.split(|b| *b == b'\n')) {
        let Some(line) = lines::said(number, line).map_err(|why| bad(list, number, &why))? else { continue };
        let line = line.trim();
        if line.len() > MAX_LINE {
            return Err(bad(list, number, &format!("has more than {MAX_LINE} bytes")));
        }
        if !line.starts_with('#') {
            take(number, line)?;
        }
    }
    Ok(())
}

/// What stands between tabs, in a line without tabs between commas, where there may be CSV's quotes, in a line without either
/// between spaces: one word at least.
///
/// # Errors
/// Says in words what is wrong with quotes.
fn words(line: &str) -> Result<Vec<Cow<'_, str>>, String> {
    if line.contains('\t') {
        return Ok(line.split('\t').map(bare).collect());
    }
    if !line.contains(',') {
        return Ok(line.split_whitespace().map(bare).collect());
    }
    if !line.contains('"') {
        return Ok(line.split(',').map(bare).collect());
    }
    Ok(table::row(line, ',')?.into_iter().map(|column| Cow::Owned(column.trim().to_owned())).collect())
}

/// A word without the quotes around it.
fn bare(word: &str) -> Cow<'_, str> {
    Cow::Borrowed(word.trim().trim_matches('"'))
}

/// Path below the root, and where the file lies.
type Found = (String, PathBuf);

/// A folder in which files are looked for.
struct Below<'a> {
    /// As it was said.
    given: &'a Path,
    /// Without links.
    root: PathBuf,
    kind: &'a Kind,
    /// Folders below it that were looked into.
    folders: BTreeMap<String, Folder>,
}

/// A folder below it.
struct Folder {
    /// Whether it lies below the root when links are followed; nothing where it is not there.
    inside: Option<bool>,
    /// Its samples by their names without endings, where that was asked for.
    stems: Option<BTreeMap<String, Vec<String>>>,
}

impl Below<'_> {
    /// A path below the root that says nothing twice, also of one that is written from `/` on.
    fn inside(&self, path: &str) -> Option<String> {
        let whole = Path::new(path);
        let rest = whole.strip_prefix(self.given).or_else(|_| whole.strip_prefix(&self.root)).ok();
        inside(rest.filter(|_| whole.is_absolute()).and_then(Path::to_str).unwrap_or(path))
    }

    fn folder(&mut self, name: &str) -> &mut Folder {
        let Self { root, folders, .. } = self;
        let root = &*root;
        folders.entry(name.to_owned()).or_insert_with(|| {
            let real = root.join(name).canonicalize().ok();
            Folder { inside: real.map(|real| real.starts_with(root)), stems: None }
        })
    }

    /// The file of exactly this name.
    fn exactly(&mut self, name: &str) -> Result<Option<Found>, String> {
        let inside = self.folder(name.rsplit_once('/').map_or("", |(folder, _)| folder)).inside;
        if inside == Some(false) {
            return Err(self.outside());
        }
        let path = self.root.join(name);
        Ok((inside.is_some() && path.is_file()).then(|| (name.to_owned(), path)))
    }

    /// The file of this name, or the one sample that has it in front of its ending.
    fn find(&mut self, path: &str) -> Result<Option<Found>, String> {
        let name = self.inside(path).ok_or_else(|| self.outside())?;
        if let Some(found) = self.exactly(&name)? {
            return Ok(Some(found));
        }
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name.as_str()));
        if stem(file) != file {
            return Ok(None);
        }
        let (kind, dir) = (self.kind, self.root.join(folder));
        let stems = self.folder(folder).stems.get_or_insert_with(|| by_stem(&dir, kind));
        match &stems.get(file).cloned().unwrap_or_default()[..] {
            [] => Ok(None),
            [one] => {
                let name = if folder.is_empty() { one.clone() } else { format!("{folder}/{one}") };
                self.exactly(&name)
            }
            [one, other, ..] => Err(format!("may be `{one}` or `{other}`")),
        }
    }

    fn outside(&self) -> String {
        format!("leads out of `{}`", self.given.display())
    }
}

/// The samples in a folder, by their names without endings.
fn by_stem(dir: &Path, kind: &Kind) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        // No line of text names a file that is called otherwise than in UTF-8.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if kind.names(&name) {
            all.entry(stem(&name).to_owned()).or_default().push(name);
        }
    }
    all.values_mut().for_each(|names| names.sort_unstable());
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::fill;

    const KIND: Kind = Kind { what: "file", endings: &["png", "jpg"], begins: |_| false };

    /// Names and classes of the files of a list that says `text`.
    fn read_text(dir: &Path, text: &str, root: Option<&Path>) -> Result<Vec<(String, Option<String>)>> {
        let list = dir.join("list.txt");
        std::fs::write(&list, text).unwrap();
        let found = read(&list, root, &KIND)?;
        assert!(found.files.iter().all(|(name, path)| path.is_file() && path.ends_with(name)));
        let classes = found.classes?;
        let said = |(name, _): (String, PathBuf)| (name.clone(), classes.get(&name).cloned());
        Ok(found.files.into_iter().map(said).collect())
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
        let class = |class: &str| (!class.is_empty()).then(|| class.to_owned());
        of.iter().map(|(name, said)| ((*name).to_owned(), class(said))).collect()
    }

    #[test]
    fn a_line_is_a_path_and_perhaps_its_class_in_the_order_of_the_list() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["b/2.png", "a/1.png", "my cat.png", "c,d.png", "0.png"]);
        let read = |text: &str| read_text(dir.path(), text, None).unwrap();
        assert_eq!(read("\u{feff}b/2.png\r\n\n./a//1.png\n"), pairs(&[("b/2.png", ""), ("a/1.png", "")]));
        for text in ["b/2.png 7 1 1\na/1.png 3", "b/2.png\t7\na/1.png\t3\tmore", "b/2.png, 7\n\"a/1.png\",\"3\""] {
            assert_eq!(read(text), pairs(&[("b/2.png", "7"), ("a/1.png", "3")]), "{text}");
        }
        let text = "# a comment\nc,d.png\t2\n0.png,golden retriever";
        assert_eq!(read(text), pairs(&[("c,d.png", "2"), ("0.png", "golden retriever")]));
        assert_eq!(read("my cat.png\nc,d.png\n"), pairs(&[("my cat.png", ""), ("c,d.png", "")]));
        // What is written from `/` on stays below the folder, too.
        let whole = format!("{}/a/1.png 3", dir.path().display());
        assert_eq!(read(&whole), pairs(&[("a/1.png", "3")]));
    }

    #[test]
    fn a_header_says_where_classes_are() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["1.png", "2.png", "id.png"]);
        let read = |text: &str| read_text(dir.path(), text, None).unwrap();
        assert_eq!(read("id,breed\n"), pairs(&[("id.png", "breed")]), "a file of that name is no header");
        std::fs::remove_file(dir.path().join("id.png")).unwrap();
        assert_eq!(read("id,breed\n1,dog\n2,cat\n"), pairs(&[("1.png", "dog"), ("2.png", "cat")]));
        assert_eq!(read("filename,fold,Target,take\n1.png,5,3,A"), pairs(&[("1.png", "3")]));
        let unclear = read_text(dir.path(), "image,fold,species\n1.png,5,ant", None).unwrap_err().to_failure();
        assert!(unclear.message.ends_with("no column of classes: it has `image`, `fold`, `species`"), "{unclear}");
        assert!(unclear.hint.contains("`params.depth = 1`"), "{}", unclear.hint);
        assert_eq!(read("image\n1.png"), pairs(&[("1.png", "")]));
        assert_eq!(read("Image Index,label\n1.png,3"), pairs(&[("1.png", "3")]));
        let error = read_text(dir.path(), "photo,label\n1.png,3", None).unwrap_err().to_string();
        assert!(error.contains("names `photo`") && error.contains("no header that is known"), "{error}");
    }

    #[test]
    fn commas_in_quotes_part_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["1.png", "2.png", "c,d.png"]);
        let read = |text: &str| read_text(dir.path(), text, None).map_err(|e| e.to_string());
        let classes = pairs(&[("1.png", "ant, red"), ("2.png", "ant, \"black\" one")]);
        assert_eq!(read("1.png,\"ant, red\"\n2.png,\"ant, \"\"black\"\" one\"\n"), Ok(classes));
        assert_eq!(read("\"c,d.png\",x\n1.png, \"y\""), Ok(pairs(&[("c,d.png", "x"), ("1.png", "y")])));
        let spaced = "1.png, \"ant, red\" , more\n2.png,\"\"\"Hello\"\" he said\",c1\n";
        assert_eq!(read(spaced), Ok(pairs(&[("1.png", "ant, red"), ("2.png", "\"Hello\" he said")])));
        for text in ["1.png, \"ant, red", "1.png,\"ant, red", "1.png,\"ant\" red"] {
            let error = read(&format!("2.png,x\n{text}")).unwrap_err();
            assert!(error.contains("line 2 of") && error.contains("quote"), "{text}: {error}");
        }
        // A text that is left out is read as a list, too.
        std::fs::write(dir.path().join("notes"), "a/1.png\n\"Software\"), to deal in it\n").unwrap();
        assert!(names(&dir.path().join("notes")).unwrap().contains("a/1.png"));
    }

    #[test]
    fn classes_are_those_of_all_lines_or_of_none() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["1.png", "2.png", "my cat.png"]);
        for (text, says) in [
            ("1.png,a\n2.png,\"\"", "line 2 of"),
            ("id,label\n1.png,\n2.png,a", "has no class for `1.png`"),
            ("1.png a\nmy cat.png\n", "has no class for `my cat.png`"),
        ] {
            let error = read_text(dir.path(), text, None).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("other lines have one"), "{text}: {error}");
        }
        assert_eq!(read_text(dir.path(), "1.png,\n2.png,", None).unwrap(), pairs(&[("1.png", ""), ("2.png", "")]));
    }

    #[test]
    fn a_sample_is_no_list() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["1.png"]);
        let error = read(&dir.path().join("1.png"), None, &KIND).unwrap_err().to_string();
        assert!(error.contains("1.png` is one file, and no list of files"), "{error}");
    }

    #[test]
    fn a_path_without_its_ending_is_the_one_sample_of_that_name() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        fill(&images, &["cat_1.jpg", "cat_1.mat", "cat_2.jpg", "cat_2.png", "v1.25.jpg", "a/cat_3.jpg"]);
        let read = |text: &str| read_text(dir.path(), text, Some(images.as_path())).map_err(|e| e.to_string());
        let want = pairs(&[("cat_1.jpg", "1"), ("v1.25.jpg", "2"), ("a/cat_3.jpg", "2")]);
        assert_eq!(read("cat_1 1 1 1\nv1.25 2\na/cat_3 2"), Ok(want));
        assert!(read("cat_2 1").unwrap_err().contains("names `cat_2`, which may be `cat_2.jpg` or `cat_2.png`"));
        for text in ["cat", "cat_1.png", "b/cat_1"] {
            assert!(read(text).unwrap_err().contains("is not below"), "{text}");
        }
    }

    #[test]
    fn no_line_leads_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["in/a.png", "in/b/c.png", "out/secret.png"]);
        let (root, out) = (dir.path().join("in"), dir.path().join("out"));
        std::os::unix::fs::symlink(&out, root.join("link")).unwrap();
        std::os::unix::fs::symlink("b", root.join("same")).unwrap();
        let read = |text: &str| read_text(dir.path(), text, Some(root.as_path())).map_err(|e| e.to_string());
        let secret = out.join("secret.png").display().to_string();
        let dots = format!("{}/../out/secret.png", root.display());
        let lines = ["../out/secret.png", "b/../../out/secret.png", "link/secret.png", "link/secret"];
        for text in lines.into_iter().chain([secret.as_str(), dots.as_str()]) {
            let error = read(text).unwrap_err();
            assert!(error.contains("line 1 of") && error.contains("leads out of"), "{text}: {error}");
        }
        assert_eq!(read("same/c.png"), Ok(pairs(&[("same/c.png", "")])));
        assert!(read("/etc/passwd 1").unwrap_err().contains("leads out of"));
    }

    #[test]
    fn a_bad_line_is_refused_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["a.png", "b.png"]);
        let long = format!("a.png\n{}", "a".repeat(MAX_LINE + 1));
        for (text, says) in [
            ("a.png\nc.png 3", "line 2 of"),
            ("a.png\nb.png\n./a.png", "line 3 of"),
            ("a.png\n./a.png", "names `a.png`, which was named before"),
            (long.as_str(), "line 2 of"),
            (long.as_str(), "has more than 4096 bytes"),
            ("a.png\n,3", "line 2 of"),
            ("\n# nothing\n", "names no files"),
        ] {
            let error = read_text(dir.path(), text, None).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        std::fs::write(dir.path().join("list.txt"), b"a.png\n\xff").unwrap();
        let error = read(&dir.path().join("list.txt"), None, &KIND).unwrap_err().to_string();
        assert!(error.contains("line 2 of") && error.contains("not UTF-8"), "{error}");
        let gone = read(&dir.path().join("list.txt"), Some(&dir.path().join("gone")), &KIND).unwrap_err().to_string();
        assert!(gone.contains("gone` cannot be opened"), "{gone}");
    }
}
