//! Whether an adapter is all there: each piece that is begun, and each that its configuration names.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use serde_json::Value;

use super::{
    FILES, Folder, PARTS,
    config::Config,
    names::{is_head, module},
    pattern,
    write::hides,
};
use crate::{
    Error, Result,
    backbone::{Backbone, Network},
    nn::{Entry, Store},
};

/// What a configuration names.
pub(super) struct Named {
    targets: Value,
    saved: Vec<String>,
    /// What stands before the network's own names of layers that have parts, such as `bert.`.
    prefixes: BTreeSet<String>,
}

impl Named {
    /// `written` are names in the file, by the network's own.
    pub(super) fn of(config: &Config, backbone: &Backbone, written: &BTreeMap<String, String>) -> Self {
        let inner = written.iter().filter(|(own, _)| !is_head(backbone, own));
        let prefixes = inner.filter_map(|(own, theirs)| theirs.strip_suffix(own.as_str())).map(str::to_owned).collect();
        Self { targets: config.targets(), saved: config.saved(), prefixes }
    }

    /// Whether peft puts a part on a layer.
    fn wants_part(&self, layer: &str) -> bool {
        self.prefixes.iter().map(|prefix| format!("{prefix}{layer}")).any(|key| {
            let named = match &self.targets {
                // One that only Python understands says nothing here.
                Value::String(text) => pattern::is_match(text, &key).unwrap_or(false),
                Value::Array(list) => {
                    list.iter().filter_map(Value::as_str).any(|end| format!(".{key}").ends_with(&format!(".{end}")))
                }
                _ => false,
            };
            named && !self.saved.iter().any(|saved| hides(saved, &key))
        })
    }

    /// The name for which peft saves a module as it is: one that it or a block around it ends in.
    fn saves(&self, module: &str) -> Option<&String> {
        let keys = self.prefixes.iter().map(|prefix| format!("{prefix}{module}")).chain([module.to_owned()]);
        let around = |key: String| {
            let ends: Vec<usize> = key.match_indices('.').map(|(at, _)| at).chain([key.len()]).collect();
            ends.into_iter().map(move |end| key[..end].to_owned())
        };
        let around: Vec<String> = keys.flat_map(around).collect();
        self.saved.iter().find(|saved| around.iter().any(|key| key.ends_with(saved.as_str())))
    }
}

impl Folder {
    /// Whether every module that it brings is whole, and the head if there is something of it.
    ///
    /// # Errors
    /// Names what is missing.
    pub(super) fn is_whole(
        &self,
        named: &BTreeMap<String, &Tensor>,
        network: &Store,
        backbone: &Backbone,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let saved = named.keys().filter(|name| !PARTS.iter().any(|end| name.ends_with(end)));
        let saved: BTreeMap<&str, &String> = saved.filter_map(|name| Some((module(name)?, name))).collect();
        let head = named.keys().find(|name| is_head(backbone, name));
        for entry in missing(network, named).filter(|e| wanted(&e.name)) {
            let of_module = module(&entry.name).and_then(|m| saved.get(m).copied());
            let of_head = head.filter(|_| is_head(backbone, &entry.name));
            if let Some(has) = of_module.or(of_head) {
                return Err(self.half(format!("it has `{has}`, and no `{}`", entry.name)));
            }
        }
        Ok(())
    }

    /// Whether every layer and module of the network that its configuration names is in it.
    ///
    /// # Errors
    /// Names what is missing.
    pub(super) fn has_all_it_names(
        &self,
        named: &BTreeMap<String, &Tensor>,
        network: &Network,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let has = |layer: &str| PARTS.iter().any(|end| named.contains_key(&format!("{layer}{end}")));
        let bare = network.adapters.layers.iter().find(|layer| self.named.wants_part(layer) && !has(layer));
        if let Some(layer) = bare {
            return Err(
                self.half(format!("`target_modules` of {} names `{layer}`, and it has no change of it", FILES[0]))
            );
        }
        for entry in missing(&network.initial, named).filter(|e| wanted(&e.name)) {
            if let Some(saved) = module(&entry.name).and_then(|module| self.named.saves(module)) {
                let why = format!("`modules_to_save` of {} names `{saved}`, and it has no `{}`", FILES[0], entry.name);
                return Err(self.half(why));
            }
        }
        Ok(())
    }

    fn half(&self, why: String) -> Error {
        Error::user(
            format!("the adapter `{}` is half there: {why}", self.shown),
            "give the files as they were saved, and `model.head` the layers that they were saved with",
        )
    }
}

/// Tensors of a network that an adapter does not have, but for parts.
fn missing<'a>(network: &'a Store, named: &'a BTreeMap<String, &Tensor>) -> impl Iterator<Item = &'a Entry> {
    let all = network.params.iter().chain(&network.buffers);
    all.filter(|e| !named.contains_key(&e.name) && !PARTS.iter().any(|end| e.name.ends_with(end)))
}
