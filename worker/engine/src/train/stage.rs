//! What a stage trains: rules from the job file resolved to parameters, batch-norms and groups.

use tl_proto::spec::{BnMode, StageSection};

use super::net::Net;
use crate::{
    Error, Result,
    nn::{BufferId, Layer, Layout, ParamId, Store},
    optim::Group,
};

/// A stage, resolved.
pub struct Stage {
    /// Its first unit that is trained, or whose batch-norm is; units before it are a frozen prefix.
    pub cut: usize,
    /// Gradient slots.
    pub layout: Layout,
    /// Groups of the optimizer.
    pub groups: Vec<Group>,
    /// Running means and variances that the stage updates.
    pub norms: Vec<(BufferId, BufferId)>,
    /// Trained parameters, elements.
    pub trained: usize,
}

impl Stage {
    /// Resolves the rules of a stage.
    ///
    /// # Errors
    /// A rule that matches nothing, or rules that come to nothing together.
    pub fn resolve(net: &Net, store: &Store, spec: &StageSection) -> Result<Self> {
        let network = &net.network;
        let mut trained = vec![false; store.params.len()];
        for rule in &spec.train {
            let mut named = 0;
            for unit in units_of(net, rule) {
                for p in network.unit_params(unit) {
                    trained[p.0] = true;
                    named += 1;
                }
            }
            if rule != "head" && rule != "*" && !rule.starts_with("top:") {
                let prefix =
                    |name: &str| name == rule || name.strip_prefix(rule.as_str()).is_some_and(|r| r.starts_with('.'));
                for (_, t) in store.params.iter().zip(&mut trained).filter(|(e, _)| prefix(&e.name)) {
                    *t = true;
                    named += 1;
                }
            }
            // A few layers may be less than one unit; that is a rule that trains nothing more, not an error by itself.
            if named == 0 && !rule.starts_with("top:") {
                return Err(Error::user(
                    format!("stage `{}`: `{rule}` names no parameters of {}", spec.name, net.backbone.name),
                    "use `head`, `top:N`, `*`, or the start of a parameter's name; `tlctl plan` lists them",
                ));
            }
        }
        let mut norms: Vec<(BufferId, BufferId)> = Vec::new();
        let mut cut = network.units.len();
        for (u, unit) in network.units.iter().enumerate() {
            let params = network.unit_params(u);
            if !params.iter().any(|p| trained[p.0]) {
                continue;
            }
            cut = cut.min(u);
            let mut own = Vec::new();
            unit.layer.norms(&mut own);
            // A head is always new: its batch-norms learn. In the backbone the stage decides.
            let mode = if u >= network.head { BnMode::Train } else { spec.bn };
            if mode == BnMode::Train {
                norms.extend(&own);
            } else if mode == BnMode::Frozen {
                let names: Vec<String> =
                    own.iter().map(|(m, _)| store.buffers[m.0].name.replace(".running_mean", ".")).collect();
                let frozen = |name: &str| names.iter().any(|n| name.starts_with(n.as_str()));
                params.iter().filter(|p| frozen(&store.params[p.0].name)).for_each(|p| trained[p.0] = false);
            }
        }
        if !trained.contains(&true) {
            let rules: Vec<String> = spec.train.iter().map(|rule| format!("`{rule}`")).collect();
            // What was named and is frozen nevertheless are batch-norms.
            let hint = if cut < network.units.len() {
                "set `bn = \"affine_only\"` or `bn = \"train\"`: in this stage batch-norms are frozen"
            } else {
                "`top:N` takes whole blocks: raise N, or train the `head`"
            };
            return Err(Error::user(format!("stage `{}` trains nothing: {}", spec.name, rules.join(", ")), hint));
        }
        let ids: Vec<ParamId> = (0..trained.len()).filter(|i| trained[*i]).map(ParamId).collect();
        let means: Vec<BufferId> = norms.iter().map(|n| n.0).collect();
        let layout = Layout::new(store, &ids, &means);
        let groups = groups(net, store, &layout, spec.layer_decay);
        let count = layout.params_len();
        Ok(Self { cut, layout, groups, norms, trained: count })
    }
}

/// The units that a rule names; none for a name of a parameter.
fn units_of(net: &Net, rule: &str) -> std::ops::Range<usize> {
    let network = &net.network;
    let all = network.units.len();
    if rule == "*" {
        return 0..all;
    }
    if rule == "head" {
        return network.head..all;
    }
    let Some(layers) = rule.strip_prefix("top:").and_then(|n| n.parse::<usize>().ok()) else { return 0..0 };
    // Whole units only: as many as fit into that many layers, counted as people count them.
    let mut left = layers;
    let mut first = network.head;
    while first > 0 && network.units[first - 1].layer.leaves() <= left {
        first -= 1;
        left -= network.units[first].layer.leaves();
    }
    first..network.head
}

