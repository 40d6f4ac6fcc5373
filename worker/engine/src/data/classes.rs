//! Some of the classes of a data set: by name, by the beginning of a name, by their numbers.

use std::ops::RangeInclusive;

use tl_proto::catalog::nearest_hint;

use super::{Dataset, Subset};
use crate::{Error, Result};

/// Most names that an error lists.
const SHOWN: usize = 12;

/// The samples of the classes that `rules` name, in the order of the data set; `key` is where the job says them.
///
/// # Errors
/// A rule that names no class.
pub(super) fn choose(inner: Box<dyn Dataset>, rules: &[String], key: &str) -> Result<Box<dyn Dataset>> {
    let classes = inner.classes();
    let mut chosen = vec![false; classes.len()];
    for rule in rules {
        let mut named = 0;
        for (i, _) in classes.iter().enumerate().filter(|(i, class)| names(rule, *i, class)) {
            (chosen[i], named) = (true, named + 1);
        }
        // A range must be there as a whole: one that reaches further speaks of other data.
        let beyond = range(rule).is_some_and(|r| *r.end() >= classes.len());
        if named == 0 || beyond {
            return Err(unknown(rule, classes, key));
        }
    }
    let kept: Vec<usize> = (0..classes.len()).filter(|i| chosen[*i]).collect();
    Ok(Box::new(Subset::of_classes(inner, &kept)))
}

fn names(rule: &str, number: usize, class: &str) -> bool {
    match (range(rule), rule.strip_suffix('*')) {
        (Some(range), _) => range.contains(&number),
        (None, Some(start)) => class.starts_with(start),
        (None, None) => class == rule,
    }
}

/// `A..B`: numbers of classes, with both ends.
fn range(rule: &str) -> Option<RangeInclusive<usize>> {
    let (first, last) = rule.split_once("..")?;
    Some(first.parse().ok()?..=last.parse().ok()?)
}

fn unknown(rule: &str, classes: &[String], key: &str) -> Error {
    if range(rule).is_some() {
        return Error::user(
            format!("`{key}`: `{rule}` is no range of the {} classes", classes.len()),
            format!("numbers go up from 0 to {}", classes.len().saturating_sub(1)),
        );
    }
    let known: Vec<&str> = classes.iter().map(String::as_str).collect();
    let hint = match known.len() {
        n if n <= SHOWN => nearest_hint(rule, &known),
        n => format!("there are {n} classes, of which the first are {}", known[..SHOWN].join(", ")),
    };
    Error::user(format!("`{key}`: `{rule}` names no class"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::Named;

    fn chosen(rules: &[&str]) -> Result<(Vec<String>, Vec<String>)> {
        let set = Named::new(&["Greek/a", "Greek/b", "Latin/a", "Norse"], &[3, 0, 2, 1, 0, 3]);
        let rules: Vec<String> = rules.iter().map(|r| (*r).to_owned()).collect();
        let set = choose(Box::new(set), &rules, "data.train_classes")?;
        let samples = (0..set.labels().len()).map(|i| format!("{}:{}", set.name(i), set.classes()[set.labels()[i]]));
        Ok((set.classes().to_vec(), samples.collect()))
    }

    #[test]
    fn classes_are_named_in_three_ways_and_keep_their_samples() {
        let (classes, samples) = chosen(&["Norse", "Greek/*"]).unwrap();
        assert_eq!(classes, ["Greek/a", "Greek/b", "Norse"]);
        assert_eq!(samples, ["#0:Norse", "#1:Greek/a", "#3:Greek/b", "#4:Greek/a", "#5:Norse"]);
        assert_eq!(chosen(&["1..2"]).unwrap().1, ["#2:Latin/a", "#3:Greek/b"]);
        assert_eq!(chosen(&["Latin/a", "2..2", "L*"]).unwrap().0, ["Latin/a"]);
    }

    #[test]
    fn what_names_no_class_is_refused() {
        for (rule, part) in [
            ("Greek", "`data.train_classes`: `Greek` names no class"),
            ("greek/*", "names no class"),
            ("2..4", "`2..4` is no range of the 4 classes"),
            ("3..1", "is no range"),
        ] {
            let error = chosen(&["Norse", rule]).unwrap_err().to_string();
            assert!(error.contains(part), "{rule}: {error}");
        }
    }
}
