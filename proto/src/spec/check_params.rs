//! Checks of free parameters against what their catalog entry takes.

use super::{Params, SpecError, check::require, name_pattern};
use crate::catalog::{Entry, METHOD, Param, ParamKind, nearest_hint};

/// Every key is known to the entry, and has a value that it takes; `at` is where they are given.
///
/// # Errors
/// The first that is not, or has not.
pub fn check_params(at: &str, entry: &Entry, params: &Params) -> Result<(), SpecError> {
    check_given(at, entry, params, |_| true)
}

/// The same, but that only values which are words are looked at: what numbers and texts may be is asked of new jobs.
pub(super) fn check_words(at: &str, entry: &Entry, params: &Params) -> Result<(), SpecError> {
    check_given(at, entry, params, |kind| matches!(kind, ParamKind::Choice { .. }))
}

/// Checks keys, and values of the kinds that are looked at.
fn check_given(at: &str, entry: &Entry, params: &Params, looked_at: fn(&ParamKind) -> bool) -> Result<(), SpecError> {
    if let Some(named) = params.get(METHOD).filter(|_| !entry.methods.is_empty()) {
        let known: Vec<&str> = entry.methods.iter().map(|m| m.name.as_str()).collect();
        require(named.as_str().is_some_and(|name| known.contains(&name)), || {
            (format!("`{at}.{METHOD}` cannot be {named}"), nearest_hint(named.as_str().unwrap_or_default(), &known))
        })?;
    }
    let method = entry.method(params);
    let known: Vec<&Param> = entry.params_of(params).collect();
    for (key, value) in params.iter().filter(|(key, _)| *key != METHOD || entry.methods.is_empty()) {
        let Some(param) = known.iter().find(|p| p.name == *key) else {
            if let Some(other) = entry.methods.iter().find(|m| m.params.iter().any(|p| p.name == *key)) {
                let own: Vec<String> = method.params.iter().map(|p| format!("`{}`", p.name)).collect();
                let own = if own.is_empty() { "nothing of its own".into() } else { own.join(", ") };
                return Err(SpecError::new(
                    format!("`{at}.{key}` says nothing to the method `{}`", method.name),
                    format!("remove it, or write `{METHOD} = \"{}\"`; `{}` takes {own}", other.name, method.name),
                ));
            }
            let known: Vec<&str> = known.iter().map(|p| p.name.as_str()).collect();
            let hint = if known.is_empty() {
                format!("`{}` takes no parameters", entry.name)
            } else {
                nearest_hint(key, &known)
            };
            return Err(SpecError::new(format!("unknown key `{at}.{key}`"), hint));
        };
        if !looked_at(&param.kind) {
            continue;
        }
        let (fits, wanted) = match &param.kind {
            ParamKind::Number { min, max } => (
                value.as_f64().is_some_and(|v| v.is_finite() && (*min..=*max).contains(&v)),
                format!("a number from {min} to {max}"),
            ),
            ParamKind::Integer { min, max } => (
                value.as_i64().is_some_and(|v| (*min..=*max).contains(&v)),
                format!("a whole number from {min} to {max}"),
            ),
            ParamKind::Flag => (value.is_boolean(), "true or false".into()),
            ParamKind::Choice { of } => {
                let shown: Vec<String> = of.iter().map(|o| format!("{o:?}")).collect();
                (value.as_str().is_some_and(|v| of.iter().any(|o| o == v)), format!("one of {}", shown.join(", ")))
            }
            ParamKind::Numbers { min, max } => {
                let within =
                    |v: &serde_json::Value| v.as_f64().is_some_and(|v| v.is_finite() && (*min..=*max).contains(&v));
                (
                    value.as_array().is_some_and(|l| l.iter().all(within)),
                    format!("a list of numbers from {min} to {max}"),
                )
            }
            ParamKind::Names => (
                value.as_array().is_some_and(|l| !l.is_empty() && l.iter().all(|v| v.as_str().is_some_and(is_name))),
                "a list of names such as [\"query\", \"re:layer\\\\.[01]\\\\..*key\"]".into(),
            ),
            ParamKind::Texts => (
                value.as_array().is_some_and(|l| (1..=1000).contains(&l.len()) && l.iter().all(is_sentence)),
                "a list of sentences of at most 1000 letters".into(),
            ),
            ParamKind::Place => (is_path(value), "a folder or a file".into()),
            ParamKind::Paths => (
                value.as_array().is_some_and(|l| (1..=1000).contains(&l.len()) && l.iter().all(is_path)),
                "a list of paths such as [\"validation_list.txt\"]".into(),
            ),
            ParamKind::Pattern => (
                value.as_str().is_some_and(|v| name_pattern(&format!("re:{v}")).is_ok()),
                "a regular expression such as '_[0-4]\\.wav$'".into(),
            ),
            ParamKind::Column { several } => {
                let list = value.as_array().filter(|_| *several);
                let more = if *several { ", or a list of those" } else { "" };
                (
                    is_column(value) || list.is_some_and(|l| (1..=100).contains(&l.len()) && l.iter().all(is_column)),
                    format!("a column's number from 1, or its name{more}"),
                )
            }
        };
        require(fits, || (format!("`{at}.{key}` cannot be {value}"), format!("it takes {wanted}")))?;
    }
    Ok(())
}

