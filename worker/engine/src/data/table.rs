//! Tables as text files have them: a row a line, its columns parted by tabs, or by commas with the quotes of CSV (RFC 4180).

use std::borrow::Cow;

use super::lines::{self, MAX_LINE};

/// One row of a table.
#[derive(Debug, PartialEq)]
pub(super) struct Row<'a> {
    /// Number of the line that it begins on, from 1.
    pub number: usize,
    /// How many rows and blank lines are in front of it.
    pub place: usize,
    /// What stands in its columns.
    pub columns: Vec<Cow<'a, str>>,
}

/// What is wrong with a table: the number of a line, and what there is to say of it.
pub(super) type Bad = (usize, String);

/// The rows of a table; blank lines are passed over. Between tabs a quote is a character like any other.
///
/// # Errors
/// The first line that is too long or not UTF-8, or whose quotes are not closed.
pub(super) fn rows(bytes: &[u8], separator: char) -> Result<Vec<Row<'_>>, Bad> {
    if separator == '\t' { plain(bytes) } else { quoted(bytes, separator) }
}

fn plain(bytes: &[u8]) -> Result<Vec<Row<'_>>, Bad> {
    let mut rows = Vec::new();
    for (number, line) in (1..).zip(bytes.split(|b| *b == b'\n')) {
        if let Some(line) = lines::said(number, line).map_err(|why| (number, why))? {
            rows.push(Row { number, place: number - 1, columns: line.split('\t').map(Cow::Borrowed).collect() });
        }
    }
    Ok(rows)
}

fn quoted(bytes: &[u8], separator: char) -> Result<Vec<Row<'static>>, Bad> {
    let (mut rows, mut place) = (Vec::new(), 0);
    let mut unfinished: Option<Reading> = None;
    for (number, line) in (1..).zip(bytes.split(|b| *b == b'\n')) {
        let said = lines::said(number, line).map_err(|why| (number, why))?;
        if unfinished.is_none() && said.is_none() {
            place += 1;
            continue;
        }
        let mut reading = unfinished.take().unwrap_or_else(|| Reading::at(number, place));
        let first = reading.row.number;
        reading.line(said.unwrap_or_default(), separator).map_err(|why| (first, why))?;
        if reading.open.is_some() {
            unfinished = Some(reading);
        } else {
            rows.push(reading.row);
            place += 1;
        }
    }
    match unfinished {
        Some(reading) => Err((reading.row.number, "has a quote that is not closed".into())),
        None => Ok(rows),
    }
}

/// The columns of a row with quotes that is one line, written by hand: spaces around them, outside of quotes, are none of
/// theirs.
///
/// # Errors
/// Says in words what is wrong with its quotes.
pub(super) fn row(line: &str, separator: char) -> Result<Vec<Cow<'static, str>>, String> {
    let mut reading = Reading { trims: true, ..Reading::at(1, 0) };
    reading.line(line, separator)?;
    if reading.open.is_some() { Err("has a quote that is not closed".into()) } else { Ok(reading.row.columns) }
}

/// A row with quotes, read line by line.
struct Reading {
    row: Row<'static>,
    /// The column whose quote the last line has not closed.
    open: Option<String>,
    /// Whether a quote behind spaces is one, and spaces behind a quote are nothing.
    trims: bool,
}

impl Reading {
    fn at(number: usize, place: usize) -> Self {
        Self { row: Row { number, place, columns: Vec::new() }, open: None, trims: false }
    }

    /// Reads a line: the first one of the row, or the next one where a quote is open.
    fn line(&mut self, line: &str, separator: char) -> Result<(), String> {
        let (mut rest, mut open) = (line, self.open.take().map(|column| column + "\n"));
        loop {
            match open.take() {
                // A column begins.
                None => {
                    if self.trims {
                        rest = rest.trim_start_matches(' ');
                    }
                    if let Some(after) = rest.strip_prefix('"') {
                        (open, rest) = (Some(String::new()), after);
                    } else if let Some((column, after)) = rest.split_once(separator) {
                        self.push(column.to_owned());
                        rest = after;
                    } else {
                        self.push(rest.to_owned());
                        return Ok(());
                    }
                }
                Some(column) => {
                    let Some((text, after)) = rest.split_once('"') else {
                        let column = column + rest;
                        if column.len() > MAX_LINE {
                            return Err(format!("has a quote that is not closed within {MAX_LINE} bytes"));
                        }
                        self.open = Some(column);
                        return Ok(());
                    };
                    let column = column + text;
                    // Two are one that belongs to the text.
                    if let Some(after) = after.strip_prefix('"') {
                        (open, rest) = (Some(column + "\""), after);
                    } else {
                        self.push(column);
                        let after = if self.trims { after.trim_start_matches(' ') } else { after };
                        match after.strip_prefix(separator) {
                            Some(after) => rest = after,
                            None if after.is_empty() => return Ok(()),
                            None => return Err("has text behind a closing quote".into()),
                        }
                    }
                }
            }
        }
    }

