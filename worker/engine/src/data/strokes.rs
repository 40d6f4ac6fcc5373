//! Drawings as sequences of strokes: files of one drawing a line, as Google's Quick, Draw! has them, raw or simplified.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Read},
};

use serde::Deserialize;
use tl_proto::{
    catalog::{Entry, entry, integer, pattern},
    spec::Params,
};

use super::{
    Dataset, Format, Image,
    drawing::{self, Drawing},
    files, lines,
};
use crate::{Error, Result};

pub(super) const FORMAT: Format = Format {
    entry: describe,
    open: |place, part, params, _| Ok(Box::new(Drawings::open(place, part, params, true)?)),
    bare: |place, part, params, _| Ok(Box::new(Drawings::open(place, part, params, false)?)),
};

/// Most points of one drawing, and of all.
const MAX_POINTS: [usize; 2] = [1 << 16, 1 << 27];

/// Points in whose place a drawing takes memory, beside its own.
const BESIDE: usize = 16;

/// What lies further out is no place on paper.
const FAR: f64 = 1e6;

/// Most characters of what is wrong with a line: it may quote the line.
const MAX_WHY: usize = 200;

fn describe() -> Entry {
    let own = [
        integer(
            "most",
            10_000,
            1,
            10_000_000,
            "at most so many drawings of each file are read, the first ones, whichever part they belong to",
        ),
        pattern(
            "held_out",
            "regular expression of the drawings' `key_id`, or of the number of the line where there is none: those that \
             match are for validation alone, the others for training alone, so that both parts can be the same files",
        ),
    ];
    Entry {
        params: drawing::params().into_iter().chain(own).collect(),
        ..entry(
            "strokes",
            "drawings as a pen makes them, for `stroke_lstm`: an `.ndjson` file, or a folder of them, with lines such as \
             `{\"word\": \"cat\", \"drawing\": [[[x, …], [y, …]], …]}`, as Google's Quick, Draw! has them; `word` is the class, \
             `key_id` the name",
        )
    }
}

/// One line, as far as it is looked at.
#[derive(Deserialize)]
struct Line {
    word: Option<String>,
    key_id: Option<Name>,
    /// Of each stroke x and y, and in raw files the time.
    drawing: Vec<Vec<Vec<f64>>>,
}

/// Some write it as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Number(u64),
}

#[derive(Default)]
struct Drawings {
    classes: Vec<String>,
    labels: Vec<usize>,
    /// What each line draws, or why it is no drawing.
    drawings: Vec<Result<Drawing, String>>,
    /// Which file each is from, and its line there.
    lines: Vec<(usize, usize)>,
    /// Names that they have of their own; empty where there is none.
    keys: Vec<String>,
    files: Vec<String>,
    /// How many lines of other files are read before each.
    before: Vec<usize>,
    drawn: Params,
}

