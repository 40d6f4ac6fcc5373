//! Discriminative learning rates: what part of a stage's rate each parameter learns at.

use std::collections::BTreeMap;

use tl_proto::spec::{Rates, StageSection};

use super::{net::Net, rules};
use crate::{
    Error, Result,
    nn::{ParamId, Store},
};

/// Times the stage's largest rate, for each of the `trained` parameters.
///
/// # Errors
/// Rules that leave a parameter without a rate, or with two.
pub fn scales(net: &Net, store: &Store, spec: &StageSection, trained: &[ParamId]) -> Result<Vec<f64>> {
    let mut scales = by_place(net, store, spec, trained)?;
    if let Some(rate) = net.network.own_rate {
        let own = trained.iter().zip(&mut scales).filter(|(id, _)| net.network.own.contains(id));
        own.for_each(|(_, scale)| *scale = rate / spec.lr.top());
    }
    Ok(scales)
}

fn by_place(net: &Net, store: &Store, spec: &StageSection, trained: &[ParamId]) -> Result<Vec<f64>> {
    let depth = depths(net, store);
    match &spec.lr {
        Rates::One(_) => {
            let scale = |depth: usize| {
                // By repeated multiplication: the same bits everywhere.
                (0..depth).fold(1.0, |scale, _| scale * spec.layer_decay).max(spec.min_scale).min(1.0)
            };
            Ok(trained.iter().map(|p| scale(depth[p.0])).collect())
        }
        Rates::Range([low, high]) => {
            // fastai's `slice(low, high)` with a group for every block that the stage trains.
            let mut blocks: Vec<usize> = trained.iter().map(|p| depth[p.0]).collect();
            blocks.sort_unstable();
            blocks.dedup();
            let last = (blocks.len() - 1).max(1) as f64;
            let scale = |p: &ParamId| {
                let above = blocks.iter().filter(|b| **b < depth[p.0]).count() as f64;
                if above == 0.0 { 1.0 } else { libm::pow(low / high, above / last) }
            };
            Ok(trained.iter().map(scale).collect())
        }
        Rates::Rules(rules) => by_rule(net, store, spec, rules, trained),
    }
}

fn by_rule(
    net: &Net,
    store: &Store,
    spec: &StageSection,
    rules: &BTreeMap<String, f64>,
    trained: &[ParamId],
) -> Result<Vec<f64>> {
    let top = spec.lr.top();
    let mut named = Vec::new();
    for (rule, lr) in rules {
        named.push((rules::named(net, store, &spec.name, rule)?, rule, *lr));
    }
    // The narrowest rule counts.
    named.sort_by_key(|(params, ..)| params.len());
    let rate = |p: &ParamId| {
        // What an objective trains for itself is new, as a head is.
        if net.network.is_beside(*p) {
            return Ok(1.0);
        }
        let mut fitting = named.iter().filter(|(params, ..)| params.binary_search(p).is_ok());
        let name = &store.params[p.0].name;
        let Some((params, rule, lr)) = fitting.next() else {
            return Err(Error::user(
                format!("stage `{}`: `lr` has no rate for `{name}`, which is trained", spec.name),
                "add `\"*\" = RATE` for all that no other rule names",
            ));
        };
        match fitting.next() {
            Some((others, other, rate)) if others.len() == params.len() && rate != lr => Err(Error::user(
                format!("stage `{}`: `{rule}` and `{other}` give `{name}` different rates", spec.name),
                "make one of the rules narrower",
            )),
            _ => Ok(lr / top),
        }
    };
    trained.iter().map(rate).collect()
}

/// How many blocks each parameter is away from the head. A unit without parameters, such as the pooling, is no step, and one
/// that is joined to the block before it none of its own.
fn depths(net: &Net, store: &Store) -> Vec<usize> {
    let mut depth = vec![0; store.params.len()];
    for network in net.all().map(|net| &net.network) {
        let mut above = 0;
        for unit in network.units[..network.head].iter().rev() {
            let params = unit.params();
            params.iter().for_each(|p| depth[p.0] = above + 1);
            above += usize::from(!params.is_empty() && !unit.joined);
        }
    }
    depth
}

#[cfg(test)]
mod tests {
    use tl_proto::spec::ModelSection;

    use super::*;

