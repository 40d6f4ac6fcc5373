//! Which columns of a table are the label and the text: those that a job names, or those that files usually have.

use std::collections::BTreeSet;

use serde_json::Value;
use tl_proto::{
    catalog::{Param, choice, column},
    spec::Params,
};

use super::{classes::listed, table::Row};
use crate::{Error, Result};

/// What columns are called that have labels, names of what a text goes with, and texts.
const LABELS: &[&str] = &["label", "labels", "class", "category", "target", "sentiment", "intent", "polarity", "stars"];
const NAMES: &[&str] = &["image", "file", "filename", "name", "id", "idx", "index", "key"];
const TEXTS: &[&str] = &["sentence", "text", "caption", "comment", "review", "title", "description", "question"];

/// The fewest rows of which anything is concluded by their number.
const ROWS: usize = 20;

pub(super) fn params() -> Vec<Param> {
    vec![
        column(
            "label",
            1,
            false,
            "the column of the class, or, for what goes with samples of another kind, of the name of that: its number from \
             1, or its name, and then the first line is a header",
        ),
        column(
            "text",
            2,
            true,
            "the same for the text; those of several columns are joined. If nothing is said, it is the other one of two, \
             or, in lines of label, tab, text, all behind the first tab",
        ),
        choice(
            "separator",
            &["auto", "\t", ",", ";"],
            "what parts columns; `auto` is a comma in `.csv` files and a tab in others. Between commas and semicolons, \
             columns may have the quotes of CSV",
        ),
        choice(
            "header",
            &["auto", "yes", "no"],
            "whether the first line names columns, and is no sample; `auto` is yes where a column is named, and else no, but \
             one that looks like a header is refused",
        ),
    ]
}

/// A column as a job names it.
#[derive(Debug, PartialEq)]
enum Column {
    /// By its number from 0.
    At(usize),
    /// By what the first line calls it.
    Named(String),
}

/// What a job says of the columns of a file.
pub(super) struct Said {
    /// What parts them.
    pub separator: char,
    label: Option<Column>,
    text: Vec<Column>,
    /// Whether the first line is a header, where the job says so.
    header: Option<bool>,
}

/// Where label and text are.
#[derive(Debug, PartialEq)]
pub(super) enum Columns {
    /// In front of the first tab and behind it. The text is the `whole` line where no labels are wanted and some lines have
    /// no tab: then it is no more than a part of a text.
    Usual {
        /// Whether it is.
        whole: bool,
    },
    /// In columns of their own.
    Chosen {
        /// That of the label; where none is wanted, there need be none.
        label: Option<usize>,
        /// Those of the text.
        text: Vec<usize>,
        /// How many a row has.
        width: usize,
    },
}

impl Said {
    /// What a job says of a file.
    ///
    /// # Errors
    /// Values that name no column.
    pub fn of(place: &str, params: &Params) -> Result<Self> {
        let column = |key: &str, value: &Value| {
            let number = value.as_u64().and_then(|n| usize::try_from(n).ok()?.checked_sub(1)).map(Column::At);
            let name = value.as_str().map(str::trim).filter(|name| !name.is_empty());
            number.or_else(|| name.map(|name| Column::Named(name.to_owned()))).ok_or_else(|| {
                Error::user(
                    format!("`params.{key}` cannot be {value}"),
                    "a column is its number from 1, or its name in the first line",
                )
            })
        };
        let label = params.get("label").map(|value| column("label", value)).transpose()?;
        let text = match params.get("text") {
            None => Vec::new(),
            Some(Value::Array(list)) if !list.is_empty() => {
                list.iter().map(|value| column("text", value)).collect::<Result<_>>()?
            }
            Some(one) => vec![column("text", one)?],
        };
        let header = match params.get("header").map(|value| (value, value.as_str())) {
            None | Some((_, Some("auto"))) => None,
            Some((_, Some("yes"))) => Some(true),
            Some((_, Some("no"))) => Some(false),
            Some((value, _)) => {
                return Err(Error::user(
                    format!("`params.header` cannot be {value}"),
                    r#"it is "auto", "yes" or "no""#,
                ));
            }
        };
        let said = Self { separator: separator(place, params)?, label, text, header };
        if said.header == Some(false) && said.names_columns() {
            return Err(Error::user(
                "`params.header` cannot be \"no\" where `params.label` or `params.text` names a column",
                "name columns by their numbers, from 1",
            ));
        }
        Ok(said)
    }

    fn names_columns(&self) -> bool {
        self.label.iter().chain(&self.text).any(|column| matches!(column, Column::Named(_)))
    }