impl Drawings {
    fn open(place: &str, part: &str, params: &Params, labelled: bool) -> Result<Self> {
        let most = describe().number(params, "most") as usize;
        let held_out = files::pattern_of(params, "held_out")?;
        let belongs = |key: &str| held_out.as_ref().is_none_or(|p| p.is_match(key.as_bytes()) == (part != "train"));
        let mut out = Self { drawn: params.clone(), ..Self::default() };
        // Classes by the order in which they come up.
        let mut words: BTreeMap<String, usize> = BTreeMap::new();
        let (mut points, mut read) = (0, 0);
        for (name, path) in files::all(place, ".ndjson")? {
            let shown = path.display().to_string();
            let (file, mut left) = (out.files.len(), most);
            let opened = File::open(&path);
            let opened = opened.map_err(|e| Error::user(format!("`{shown}` cannot be read: {e}"), "check the path"))?;
            let count = each_line(BufReader::new(opened), &shown, &mut |number, line| {
                left -= 1;
                let key = match line.key_id {
                    Some(Name::Text(text)) => text,
                    Some(Name::Number(number)) => number.to_string(),
                    None => String::new(),
                };
                let numbered = number.to_string();
                if !belongs(if key.is_empty() { &numbered } else { &key }) {
                    return Ok(left > 0);
                }
                out.labels.push(match line.word.filter(|word| !word.is_empty()) {
                    Some(word) if labelled => {
                        let new = words.len();
                        *words.entry(word).or_insert(new)
                    }
                    None if labelled => return Err(bad(number, &shown, "has no `word`, which is its class")),
                    _ => 0,
                });
                let drawing = joined(&line.drawing);
                points += BESIDE + drawing.as_ref().map_or(0, |drawing| drawing.points.len());
                if points > MAX_POINTS[1] {
                    let limit = MAX_POINTS[1];
                    let why = format!("`{place}` has more than {limit} points, each drawing counted as {BESIDE} more");
                    return Err(Error::user(why, "set `params.most`: how many drawings of each file are read"));
                }
                out.drawings.push(drawing);
                out.lines.push((file, number));
                out.keys.push(key);
                Ok(left > 0)
            })?;
            out.files.push(name);
            out.before.push(read);
            read += count;
        }
        if out.drawings.is_empty() {
            let why = if held_out.is_some() { format!(" for {part}, by `held_out`") } else { String::new() };
            return Err(Error::user(format!("`{place}` has no drawings{why}"), HINT));
        }
        // In the order of their names, whichever comes up first.
        let mut class_of = vec![0; words.len().max(1)];
        words.values().enumerate().for_each(|(class, first)| class_of[*first] = class);
        out.labels.iter_mut().for_each(|label| *label = class_of[*label]);
        out.classes = words.into_keys().collect();
        Ok(out)
    }
}

const HINT: &str = "every line must be an object such as {\"word\": \"cat\", \"drawing\": [[[0, 9], [0, 5]]]}: of each stroke \
                    the list of x and the list of y";

fn bad(number: usize, shown: &str, why: &str) -> Error {
    let hint = format!("remove the line, or mend it: {HINT}");
    Error::user(format!("line {number} of `{shown}` {why}"), lines::hint(why, &hint))
}

/// What to do with a line: its number from 1, what it says; whether more are wanted.
type Each<'a> = dyn FnMut(usize, Line) -> Result<bool> + 'a;

/// Reads lines; empty ones are passed over. How many were read.
fn each_line(mut from: impl BufRead, shown: &str, each: &mut Each<'_>) -> Result<usize> {
    let (mut bytes, mut number) = (Vec::new(), 0);
    loop {
        number += 1;
        bytes.clear();
        // Room for its end.
        let read = from.by_ref().take(lines::MAX_LINE as u64 + 2).read_until(b'\n', &mut bytes);
        let read = read.map_err(|e| Error::user(format!("`{shown}` cannot be read: {e}"), "check the disk"))?;
        if read == 0 {
            return Ok(number - 1);
        }
        let Some(text) = lines::said(number, &bytes).map_err(|why| bad(number, shown, &why))? else { continue };
        let line: Line = serde_json::from_str(text).map_err(|e| {
            let (column, text) = (e.column(), e.to_string());
            // The line that it names is always the first one.
            let text = text.rsplit_once(" at line ").map_or(&text[..], |(text, _)| text);
            let text: String = text.chars().take(MAX_WHY).collect();
            bad(number, shown, &format!("is no drawing: {text}, at column {column}"))
        })?;
        if !each(number, line)? {
            return Ok(number);
        }
    }
}

/// The strokes of a line as one list of points.
fn joined(strokes: &[Vec<Vec<f64>>]) -> Result<Drawing, String> {
    let points = strokes.iter().filter_map(|stroke| stroke.first()).map(Vec::len).sum();
    let mut out = Drawing { points: Vec::with_capacity(points), ends: Vec::with_capacity(strokes.len()) };
    for (i, stroke) in (1..).zip(strokes) {
        let ([x, y] | [x, y, _]) = &stroke[..] else {
            return Err(format!("has a stroke, number {i}, of {} lists, and not one of x and one of y", stroke.len()));
        };
        if x.len() != y.len() {
            return Err(format!("has a stroke, number {i}, of {} x and {} y", x.len(), y.len()));
        }
        if let Some(far) = x.iter().chain(y).find(|v| !(-FAR..=FAR).contains(*v)) {
            return Err(format!("has a stroke, number {i}, that goes to {far}, further than {FAR}"));
        }
        out.points.extend(x.iter().zip(y).map(|(x, y)| [*x as f32, *y as f32]));
        if !x.is_empty() {
            out.ends.push(out.points.len());
        }
    }
    match out.points.len() {
        0 => Err("has a drawing without points".into()),
        n if n > MAX_POINTS[0] => Err(format!("has a drawing of {n} points, more than {}", MAX_POINTS[0])),
        _ => Ok(out),
    }
}

