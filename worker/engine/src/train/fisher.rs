//! How much each parameter matters to the source: the mean over samples of the square of the gradient of each sample's
//! loss, by the network as it came. Sums are made in units of fixed samples and added by the tree of gradients, so the bits
//! are the same for any number of ranks.

use super::{
    chain::{self, Wanted},
    inputs::Inputs,
    net,
    net::Net,
    origin::Origin,
};
use crate::{
    Error, Result,
    collective::{self, Collective, tree},
    eval,
    link::Link,
    modifier::Importance,
    nn::{Flat, Gradients, Layout, Packs, ParamId, Pass, Tape, tensor},
    num::{self, rng::Philox},
};

/// Samples of one leaf of the sum.
const UNIT: usize = 16;

/// F for every number of the parameters of `net`: 0 where they did not come with the weights, and for a head that was left
/// behind.
///
/// # Errors
/// A sample that cannot be read, a lost peer; [`Error::Stopped`] where the run is to end.
pub(super) fn importance(
    net: &Net,
    origin: &Origin<'_>,
    how: Importance,
    seed: u32,
    group: &mut dyn Collective,
    link: &mut dyn Link,
) -> Result<Vec<f32>> {
    let Some(samples) = origin.source.and_then(|source| source.train.as_ref()) else {
        return Err(Error::user("no samples show what matters to the source", "set `data.source.train`"));
    };
    let theirs = &origin.net;
    let store = &theirs.network.initial;
    let end = if net.keeps_head() { theirs.network.units.len() } else { theirs.network.head };
    let mut ids: Vec<ParamId> = (0..end).flat_map(|unit| theirs.network.unit_params(unit)).collect();
    ids.sort_unstable();
    let layout = Layout::new(store, &ids, &[]);
    let shape = theirs.shape_at(store, 0)?;
    let inputs = Inputs::raw(theirs, samples, shape);
    let chosen = Philox::new(seed, "fisher-samples").permutation(samples.count(), 0);
    let chosen = &chosen[..how.samples.min(chosen.len())];
    let units: Vec<&[usize]> = chosen.chunks(UNIT).collect();
    let own = group.shares(units.len())[group.rank()].clone();
    let labels = Philox::new(seed, "fisher-labels");
    // Nothing is trained meanwhile: what one sample has packed is good for all.
    let packs = Packs::default();
    packs.begin(&layout, chosen.len());
    let pass = Pass { layout: Some(&layout), ..Pass::again(store, &packs) };
    let mut stack = Vec::new();
    let (mut done, all) = (0, own.clone().map(|unit| units[unit].len()).sum::<usize>());
    for unit in own {
        let mut squares = None;
        for index in units[unit] {
            if link.stop_requested() {
                // The others learn of it by our absence, as while features are computed.
                return Err(Error::Stopped);
            }
            if group.rank() == 0 {
                link.activity("learn what matters", done, all as u64);
            }
            done += 1;
            let given = how.given.then(|| samples.dataset.labels()[*index]);
            let uniform = labels.stream(*index as u64, 0).uniform();
            squares = Some(of_sample(&inputs, &pass, &layout, *index, given, uniform)?.squared(squares)?);
        }
        if let Some(squares) = squares {
            tree::push_with(&mut stack, tree::Node::leaf(unit, squares), units.len(), Flat::plus)?;
        }
    }
    let mut mean = collective::reduce_flat(group, stack, false, units.len(), layout.params_len())?.into_host()?;
    num::divide(&mut mean, chosen.len() as f32);
    let mine = &net.network.initial;
    // Its values may be the state's by now; names and places are still here.
    let mut out = vec![0.0; mine.params.iter().map(|e| e.range.end).max().unwrap_or(0)];
    for entry in mine.params.iter().filter(|e| net.loaded.contains(&e.name)) {
        let known = layout.trained().find(|(id, _)| store.params[id.0].name == entry.name);
        if let Some((_, slot)) = known.filter(|(_, slot)| slot.len() == entry.range.len()) {
            out[entry.range.clone()].copy_from_slice(&mean[slot]);
        }
    }
    Ok(out)
}

/// The gradient of −log p(label) of one sample, batch-norms by the statistics that came with the weights.
fn of_sample(
    inputs: &Inputs<'_>,
    pass: &Pass<'_>,
    layout: &Layout,
    index: usize,
    given: Option<usize>,
    uniform: f32,
) -> Result<Flat> {
    let network = &inputs.net.network;
    let mut tape = Tape::default();
    let x = inputs.batch(pass.store, &[index], &[0], None)?;
    let logits = chain::through(&network.units, x, pass, &mut tape)?;
    let p = eval::softmax(net::rows(&logits)?.first().map_or(&[], Vec::as_slice));
    let label = given.unwrap_or_else(|| drawn(&p, f64::from(uniform)));
    let dy: Vec<f32> = p.iter().enumerate().map(|(c, p)| (p - f64::from(u8::from(c == label))) as f32).collect();
    let mut grads = Gradients::unmade(layout);
    let dy = tensor(dy, &[1, p.len()])?;
    chain::backward(&network.units, Wanted::of(&dy), pass, &mut tape, &mut grads, false)?;
    Ok(grads.finish()?.0)
}

/// The class whose part of the probabilities a number in [0, 1) falls into.
fn drawn(p: &[f64], uniform: f64) -> usize {
    let mut sum = 0.0;
    let below = |p: &f64| {
        sum += p;
        uniform < sum
    };
    p.iter().position(below).unwrap_or(p.len() - 1)
}
