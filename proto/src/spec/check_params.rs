//! Checks of free parameters against what their catalog entry takes.

use super::{
    Params, SpecError,
    check::{Checked, require},
    name_pattern,
};
use crate::catalog::{Entry, ParamKind, nearest_hint};

/// Every key is known to the entry, and has a value that it takes.
pub(super) fn check_params(at: &str, entry: &Entry, params: &Params) -> Checked {
    for (key, value) in params {
        let Some(param) = entry.params.iter().find(|p| p.name == *key) else {
            let known: Vec<&str> = entry.params.iter().map(|p| p.name.as_str()).collect();
            let hint = if known.is_empty() {
                format!("`{}` takes no parameters", entry.name)
            } else {
                nearest_hint(key, &known)
            };
            return Err(SpecError::new(format!("unknown key `{at}.{key}`"), hint));
        };
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
                (value.as_str().is_some_and(|v| of.iter().any(|o| o == v)), format!("one of {}", of.join(", ")))
            }
            ParamKind::Names => (
                value.as_array().is_some_and(|l| !l.is_empty() && l.iter().all(|v| v.as_str().is_some_and(is_name))),
                "a list of names such as [\"query\", \"re:layer\\\\.[01]\\\\..*key\"]".into(),
            ),
        };
        require(fits, || (format!("`{at}.{key}` cannot be {value}"), format!("it takes {wanted}")))?;
    }
    Ok(())
}

/// The end of a name, or a pattern that can be read.
fn is_name(text: &str) -> bool {
    !text.is_empty() && name_pattern(text).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::catalog::{entry, names};

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
}
