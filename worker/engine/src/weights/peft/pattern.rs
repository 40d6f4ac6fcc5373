//! One regular expression for a set of names, of which peft takes those that it matches as a whole.

use std::collections::{BTreeMap, BTreeSet};

/// A pattern that matches each of these names as a whole, and nothing else. Names that go on in the same way share it:
/// `layer\.(?:0|1)\.(?:query|value)`.
pub(super) fn exactly<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut paths: BTreeSet<Vec<&str>> = BTreeSet::new();
    paths.extend(names.into_iter().map(|name| name.split('.').collect()));
    below(&paths.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// For sorted paths that are not empty.
fn below(paths: &[&[&str]]) -> String {
    let mut ways: BTreeMap<&str, Vec<&[&str]>> = BTreeMap::new();
    for (first, rest) in paths.iter().filter_map(|p| p.split_first()) {
        ways.entry(first).or_default().push(rest);
    }
    // Steps that go on in the same way.
    let mut alike: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (step, rests) in ways {
        let ends = rests.iter().any(|r| r.is_empty());
        let on: Vec<&[&str]> = rests.into_iter().filter(|r| !r.is_empty()).collect();
        let rest = match (on.is_empty(), ends) {
            (true, _) => String::new(),
            (false, false) => format!("\\.{}", below(&on)),
            (false, true) => format!("(?:\\.{})?", below(&on)),
        };
        alike.entry(rest).or_default().push(step);
    }
    any(alike.into_iter().map(|(rest, steps)| any(steps.into_iter().map(literal).collect()) + &rest).collect())
}

fn any(of: Vec<String>) -> String {
    if of.len() == 1 { of.concat() } else { format!("(?:{})", of.join("|")) }
}

fn literal(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii();
    text.chars().flat_map(|c| (!is_plain(c)).then_some('\\').into_iter().chain([c])).collect()
}

/// Whether a pattern of Python's matches a whole name.
///
/// # Errors
/// A pattern that only Python understands, or that is too large.
pub(super) fn is_match(pattern: &str, name: &str) -> Result<bool, String> {
    let whole = regex::bytes::RegexBuilder::new(&format!("^(?:{pattern})$"))
        .unicode(false)
        .size_limit(1 << 22)
        .nest_limit(64)
        .build();
    let whole = whole.map_err(|_| format!("the pattern `{pattern}` cannot be read here"))?;
    Ok(whole.is_match(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_short_where_names_are_alike() {
        let names: Vec<String> = (0..3)
            .flat_map(|i| ["query", "value"].map(|part| format!("bert.encoder.layer.{i}.attention.self.{part}")))
            .collect();
        let text = exactly(names.iter().map(String::as_str));
        assert_eq!(text, r"bert\.encoder\.layer\.(?:0|1|2)\.attention\.self\.(?:query|value)");
        assert_eq!(exactly(["fc"]), "fc");
        assert!(exactly(["a.b", "a"]) == r"a(?:\.b)?" && exactly(["a-b"]) == r"a\-b");
        assert!(is_match("(?P<x>a)(?=b)", "ab").is_err());
    }

    proptest::proptest! {
        #[test]
        fn a_pattern_matches_its_names_and_no_other(
            all in proptest::collection::btree_set("[ab1](\\.[ab1]{1,2}){0,3}", 1..24), keep: u32,
        ) {
            let names: Vec<&String> = all.iter().collect();
            let kept: Vec<&str> =
                names.iter().enumerate().filter(|(i, _)| keep >> i & 1 == 1).map(|(_, n)| n.as_str()).collect();
            if kept.is_empty() {
                return Ok(());
            }
            let text = exactly(kept.iter().copied());
            for name in &names {
                let matches = is_match(&text, name).unwrap();
                assert_eq!(matches, kept.contains(&name.as_str()), "{text} and {name}");
            }
        }
    }
}
