//! Figures of classes as a table for people: of all of them, or, of many, of those that are found worst and best.

use std::fmt::Write as _;

use super::{ClassFigures, confusion::READ};

/// Of more classes than people read, how many of the worst and how many of the best are shown.
const ENDS: usize = 10;

/// A line for each class, its name in `width` characters. Of more than [`READ`] classes these are, by their f1-score, the ten
/// worst and the ten best that have samples, and how many lie between.
pub(super) fn rows(classes: &[ClassFigures], width: usize) -> String {
    if classes.len() <= READ {
        return classes.iter().map(|class| row(class, width)).collect();
    }
    let mut known: Vec<&ClassFigures> = classes.iter().filter(|class| class.support > 0).collect();
    // Equal ones stay in the order of the classes.
    known.sort_by(|a, b| a.f1.total_cmp(&b.f1));
    let between = known.len().saturating_sub(2 * ENDS);
    let mut out = String::new();
    for (at, class) in known.iter().enumerate() {
        if at < ENDS || at >= ENDS + between {
            out += &row(class, width);
        }
        if between > 0 && at == ENDS {
            let _ = writeln!(
                out,
                "{:>width$}  and {between} more: `report.json` has them all, and `evaluate --output json`",
                "..."
            );
        }
    }
    out
}

fn row(c: &ClassFigures, width: usize) -> String {
    if c.support == 0 {
        return format!("{:>width$}  {:>9}  {:>6}  {:>8}  {:>7}\n", c.class, "-", "-", "-", 0);
    }
    format!("{:>width$}  {:>9.3}  {:>6.3}  {:>8.3}  {:>7}\n", c.class, c.precision, c.recall, c.f1, c.support)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many classes, of which the first is found best, and before them one without samples.
    fn some(n: usize) -> Vec<ClassFigures> {
        let of = |at: usize| {
            let f1 = if at == 0 { 0.0 } else { 1.0 - at as f64 / 100.0 };
            ClassFigures { class: format!("c{at}"), precision: f1, recall: f1, f1, support: usize::from(at > 0) }
        };
        (0..=n).map(of).collect()
    }

    /// The first word of each line.
    fn names(classes: &[ClassFigures]) -> Vec<String> {
        rows(classes, 5).lines().map(|line| line.split_whitespace().next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn few_classes_have_a_line_each_and_of_many_the_worst_and_the_best() {
        let all: Vec<String> = (0..READ).map(|at| format!("c{at}")).collect();
        assert_eq!(names(&some(READ - 1)), all);
        let lines = names(&some(50));
        assert_eq!(lines.len(), 2 * ENDS + 1);
        assert_eq!((lines[0].as_str(), lines[ENDS - 1].as_str()), ("c50", "c41"));
        assert_eq!((lines[ENDS + 1].as_str(), lines[2 * ENDS].as_str()), ("c10", "c1"));
        let text = rows(&some(50), 5);
        assert!(text.contains("and 30 more: `report.json` has them all, and `evaluate"), "{text}");
    }

    #[test]
    fn many_classes_of_which_few_have_samples_have_a_line_for_each_of_those() {
        let mut classes = some(50);
        classes.iter_mut().skip(21).for_each(|class| class.support = 0);
        assert_eq!(names(&classes).len(), 20);
        classes[21].support = 1;
        let lines = names(&classes);
        assert_eq!(lines.len(), 21);
        assert_eq!(lines[ENDS], "...", "{lines:?}");
    }
}
