//! Heads that come with weights: each is good for the classes that it was trained on.

use std::{collections::BTreeMap, path::Path};

use candle_core::Tensor;

use super::{about, fill, labels::Order, read};
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

/// Outputs of a head mean the classes that it was trained on, in their order: that of a file of ours, or the one that is
/// returned, which the names beside anyone else's weights give.
pub(super) fn order(path: &Path, classes: &[String]) -> Result<Option<Order>> {
    let about = about(path)?;
    compare_classes(path, about.get("classes"), classes)?;
    // A file of ours says all of itself.
    if about.get("contract").is_some() { Ok(None) } else { Order::beside(path, classes) }
}

/// What is to be told of a head that is kept for `classes`, where others have given its outputs another order or other
/// names.
///
/// # Errors
/// A head for other classes.
pub fn relabelled(path: &Path, classes: &[String]) -> Result<Option<String>> {
    Ok(order(path, classes)?.and_then(|order| order.sentence(classes)))
}

/// A head that is kept has an output for each class; `store` is the network's.
pub(super) fn same_number(store: &Store, file: &BTreeMap<String, Tensor>, classifier: &str, path: &Path) -> Result<()> {
    let name = format!("{classifier}.weight");
    let wanted = store.params.iter().find(|e| e.name == name).map(|e| e.shape.as_slice());
    match (wanted, file.get(&name).map(Tensor::dims)) {
        // Of another width, it is of another network.
        (Some([wanted, width @ ..]), Some([n, other @ ..])) if width == other && wanted != n => Err(Error::user(
            format!("the head of the weights `{}` is for {n} classes, and the data have {wanted}", path.display()),
            "a head, such as a teacher's, can only be kept for the classes that it was trained on; without `head.keep` a \
             network gets a new one",
        )),
        _ => Ok(()),
    }
}

/// Refuses a head for other classes, or in another order, than a file of ours says of it.
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
