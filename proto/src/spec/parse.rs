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
        let _ = write!(hint, "add `{} = …`", rest.trim_end_matches('`'));
    }
    SpecError { message, hint, at }
}
