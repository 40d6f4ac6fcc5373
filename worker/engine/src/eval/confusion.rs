//! Which classes were taken for which: counts of every true class by predicted one, kept by the cells that are not zero.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

/// Most classes of which a report has every cell, row by row; of more it lists those that are not zero.
const WHOLE: usize = 100;
/// Most classes whose matrix and figures people read as text.
pub(super) const READ: usize = 30;
/// Of more classes, pairs that are named.
const PAIRS: usize = 20;

/// Rows are true classes, columns predicted ones. As JSON it is a list of rows, or, of more than a hundred classes, their
/// number and the cells that are not zero: true class, predicted class, samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Confusion {
    classes: usize,
    /// In the order of rows, then columns.
    cells: Vec<[usize; 3]>,
}

/// As it lies in a report.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Rows(Vec<Vec<usize>>),
    Cells { classes: usize, cells: Vec<[usize; 3]> },
}

impl From<Written> for Confusion {
    fn from(written: Written) -> Self {
        let (classes, cells) = match written {
            Written::Rows(rows) => {
                let row = |(t, row): (usize, Vec<usize>)| row.into_iter().enumerate().map(move |(p, n)| [t, p, n]);
                (rows.len(), rows.into_iter().enumerate().flat_map(row).collect::<Vec<_>>())
            }
            Written::Cells { classes, cells } => (classes, cells),
        };
        // A file may say anything.
        let whole = cells.into_iter().filter(|[t, p, n]| *t < classes && *p < classes && *n > 0);
        let mut cells: Vec<[usize; 3]> = whole.collect();
        cells.sort_unstable();
        Self { classes, cells }
    }
}

impl From<Confusion> for Written {
    fn from(own: Confusion) -> Self {
        let Confusion { classes, cells } = own;
        if classes > WHOLE {
            return Self::Cells { classes, cells };
        }
        let mut rows = vec![vec![0; classes]; classes];
        cells.into_iter().for_each(|[t, p, n]| rows[t][p] = n);
        Self::Rows(rows)
    }
}

impl Confusion {
    /// Counts true and predicted classes of samples.
    pub fn of(classes: usize, samples: impl Iterator<Item = (usize, usize)>) -> Self {
        let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        samples.for_each(|pair| *counts.entry(pair).or_default() += 1);
        Self { classes, cells: counts.into_iter().map(|((t, p), n)| [t, p, n]).collect() }
    }

    /// Cells that are not zero, by rows: true class, predicted class, samples.
    pub fn cells(&self) -> &[[usize; 3]] {
        &self.cells
    }

    /// What a class was taken for: a number for each class.
    pub fn row(&self, class: usize) -> Vec<usize> {
        let mut row = vec![0; self.classes];
        self.cells.iter().filter(|[t, ..]| *t == class).for_each(|[_, p, n]| row[*p] = *n);
        row
    }

    /// For people: the whole matrix, or, of many classes, the pairs that were confused most. `names` are those of the classes,
    /// at most `width` characters each.
    pub(super) fn to_text(&self, names: &[&str], width: usize) -> String {
        let mut out = String::new();
        if self.classes <= READ {
            out += "confusion (rows: true, columns: predicted)\n";
            for (class, name) in names.iter().enumerate() {
                let cells: String = self.row(class).iter().map(|n| format!("{n:>6}")).collect();
                let _ = writeln!(out, "{name:>width$}{cells}");
            }
            return out;
        }
        let mut wrong: Vec<[usize; 3]> = self.cells.iter().copied().filter(|[t, p, _]| t != p).collect();
        wrong.sort_by_key(|[t, p, n]| (std::cmp::Reverse(*n), *t, *p));
        if wrong.is_empty() {
            return "no class was taken for another\n".into();
        }
        let more = wrong.len().saturating_sub(PAIRS);
        out += "confused most (true, predicted, samples)\n";
        for [t, p, n] in wrong.into_iter().take(PAIRS) {
            let name = |class: usize| names.get(class).copied().unwrap_or_default();
            let _ = writeln!(out, "{:>width$}  {:<width$}{n:>6}", name(t), name(p));
        }
        if more > 0 {
            let _ = writeln!(out, "and {more} more pairs of classes: `report.json` has them all");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` samples of each class, of which one is taken for the next class; of the last two, two are.
    fn some(classes: usize) -> Confusion {
        let taken = |class: usize| if class + 2 >= classes { 2 } else { 1 };
        let of = move |class: usize| {
            (0..5).map(move |i| (class, if i < taken(class) { (class + 1) % classes } else { class }))
        };
        Confusion::of(classes, (0..classes).flat_map(of))
    }

    #[test]
    fn a_report_has_rows_of_few_classes_and_cells_of_many_and_both_are_read() {
        let few = some(3);
        let written = serde_json::to_value(&few).unwrap();
        assert_eq!(written, serde_json::json!([[4, 1, 0], [0, 3, 2], [2, 0, 3]]));
        let many = some(WHOLE + 1);
        let written = serde_json::to_value(&many).unwrap();
        assert_eq!(written["classes"], WHOLE + 1);
        assert_eq!(written["cells"][0], serde_json::json!([0, 0, 4]));
        assert_eq!(written["cells"].as_array().unwrap().len(), 2 * (WHOLE + 1));
        for confusion in [few, some(WHOLE), many.clone(), Confusion::default()] {
            let text = serde_json::to_string(&confusion).unwrap();
            assert_eq!(serde_json::from_str::<Confusion>(&text).unwrap(), confusion);
        }
        // As older files have it.
        let rows: Vec<Vec<usize>> = (0..=WHOLE).map(|class| many.row(class)).collect();
        assert_eq!(serde_json::from_value::<Confusion>(serde_json::json!(rows)).unwrap(), many);
        // And as no file of ours does.
        let odd = r#"{"classes": 2, "cells": [[1, 0, 3], [0, 9, 1], [0, 1, 0], [0, 0, 1]]}"#;
        assert_eq!(serde_json::from_str::<Confusion>(odd).unwrap().cells(), [[0, 0, 1], [1, 0, 3]]);
    }

    #[test]
    fn many_classes_are_told_by_the_pairs_that_are_confused_most() {
        let text = |classes: usize| {
            let names: Vec<String> = (0..classes).map(|class| format!("c{class}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            some(classes).to_text(&names, 5)
        };
        let matrix = text(READ);
        assert_eq!(matrix.lines().count(), 1 + READ, "{matrix}");
        assert!(matrix.starts_with("confusion (rows: true"));
        let pairs = text(READ + 1);
        let lines: Vec<&str> = pairs.lines().collect();
        assert_eq!(lines.len(), 1 + PAIRS + 1, "{pairs}");
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["c29", "c30", "2"]);
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["c30", "c0", "2"]);
        assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["c0", "c1", "1"]);
        assert!(lines[PAIRS + 1].starts_with("and 11 more pairs"), "{pairs}");
        let right = Confusion::of(40, (0..40).map(|class| (class, class)));
        assert_eq!(right.to_text(&[""; 40], 5), "no class was taken for another\n");
    }
}
