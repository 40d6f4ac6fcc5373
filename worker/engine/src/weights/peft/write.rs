//! The two files for a network with LoRA or IA3.

use std::collections::{BTreeSet, HashMap};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use tl_proto::spec::{Handed, Hub, JobSpec};

use super::{
    COUNTER, PARTS, by_layer,
    names::{Theirs, WRAPPER, is_head, module},
    pattern,
};
use crate::{
    Error, Result,
    backbone::{Backbone, Network},
    collective::to_bytes,
    nn::{Entry, Kind, ParamId, Part, Store},
};

/// The two files for a network with LoRA or IA3, in the order of [`super::FILES`]; `saved` are modules that were trained
/// as they are, and tensors in no module; `base` is `model.weights` as the job says it. Nothing for a network without.
///
/// The layers are named by one pattern that matches them alone: ends of names would also match norms, blocks and grouped
/// convolutions of the model that peft wraps, which we have under other names or never count among the layers.
///
/// # Errors
/// None that can be caused from outside.
pub fn files(
    network: &Network,
    backbone: &Backbone,
    store: &Store,
    saved: &BTreeSet<String>,
    base: Option<&str>,
) -> Result<Option<[Vec<u8>; 2]>> {
    let adapters = &network.adapters;
    let Some(plan) = adapters.plan.as_ref().filter(|_| !adapters.sites.is_empty()) else { return Ok(None) };
    let theirs = Theirs::of(network, backbone);
    let saved = with_likes(saved, store, &theirs);
    let modules: Vec<String> = saved
        .iter()
        .filter(|m| !is_bare(store, m) && (theirs.head || !is_head(backbone, &format!("{m}."))))
        .map(|m| theirs.name(m))
        .collect();
    let layers: Vec<String> = adapters.sites.iter().map(|s| theirs.name(&s.layer)).collect();
    let (name, revision) = base_of(base);
    let mut config = json!({
        "base_model_name_or_path": name,
        "revision": revision,
        "task_type": theirs.task(),
        "inference_mode": true,
        "fan_in_fan_out": false,
        "modules_to_save": if modules.is_empty() { Value::Null } else { modules.into() },
        "target_modules": pattern::exactly(layers.iter().map(String::as_str)),
    });
    match &plan.kind {
        Kind::Lora { rank, alpha, rslora, dropout, own } => {
            let number = |n: f64| if n.fract() == 0.0 { Value::from(n as i64) } else { Value::from(n) };
            config["peft_type"] = "LORA".into();
            config["r"] = (*rank).into();
            config["lora_alpha"] = number(*alpha);
            // The shortest decimal that is this number.
            config["lora_dropout"] = dropout.to_string().parse::<f64>().unwrap_or_default().into();
            config["use_rslora"] = (*rslora).into();
            config["bias"] = "none".into();
            config["init_lora_weights"] = true.into();
            let sites = adapters.sites.iter().zip(&layers);
            let named = sites.filter_map(|(site, layer)| {
                let (r, a) = own.get(&site.layer)?;
                Some((layer.as_str(), [(r != rank).then(|| Value::from(*r)), (a != alpha).then(|| number(*a))]))
            });
            for (key, table) in ["rank_pattern", "alpha_pattern"].into_iter().zip(by_layer::tables(named)) {
                if !table.is_empty() {
                    config[key] = table.into();
                }
            }
        }
        _ => {
            let sites = adapters.sites.iter().zip(&layers);
            let inner = sites.filter(|(s, _)| matches!(s.part, Part::Ia3 { input: true, .. }));
            let inner: Vec<&str> = inner.map(|(_, layer)| layer.as_str()).collect();
            config["peft_type"] = "IA3".into();
            let none = || Value::Array(Vec::new());
            config["feedforward_modules"] = if inner.is_empty() { none() } else { pattern::exactly(inner).into() };
            config["init_ia3_weights"] = true.into();
        }
    }
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut add = |entry: &Entry, shape: Vec<usize>, values: &[f32]| {
        let name = format!("{WRAPPER}{}", theirs.name(&entry.name));
        tensors.push((name, Dtype::F32, shape, to_bytes(&values[entry.range.clone()])));
    };
    for site in &adapters.sites {
        let of = |id: ParamId| &store.params[id.0];
        match site.part {
            Part::Lora { a, b, .. } => [a, b].map(of).into_iter().for_each(|e| add(e, e.shape.clone(), &store.values)),
            Part::Ia3 { l, input } => {
                let (entry, n) = (of(l), of(l).range.len());
                let shape = match (of(site.weight).shape.len(), input) {
                    (2, true) => vec![1, n],
                    (2, false) => vec![n, 1],
                    _ => vec![1, n, 1, 1],
                };
                add(entry, shape, &store.values);
            }
        }
    }
    let is_saved = |e: &&Entry| saved.contains(module(&e.name).unwrap_or(&e.name));
    store.params.iter().filter(is_saved).for_each(|e| add(e, e.shape.clone(), &store.values));
    store.buffers.iter().filter(is_saved).for_each(|e| add(e, e.shape.clone(), &store.buffer_values));
    // Nothing depends on it, but PyTorch's batch-norms have it and peft wants all that a module has.
    let means = store.buffers.iter().filter(is_saved).filter_map(|e| e.name.strip_suffix(".running_mean"));
    for norm in means {
        let name = format!("{WRAPPER}{}{COUNTER}", theirs.name(norm));
        tensors.push((name, Dtype::I64, Vec::new(), vec![0; 8]));
    }
    let internal = |e: &dyn std::fmt::Display| Error::Internal(e.to_string());
    let views = tensors.iter().map(|(name, kind, shape, bytes)| {
        Ok((name.clone(), TensorView::new(*kind, shape.clone(), bytes).map_err(|e| internal(&e))?))
    });
    let metadata: HashMap<String, String> = [("format".to_owned(), "pt".to_owned())].into();
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, Some(metadata));
    let config = serde_json::to_vec_pretty(&config).map_err(|e| internal(&e))?;
    Ok(Some([config, bytes.map_err(|e| internal(&e))?]))
}