/// What a path may be, whether something lies there or not.
fn is_path(value: &serde_json::Value) -> bool {
    value.as_str().is_some_and(|text| (1..=4096).contains(&text.len()) && !text.contains('\0'))
}

fn is_sentence(value: &serde_json::Value) -> bool {
    value.as_str().is_some_and(|text| !text.trim().is_empty() && text.chars().count() <= 1000)
}

fn is_column(value: &serde_json::Value) -> bool {
    value.as_u64().is_some_and(|number| number > 0) || value.as_str().is_some_and(|name| !name.trim().is_empty())
}

/// The end of a name, or a pattern that can be read.
fn is_name(text: &str) -> bool {
    !text.is_empty() && name_pattern(text).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::catalog::{choice, column, entry, names, number, numbers};

    #[test]
    fn a_method_brings_its_own_parameters_and_no_others() {
        let method =
            |name: &str, param: &str| Entry { params: vec![number(param, 1.0, 0.0, 2.0, "")], ..entry(name, "") };
        let entry = Entry {
            params: vec![number("weight", 1.0, 0.0, 9.0, "")],
            methods: vec![method("coral", "mean"), method("dann", "alpha")],
            ..entry("adapt", "")
        };
        let check = |given: Value| check_params("objective", &entry, &serde_json::from_value(given).unwrap());
        check(json!({ "weight": 3, "mean": 0.5 })).unwrap();
        check(json!({ "method": "dann", "alpha": 2, "weight": 3 })).unwrap();
        let error = check(json!({ "method": "dann", "mean": 0.5 })).unwrap_err();
        assert_eq!(error.message, "`objective.mean` says nothing to the method `dann`");
        assert_eq!(error.hint, "remove it, or write `method = \"coral\"`; `dann` takes `alpha`");
        let error = check(json!({ "method": "dan" })).unwrap_err();
        assert!(error.message.contains("cannot be \"dan\"") && error.hint.contains("`dann`"), "{error}");
        assert!(check(json!({ "method": "dann", "alpha": 3 })).is_err());
        assert!(check(json!({ "method": 1 })).is_err());
    }

    #[test]
    fn a_method_has_bounds_of_its_own_for_a_parameter_of_its_kind() {
        let method =
            |name: &str, most: f64| Entry { params: vec![number("weight", 1.0, 0.0, most, "")], ..entry(name, "") };
        let entry = Entry { methods: vec![entry("coral", ""), method("dann", 2.0)], ..method("adapt", 9.0) };
        let check = |given: Value| check_params("objective", &entry, &serde_json::from_value(given).unwrap());
        check(json!({ "weight": 9 })).unwrap();
        check(json!({ "method": "dann", "weight": 2 })).unwrap();
        let error = check(json!({ "method": "dann", "weight": 3 })).unwrap_err();
        assert_eq!(error.hint, "it takes a number from 0 to 2");
    }

    #[test]
    fn numbers_are_a_list_within_a_range() {
        let entry = Entry { params: vec![numbers("weights", 0.0, 9.0, "")], ..entry("distill", "") };
        let given = |value: Value| [("weights".to_owned(), value)].into();
        check_params("objective", &entry, &given(json!([1, 0.5]))).unwrap();
        assert_eq!(entry.numbers(&given(json!([1, 0.5])), "weights"), [1.0, 0.5]);
        assert_eq!(entry.numbers(&Params::new(), "weights"), [0.0; 0]);
        for bad in [json!(1), json!([10]), json!(["1"]), json!([null])] {
            let error = check_params("objective", &entry, &given(bad)).unwrap_err();
            assert!(error.hint.contains("a list of numbers from 0 to 9"), "{error}");
        }
    }

    #[test]
    fn a_column_is_a_number_or_a_name_and_several_are_a_list() {
        let params = vec![column("label", 1, false, ""), column("text", 2, true, "")];
        let entry = Entry { params, ..entry("text", "") };
        let check = |key: &str, value: Value| check_params("data.params", &entry, &[(key.to_owned(), value)].into());
        for key in ["label", "text"] {
            check(key, json!(2)).unwrap();
            check(key, json!("Class Index")).unwrap();
            for bad in [json!(0), json!(-1), json!(1.5), json!(" "), json!(true), json!([]), json!([0]), json!([[1]])] {
                let error = check(key, bad.clone()).unwrap_err();
                assert!(error.hint.contains("a column's number from 1, or its name"), "{key} = {bad}: {error}");
            }
        }
        check("text", json!(["title", 3])).unwrap();
        assert!(check("label", json!([1])).is_err());
    }

    #[test]
    fn words_that_are_white_are_shown_as_a_job_writes_them() {
        let entry = Entry { params: vec![choice("separator", &["auto", "\t", ","], "")], ..entry("text", "") };
        let check = |value: &str| check_params("p", &entry, &[("separator".to_owned(), value.into())].into());
        check("\t").unwrap();
        assert_eq!(check("|").unwrap_err().hint, r#"it takes one of "auto", "\t", ",""#);
    }

    #[test]
    fn names_are_a_list_of_ends_and_patterns() {
        let entry = Entry { params: vec![names("targets", &["query"], "")], ..entry("lora", "") };
        let check = |value: Value| check_params("m", &entry, &[("targets".to_owned(), value)].into());
        check(json!(["query", "re:layer[01]"])).unwrap();
        for bad in [json!("query"), json!([]), json!([1]), json!([""]), json!(["re:("])] {
            let error = check(bad.clone()).unwrap_err();
            assert!(error.hint.contains("a list of names"), "{bad}: {error}");
        }
    }

    #[test]
    fn places_and_paths_are_text_that_names_something() {
        use crate::catalog;
        let params = vec![catalog::place("root", ""), catalog::paths("without", "")];
        let entry = Entry { params, ..entry("f", "") };
        let check = |given: Value| check_params("data.params", &entry, &serde_json::from_value(given).unwrap());
        check(json!({ "root": "../images", "without": ["a.txt", "b/c"] })).unwrap();
        for bad in [json!({ "root": "" }), json!({ "root": 1 }), json!({ "root": "a\0" }), json!({ "root": ["a"] })] {
            assert!(check(bad).unwrap_err().hint.contains("a folder or a file"));
        }
        for bad in [json!([]), json!("a"), json!([""]), json!([1])] {
            assert!(check(json!({ "without": bad })).unwrap_err().hint.contains("a list of paths"));
        }
    }
}