/// The one drawing of a file.
///
/// # Errors
/// No drawing, or several.
pub fn only(bytes: &[u8], shown: &str) -> Result<Drawing> {
    let mut found = Vec::new();
    each_line(bytes, shown, &mut |number, line| {
        found.push((number, line));
        Ok(found.len() < 2)
    })?;
    match (found.pop(), found.pop()) {
        (Some((number, line)), None) => joined(&line.drawing).map_err(|why| bad(number, shown, &why)),
        (None, _) => Err(Error::user(format!("`{shown}` has no drawing"), HINT)),
        (Some(_), Some(_)) => Err(Error::user(
            format!("`{shown}` has several drawings, and one is wanted"),
            "write each to a file of its own; `tlctl evaluate` scores a model on all of them",
        )),
    }
}

impl Dataset for Drawings {
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn labels(&self) -> &[usize] {
        &self.labels
    }
    fn name(&self, index: usize) -> String {
        let (file, line) = self.lines[index];
        format!("{}:{line}", self.files[file])
    }
    fn digest(&self, index: usize) -> [u8; 32] {
        match &self.drawings[index] {
            Ok(drawing) => drawing.digest(),
            Err(why) => *blake3::hash(why.as_bytes()).as_bytes(),
        }
    }
    fn load(&self, _: usize) -> Result<Image, String> {
        Err("it is a drawing of strokes, and the network wants images".into())
    }
    fn drawn(&self) -> Option<&Params> {
        Some(&self.drawn)
    }
    fn drawing(&self, index: usize) -> Result<&Drawing, String> {
        self.drawings[index].as_ref().map_err(String::clone)
    }
    fn key(&self, index: usize) -> String {
        super::stem(&self.keys[index]).to_owned()
    }
    /// Its line, as if what is read of all files were one: an empty line is a place that nothing stands at.
    fn place(&self, index: usize) -> usize {
        let (file, line) = self.lines[index];
        self.before[file] + line - 1
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn opened(dir: &Path, part: &str, params: serde_json::Value, labelled: bool) -> Result<Drawings> {
        Drawings::open(&dir.display().to_string(), part, &serde_json::from_value(params).unwrap(), labelled)
    }

    const CATS: &str = "\u{feff}{\"word\":\"cat\",\"countrycode\":\"VE\",\"recognized\":true,\"key_id\":\"51\",\
        \"drawing\":[[[0,4],[1,2]],[[7],[8]]]}\r\n\n\
        {\"key_id\":60,\"word\":\"cat\",\"drawing\":[[[0.5,4],[1,2],[0,90]],[[],[]]]}\n\
        {\"word\":\"cat\",\"drawing\":[[[9],[9]]]}";

    #[test]
    fn lines_of_files_become_drawings_and_words_are_classes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cat.ndjson"), CATS).unwrap();
        std::fs::write(dir.path().join("readme.txt"), "no drawings").unwrap();
        std::fs::create_dir(dir.path().join("more")).unwrap();
        std::fs::write(dir.path().join("more/ant.ndjson"), "{\"word\":\"ant\",\"drawing\":[[[1,2],[3,4]]]}\n").unwrap();
        let all = opened(dir.path(), "train", json!({}), true).unwrap();
        assert_eq!((&all.classes[..], &all.labels[..]), (&["ant".to_owned(), "cat".into()][..], &[1, 1, 1, 0][..]));
        let names: Vec<String> = (0..4).map(|i| all.name(i)).collect();
        assert_eq!(names, ["cat.ndjson:1", "cat.ndjson:3", "cat.ndjson:4", "more/ant.ndjson:1"]);
        assert_eq!(all.keys, ["51", "60", "", ""]);
        let first = Drawing { points: vec![[0.0, 1.0], [4.0, 2.0], [7.0, 8.0]], ends: vec![2, 3] };
        assert_eq!(all.drawing(0), Ok(&first));
        // The time is not looked at, and neither is a stroke of nothing.
        assert_eq!(all.drawing(1), Ok(&Drawing { points: vec![[0.5, 1.0], [4.0, 2.0]], ends: vec![2] }));
        assert_ne!(all.digest(0), all.digest(1));
        // One file is a place too, and without labels no class is looked at.
        let one = opened(&dir.path().join("cat.ndjson"), "val", json!({ "most": 2 }), false).unwrap();
        assert_eq!((&one.labels[..], one.classes.len(), one.name(1)), (&[0, 0][..], 0, "cat.ndjson:3".to_owned()));
        // Nothing is kept for what is not there.
        let Ok(kept) = &all.drawings[0] else { panic!("no drawing") };
        assert_eq!((kept.points.capacity(), kept.ends.capacity()), (3, 2));
    }

