//! What the rules of a stage name: `head`, `top:20`, `*`, `norms`, `re:PATTERN`, or the start of a parameter's name; of a
//! second network that is trained too, the same behind `tower.`; of one of several tasks, `tasks.NAME.head`.

use tl_proto::spec::name_pattern;

use super::net::Net;
use crate::{
    Error, Result,
    nn::{Layer, ParamId, Store},
    weights::TOWER,
};

/// The parameters that a rule names, in order.
///
/// # Errors
/// A rule that names nothing. `top:N` may: a few layers may be less than one unit.
pub fn named(net: &Net, store: &Store, stage: &str, rule: &str) -> Result<Vec<ParamId>> {
    let pattern = name_pattern(rule).map_err(|e| Error::user(format!("stage `{stage}`: {}", e.message), e.hint))?;
    // `tower.head` is the head of the second network; `*` is both of them.
    let (of, inner) = match (rule.strip_prefix(TOWER), &net.tower) {
        (Some(inner), Some(tower)) => (&tower.0, inner),
        _ => (net, rule),
    };
    let nets: Vec<&Net> = if rule == "*" { net.all().collect() } else { vec![of] };
    let params = |net: &Net| units_of(net, inner).flat_map(|u| net.network.unit_params(u)).collect::<Vec<_>>();
    let mut named: Vec<ParamId> = nets.into_iter().flat_map(params).collect();
    named.extend(net.named_heads(rule));
    if inner == "norms" {
        // Those of the head are trained with it.
        let network = &of.network;
        named = (0..network.head).flat_map(|u| network.unit_params(u)).filter(|p| store.params[p.0].norm).collect();
    } else if named.is_empty() {
        let names = |name: &str| match &pattern {
            Some(pattern) => pattern.is_match(name.as_bytes()),
            None => name == rule || name.strip_prefix(rule).is_some_and(|r| r.starts_with('.')),
        };
        // What an objective trains beside the network always learns, and no rule names it.
        let all = store.params.iter().enumerate().filter(|(i, _)| !net.network.is_beside(ParamId(*i)));
        named = all.filter(|(_, e)| names(&e.name)).map(|(i, _)| ParamId(i)).collect();
    }
    if named.is_empty() && !inner.starts_with("top:") {
        return Err(Error::user(
            format!("stage `{stage}`: `{rule}` names no parameters of {}", of.backbone.name),
            format!(
                "use `head`, `top:N`, `*`, `norms`, `re:PATTERN`, or the start of a parameter's name up to a dot: names \
                 here start with {}",
                starts(store)
            ),
        ));
    }
    named.sort_unstable();
    named.dedup();
    Ok(named)
}

/// How names of parameters start, up to their first dot; some networks have hundreds.
fn starts(store: &Store) -> String {
    const SHOWN: usize = 12;
    let mut all: Vec<&str> = store.params.iter().filter_map(|e| e.name.split('.').next()).collect();
    all.dedup();
    let shown = all.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        rest => format!("{shown} and {rest} more"),
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
