//! What a stage trains: rules from the job file resolved to parameters, batch-norms and groups.

use tl_proto::spec::{BnMode, BnScope, StageSection};

use super::{net::Net, rates, rules};
use crate::{
    Error, Result,
    nn::{BufferId, Layer, Layout, Packs, ParamId, Store},
    optim::{self, Group},
};

/// A stage, resolved.
pub struct Stage {
    /// Its first unit that is trained, or whose batch-norm is; units before it are a frozen prefix.
    pub cut: usize,
    /// The same of the network that is trained with it; 0 where there is none.
    pub tower_cut: usize,
    /// Gradient slots.
    pub layout: Layout,
    /// Groups of the optimizer.
    pub groups: Vec<Group>,
    /// Running means and variances that the stage updates.
    pub norms: Vec<(BufferId, BufferId)>,
    /// Whether the batch-norms that learn take the statistics of the whole batch.
    pub lockstep: bool,
    /// Trained parameters, elements.
    pub trained: usize,
    /// Where there are several tasks: the last matrix or kernel below their heads that is trained, and its unit.
    pub shared: Option<(usize, ParamId)>,
    /// Packed weights of the run's store.
    pub packs: Packs,
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
            rules::named(net, store, &spec.name, rule)?.iter().for_each(|p| trained[p.0] = true);
        }
        net.keeps_its_weights(store, &spec.name, &trained)?;
        network.adapters.params.iter().for_each(|p| trained[p.0] = true);
        let mut norms: Vec<(BufferId, BufferId)> = Vec::new();
        let mut cuts = Vec::new();
        for network in net.all().map(|net| &net.network) {
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
            cuts.push(cut);
        }
        let (mut cut, tower_cut) = (cuts[0], cuts.get(1).copied().unwrap_or_default());
        for task in network.tasks.iter().filter(|task| task.params().iter().any(|p| trained[p.0])) {
            task.units.iter().for_each(|unit| unit.layer.norms(&mut norms));
        }
        if !trained.contains(&true) {
            let rules: Vec<String> = spec.train.iter().map(|rule| format!("`{rule}`")).collect();
            // What was named and is frozen nevertheless are batch-norms.
            let named = net.all().zip(&cuts).any(|(net, cut)| *cut < net.network.units.len());
            let hint = if named {
                "set `bn = \"affine_only\"` or `bn = \"train\"`: in this stage batch-norms are frozen"
            } else {
                "`top:N` takes whole blocks: raise N, or train the `head`"
            };
            return Err(Error::user(format!("stage `{}` trains nothing: {}", spec.name, rules.join(", ")), hint));
        }
        net.taps.are_reached(cut, &spec.name)?;
        let mut shared = None;
        if !network.tasks.is_empty() {
            // All heads take the same features.
            cut = cut.min(network.head);
            let last = |u: usize| {
                let kernel = |p: &ParamId| trained[p.0] && store.params[p.0].shape.len() > 1;
                Some((u, network.unit_params(u).into_iter().rev().find(kernel)?))
            };
            shared = (cut..network.head).rev().find_map(last);
        }
        network.own.iter().for_each(|p| trained[p.0] = true);
        // On features that stay as they are, the old head says what it said.
        let old = if cut < network.head { network.old_params() } else { Vec::new() };
        old.iter().for_each(|p| trained[p.0] = true);
        let ids: Vec<ParamId> = (0..trained.len()).filter(|i| trained[*i]).map(ParamId).collect();
        let means: Vec<BufferId> = norms.iter().map(|n| n.0).collect();
        let layout = Layout::new(store, &ids, &means);
        let scales = rates::scales(net, store, spec, &ids)?;
        let groups = optim::groups(store, &layout, &scales);
        let count = layout.params_len();
        let lockstep = spec.bn_scope == BnScope::Batch && !norms.is_empty();
        Ok(Self { cut, tower_cut, layout, groups, norms, lockstep, trained: count, shared, packs: Packs::default() })
    }

    /// The lowest and the highest rate that anything is trained at, before schedules; but for what the objective trains at
    /// a rate of its own, which is none of the stage's.
    pub fn rates(&self, net: &Net, spec: &StageSection) -> [f64; 2] {
        let apart = |id: &ParamId| net.network.own_rate.is_some() && net.network.own.contains(id);
        let groups = self.layout.trained().zip(&self.groups).filter(|((id, _), _)| !apart(id));
        let (scales, top): (Vec<f64>, f64) = (groups.map(|(_, group)| group.lr_scale).collect(), spec.lr.top());
        let fold = |from: f64, by: fn(f64, f64) -> f64| top * scales.iter().copied().fold(from, by);
        [fold(1.0, f64::min), fold(0.0, f64::max)]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tl_proto::spec::{ModelSection, Rates};

    use super::*;

    fn net(backbone: &str) -> Net {
        let model = ModelSection { backbone: backbone.into(), weights: None, ..ModelSection::default() };
        Net::build(&model, &["a".into(), "b".into()], false, 0, &BTreeMap::new()).unwrap()
    }

    fn stage(train: &[&str], bn: BnMode) -> StageSection {
        StageSection { layer_decay: 0.5, bn, ..StageSection::new("s", 1, train, 0.1) }
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

    /// What part of the rate a parameter learns at.
    fn scale(net: &Net, stage: &StageSection, name: &str) -> f64 {
        let at = net.network.initial.params.iter().find(|p| p.name == name).unwrap();
        let resolved = Stage::resolve(net, &net.network.initial, stage).unwrap();
        resolved.groups.iter().find(|g| g.values == at.range).unwrap().lr_scale
    }

    #[test]
    fn a_range_of_rates_is_geometric_over_the_blocks_that_are_trained() {
        let net = net("small_cnn");
        let with = |train: &[&str], lr| StageSection { lr, layer_decay: 1.0, ..stage(train, BnMode::Train) };
        let whole = with(&["*"], Rates::Range([1e-5, 1e-3]));
        // fastai: even_mults(1e-5, 1e-3, 5), over the largest.
        for (name, want) in
            [("fc.weight", 1.0), ("block3.conv.weight", 0.316_227_766_016_837_9), ("block0.conv.weight", 0.01)]
        {
            assert!((scale(&net, &whole, name) - want).abs() < 1e-9, "{name}");
        }
        assert!((scale(&net, &whole, "block2.conv.weight") - 0.1).abs() < 1e-12);
        let top = with(&["head", "block3"], Rates::Range([1e-5, 1e-3]));
        assert!((scale(&net, &top, "block3.conv.weight") - 0.01).abs() < 1e-12, "the lowest that is trained");
        assert_eq!(scale(&net, &with(&["head"], Rates::Range([1e-5, 1e-3])), "fc.bias"), 1.0);
    }

    #[test]
    fn the_narrowest_rule_gives_the_rate() {
        let net = net("small_cnn");
        let rules =
            |rates: &[(&str, f64)]| Rates::Rules(rates.iter().map(|(rule, lr)| ((*rule).to_owned(), *lr)).collect());
        let with =
            |rates: &[(&str, f64)]| StageSection { lr: rules(rates), layer_decay: 1.0, ..stage(&["*"], BnMode::Train) };
        let mixed = with(&[("*", 1e-4), ("head", 1e-2), ("re:^block[01]\\.", 1e-5), ("block1.conv", 0.0025)]);
        for (name, want) in [
            ("fc.bias", 1.0),
            ("block3.conv.weight", 0.01),
            ("block0.conv.weight", 0.001),
            ("block1.conv.weight", 0.25),
        ] {
            assert!((scale(&net, &mixed, name) - want).abs() < 1e-12, "{name}");
        }
        let refused = |rates: &[(&str, f64)]| {
            let Err(Error::User { message, .. }) = Stage::resolve(&net, &net.network.initial, &with(rates)) else {
                panic!()
            };
            message
        };
        assert!(refused(&[("head", 1.0)]).contains("no rate for `block0.conv.weight`"));
        assert!(refused(&[("*", 1.0), ("re:block0", 0.5), ("block0", 0.2)]).contains("different rates"));
        assert!(refused(&[("*", 1.0), ("blok", 0.5)]).contains("names no parameters"));
    }

    #[test]
    fn what_an_objective_trains_may_have_a_rate_of_its_own_beside_any_other() {
        let mut net = net("small_cnn");
        let own = crate::nn::Own { name: "s".into(), shape: vec![2], fill: crate::nn::Fill::Constant(0.0), span: None };
        net.network = net.network.with_own(&[own], 1);
        let rules = Rates::Rules([("*".to_owned(), 0.1), ("head".to_owned(), 0.05)].into());
        for (lr, head, lowest) in
            [(Rates::One(0.1), 1.0, 0.1), (Rates::Range([0.01, 0.1]), 1.0, 0.01), (rules, 0.5, 0.05)]
        {
            let stage = StageSection { lr, layer_decay: 1.0, ..stage(&["*"], BnMode::Train) };
            for (given, want) in [(None, 1.0), (Some(0.03), 0.3), (Some(2.0), 20.0)] {
                net.network.own_rate = given;
                assert!((scale(&net, &stage, "objective.s") - want).abs() < 1e-12, "{given:?}");
                assert!((scale(&net, &stage, "fc.weight") - head).abs() < 1e-12, "{given:?}");
                let [low, high] = Stage::resolve(&net, &net.network.initial, &stage).unwrap().rates(&net, &stage);
                assert!((low - lowest).abs() < 1e-12 && high == 0.1, "{given:?}: {low} to {high}");
            }
        }
    }

    #[test]
    fn patterns_and_norms_name_parameters() {
        let net = net("small_cnn");
        let trained = |rules: &[&str], bn| {
            let s = Stage::resolve(&net, &net.network.initial, &stage(rules, bn)).unwrap();
            s.layout.trained().map(|(p, _)| net.network.initial.params[p.0].name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(trained(&["re:^block[23]\\.conv"], BnMode::Frozen), ["block2.conv.weight", "block3.conv.weight"]);
        let norms = trained(&["norms"], BnMode::Train);
        assert!(norms.len() == 8 && norms.iter().all(|n| n.contains(".norm.")), "{norms:?}");
        for (backbone, ends) in [
            ("vit_s16", &["norm.", "norm1.", "norm2."][..]),
            ("minilm", &["LayerNorm."][..]),
            ("distilbert", &["layer_norm.", "LayerNorm."][..]),
        ] {
            let net = self::net(backbone);
            let store = &net.network.initial;
            let named = rules::named(&net, store, "s", "norms").unwrap();
            let names: Vec<&str> = named.iter().map(|p| store.params[p.0].name.as_str()).collect();
            let norm = |n: &str| ends.iter().any(|e| n.contains(e));
            assert_eq!(names, store.params.iter().map(|e| e.name.as_str()).filter(|n| norm(n)).collect::<Vec<_>>());
            // A scale and a shift for two in each block, and one beside the blocks.
            let blocks = if backbone == "vit_s16" { 12 } else { 6 };
            assert_eq!(names.len(), 2 * (2 * blocks + 1), "{names:?}");
        }
        let floor = StageSection { min_scale: 0.2, ..stage(&["*"], BnMode::Train) };
        assert_eq!((scale(&net, &floor, "block2.conv.weight"), scale(&net, &floor, "block0.conv.weight")), (0.25, 0.2));
    }

    #[test]
    fn a_rule_that_names_nothing_is_told_what_there_is() {
        for (backbone, rule, hint) in [
            ("small_cnn", "blok", "start with `block0`, `block1`, `block2`, `block3`, `fc`"),
            ("vit_s16", "re:layernorm", "`patch_embed`, `blocks`, `norm`, `head`"),
            ("vgg16", "norms", "start with `features`, `classifier`"),
            ("resnet50_keras", "conv6", " more"),
        ] {
            let net = net(backbone);
            let resolved = Stage::resolve(&net, &net.network.initial, &stage(&[rule], BnMode::Train));
            let Err(Error::User { message, hint: said }) = resolved else { panic!("{rule}") };
            assert!(message.contains(&format!("`{rule}` names no parameters of {backbone}")), "{message}");
            assert!(said.contains(hint), "{said}");
        }
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