    #[test]
    fn parts_share_a_file_without_sharing_drawings() {
        let dir = tempfile::tempdir().unwrap();
        let line = |i: usize| format!("{{\"word\":\"{}\",\"key_id\":\"{i}\",\"drawing\":[[[{i}],[0]]]}}\n", i % 2);
        std::fs::write(dir.path().join("all.ndjson"), (10..30).map(line).collect::<String>()).unwrap();
        let keys = |part: &str, most: usize| {
            opened(dir.path(), part, json!({ "held_out": "[05]$", "most": most }), true).unwrap().keys
        };
        assert_eq!(keys("val", 100), ["10", "15", "20", "25"]);
        assert_eq!(keys("train", 100).len(), 16);
        // Those of the other part are counted, too.
        assert_eq!(keys("val", 6), ["10", "15"]);
        assert_eq!(keys("train", 3), ["11", "12"]);
        let none = opened(dir.path(), "val", json!({ "held_out": "x" }), true).err().unwrap().to_string();
        assert!(none.contains("has no drawings for val"), "{none}");
    }

    #[test]
    fn a_line_that_is_no_drawing_is_refused_by_its_file_and_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ndjson");
        let error = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            opened(&path, "train", json!({}), true).err().unwrap().to_string()
        };
        let good = "{\"word\":\"a\",\"drawing\":[[[1],[2]]]}";
        let second = |line: &str| error(format!("{good}\n{line}\n{good}").as_bytes());
        for (line, says) in [
            ("nonsense", "is no drawing: expected ident, at column"),
            ("[1]", "is no drawing: "),
            ("{\"word\":\"a\"}", "is no drawing: missing field `drawing`"),
            ("{\"word\":\"a\",\"drawing\":[[[1],[2]]", "is no drawing: EOF while parsing"),
            ("{\"drawing\":[[[1],[2]]]}", "has no `word`"),
            ("{\"word\":\"a\",\"drawing\":[[[1e999],[2]]]}", "out of range"),
            ("{\"word\":\"a\",\"drawing\":[[[\"1\"],[2]]]}", "invalid type: string"),
        ] {
            let error = second(line);
            assert!(error.starts_with("line 2 of `") && error.contains("a.ndjson`") && error.contains(says), "{error}");
        }
        assert!(second(&" ".repeat(lines::MAX_LINE + 1)).contains("has more than 1048576 bytes"));
        let refused = opened(&path, "train", json!({}), true).err().unwrap().to_failure();
        assert!(refused.hint.starts_with("remove the line"), "{}", refused.hint);
        // What an error quotes is not the whole line.
        let quoted = second(&format!("{{\"drawing\":\"{}\"}}", "x".repeat(100_000)));
        assert!(quoted.len() < 500 + path.display().to_string().len(), "{}", quoted.len());
        let empty = error(b"\n \n");
        assert!(empty.contains("has no drawings"), "{empty}");
        assert!(opened(&dir.path().join("none"), "train", json!({}), true).is_err());
        let bare = tempfile::tempdir().unwrap();
        let none = opened(bare.path(), "train", json!({}), true).err().unwrap().to_string();
        assert!(none.contains("no `.ndjson` files"), "{none}");
    }

    #[test]
    fn a_line_that_cannot_be_drawn_is_a_bad_sample_of_its_part_alone() {
        let dir = tempfile::tempdir().unwrap();
        let many = format!("[[[{0}],[{0}]]]", ["1"; 65_537].join(","));
        let cases = [
            ("[[[1,2],[2]]]", "number 1, of 2 x and 1 y"),
            ("[[[1],[2]],[[1]]]", "number 2, of 1 lists"),
            ("[[[2e6],[2]]]", "goes to 2000000"),
            ("[]", "without points"),
            ("[[[],[]]]", "without points"),
            (many.as_str(), "65537 points, more than 65536"),
        ];
        let line = |drawing: &str| format!("{{\"word\":\"a\",\"drawing\":{drawing}}}\n");
        let text = cases.iter().map(|(drawing, _)| line(drawing)).collect::<String>() + &line("[[[1],[2]]]");
        std::fs::write(dir.path().join("a.ndjson"), &text).unwrap();
        let all = opened(dir.path(), "train", json!({}), true).unwrap();
        assert_eq!((all.labels.len(), all.drawing(6).is_ok()), (7, true));
        for (i, (_, says)) in cases.iter().enumerate() {
            let why = all.drawing(i).unwrap_err();
            assert!(why.contains(says), "{why}");
            assert_ne!(all.digest(i), all.digest(6));
        }
        let val = opened(dir.path(), "val", json!({ "held_out": "7" }), true).unwrap();
        assert_eq!((val.labels.len(), val.drawing(0).is_ok()), (1, true));
        // A file to be judged has no other part.
        let error = only(line("[]").as_bytes(), "x").unwrap_err().to_string();
        assert!(error.contains("line 1 of `x` has a drawing without points"), "{error}");
    }

    #[test]
    fn places_go_through_all_files_line_by_line_and_keys_have_no_endings() {
        let dir = tempfile::tempdir().unwrap();
        let line = |key: &str| format!("{{\"key_id\":\"{key}\",\"drawing\":[[[1],[2]]]}}\n");
        std::fs::write(dir.path().join("a.ndjson"), line("1.png#0") + "\n" + &line("2")).unwrap();
        std::fs::write(dir.path().join("b.ndjson"), line("3.png") + &line("4.png")).unwrap();
        let of = |part: &str, params: serde_json::Value| {
            let all = opened(dir.path(), part, params, false).unwrap();
            (0..all.labels.len()).map(|i| (all.place(i), all.key(i))).collect::<Vec<_>>()
        };
        let keys = ["1", "2", "3", "4"].map(str::to_owned);
        let all: Vec<(usize, String)> = [0, 2, 3, 4].into_iter().zip(keys).collect();
        assert_eq!(of("train", json!({})), all);
        // What is held out leaves the others where they are.
        assert_eq!(of("train", json!({ "held_out": "[13]" })), [all[1].clone(), all[3].clone()]);
        assert_eq!(of("val", json!({ "held_out": "[13]" })), [all[0].clone(), all[2].clone()]);
        // As far as files are read.
        assert_eq!(of("val", json!({ "most": 1 })), [(0, "1".to_owned()), (1, "3".into())]);
    }

    #[test]
    fn a_file_to_be_judged_has_one_drawing() {
        let good = "{\"drawing\":[[[1],[2]]]}\n";
        assert_eq!(only(good.as_bytes(), "x").unwrap().points, [[1.0, 2.0]]);
        let twice = good.repeat(2);
        for (text, says) in [("", "has no drawing"), (twice.as_str(), "several drawings"), ("{}", "line 1 of `x`")] {
            let error = only(text.as_bytes(), "x").unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::sample::select(b"{}[],:\"drawing01.-e\n\xc3".to_vec()), 0..60)) {
            let _ = only(&bytes, "x");
            let inside = [b"{\"drawing\":[[[".to_vec(), bytes, b"]]]}".to_vec()].concat();
            let _ = only(&inside, "x");
        }
    }
}
