//! Reads a job file: where it is wrong, with line, column and the nearest known key.

use std::fmt::Write as _;

use super::JobSpec;
use crate::{MAX_SPEC_BYTES, catalog::nearest_hint};

/// Something in a job file that cannot stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct SpecError {
    /// One sentence.
    pub message: String,
    /// What to do.
    pub hint: String,
    /// Line and column, from 1, where they are known.
    pub at: Option<(usize, usize)>,
}

impl SpecError {
    /// An error without a place.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), at: None }
    }
}

impl std::fmt::Display for SpecError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some((line, column)) = self.at {
            write!(f, "line {line}, column {column}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Parses a job file.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse(text: &str) -> Result<JobSpec, SpecError> {
    parse_with(text, &[])
}

/// Parses a job file after replacing keys, each given as `a.b=c` (see [`set_override`]).
pub(super) fn parse_with(text: &str, overrides: &[String]) -> Result<JobSpec, SpecError> {
    if text.len() > MAX_SPEC_BYTES {
        return Err(SpecError::new(
            format!("the job file has {} bytes, more than the limit of {MAX_SPEC_BYTES}", text.len()),
            "a job file names its data, it does not hold it",
        ));
    }
    if overrides.is_empty() {
        return expanded(toml::from_str(text).map_err(|e| located(text, &e))?);
    }
    let mut table: toml::Table = toml::from_str(text).map_err(|e| located(text, &e))?;
    for change in overrides {
        set_override(&mut table, change)?;
    }
    let text = toml::to_string(&table).map_err(|e| SpecError::new(e.to_string(), ""))?;
    expanded(toml::from_str(&text).map_err(|e| SpecError { at: None, ..located(&text, &e) })?)
}

/// With recipes written out.
fn expanded(mut spec: JobSpec) -> Result<JobSpec, SpecError> {
    spec.expand()?;
    Ok(spec)
}

impl JobSpec {
    /// Parses a job file after replacing keys, each given as `a.b=c`; `stage.0.lr=0.1` reaches into lists.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn from_toml(text: &str, overrides: &[String]) -> Result<Self, SpecError> {
        parse_with(text, overrides)
    }
}

/// Replaces one key, given as `a.b=c`, in a parsed file. The value is TOML where it is, else a string.
///
/// # Errors
/// A change that names no place in the file.
pub fn set_override(table: &mut toml::Table, change: &str) -> Result<(), SpecError> {
    let bad = |why: &str| SpecError::new(format!("`--set {change}`: {why}"), "write it as `--set stage.0.lr=0.01`");
    let (path, value) = change.split_once('=').ok_or_else(|| bad("there is no `=`"))?;
    let value = format!("v = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.into()));
    let mut keys: Vec<&str> = path.split('.').map(str::trim).collect();
    let last = keys.pop().filter(|k| !k.is_empty()).ok_or_else(|| bad("the key is empty"))?;
    let mut root = toml::Value::Table(std::mem::take(table));
    let result = (|| {
        let mut place = &mut root;
        for key in keys {
            place = match place {
                toml::Value::Table(t) => t.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new())),
                toml::Value::Array(a) => key
                    .parse::<usize>()
                    .ok()
                    .and_then(|i| a.get_mut(i))
                    .ok_or_else(|| bad(&format!("the list has no entry `{key}`")))?,
                _ => return Err(bad(&format!("`{key}` is below a plain value"))),
            };
        }
        match place {
            toml::Value::Table(t) => {
                t.insert(last.into(), value);
                Ok(())
            }
            toml::Value::Array(a) => {
                let slot = last.parse::<usize>().ok().and_then(|i| a.get_mut(i));
                *slot.ok_or_else(|| bad(&format!("the list has no entry `{last}`")))? = value;
                Ok(())
            }
            _ => Err(bad("it is below a plain value")),
        }
    })();
    if let toml::Value::Table(t) = root {
        *table = t;
    }
    result
}