/// The name and the revision of the base, where others can find it by them.
fn base_of(place: Option<&str>) -> (Option<&str>, Option<&str>) {
    match place.map(|place| (place, Hub::parse(place))) {
        Some((_, Ok(Some(hub)))) => (Some(hub.repo), Some(hub.revision).filter(|r| *r != "main")),
        Some((place, _)) if JobSpec::is_path(place) && !Handed::is(place) => (Some(place), None),
        _ => (None, None),
    }
}

/// Whether a name is that of a tensor in no module.
fn is_bare(store: &Store, name: &str) -> bool {
    store.params.iter().any(|e| e.name == name)
}

/// Peft takes a saved module for every module whose name ends so, wherever the end begins, and wants tensors for each:
/// with `bn1` those of `layer1.0.bn1`, with `classifier` those of `pre_classifier`.
fn with_likes(saved: &BTreeSet<String>, store: &Store, theirs: &Theirs<'_>) -> BTreeSet<String> {
    let ends: Vec<String> = saved.iter().filter(|m| !is_bare(store, m)).map(|m| theirs.name(m)).collect();
    let all = store.params.iter().chain(&store.buffers).filter(|e| !e.name.starts_with(super::super::TOWER));
    let likes = all.filter(|e| !PARTS.iter().any(|end| e.name.ends_with(end)));
    let likes = likes.filter_map(|e| module(&e.name));
    let likes = likes.filter(|m| ends.iter().any(|end| theirs.name(m).ends_with(end.as_str())));
    saved.iter().cloned().chain(likes.map(str::to_owned)).collect()
}

/// Whether a module that is saved as it is would hide a layer's part from peft, which puts none on what it takes for that
/// module: the same name, one that ends so, or one inside.
pub fn hides(saved: &str, layer: &str) -> bool {
    let inside = format!(".{layer}.").contains(&format!(".{saved}."));
    inside || layer.ends_with(saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_named_where_others_find_it() {
        for (place, name, revision) in [
            ("hf://a/b", Some("a/b"), None),
            ("hf://a/b@v1.0#w.safetensors", Some("a/b"), Some("v1.0")),
            ("/srv/weights", Some("/srv/weights"), None),
            ("step:first", None, None),
            ("job:job_00000000000000000000000007", None, None),
            (&format!("data:{}", "0a".repeat(32)), None, None),
        ] {
            assert_eq!(base_of(Some(place)), (name, revision), "{place}");
        }
        assert_eq!(base_of(None), (None, None));
    }

    #[test]
    fn a_saved_module_hides_layers_that_end_so_or_lie_inside() {
        assert!(hides("conv1", "layer1.0.conv1") && hides("conv1", "conv1") && hides("layer1.0", "layer1.0.conv1"));
        assert!(hides("classifier", "pre_classifier"));
        assert!(!hides("layer1.0.conv1", "conv1") && !hides("bn1", "layer1.0.conv1") && !hides("a.b", "xa.b.c"));
    }
}