    /// Whether the first line is a header.
    pub fn has_header(&self) -> bool {
        self.header == Some(true) || self.names_columns()
    }

    /// Whether nothing says if the first line is a header.
    pub fn may_have_header(&self) -> bool {
        self.header.is_none() && !self.names_columns()
    }

    /// Where the columns are in a file with these rows, whose `first` one may be its header.
    ///
    /// # Errors
    /// A column that is not there, or that nothing is said of.
    pub fn found(&self, place: &str, first: &Row<'_>, rows: &[Row<'_>], labelled: bool) -> Result<Columns> {
        if self.label.is_none() && self.text.is_empty() && self.separator == '\t' {
            return Ok(Columns::Usual { whole: !labelled && rows.iter().any(|row| row.columns.len() < 2) });
        }
        let width = first.columns.len();
        let line = first.number;
        let refused = |why: String, hint: String| Error::user(format!("line {line} of `{place}` {why}"), hint);
        let has = if width == 1 { "has one column".to_owned() } else { format!("has {width} columns") };
        let at = |key: &str, column: &Column| match column {
            Column::At(at) if *at < width => Ok(*at),
            Column::At(at) => Err(refused(
                format!("{has}, and `params.{key}` names column {}", at + 1),
                "columns are counted from 1, and parted by `params.separator`".into(),
            )),
            Column::Named(name) => first.columns.iter().position(|column| column.trim() == name).ok_or_else(|| {
                let hint = format!("columns that it names, parted by `params.separator`: {}", listed(&first.columns));
                refused(format!("names no column `{name}`, which `params.{key}` wants"), hint)
            }),
        };
        let text = self.text.iter().map(|column| at("text", column)).collect::<Result<Vec<usize>>>()?;
        let label = match self.label.as_ref().map(|column| at("label", column)) {
            Some(label) if labelled => Some(label?),
            // What is not wanted need not be there.
            Some(label) => label.ok(),
            None if labelled || width > 1 => (0..width).find(|column| !text.contains(column)),
            None => None,
        };
        let others: Vec<usize> = (0..width).filter(|column| Some(*column) != label).collect();
        let text = match others.len() {
            _ if !text.is_empty() => text,
            1 => others,
            0 => return Err(refused(format!("{has}, and none for the text"), USUAL.into())),
            _ => {
                let hint = "set `params.text = 2`, or `params.text = [2, 3]`, which joins both";
                return Err(refused(format!("{has}, and nothing says which is the text"), hint.into()));
            }
        };
        if labelled && label.is_none_or(|label| text.contains(&label)) {
            return Err(refused(format!("{has}, and none for the label beside the text"), USUAL.into()));
        }
        Ok(Columns::Chosen { label, text, width })
    }
}

/// What every file without parameters is.
pub(super) const USUAL: &str = "write `label<TAB>text` in UTF-8, or name columns by `params.label` and `params.text`, \
                                and what parts them by `params.separator`";