    /// What power of the decay `param_groups_layer_decay` of timm 1.0.31 gives a parameter: by `group_parameters(model,
    /// model.group_matcher(coarse=False))`, counted down from the group of the classifier, with our names of the tensors.
    /// DenseNet's last norm is in that group there, having no other, and with the last layer here.
    const TIMM: [(&str, &[(&str, usize)]); 7] = [
        (
            "vit_s16",
            &[
                ("head.weight", 0),
                ("norm.weight", 1),
                ("blocks.11.mlp.fc2.weight", 1),
                ("blocks.10.attn.qkv.weight", 2),
                ("blocks.0.norm1.weight", 12),
                ("patch_embed.proj.weight", 13),
                ("cls_token", 13),
                ("pos_embed", 13),
            ],
        ),
        (
            "resnet18",
            &[
                ("fc.weight", 0),
                ("layer4.1.conv2.weight", 1),
                ("layer2.0.downsample.0.weight", 6),
                ("layer1.0.conv1.weight", 8),
                ("bn1.weight", 9),
                ("conv1.weight", 9),
            ],
        ),
        (
            "mobilenet_v2",
            &[
                ("classifier.1.weight", 0),
                ("features.18.1.weight", 1),
                ("features.18.0.weight", 1),
                ("features.17.conv.0.0.weight", 1),
                ("features.16.conv.0.0.weight", 2),
                ("features.2.conv.0.0.weight", 16),
                ("features.0.0.weight", 18),
            ],
        ),
        (
            "efficientnet_b0",
            &[
                ("classifier.1.weight", 0),
                ("features.8.0.weight", 1),
                ("features.7.0.block.0.0.weight", 1),
                ("features.6.3.block.0.0.weight", 2),
                ("features.1.0.block.0.0.weight", 16),
                ("features.0.0.weight", 17),
            ],
        ),
        (
            "densenet121",
            &[
                ("classifier.weight", 0),
                ("features.denseblock4.denselayer16.conv2.weight", 1),
                ("features.denseblock4.denselayer1.conv1.weight", 16),
                ("features.transition3.conv.weight", 17),
                ("features.denseblock3.denselayer24.conv1.weight", 17),
                ("features.transition1.norm.weight", 53),
                ("features.denseblock1.denselayer6.conv1.weight", 53),
                ("features.conv0.weight", 59),
            ],
        ),
        (
            "inception_v3",
            &[
                ("fc.weight", 0),
                ("Mixed_7c.branch1x1.conv.weight", 1),
                ("Mixed_5b.branch1x1.conv.weight", 11),
                ("Conv2d_4a_3x3.conv.weight", 12),
                ("Conv2d_3b_1x1.conv.weight", 12),
                ("Conv2d_2b_3x3.conv.weight", 13),
                ("Conv2d_2a_3x3.conv.weight", 13),
                ("Conv2d_1a_3x3.conv.weight", 13),
            ],
        ),
        (
            "inception_resnet_v2",
            &[
                ("classif.weight", 0),
                ("conv2d_7b.conv.weight", 1),
                ("block8.branch0.conv.weight", 1),
                ("repeat_2.8.branch0.conv.weight", 2),
                ("mixed_7a.branch0.0.conv.weight", 11),
                ("repeat_1.19.branch0.conv.weight", 12),
                ("mixed_5b.branch0.conv.weight", 43),
                ("conv2d_4a.conv.weight", 44),
                ("conv2d_3b.conv.weight", 44),
                ("conv2d_2b.conv.weight", 45),
                ("conv2d_1a.conv.weight", 45),
            ],
        ),
    ];

    /// What is not in timm, or not so. NASNet as its `nasnetalarge` is divided, which has 18 cells where this has 12: the first
    /// convolution with both cells that halve behind it, and each later cell that halves with the one behind that.
    const OTHERS: [(&str, &[(&str, usize)]); 2] = [
        (
            "nasnet_mobile",
            &[
                ("predictions.weight", 0),
                ("normal_conv_1_12.weight", 1),
                ("normal_conv_1_9.weight", 4),
                ("reduction_conv_1_reduce_8.weight", 4),
                ("normal_conv_1_8.weight", 5),
                ("normal_conv_1_5.weight", 8),
                ("reduction_conv_1_reduce_4.weight", 8),
                ("normal_conv_1_3.weight", 9),
                ("normal_conv_1_0.weight", 12),
                ("reduction_conv_1_stem_2.weight", 13),
                ("reduction_conv_1_stem_1.weight", 13),
                ("stem_conv1.weight", 13),
            ],
        ),
        (
            "vgg16",
            &[
                ("classifier.6.weight", 0),
                ("classifier.3.weight", 1),
                ("classifier.0.weight", 2),
                ("features.28.weight", 3),
                ("features.24.weight", 3),
                ("features.21.weight", 4),
                ("features.0.weight", 7),
            ],
        ),
    ];

    #[test]
    fn rates_fall_from_block_to_block_as_timms_do() {
        for (backbone, powers) in TIMM.into_iter().chain(OTHERS) {
            let model = ModelSection { backbone: backbone.into(), ..ModelSection::default() };
            let net = Net::build(&model, &["a".into(), "b".into()], false, 0, &BTreeMap::new()).unwrap();
            let params = &net.network.initial.params;
            let depth = depths(&net, &net.network.initial);
            let of = |name: &str| Some(depth[params.iter().position(|e| e.name == name)?]);
            let got: Vec<_> = powers.iter().map(|(name, _)| (*name, of(name))).collect();
            let want: Vec<_> = powers.iter().map(|(name, power)| (*name, Some(*power))).collect();
            assert_eq!(got, want, "{backbone}");
        }
    }
}
