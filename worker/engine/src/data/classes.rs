//! Some of the classes of a data set: by name, by the beginning of a name, by their numbers; and the numbers that classes
//! have in another list.

use std::{collections::BTreeMap, ops::RangeInclusive};

use tl_proto::catalog::nearest_hint;

use super::{Dataset, Subset};
use crate::{Error, Result};

/// Most names that an error lists.
const SHOWN: usize = 12;
/// Most characters of such a name.
const LETTERS: usize = 60;

/// Where each of the classes `own` stands among those that are `known`, by its name.
///
/// # Errors
/// The first one that is none of these.
pub fn numbers<'a>(own: &'a [String], known: &[String]) -> Result<Vec<usize>, &'a str> {
    let at: BTreeMap<&str, usize> = known.iter().enumerate().map(|(at, class)| (class.as_str(), at)).collect();
    own.iter().map(|class| at.get(class.as_str()).copied().ok_or(class.as_str())).collect()
}

/// Of the classes that are `known` one that looks like `odd` and has other characters: one of them is as file names of macOS
/// may be (Unicode's NFD), with accents and parts of syllables for themselves.
fn alike<'a>(odd: &str, known: &'a [String]) -> Option<&'a str> {
    let is_apart = |c: char| matches!(c, '\u{300}'..='\u{36f}' | '\u{1100}'..='\u{11ff}' | '\u{3099}' | '\u{309a}');
    let has_parts = |name: &str| name.chars().any(is_apart);
    // What is neither made of parts nor one of them.
    let rest = |name: &str| {
        let next = name.chars().skip(1).map(Some).chain([None]);
        let plain = name.chars().zip(next).filter(|(c, next)| c.is_ascii() && !next.is_some_and(is_apart));
        plain.map(|(c, _)| c).collect::<String>()
    };
    let twin = |name: &&String| has_parts(odd) != has_parts(name) && !name.is_ascii() && rest(odd) == rest(name);
    known.iter().find(twin).filter(|_| !odd.is_ascii()).map(String::as_str)
}

/// What to do where a class `odd` is none of those that are `known`: `what` is followed by their names, perhaps behind one
/// that may look like it.
pub fn unknown_hint(odd: &str, known: &[String], what: &str) -> String {
    let spelt = |name: &str| -> String {
        let one = |c: char| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() };
        name.chars().map(one).collect()
    };
    let all = format!("{what} {}", listed(known));
    match alike(odd, known) {
        None => all,
        Some(twin) => format!(
            "`{}` and `{}` may look the same: then `convmv -r -f utf8 -t utf8 --nfc --notest FOLDER` writes names in one \
             way; {all}",
            spelt(odd),
            spelt(twin)
        ),
    }
}

/// Names as an error has them: no more than twelve, and how many there are beside those.
pub fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let one = |name: &S| short(name.as_ref());
    let some = names.iter().take(SHOWN).map(one).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => some,
        more => format!("{some} and {more} more"),
    }
}

/// A name as an error has it: what was taken for one may be a long text.
pub fn short(name: &str) -> String {
    match name.char_indices().nth(LETTERS) {
        Some((end, _)) => format!("`{}…`", &name[..end]),
        None => format!("`{name}`"),
    }
}

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
    fn classes_are_found_by_name_in_another_list() {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let known = list(&["0", "1", "10", "2"]);
        assert_eq!(numbers(&list(&["10", "0"]), &known), Ok(vec![2, 0]));
        assert_eq!(numbers(&list(&["1", "3", "4"]), &known), Err("3"));
    }

    #[test]
    fn names_that_look_the_same_are_told_by_their_characters() {
        let known = ["cafe\u{301}".to_owned(), "\u{1112}\u{1161}\u{11ab}".into(), "ete\u{301}s".into()];
        let hint = |odd: &str| unknown_hint(odd, &known, "there are");
        let said = hint("caf\u{e9}");
        assert!(said.starts_with(r"`caf\u{e9}` and `cafe\u{301}` may look the same"), "{said}");
        // Another letter with an accent may be meant, and all of them are told.
        assert!(said.ends_with(&format!("there are {}", listed(&known))), "{said}");
        assert!(hint("\u{d55c}").contains(r"`\u{d55c}` and `\u{1112}"), "{}", hint("\u{d55c}"));
        for other in ["cafe", "th\u{e9}", "cafes\u{301}"] {
            assert!(hint(other).starts_with("there are `cafe"), "{other}: {}", hint(other));
        }
    }

    #[test]
    fn an_error_has_twelve_names_and_the_beginning_of_a_long_one() {
        let names: Vec<String> = (0..15).map(|i| i.to_string()).collect();
        assert_eq!(listed(&names[..2]), "`0`, `1`");
        let said = listed(&names);
        assert!(said.ends_with("`10`, `11` and 3 more"), "{said}");
        assert_eq!(short(&"ä".repeat(61)), format!("`{}…`", "ä".repeat(60)));
        assert_eq!(short(&"ä".repeat(60)), format!("`{}`", "ä".repeat(60)));
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