fn separator(place: &str, params: &Params) -> Result<char> {
    let name = place.to_ascii_lowercase();
    let extension = std::path::Path::new(name.strip_suffix(".gz").unwrap_or(&name)).extension();
    let usual = if extension.is_some_and(|extension| extension == "csv") { ',' } else { '\t' };
    match params.get("separator").map(|value| (value, value.as_str())) {
        None | Some((_, Some("auto"))) => Ok(usual),
        Some((_, Some("\t"))) => Ok('\t'),
        Some((_, Some(","))) => Ok(','),
        Some((_, Some(";"))) => Ok(';'),
        Some((value, _)) => {
            Err(Error::user(format!("`params.separator` cannot be {value}"), r#"it is "auto", "\t", "," or ";""#))
        }
    }
}

impl Columns {
    /// The label of a row, empty where it has none, and its text.
    ///
    /// # Errors
    /// Says in words what is wrong with the row.
    pub fn read(&self, row: &Row<'_>) -> Result<(String, String), String> {
        let columns = &row.columns;
        match self {
            Self::Usual { whole: true } => {
                let label = if columns.len() > 1 { columns[0].trim() } else { "" };
                Ok((label.to_owned(), columns.join("\t").trim().to_owned()))
            }
            Self::Usual { whole: false } => match columns.split_first() {
                Some((label, text)) if !text.is_empty() => {
                    Ok((label.trim().to_owned(), text.join("\t").trim().to_owned()))
                }
                _ => Err("has no tab between label and text".into()),
            },
            Self::Chosen { width, .. } if columns.len() != *width => {
                Err(format!("has another number of columns than the first one: {}, and not {width}", columns.len()))
            }
            Self::Chosen { label, text, .. } => {
                let texts = text.iter().map(|column| columns[*column].trim()).filter(|text| !text.is_empty());
                let label = label.map_or("", |column| columns[column].trim());
                Ok((label.to_owned(), texts.collect::<Vec<_>>().join(" ")))
            }
        }
    }

    /// Refuses a column of labels that can be none: one that says the same in every row that is learned from, or in nearly
    /// every row something else, where another column does not, or where samples are to be learned from.
    ///
    /// # Errors
    /// Says which column is taken for the label.
    pub fn doubted(
        &self,
        (place, part): (&str, &str),
        header: Option<&Row<'_>>,
        rows: &[Row<'_>],
        classes: &[String],
    ) -> Result<()> {
        let label = match self {
            Self::Usual { .. } => 0,
            Self::Chosen { label, .. } => label.unwrap_or(0),
        };
        let (taken, learned) = (format!("column {} of `{place}` is taken for the label", label + 1), part == "train");
        if let ([class], true) = (classes, learned) {
            return Err(Error::user(
                format!("{taken}, and has only one class, {}", listed(std::slice::from_ref(class))),
                "set `params.label` to the column that has the classes, by its number or its name in the first line",
            ));
        }
        let (n, different) = (rows.len(), classes.len());
        if n < ROWS || 2 * different <= n {
            return Ok(());
        }
        // Columns that all rows have.
        let width = rows.iter().map(|row| row.columns.len()).min().unwrap_or(0);
        let others = (0..width).filter(|column| *column != label).map(|column| {
            let different: BTreeSet<&str> = rows.iter().map(|row| row.columns[column].trim()).collect();
            (different.len(), column)
        });
        let better = others.filter(|(different, _)| *different > 1 && 2 * different <= n).min();
        if better.is_none() && !learned {
            return Ok(());
        }
        let why = format!("{taken}, and nearly every row has one of its own: {different} in {n} rows");
        let hint = better.map(|(different, column)| {
            let named = header.map(|header| format!("{:?}", header.columns[column].trim()));
            let shown = named.unwrap_or_else(|| (column + 1).to_string());
            format!("set `params.label = {shown}`, if that is it: that column has {different} different ones")
        });
        Err(Error::user(why, hint.unwrap_or_else(|| "set `params.label` to the column that has the classes".into())))
    }
}

/// Whether a column is called by one of some words, in no more words than `most`, as in `Class Index` or `sentence1`.
fn is_called(column: &str, words: &[&str], most: usize) -> bool {
    let column = column.to_lowercase();
    let parts: Vec<&str> = column.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty()).collect();
    let named = |part: &&str| words.contains(&part.trim_end_matches(|c: char| c.is_ascii_digit()));
    parts.len() <= most && parts.iter().any(named)
}

/// Refuses a first row that names columns, as no sample does: all of them are called something such as `label` or `sentence`,
/// and no other row has its label; or its label is a word, and all others are numbers. Without labels, all of them are such a
/// word and no more.
///
/// # Errors
/// Says how to name the columns.
pub(super) fn no_header(place: &str, first: &Row<'_>, labels: Option<&[String]>) -> Result<()> {
    let columns = &first.columns;
    let most = if labels.is_some() { 3 } else { 1 };
    let called = columns.iter().all(|column| [LABELS, NAMES, TEXTS].iter().any(|words| is_called(column, words, most)));
    let is_header = match labels {
        None => called,
        Some([]) => false,
        Some([label, others @ ..]) => {
            let number = |label: &String| label.parse::<f64>().is_ok_and(f64::is_finite);
            let numbers = others.len() >= ROWS && others.iter().all(number);
            (called && !others.contains(label)) || (numbers && !number(label))
        }
    };
    if !is_header {
        return Ok(());
    }
    let words = if labels.is_some() { LABELS } else { NAMES };
    let label = columns.iter().position(|column| is_called(column, words, most));
    let texts = columns.iter().enumerate().filter(|(at, column)| Some(*at) != label && is_called(column, TEXTS, most));
    let texts: Vec<String> = texts.map(|(_, column)| format!("{:?}", column.trim())).collect();
    let text = match &texts[..] {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    let hint = match label.map(|label| columns[label].trim()) {
        Some(label) if !texts.is_empty() => {
            format!("if it is one, set `params.label = {label:?}` and `params.text = {text}`")
        }
        None if !texts.is_empty() && labels.is_none() => format!("if it is one, set `params.text = {text}`"),
        _ => format!("if it is one, set `params.label` and `params.text` to what it names: {}", listed(columns)),
    };
    let hint = format!("{hint}; if it is none, set `params.header = \"no\"`");
    Err(Error::user(format!("line {} of `{place}` looks like a header, which is no sample", first.number), hint))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::table;

    fn said(place: &str, params: Value) -> Result<Said> {
        Said::of(place, &serde_json::from_value(params).unwrap())
    }

    /// Labels and texts of a file, or what is wrong with it.
    fn read(text: &str, params: Value, labelled: bool) -> Result<Vec<(String, String)>, String> {
        let said = said("x", params).unwrap();
        let rows = table::rows(text.as_bytes(), said.separator).unwrap();
        let columns = said.found("x", &rows[0], &rows, labelled).map_err(|e| e.to_string())?;
        rows[usize::from(said.has_header())..].iter().map(|row| columns.read(row)).collect()
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(label, text)| ((*label).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn columns_are_named_by_number_or_by_the_header() {
        let sst = "sentence\tlabel\n a bore \t0\n";
        let wanted = pairs(&[("0", "a bore")]);
        for params in [r#"{"label": "label"}"#, r#"{"text": "sentence"}"#, r#"{"label": "label", "text": 1}"#] {
            assert_eq!(read(sst, serde_json::from_str(params).unwrap(), true).unwrap(), wanted, "{params}");
        }
        assert_eq!(read("a bore\t0\n", json!({ "label": 2 }), true).unwrap(), wanted);
        let cola = "gj04\t1\t*\tone\ngj04\t0\t\ttwo\n";
        let wanted = pairs(&[("1", "one"), ("0", "two")]);
        assert_eq!(read(cola, json!({ "label": 2, "text": 4 }), true).unwrap(), wanted);
        let ag = "Class Index,Title,Description\n\"3\",\" Wall St., again \",\"He said \"\"so\"\"\"\n4,,x\n";
        let params = json!({ "label": "Class Index", "text": ["Title", "Description"], "separator": "," });
        let wanted = pairs(&[("3", "Wall St., again He said \"so\""), ("4", "x")]);
        assert_eq!(read(ag, params, true).unwrap(), wanted);
    }

    #[test]
    fn what_is_not_wanted_need_not_be_there() {
        let params = || json!({ "label": "label", "text": "sentence" });
        assert_eq!(read("index\tsentence\n0\ta bore\n", params(), false).unwrap(), pairs(&[("", "a bore")]));
        assert_eq!(read("sentence\na bore\n", params(), false).unwrap(), pairs(&[("", "a bore")]));
        assert_eq!(read("a bore\n", json!({ "separator": "," }), false).unwrap(), pairs(&[("", "a bore")]));
        let error = read("index\tsentence\n0\ta bore\n", params(), true).unwrap_err();
        assert!(error.contains("names no column `label`, which `params.label` wants"), "{error}");
    }

    #[test]
    fn a_tab_is_a_part_of_a_text_where_not_every_line_has_one() {
        let names = pairs(&[("a.jpg", "one\ttwo"), ("b.jpg", "three")]);
        assert_eq!(read("a.jpg\tone\ttwo\nb.jpg\tthree\n", json!({}), false).unwrap(), names);
        let texts = pairs(&[("one", "one\ttwo"), ("", "three")]);
        assert_eq!(read("one\ttwo\nthree\n", json!({}), false).unwrap(), texts);
        assert!(read("one\ttwo\nthree\n", json!({}), true).unwrap_err().contains("no tab between label and text"));
    }

    #[test]
    fn columns_that_are_not_there_or_not_said_are_refused() {
        for (text, params, says) in [
            ("a\tb\n", json!({ "label": 3 }), "line 1 of `x` has 2 columns, and `params.label` names column 3"),
            ("a\tb\n", json!({ "text": [1, 4] }), "`params.text` names column 4"),
            ("a\tb\n", json!({ "label": "c" }), "names no column `c`"),
            ("a\tb\tc\n", json!({ "label": 1 }), "has 3 columns, and nothing says which is the text"),
            ("a\n", json!({ "label": 1 }), "has one column, and none for the text"),
            ("a\n", json!({ "text": 1 }), "none for the label"),
            ("a\tb\n", json!({ "label": 2, "text": 2 }), "none for the label"),
            ("a\tb\na\tb\tc\n", json!({ "label": 1 }), "number of columns than the first one: 3, and not 2"),
        ] {
            let error = read(text, params.clone(), true).unwrap_err();
            assert!(error.contains(says), "{params}: {error}");
        }
        for params in [
            json!({ "label": 0 }),
            json!({ "label": [1] }),
            json!({ "text": [] }),
            json!({ "text": true }),
            json!({ "separator": "|" }),
            json!({ "separator": 1 }),
            json!({ "header": true }),
            json!({ "header": "no", "label": "a" }),
        ] {
            let error = said("x", params.clone()).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains("cannot be"), "{params}: {error}");
        }
        let parts = |place: &str| said(place, json!({})).unwrap().separator;
        assert_eq!(["a/x.csv", "X.CSV.gz", "csv", "x.tsv", "x.csv.d/y"].map(parts), [',', ',', '\t', '\t', '\t']);
    }

    fn header(text: &str, labelled: bool) -> Option<String> {
        let rows = table::rows(text.as_bytes(), if text.contains('\t') { '\t' } else { ',' }).unwrap();
        let labels: Vec<String> = rows.iter().map(|row| row.columns[0].trim().to_owned()).collect();
        let refused = no_header("x", &rows[0], labelled.then_some(&labels[..])).err()?;
        Some(format!("{refused}: {}", refused.to_failure().hint))
    }

    #[test]
    fn a_header_is_told_from_a_sample() {
        let said = header("sentence\tlabel\na bore\t0\n", true).unwrap();
        assert!(said.contains("line 1 of `x` looks like a header"), "{said}");
        assert!(said.contains(r#"`params.label = "label"` and `params.text = "sentence"`"#), "{said}");
        let said = header("image,caption\na.jpg,a dog\n", false).unwrap();
        assert!(said.contains(r#"`params.label = "image"` and `params.text = "caption"`"#), "{said}");
        assert!(header("sentence\na bore\n", false).unwrap().contains(r#"set `params.text = "sentence"`"#));
        let numbered = |first: &str| header(&(first.to_owned() + &"1,a\n2,b\n".repeat(10)), true);
        let said = numbered("Class Index,Title,Description\n").unwrap();
        assert!(said.contains(r#""Class Index"` and `params.text = ["Title", "Description"]`"#), "{said}");
        assert!(numbered("airline,what was said\n").unwrap().contains("what it names: `airline`, `what was said`"));
        assert_eq!(numbered("7,what was said\n"), None);
        // Classes that are called so, and texts of one word.
        assert_eq!(header("question\twho is it\nreview\ta bore\n", true), None);
        assert_eq!(header("title\tText\na\tb\ntitle\tc\n", true), None);
        assert_eq!(header("image_1.jpg\ta text\n", false), None);
        assert_eq!(header("a question\nno answer\n", false), None);
    }

    #[test]
    fn labels_that_are_none_are_told_from_few_of_each() {
        let doubted = |row: &dyn Fn(usize) -> String, n: usize, part: &str| {
            let text: String = (0..n).map(row).collect();
            let rows = table::rows(text.as_bytes(), '\t').unwrap();
            let columns = said("x", json!({})).unwrap().found("x", &rows[0], &rows, true).unwrap();
            let classes: BTreeSet<String> = rows.iter().map(|row| columns.read(row).unwrap().0).collect();
            let classes: Vec<String> = classes.into_iter().collect();
            let refused = columns.doubted(("x", part), None, &rows, &classes).err()?;
            Some(format!("{refused}: {}", refused.to_failure().hint))
        };
        let turned = |i: usize| format!("a bore {i}\t{}\n", i % 2);
        for part in ["train", "val"] {
            let error = doubted(&turned, 20, part).unwrap();
            assert!(error.contains("column 1 of `x` is taken for the label"), "{error}");
            assert!(error.contains("20 in 20 rows") && error.contains("`params.label = 2`"), "{error}");
            assert_eq!(doubted(&turned, 19, part), None);
        }
        // One text of each class, as a model is shown them, is nothing to learn from.
        let one_of_each = |i: usize| format!("class {i}\tits text {i}\n");
        assert_eq!(doubted(&one_of_each, 50, "val"), None);
        assert!(doubted(&one_of_each, 50, "train").unwrap().contains("set `params.label` to the column"));
        let same = |i: usize| format!("gj04\t{}\t*\tone {i}\n", i % 2);
        assert!(doubted(&same, 9, "train").unwrap().contains("has only one class, `gj04`"));
        assert_eq!(doubted(&same, 9, "val"), None);
        assert_eq!(doubted(&|i| format!("{}\tone {i}\n", i % 10), 20, "train"), None);
    }
}
