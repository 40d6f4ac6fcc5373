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

/// How many blocks each parameter is away from the head. A unit without parameters, such as the pooling, is no step.
fn depths(net: &Net, store: &Store) -> Vec<usize> {
    let mut depth = vec![0; store.params.len()];
    for network in net.all().map(|net| &net.network) {
        let mut blocks = 0;
        for params in (0..network.head).rev().map(|u| network.unit_params(u)) {
            blocks += usize::from(!params.is_empty());
            params.iter().for_each(|p| depth[p.0] = blocks);
        }
    }
    depth
}
