//! What training scripts put in front of the names of a model's tensors.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use crate::Error;

/// Around a model that several devices have trained, or that is averaged, PyTorch puts another one of this name.
const MODULE: &str = "module.";
/// What an averaged model counts its steps in.
const COUNTER: &str = "n_averaged";
/// Around a model, or any part of it, that is compiled, spread over devices, or computed again in the backward pass, PyTorch
/// puts others of these names.
const WRAPPERS: [&str; 3] = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."];
/// What scripts call a network within what they train.
const KNOWN: [&str; 6] = ["module", "model", "net", "network", "backbone", "encoder"];
/// How many parts a prefix may have.
const DEEPEST: usize = 4;

/// Names without what PyTorch has put around the model; as they are, where two would become one.
pub(super) fn unwrapped(names: &[String]) -> Vec<String> {
    let without = |name: &String| WRAPPERS.iter().fold(name.clone(), |name, wrapper| name.replace(*wrapper, ""));
    let mut bare: Vec<String> = names.iter().map(without).collect();
    let is_wrapped = |names: &[String]| {
        let mut others = names.iter().filter(|name| name.as_str() != COUNTER).peekable();
        others.peek().is_some() && others.all(|name| name.starts_with(MODULE))
    };
    while is_wrapped(&bare) {
        bare.iter_mut().filter(|name| name.as_str() != COUNTER).for_each(|name| drop(name.drain(..MODULE.len())));
    }
    let distinct = bare.iter().collect::<BTreeSet<_>>().len();
    if distinct == names.len() { bare } else { names.to_vec() }
}

type Tensors = BTreeMap<String, Tensor>;

/// A file under the names of a network.
pub(super) struct Fitted {
    /// Its tensors.
    pub file: Tensors,
    /// Where `file` lacks some: what the names of all of them begin with elsewhere in it.
    pub elsewhere: Vec<String>,
}

/// The tensors of `file` with the `wanted` names, once `usual` has renamed them. Where they are not all there, those behind
/// a prefix by which scripts call a network are taken in their place, if all are there and behind no other one; what has not
/// that prefix stays as it is.
pub(super) fn fitted(file: Tensors, usual: impl Fn(Tensors) -> Tensors, wanted: &[&str]) -> Fitted {
    let fits = |file: &Tensors| wanted.iter().all(|name| file.contains_key(*name));
    let plain = usual(file.clone());
    if fits(&plain) {
        return Fitted { file: plain, elsewhere: Vec::new() };
    }
    let mut found: Vec<(String, Tensors)> = Vec::new();
    for prefix in prefixes(&file, wanted.len()) {
        let bare = |(name, t): (&String, &Tensor)| Some((name.strip_prefix(prefix.as_str())?.to_owned(), t.clone()));
        let behind = usual(file.iter().filter_map(bare).collect());
        // Where `usual` takes off another prefix too, the same tensors are found again behind both.
        let same = |(_, outer): &(String, Tensors)| {
            wanted.iter().all(|name| outer.get(*name).map(Tensor::id) == behind.get(*name).map(Tensor::id))
        };
        if fits(&behind) && !found.iter().any(same) {
            found.push((prefix, behind));
        }
    }
    match found.pop() {
        Some((prefix, behind)) if found.is_empty() && is_known(&prefix) => {
            let mut all = usual(file.into_iter().filter(|(name, _)| !name.starts_with(prefix.as_str())).collect());
            all.extend(behind);
            Fitted { file: all, elsewhere: Vec::new() }
        }
        last => {
            let elsewhere = found.into_iter().chain(last).map(|(prefix, _)| prefix).collect();
            Fitted { file: plain, elsewhere }
        }
    }
}

/// Whether scripts call a network so: `model.`, `net.backbone.`.
pub(super) fn is_known(prefix: &str) -> bool {
    prefix.trim_end_matches('.').split('.').all(|part| KNOWN.contains(&part))
}

/// What at least `least` names begin with, up to a dot.
fn prefixes(file: &Tensors, least: usize) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in file.keys() {
        for (dot, _) in name.match_indices('.').take(DEEPEST) {
            *counts.entry(&name[..=dot]).or_default() += 1;
        }
    }
    counts.into_iter().filter(|(_, count)| *count >= least).map(|(prefix, _)| prefix.to_owned()).collect()
}