fn located(text: &str, error: &toml::de::Error) -> SpecError {
    let message = error.message().lines().next().unwrap_or_default().to_owned();
    let at = error.span().map(|span| {
        let before = &text[..span.start.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        (line, column)
    });
    let mut hint = String::new();
    // serde says: unknown field `bach`, expected one of `a`, `b`; and the same of a variant
    let nearest = |rest: &str| {
        let mut quoted = rest.split('`');
        let got = quoted.next().unwrap_or_default().to_owned();
        let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
        let hint = if known.is_empty() { String::new() } else { nearest_hint(&got, &known) };
        (got, hint)
    };
    if let Some(rest) = message.strip_prefix("unknown field `") {
        let (got, hint) = nearest(rest);
        return SpecError { message: format!("unknown key `{got}`"), hint, at };
    }
    if let Some(rest) = message.strip_prefix("unknown variant `") {
        hint = nearest(rest).1;
    }
    if let Some(rest) = message.strip_prefix("missing field `") {
        let key = rest.trim_end_matches('`');
        let _ = write!(hint, "add `{key} = …`");
        let of = error.span().and_then(|span| key_at(text, span.start));
        if (key, of) == ("val", Some("data")) {
            hint += ": a place with samples that are not trained on, or a share of those of `train`, ";
            hint += "such as `val = 0.2`";
        }
    }
    let key = error.span().and_then(|span| key_at(text, span.start));
    if message.starts_with("invalid type: floating point") && key == Some("val") {
        let message = "`val` is the place of samples here, and no share of others".into();
        let hint = "name a folder or a file; `[data]`, `[data.target]` and `[tasks.NAME]` take a share".into();
        return SpecError { message, hint, at };
    }
    let got = message.strip_prefix("invalid type: ").and_then(|rest| rest.strip_suffix(", expected a sequence"));
    if let (Some(got), Some(key)) = (got, key) {
        let (message, hint) = match got {
            "map" => (format!("`{key}` is one table, and can be several"), format!("write `[[{key}]]`")),
            _ => {
                let value = got.split_once(' ').map_or(got, |(_, value)| value.trim_matches('`'));
                (format!("`{key}` is a list, and not {value}"), format!("write `{key} = [{value}]`"))
            }
        };
        return SpecError { message, hint, at };
    }
    SpecError { message, hint, at }
}

/// The key of the value that stands somewhere in a file, or of the table whose head stands there.
fn key_at(text: &str, at: usize) -> Option<&str> {
    let (before, after) = text.split_at_checked(at)?;
    let line = before.rsplit('\n').next()?.trim_end();
    let key = match line.strip_suffix('=') {
        Some(line) => line.trim_end().rsplit([' ', '\t', ',', '{']).next()?,
        None => after.strip_prefix('[')?.split(']').next()?.rsplit('.').next()?,
    };
    Some(key.trim()).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "schema = 1\njob = { name = \"t\", kind = \"finetune\" }\n\
                       [data]\nformat = \"image_folder\"\ntrain = \"a\"\nval = \"b\"\nbatch = 8\n\
                       [model]\nbackbone = \"small_cnn\"\n\
                       [[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.1\n";

    fn refused(from: &str, to: &str) -> SpecError {
        assert!(JOB.contains(from) && parse(JOB).is_ok());
        parse(&JOB.replace(from, to)).unwrap_err()
    }

    #[test]
    fn what_is_no_list_is_told_by_its_key_and_how_it_is_one() {
        let stage = refused("[[stage]]", "[stage]");
        let want = ("`stage` is one table, and can be several", "write `[[stage]]`");
        assert_eq!((stage.message.as_str(), stage.hint.as_str(), stage.at), (want.0, want.1, Some((10, 1))));
        let train = refused("train = [\"*\"]", "train = \"head\"");
        let want = ("`train` is a list, and not \"head\"", "write `train = [\"head\"]`");
        assert_eq!((train.message.as_str(), train.hint.as_str()), want);
        // As `--set` leaves it.
        let set = JobSpec::from_toml(JOB, &["stage.0.train=head".into()]).unwrap_err();
        assert_eq!((set.message.as_str(), set.at), (want.0, None));
        // In a table of one line.
        let inner = refused("kind = \"finetune\"", "kind = \"finetune\", seeds = 3");
        assert_eq!(inner.hint, "write `seeds = [3]`");
    }

    #[test]
    fn who_has_no_validation_samples_hears_of_a_way_to_divide_those_to_train() {
        let none = refused("val = \"b\"\n", "");
        assert_eq!(none.message, "missing field `val`");
        let hint = &none.hint;
        assert!(hint.starts_with("add `val = …`") && hint.ends_with("such as `val = 0.2`"), "{hint}");
        let source = refused("batch = 8\n", "batch = 8\nsource = {}\n");
        assert_eq!(source.hint, "add `val = …`", "of that there is no share");
        let source = refused("batch = 8\n", "batch = 8\nsource = { val = 0.2 }\n");
        assert!(source.message.contains("no share") && source.hint.contains("`[data.target]`"), "{source}");
        let other = refused("batch = 8\n", "");
        assert_eq!(other.hint, "add `batch = …`");
    }
}
