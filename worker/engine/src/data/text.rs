//! Text: a table with a label and a text in every row, as lines `label<TAB>text`, TSV or CSV, plain or gzip.

use std::path::Path;

use tl_proto::{
    catalog::{Entry, entry},
    spec::Params,
};

use super::{
    Dataset, Format, Image,
    columns::{self, Said, USUAL},
    gzip, lines, table,
};
use crate::{Error, Result};

pub(super) const FORMAT: Format = Format {
    entry: describe,
    open: |place, part, params, _| Ok(Box::new(Lines::of(&read(place)?, (place, part), params, true)?)),
    bare: |place, part, params, _| Ok(Box::new(Lines::of(&read(place)?, (place, part), params, false)?)),
};

/// Most bytes that a file may unpack to.
const MAX_BYTES: u64 = 1 << 30;

fn describe() -> Entry {
    Entry {
        params: columns::params(),
        ..entry(
            "text",
            "a file of lines `label<TAB>text` in UTF-8, or of columns parted by tabs, commas or semicolons, plain or gzip; \
             where no labels are wanted, texts alone will do, one a line",
        )
    }
}

#[derive(Debug)]
struct Lines {
    classes: Vec<String>,
    labels: Vec<usize>,
    texts: Vec<String>,
    /// Number of each sample's line, from 1.
    numbers: Vec<usize>,
    /// Its place among the rows below the header, with those that are blank.
    places: Vec<usize>,
    /// What stands where a label would, where labels are not looked at.
    names: Vec<String>,
}

fn read(place: &str) -> Result<Vec<u8>> {
    gzip::read(Path::new(place), MAX_BYTES)
}

