//! Heads that come with weights: each is good for the classes that it was trained on.

use std::path::Path;

use super::{about, fill, read};
use crate::{Error, Result, backbone::TaskHead, nn::Store};

/// Fills the heads of further tasks, which a network of ours has brought, from its file: names of tasks, and the classes
/// that they are for. Returns the names of the parameters that were there.
///
/// # Errors
/// As [`super::load`].
pub fn load_tasks(store: &mut Store, path: &Path, tasks: &[(&str, &[String])]) -> Result<Vec<String>> {
    let (about, file, mut loaded) = (about(path)?, read(path)?, Vec::new());
    for (name, classes) in tasks {
        let said = about.get("tasks").and_then(|tasks| tasks.get(*name)).and_then(|task| task.get("classes"));
        if said.is_none() {
            return Err(Error::user(
                format!("weights `{}` have no head for task `{name}`", path.display()),
                format!("remove `tasks.{name}.head.keep`, or give the model of a job that has learned it"),
            ));
        }
        compare_classes(path, said, classes)?;
        let prefix = TaskHead::prefix(name);
        let own = |entry: &str| entry.starts_with(&prefix);
        fill(store, &file, own, &path.display().to_string()).map_err(|error| match error {
            // The network itself is theirs, or it would not have come so far.
            Error::User { message, .. } => {
                Error::user(message, format!("`tasks.{name}.head` must be as in the job that has trained it"))
            }
            other => other,
        })?;
        loaded.extend(store.params.iter().map(|entry| &entry.name).filter(|entry| own(entry)).cloned());
    }
    Ok(loaded)
}

/// Outputs of a head mean the classes that it was trained on, in their order.
pub(super) fn same_classes(path: &Path, classes: &[String]) -> Result<()> {
    compare_classes(path, about(path)?.get("classes"), classes)
}

/// The same of what a file says of one of its heads.
fn compare_classes(path: &Path, said: Option<&serde_json::Value>, classes: &[String]) -> Result<()> {
    let own = said.and_then(|c| serde_json::from_value::<Vec<String>>(c.clone()).ok());
    let Some(own) = own else { return Ok(()) };
    let Some(odd) = (0..own.len().max(classes.len())).find(|i| own.get(*i) != classes.get(*i)) else {
        return Ok(());
    };
    let name = |list: &[String]| list.get(odd).map_or("missing".to_owned(), |class| format!("`{class}`"));
    let (theirs, wanted) = (name(&own), name(classes));
    Err(Error::user(
        format!("class {} of weights `{}` is {theirs}, and of the data {wanted}", odd + 1, path.display()),
        "a head can only be kept for the classes that it was trained on: the same names, in the same order",
    ))
}