fn groups(net: &Net, store: &Store, layout: &Layout, decay: f64) -> Vec<Group> {
    let network = &net.network;
    let mut depth = vec![0; store.params.len()];
    let mut blocks = 0;
    for params in (0..network.head).rev().map(|u| network.unit_params(u)) {
        // A unit that learns nothing, such as the pooling, is no step away from the head.
        blocks += usize::from(!params.is_empty());
        params.iter().for_each(|p| depth[p.0] = blocks);
    }
    layout
        .trained()
        .map(|(id, gradient)| {
            let entry = &store.params[id.0];
            // By repeated multiplication: the same bits everywhere.
            let lr_scale = (0..depth[id.0]).fold(1.0, |scale, _| scale * decay);
            Group { values: entry.range.clone(), gradient, lr_scale, decays: entry.shape.len() > 1 }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tl_proto::spec::{HeadSection, ModelSection};

    use super::*;

    fn net(backbone: &str) -> Net {
        let model = ModelSection {
            backbone: backbone.into(),
            weights: None,
            preprocess: None,
            padding: None,
            input: None,
            head: HeadSection::default(),
        };
        Net::build(&model, &["a".into(), "b".into()], false, 0, &BTreeMap::new()).unwrap()
    }

    fn stage(train: &[&str], bn: BnMode) -> StageSection {
        StageSection {
            name: "s".into(),
            epochs: 1,
            train: train.iter().map(|t| (*t).into()).collect(),
            lr: 0.1,
            schedule: "constant".into(),
            warmup: 0,
            layer_decay: 0.5,
            bn,
            reset_optimizer: false,
        }
    }

    #[test]
    fn the_top_twenty_layers_of_mobilenet_are_its_last_two_blocks_and_the_last_convolution() {
        let net = net("mobilenet_v2");
        let store = &net.network.initial;
        let s = Stage::resolve(&net, store, &stage(&["head", "top:20"], BnMode::Frozen)).unwrap();
        assert_eq!(net.network.units[s.cut].name, "features.17");
        let names: Vec<&str> = s.layout.trained().map(|(p, _)| store.params[p.0].name.as_str()).collect();
        assert!(names.contains(&"features.18.0.weight") && names.contains(&"classifier.1.bias"));
        assert!(!names.iter().any(|n| n.contains("conv.3") || *n == "features.18.1.weight"), "batch-norm stays frozen");
        let affine = Stage::resolve(&net, store, &stage(&["head", "top:20"], BnMode::AffineOnly)).unwrap();
        assert!(affine.trained > s.trained && affine.norms.is_empty());
        let train = Stage::resolve(&net, store, &stage(&["head", "top:20"], BnMode::Train)).unwrap();
        assert_eq!((train.trained, train.norms.len()), (affine.trained, 4));
    }

    #[test]
    fn rates_fall_away_from_the_head_and_unknown_names_are_refused() {
        let net = net("small_cnn");
        let store = &net.network.initial;
        let s = Stage::resolve(&net, store, &stage(&["*"], BnMode::Train)).unwrap();
        assert_eq!(s.cut, 0);
        let scale = |name: &str| {
            let at = store.params.iter().find(|p| p.name == name).unwrap();
            s.groups.iter().find(|g| g.values == at.range).unwrap().lr_scale
        };
        // The last block is one step away from the head, though a pooling lies between them.
        assert_eq!((scale("fc.weight"), scale("block3.conv.weight"), scale("block0.conv.weight")), (1.0, 0.5, 0.0625));
        assert!(Stage::resolve(&net, store, &stage(&["blocks"], BnMode::Train)).is_err());
        let named = Stage::resolve(&net, store, &stage(&["block3", "head"], BnMode::Train)).unwrap();
        assert_eq!(named.cut, 3);
    }

    #[test]
    fn a_stage_that_trains_nothing_is_refused_and_one_that_trains_something_is_not() {
        let net = net("small_cnn");
        let resolve = |rules: &[&str], bn| Stage::resolve(&net, &net.network.initial, &stage(rules, bn));
        // The pooling is the first layer from the top.
        for rules in [&["top:0"][..], &["top:1"][..], &["top:0", "top:1"][..]] {
            let Err(Error::User { message, hint }) = resolve(rules, BnMode::Train) else { panic!("{rules:?}") };
            assert!(message.contains("stage `s` trains nothing: `top:"), "{message}");
            assert!(hint.contains("raise N"), "{hint}");
        }
        let Err(Error::User { message, hint }) = resolve(&["block2.norm"], BnMode::Frozen) else { panic!("no error") };
        assert!(message.contains("trains nothing: `block2.norm`") && hint.contains("affine_only"), "{message}: {hint}");
        assert!(resolve(&["block2.norm"], BnMode::AffineOnly).unwrap().trained > 0);
        assert!(resolve(&["head", "top:1"], BnMode::Frozen).unwrap().trained > 0);
        assert_eq!(resolve(&["top:4"], BnMode::Frozen).unwrap().cut, 3);
    }
}