    fn push(&mut self, column: String) {
        self.row.columns.push(Cow::Owned(column));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, separator: char) -> Vec<(usize, usize, Vec<String>)> {
        let rows = rows(text.as_bytes(), separator).unwrap();
        let owned = |row: Row<'_>| (row.number, row.place, row.columns.into_iter().map(Cow::into_owned).collect());
        rows.into_iter().map(owned).collect()
    }

    fn row(number: usize, place: usize, columns: &[&str]) -> (usize, usize, Vec<String>) {
        (number, place, columns.iter().map(|c| (*c).to_owned()).collect())
    }

    #[test]
    fn between_tabs_a_quote_is_a_character() {
        let read = read("\u{feff}a\t\"b\r\n\n\t c\t\"\"", '\t');
        assert_eq!(read, [row(1, 0, &["a", "\"b"]), row(3, 2, &["", " c", "\"\""])]);
    }

    /// Python: list(csv.reader(io.StringIO(text, newline=""))), but for the blank lines, which it gives as empty rows, and
    /// the end of a line in quotes, which it leaves as it is.
    #[test]
    fn quotes_are_those_of_csv() {
        let text = "\u{feff}\"3\",\"Title, x\",\"He said \"\"so\"\"\"\r\n\nplain,in \"the\" middle,\n\
                    \"two\r\nlines\n\n\",\"\",\"\"\"\"\nlast";
        let wanted = [
            row(1, 0, &["3", "Title, x", "He said \"so\""]),
            row(3, 2, &["plain", "in \"the\" middle", ""]),
            row(4, 3, &["two\nlines\n\n", "", "\""]),
            row(8, 4, &["last"]),
        ];
        assert_eq!(read(text, ','), wanted);
        assert_eq!(read("a,b;\"c;d\"\n", ';'), [row(1, 0, &["a,b", "c;d"])]);
    }

    #[test]
    fn what_is_no_csv_is_refused_by_the_line_that_its_row_begins_on() {
        let bad = |bytes: &[u8]| rows(bytes, ',').unwrap_err();
        assert_eq!(bad(b"a,b\n\n\"c\n,d\n"), (3, "has a quote that is not closed".into()));
        assert_eq!(bad(b"a,b\n\"c\nd\" e,f\n"), (2, "has text behind a closing quote".into()));
        assert_eq!(bad(b"a\n\"b\n\xff\""), (3, "is not UTF-8".into()));
        let long = [b"a\n\"".to_vec(), b"many words\n".repeat(MAX_LINE / 10)].concat();
        let (number, why) = bad(&long);
        assert!(number == 2 && why.contains("is not closed within"), "{number}: {why}");
    }

    proptest::proptest! {
        #[test]
        fn what_was_written_with_quotes_is_read(
            columns in proptest::collection::vec(
                proptest::collection::vec(proptest::sample::select(vec!["a", "\"", ",", "\n", "ä", " "]), 0..6), 1..4,
            ),
            separator in proptest::sample::select(vec![',', ';']),
        ) {
            let columns: Vec<String> = columns.iter().map(|c| c.concat()).collect();
            let quoted: Vec<String> = columns.iter().map(|c| format!("\"{}\"", c.replace('"', "\"\""))).collect();
            let text = format!("x\n{}\ny\n", quoted.join(&separator.to_string()));
            let read = read(&text, separator);
            // Within a line that is blank, spaces are not kept.
            let plain = |c: &String| c.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
            assert_eq!(read.len(), 3);
            assert_eq!(read[1].2.iter().map(plain).collect::<Vec<_>>(), columns.iter().map(plain).collect::<Vec<_>>());
            assert_eq!((&read[2].2, read[2].1), (&vec!["y".to_owned()], 2));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(
            bytes in proptest::collection::vec(proptest::sample::select(b"a\",\t\n\r \xc3\xa4".to_vec()), 0..40),
        ) {
            for separator in ['\t', ',', ';'] {
                let _ = rows(&bytes, separator);
            }
        }
    }
}
