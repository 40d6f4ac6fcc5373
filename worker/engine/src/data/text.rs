//! Text: a file of lines `label<TAB>text`, plain or gzip.

use std::{io::Read, path::Path};

use tl_proto::catalog::{Entry, entry};

use super::{Dataset, Format, Image, lines, read_file};
use crate::{Error, Result};

pub(super) const FORMAT: Format = Format {
    entry: || -> Entry {
        entry(
            "text",
            "a file of lines `label<TAB>text` in UTF-8, plain or gzip; where no labels are wanted, `text` alone will do",
        )
    },
    open: |place, _, _, _| Ok(Box::new(parse(&unpack(place)?, place, true)?)),
    bare: |place, _, _, _| Ok(Box::new(parse(&unpack(place)?, place, false)?)),
};

/// Most bytes that a file may unpack to.
const MAX_BYTES: u64 = 1 << 30;

#[derive(Debug)]
struct Lines {
    classes: Vec<String>,
    labels: Vec<usize>,
    texts: Vec<String>,
    /// Number of each sample's line, from 1.
    numbers: Vec<usize>,
    /// What stands in front of the tab, where labels are not looked at.
    names: Vec<String>,
}

fn unpack(place: &str) -> Result<Vec<u8>> {
    let mut bytes = read_file(Path::new(place), MAX_BYTES)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut out = Vec::new();
        let read = flate2::read::GzDecoder::new(&bytes[..]).take(MAX_BYTES + 1).read_to_end(&mut out);
        read.map_err(|e| Error::user(format!("`{place}` is not a whole gzip file: {e}"), "fetch it again"))?;
        if out.len() as u64 > MAX_BYTES {
            return Err(Error::user(format!("`{place}` unpacks to more than {MAX_BYTES} bytes"), "split it"));
        }
        bytes = out;
    }
    Ok(bytes)
}

/// Reads lines; empty ones are passed over. Without labels, what stands in front of a tab is not looked at.
fn parse(bytes: &[u8], place: &str, labelled: bool) -> Result<Lines> {
    let mut rows: Vec<(&str, &str, usize)> = Vec::new();
    let mut names = Vec::new();
    for (number, line) in (1..).zip(bytes.split(|b| *b == b'\n')) {
        let bad = |why: &str| {
            Error::user(format!("line {number} of `{place}` {why}"), "every line must be `label<TAB>text` in UTF-8")
        };
        let Some(line) = lines::said(number, line).map_err(|why| bad(&why))? else { continue };
        let split = line.split_once('\t');
        let (label, text) = match split {
            Some((label, text)) if labelled => (label.trim(), text.trim()),
            None if labelled => return Err(bad("has no tab between label and text")),
            _ => ("-", split.map_or(line, |(_, text)| text).trim()),
        };
        if label.is_empty() || text.is_empty() {
            return Err(bad(if label.is_empty() { "has no label" } else { "has no text" }));
        }
        rows.push((label, text, number));
        if !labelled {
            names.push(split.map_or(String::new(), |(name, _)| name.trim().to_owned()));
        }
    }
    if rows.is_empty() {
        return Err(Error::user(format!("`{place}` has no samples"), "every line must be `label<TAB>text`"));
    }
    let mut classes: Vec<String> = rows.iter().map(|r| r.0.to_owned()).collect();
    classes.sort_unstable();
    classes.dedup();
    let class = |label: &str| classes.binary_search_by(|c| c.as_str().cmp(label));
    let labels = rows.iter().map(|r| class(r.0).map_err(|_| Error::Internal("a label is gone".into())));
    Ok(Lines {
        labels: labels.collect::<Result<_>>()?,
        texts: rows.iter().map(|r| r.1.to_owned()).collect(),
        numbers: rows.iter().map(|r| r.2).collect(),
        names,
        classes,
    })
}

impl Dataset for Lines {
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn labels(&self) -> &[usize] {
        &self.labels
    }
    fn name(&self, index: usize) -> String {
        format!("line {}", self.numbers[index])
    }
    fn digest(&self, index: usize) -> [u8; 32] {
        *blake3::hash(self.texts[index].as_bytes()).as_bytes()
    }
    fn load(&self, _: usize) -> Result<Image, String> {
        Err("it is text, and the network wants images".into())
    }
    fn text(&self, index: usize) -> Option<&str> {
        self.texts.get(index).map(String::as_str)
    }
    /// What stands in front of the tab: the name of what the text goes with.
    fn key(&self, index: usize) -> String {
        self.names.get(index).map_or(String::new(), |name| super::stem(name).to_owned())
    }
    /// An empty line is a place that nothing stands at.
    fn place(&self, index: usize) -> usize {
        self.numbers[index] - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_samples_and_classes_are_sorted() {
        let set = parse("\u{feff}b\tone two\r\n\n a \t three\tfour\nb\tfive".as_bytes(), "x", true).unwrap();
        assert_eq!(set.classes, ["a", "b"]);
        assert_eq!(set.labels, [1, 0, 1]);
        assert_eq!(set.texts, ["one two", "three\tfour", "five"]);
        assert_eq!((set.name(1), set.text(3)), ("line 3".into(), None));
    }

    #[test]
    fn a_bad_line_is_refused_by_its_number() {
        for (bytes, says) in [
            (&b"a\tb\nno tab"[..], "line 2 of `x` has no tab"),
            (&b"\tb"[..], "line 1 of `x` has no label"),
            (&b"a\tb\n\nc\t "[..], "line 3 of `x` has no text"),
            (&b"a\tb\xff"[..], "line 1 of `x` is not UTF-8"),
            (&b"\n \n"[..], "`x` has no samples"),
        ] {
            let error = parse(bytes, "x", true).unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
        let long = [b"a\t".to_vec(), vec![b'x'; lines::MAX_LINE]].concat();
        assert!(parse(&long, "x", true).unwrap_err().to_string().contains("has more than"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::sample::select(b"a\t\n\r \xc3\xa4".to_vec()), 0..40)) {
            let _ = parse(&bytes, "x", true);
        }
    }
}