impl Lines {
    /// The samples of a file; where they are not `labelled`, their labels are names of what they go with, or nothing.
    fn of(bytes: &[u8], (place, part): (&str, &str), params: &Params, labelled: bool) -> Result<Self> {
        let said = Said::of(place, params)?;
        let bad = |number: usize, why: &str| {
            let hint = format!("remove the line, or mend it: {USUAL}");
            Error::user(format!("line {number} of `{place}` {why}"), lines::hint(why, &hint))
        };
        let all = table::rows(bytes, said.separator).map_err(|(number, why)| bad(number, &why))?;
        let (header, rows) = all.split_at(usize::from(said.has_header()).min(all.len()));
        let (header, Some(first)) = (header.first(), rows.first()) else {
            return Err(Error::user(format!("`{place}` has no samples"), USUAL));
        };
        let columns = said.found(place, header.unwrap_or(first), rows, labelled)?;
        let (mut words, mut texts) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for row in rows {
            let (word, text) = columns.read(row).map_err(|why| bad(row.number, &why))?;
            if text.is_empty() || (labelled && word.is_empty()) {
                return Err(bad(row.number, if text.is_empty() { "has no text" } else { "has no label" }));
            }
            words.push(word);
            texts.push(text);
        }
        if said.may_have_header() {
            columns::no_header(place, first, labelled.then_some(&words[..]))?;
        }
        let above = header.map_or(0, |header| header.place + 1);
        let mut lines = Self {
            classes: Vec::new(),
            labels: vec![0; rows.len()],
            texts,
            numbers: rows.iter().map(|row| row.number).collect(),
            places: rows.iter().map(|row| row.place - above).collect(),
            names: Vec::new(),
        };
        if labelled {
            let mut classes = words.clone();
            classes.sort_unstable();
            classes.dedup();
            let class = |word| classes.binary_search(word).map_err(|_| Error::Internal("a label is gone".into()));
            lines.labels = words.iter().map(class).collect::<Result<_>>()?;
            columns.doubted((place, part), header, rows, &classes)?;
            lines.classes = classes;
        } else {
            lines.names = words;
        }
        Ok(lines)
    }
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
    /// What stands where a label would: the name of what the text goes with.
    fn key(&self, index: usize) -> String {
        self.names.get(index).map_or(String::new(), |name| super::stem(name).to_owned())
    }
    /// A blank line is a place that nothing stands at.
    fn place(&self, index: usize) -> usize {
        self.places[index]
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::{Value, json};

    use super::*;
    use crate::data::lines::MAX_LINE;

    fn read(bytes: &[u8], params: Value, labelled: bool) -> Result<Lines> {
        Lines::of(bytes, ("x", "train"), &serde_json::from_value(params).unwrap(), labelled)
    }

    #[test]
    fn lines_become_samples_and_classes_are_sorted() {
        let text = "\u{feff}b\tone two\r\n\n a \t three\tfour\nb\tfive";
        let set = read(text.as_bytes(), json!({}), true).unwrap();
        assert_eq!(set.classes, ["a", "b"]);
        assert_eq!(set.labels, [1, 0, 1]);
        assert_eq!(set.texts, ["one two", "three\tfour", "five"]);
        assert_eq!((set.name(1), set.text(3)), ("line 3".into(), None));
    }

    #[test]
    fn parts_that_were_packed_one_by_one_are_all_read() {
        let dir = tempfile::tempdir().unwrap();
        let packed = |text: &str| {
            let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            member.write_all(text.as_bytes()).unwrap();
            member.finish().unwrap()
        };
        let place = dir.path().join("x.tsv.gz");
        // The line goes on in the second part.
        std::fs::write(&place, [packed("a\tone\nb\ttw"), packed("o\nc\tthree\n")].concat()).unwrap();
        let set = (FORMAT.open)(&place.display().to_string(), "train", &Params::new(), 0).unwrap();
        assert_eq!((set.classes().len(), set.text(1), set.text(2)), (3, Some("two"), Some("three")));
    }

    #[test]
    fn a_file_with_a_header_has_the_samples_below_it_at_their_places() {
        let csv = b"image,caption\n\n1.jpg,\"a dog,\nrunning\"\n2.jpg,a cat\n1.jpg,it sits\n";
        let params = json!({ "label": "image", "text": "caption", "separator": "," });
        let set = read(csv, params.clone(), false).unwrap();
        assert_eq!(set.texts, ["a dog,\nrunning", "a cat", "it sits"]);
        let seen = |i: usize| (set.name(i), set.key(i), set.place(i));
        assert_eq!(seen(0), ("line 3".into(), "1".into(), 1));
        assert_eq!(seen(1), ("line 5".into(), "2".into(), 2));
        assert_eq!(seen(2), ("line 6".into(), "1".into(), 3));
        assert!(set.classes.is_empty() && set.labels.len() == 3);
        // The same as classes.
        let set = read(csv, params, true).unwrap();
        assert_eq!((&set.classes[..], &set.labels[..]), (&["1.jpg".to_owned(), "2.jpg".into()][..], &[0, 1, 0][..]));
    }

    #[test]
    fn a_header_that_no_parameter_speaks_of_is_no_sample() {
        for (text, params, labelled) in [
            ("sentence\tlabel\na bore\t0\na film\t1\n", json!({}), true),
            ("sentence\tlabel\na bore\t0\na film\t1\n", json!({ "label": 2 }), true),
            ("label\tsentence\n0\ta bore\n1\ta film\n", json!({}), true),
            ("index\tsentence\n0\ta bore\n", json!({}), false),
            ("image,caption\na.jpg,a dog\n", json!({ "separator": "," }), false),
        ] {
            let error = read(text.as_bytes(), params.clone(), labelled).unwrap_err().to_string();
            assert!(error.contains("looks like a header"), "{text} {params}: {error}");
        }
    }

    #[test]
    fn a_job_can_say_whether_the_first_line_is_a_header() {
        let looks = "sentiment\tnice text\nother\ttwo\n";
        assert_eq!(read(looks.as_bytes(), json!({ "header": "no" }), true).unwrap().texts, ["nice text", "two"]);
        let bare = read(b"Review\nGood one\n", json!({ "header": "no" }), false).unwrap();
        assert_eq!(bare.texts, ["Review", "Good one"]);
        let said = read(looks.as_bytes(), json!({ "label": 1, "text": 2 }), true).unwrap_err().to_failure().hint;
        assert!(said.ends_with("if it is none, set `params.header = \"no\"`"), "{said}");
        // A header that looks like none, and columns by number.
        let set = read(b"x\ty\na\tone\nb\ttwo\n", json!({ "header": "yes" }), true).unwrap();
        assert_eq!((set.texts, set.places), (vec!["one".to_owned(), "two".into()], vec![0, 1]));
    }

    #[test]
    fn a_column_that_can_be_no_label_is_doubted() {
        let turned: String = (0..60).map(|i| format!("a bore {i}\t{}\n", i % 2)).collect();
        let error = read(turned.as_bytes(), json!({}), true).unwrap_err();
        assert!(error.to_string().contains("60 in 60 rows"), "{error}");
        assert!(error.to_failure().hint.contains("`params.label = 2`"), "{error}");
        assert_eq!(read(turned.as_bytes(), json!({ "label": 2 }), true).unwrap().classes, ["0", "1"]);
        assert_eq!(read(turned.as_bytes(), json!({}), false).unwrap().names.len(), 60);
    }

    #[test]
    fn a_bad_line_is_refused_by_its_number() {
        for (bytes, says) in [
            (&b"a\tb\nno tab"[..], "line 2 of `x` has no tab"),
            (&b"\tb"[..], "line 1 of `x` has no label"),
            (&b"a\tb\n\nc\t "[..], "line 3 of `x` has no text"),
            (&b"a\tb\xff"[..], "line 1 of `x` is not UTF-8"),
            (&b"\xff\xfea\0\t\0b\0\n\0"[..], "line 1 of `x` is in UTF-16"),
            (&b"a\0\t\0b\0\n\0c\0\t\0d\0"[..], "line 1 of `x` has NULs in it"),
            (&b"\n \n"[..], "`x` has no samples"),
        ] {
            let error = read(bytes, json!({}), true).unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
        let header_alone = read(b"label\ttext\n", json!({ "label": "label" }), true).unwrap_err().to_string();
        assert!(header_alone.starts_with("`x` has no samples"), "{header_alone}");
        let long = [b"a\t".to_vec(), vec![b'x'; MAX_LINE]].concat();
        assert!(read(&long, json!({}), true).unwrap_err().to_string().contains("has more than"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(
            bytes in proptest::collection::vec(proptest::sample::select(b"a,\"\t\n\r \xc3\xa4".to_vec()), 0..60),
            which in 0usize..6,
            labelled: bool,
        ) {
            let params = [
                json!({}),
                json!({ "label": 2 }),
                json!({ "label": "a", "separator": "," }),
                json!({ "text": [1, "a"] }),
                json!({ "text": 2, "separator": "," }),
                json!({ "separator": ";" }),
            ];
            let _ = read(&bytes, params[which].clone(), labelled);
        }
    }
}
