//! Tensors of a file copied to where a network has them, and what is said where the two do not fit.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use super::text::NO_POOLER;
use crate::{
    Error, Result,
    nn::{Entry, Store, host},
};

/// Copies the tensors of `file` into `store`.
///
/// Names of the classifier are left alone unless `keep_head`; a classifier of another shape is refused then.
///
/// # Errors
/// Names the tensors that are missing or have another shape.
pub fn fill(
    store: &mut Store,
    file: &BTreeMap<String, Tensor>,
    keep_head: impl Fn(&str) -> bool,
    shown: &str,
) -> Result<()> {
    let (mut missing, mut wrong) = (Vec::new(), Vec::new());
    let Store { params, buffers, values, buffer_values, .. } = store;
    for (list, values) in [(&*params, values), (&*buffers, buffer_values)] {
        for entry in list.iter().filter(|e| keep_head(&e.name)) {
            match file.get(&entry.name) {
                None => missing.push(entry.name.clone()),
                Some(t) if t.dims() != entry.shape => {
                    wrong.push(format!("`{}` is {:?} instead of {:?}", entry.name, t.dims(), entry.shape));
                }
                Some(t) => values[entry.range.clone()].copy_from_slice(&host(t)?),
            }
        }
    }
    let odd = strangers(&[params.as_slice(), buffers.as_slice()], file, &keep_head);
    if missing.is_empty() && wrong.is_empty() && odd.is_empty() {
        return Ok(());
    }
    let some = |list: &[String]| {
        let rest = list.len().saturating_sub(3);
        let head = list[..list.len().min(3)].join(", ");
        if rest > 0 { format!("{head} and {rest} more") } else { head }
    };
    let mut said = Vec::new();
    if !missing.is_empty() {
        said.push(format!("no {}", some(&missing)));
    }
    if !wrong.is_empty() {
        said.push(some(&wrong));
    }
    if !odd.is_empty() {
        said.push(format!("no place for {}", some(&odd)));
    }
    let usual = "`model.backbone` must be the network that the weights were trained with";
    let hint = if wrong.is_empty() && odd.is_empty() && missing.iter().all(|name| name.starts_with("pooler.")) {
        NO_POOLER.to_owned()
    } else if wrong.is_empty()
        && missing.is_empty()
        && let Some(ends) = foreign_ends(&odd, &[params.as_slice(), buffers.as_slice()])
    {
        format!(
            "{usual}; what says nothing of what it computes, as a profiler leaves it, can be left out: \
             `{{k: v for k, v in state.items() if not k.endswith(({ends},))}}`"
        )
    } else {
        usual.to_owned()
    };
    Err(Error::user(format!("weights `{shown}` are of another network: {}", said.join("; ")), hint))
}

/// What lies in blocks and says nothing of what they compute: counters, places by number, and what profilers count.
const NOBODYS: [&str; 5] =
    ["num_batches_tracked", "position_ids", "relative_position_index", "total_ops", "total_params"];

/// Tensors of a file that lie inside a block of the network, which has none of that name: a network with more in its
/// blocks would be loaded without it, and compute something else, whatever the tensor is called. What lies beside the
/// network, such as a pooler, is nobody's.
fn strangers(own: &[&[Entry]], file: &BTreeMap<String, Tensor>, keep_head: impl Fn(&str) -> bool) -> Vec<String> {
    fn above(name: &str) -> impl Iterator<Item = &str> {
        let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer);
        layer.match_indices('.').map(|(at, _)| &layer[..at])
    }
    let own: BTreeSet<&str> = own.iter().copied().flatten().map(|e| e.name.as_str()).collect();
    let blocks: BTreeSet<&str> = own.iter().flat_map(|name| above(name)).collect();
    let counts = |name: &str| !NOBODYS.contains(&name.rsplit('.').next().unwrap_or(name));
    let odd = file.keys().filter(|n| counts(n) && keep_head(n) && !own.contains(n.as_str()));
    odd.filter(|n| above(n).any(|block| blocks.contains(block))).cloned().collect()
}

/// How names of strangers end, as texts of Python's, where nothing of the network's own ends so; of few kinds only.
fn foreign_ends(odd: &[String], own: &[&[Entry]]) -> Option<String> {
    fn end(name: &str) -> &str {
        name.rsplit('.').next().unwrap_or(name)
    }
    let ends: BTreeSet<&str> = odd.iter().map(|name| end(name)).collect();
    let is_own = own.iter().copied().flatten().any(|entry| ends.contains(end(&entry.name)));
    let ends: Vec<String> = ends.into_iter().map(|end| format!("\".{end}\"")).collect();
    (!is_own && ends.len() <= 3).then(|| ends.join(", "))
}

#[cfg(test)]
mod tests {
    use tl_proto::spec::ModelSection;

    use super::*;
    use crate::{nn::tensor, train::net::Net};

    #[test]
    fn a_network_with_more_in_its_blocks_is_not_loaded_without_it() {
        let model = ModelSection { backbone: "resnet20".into(), ..ModelSection::default() };
        let mut net = Net::build(&model, &["a".into(), "b".into()], false, 1, &BTreeMap::new()).unwrap();
        let store = &net.network.initial;
        let named = |e: &Entry| (e.name.clone(), tensor(vec![0.5; e.range.len()], &e.shape).unwrap());
        let mut file: BTreeMap<String, Tensor> = store.params.iter().chain(&store.buffers).map(named).collect();
        let more = |name: &str| (name.to_owned(), tensor(vec![1.0], &[1]).unwrap());
        // Counters, and what lies beside the network, are nobody's.
        file.extend([
            more("bn1.num_batches_tracked"),
            more("layer1.0.bn1.num_batches_tracked"),
            more("layer1.0.total_ops"),
            more("pooler.dense.weight"),
            more("AuxLogits.conv0.conv.weight"),
        ]);
        fill(&mut net.network.initial, &file, |_| true, "x").unwrap();
        // A gate, a LayerScale, an anti-aliasing filter, a bias of an attention's queries, a table of its places.
        for name in [
            "layer1.0.se.fc1.weight",
            "layer1.0.ls1.gamma",
            "layer1.0.aa.filt",
            "layer1.0.attn.q_bias",
            "layer1.0.relative_position_bias_table",
        ] {
            let mut file = file.clone();
            file.extend([more(name)]);
            let error = fill(&mut net.network.initial, &file, |_| true, "x").unwrap_err().to_string();
            assert!(error.contains(&format!("no place for {name}")), "{error}");
        }
        let mut hint = |name: &str| {
            let mut file = file.clone();
            file.extend([more(name)]);
            fill(&mut net.network.initial, &file, |_| true, "x").unwrap_err().to_failure().hint
        };
        let said = hint("layer1.0.conv1.__flops__");
        assert!(said.contains("if not k.endswith((\".__flops__\",))"), "{said}");
        // What the network has itself is not to be left out.
        let said = hint("layer1.0.se.fc1.weight");
        assert!(!said.contains("left out"), "{said}");
    }
}