/// The error that names are missing, with what is to be done where they are all `elsewhere`.
pub(super) fn hinted(error: Error, elsewhere: &[String]) -> Error {
    match (error, elsewhere) {
        (Error::User { message, .. }, [first, ..]) => {
            // Of a network and its average, the network.
            let first = elsewhere.iter().find(|prefix| is_known(prefix)).unwrap_or(first);
            let all: Vec<String> = elsewhere.iter().map(|prefix| format!("`{prefix}`")).collect();
            let hint = format!(
                "all of it is there behind {}: save that alone, `{{k.removeprefix(\"{first}\"): v for k, v in state.items() \
                 if k.startswith(\"{first}\")}}`",
                all.join(" and behind "),
            );
            Error::user(message, hint)
        }
        (error, _) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unwrap(names: &[&str]) -> Vec<String> {
        unwrapped(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>())
    }

    #[test]
    fn what_pytorch_puts_around_a_model_is_taken_off_if_it_is_around_all_of_it() {
        for names in [
            ["fc.weight", "fc.bias"],
            ["module.fc.weight", "module.fc.bias"],
            ["_orig_mod.fc.weight", "_orig_mod.fc.bias"],
            ["module._orig_mod.fc.weight", "module._orig_mod.fc.bias"],
            ["_orig_mod.module.module.fc.weight", "_orig_mod.module.module.fc.bias"],
            ["_fsdp_wrapped_module.fc._orig_mod.weight", "_fsdp_wrapped_module.fc._checkpoint_wrapped_module.bias"],
        ] {
            assert_eq!(unwrap(&names), ["fc.weight", "fc.bias"]);
        }
        assert_eq!(unwrap(&["n_averaged", "module.fc.bias"]), ["n_averaged", "fc.bias"]);
        for names in [&["module.fc.bias", "fc.bias"][..], &["_orig_mod.a", "a"][..], &["n_averaged"][..], &[][..]] {
            assert_eq!(unwrap(names), names);
        }
    }

    /// What becomes of a file of these names for a network of `a.weight` and `b.weight`.
    fn fit(names: &[&str]) -> (Vec<String>, Vec<String>) {
        let one = || crate::nn::tensor(vec![1.0], &[1]).unwrap();
        let file = names.iter().map(|name| ((*name).to_owned(), one())).collect();
        // As where another library says `c` for `b`, and puts `in.` before a part.
        let bare = |name: &str| name.strip_prefix("in.").unwrap_or(name).replace("c.", "b.");
        let usual = |file: Tensors| -> Tensors { file.into_iter().map(|(name, t)| (bare(&name), t)).collect() };
        let fitted = fitted(file, usual, &["a.weight", "b.weight"]);
        (fitted.file.into_keys().collect(), fitted.elsewhere)
    }

    #[test]
    fn a_network_is_found_behind_one_known_prefix_and_others_are_named() {
        for known in ["", "model.", "net.backbone.", "module.encoder."] {
            let names = [format!("{known}a.weight"), format!("{known}c.weight"), "loss.scale".to_owned()];
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            assert_eq!(fit(&names), (["a.weight", "b.weight", "loss.scale"].map(String::from).to_vec(), vec![]));
        }
        // Not all of it, behind a name that says nothing, and twice.
        let kept = |names: &[&str]| names.iter().map(|name| name.replace("c.", "b.")).collect::<Vec<String>>();
        for (names, elsewhere) in [
            (&["model.a.weight", "model.d.weight"][..], &[][..]),
            (&["q.a.weight", "q.b.weight"][..], &["q."][..]),
            (&["ema.a.weight", "ema.b.weight", "model.a.weight", "model.b.weight"][..], &["ema.", "model."][..]),
            (&["net.a.weight", "net.b.weight", "net.q.a.weight", "net.q.b.weight"][..], &["net.", "net.q."][..]),
        ] {
            let elsewhere: Vec<String> = elsewhere.iter().map(|prefix| (*prefix).to_owned()).collect();
            assert_eq!(fit(names), (kept(names), elsewhere), "{names:?}");
        }
        // The same tensors, with a prefix that the library itself knows and without it: one network, and its head.
        let names = ["model.head.weight", "model.in.a.weight", "model.in.b.weight"];
        assert_eq!(fit(&names), (["a.weight", "b.weight", "head.weight"].map(String::from).to_vec(), vec![]));
    }

    #[test]
    fn the_hint_names_what_would_fit() {
        let error = || Error::user("no conv1.weight", "the network");
        let Error::User { message, hint } = hinted(error(), &["q.".to_owned()]) else { panic!("another error") };
        assert!(message == "no conv1.weight" && hint.contains("removeprefix(\"q.\")"), "{hint}");
        let both = ["ema_model.".to_owned(), "model.".to_owned()];
        let Error::User { hint, .. } = hinted(error(), &both) else { panic!("another error") };
        assert!(hint.contains("behind `ema_model.` and behind `model.`"), "{hint}");
        assert!(hint.contains("removeprefix(\"model.\")"), "{hint}");
        let Error::User { hint, .. } = hinted(error(), &[]) else { panic!("another error") };
        assert_eq!(hint, "the network");
    }
}
