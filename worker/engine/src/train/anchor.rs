//! What holds a network to the weights that it began with: penalties on the distance of parameters, by `[modifiers.l2_sp]`
//! and `[modifiers.ewc]`. They are of the parameters alone, so every rank adds the same to the mean gradient, and no number
//! of samples divides it.
//!
//! Where a run began is no part of a checkpoint: an attempt that goes on reads the weights again, as the first did. How
//! much each of them matters is, for that takes long to learn.

#[cfg(feature = "cuda")]
mod placed;

use std::ops::Range;

use rayon::prelude::*;
use tl_proto::spec::JobSpec;

#[cfg(feature = "cuda")]
pub(super) use self::placed::Held;
use super::{fisher, net::Net, origin::Origin, state::RunState};
use crate::{
    Error, Result,
    collective::Collective,
    link::Link,
    modifier::{self, Hold},
    nn::{Entry, Layout, ParamId},
    num::{BLOCK, LANES, fold_pairs, simd::vectorised},
};

/// Where a network began, and how it is held to that.
pub(super) struct Anchor {
    /// By parameter: whether it came with the weights; nothing of what an objective trains for itself.
    came: Vec<Option<bool>>,
    /// All parameters as they were.
    start: Vec<f32>,
    ranges: Vec<Range<usize>>,
    holds: Vec<Hold>,
}

impl Anchor {
    /// The anchor of a job whose modifiers want one; `net` still has its initial values.
    pub fn of(net: &Net, spec: &JobSpec) -> Option<Self> {
        let holds = modifier::holds(&spec.modifiers);
        if holds.is_empty() {
            return None;
        }
        let store = &net.network.initial;
        let came = |(i, e): (usize, &Entry)| (!net.network.is_beside(ParamId(i))).then(|| net.loaded.contains(&e.name));
        Some(Self {
            came: store.params.iter().enumerate().map(came).collect(),
            start: store.values.clone(),
            ranges: store.params.iter().map(|e| e.range.clone()).collect(),
            holds,
        })
    }

    /// Has the state say what matters, where not everything matters as much: that of a run that goes on does already. All
    /// ranks call it together.
    ///
    /// # Errors
    /// Samples of the source that cannot be read, or are not given; a lost peer.
    pub fn learn(
        &self,
        state: &mut RunState,
        net: &Net,
        origin: Option<&Origin<'_>>,
        seed: u32,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<()> {
        let asked = self.holds.iter().find_map(|hold| hold.importance);
        let Some(how) = asked.filter(|_| state.importance.is_empty()) else { return Ok(()) };
        let origin = origin.ok_or_else(|| Error::Internal("nobody has opened the samples of the source".into()))?;
        state.importance = fisher::importance(net, origin, how, seed, group, link)?;
        Ok(())
    }

    /// Each way in which something that `layout` trains is held: the parameter, its slot, whether it came with the weights,
    /// and how.
    fn held<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = (ParamId, Range<usize>, bool, &'a Hold)> + 'a {
        let known = layout.trained().filter_map(move |(id, slot)| Some((id, slot, self.came[id.0]?)));
        let ways =
            move |(id, slot, came): (_, Range<usize>, _)| self.holds.iter().map(move |h| (id, slot.clone(), came, h));
        known.flat_map(ways).filter(|(_, _, came, hold)| weight(hold, *came) != 0.0)
    }

    /// Adds the gradient of the penalties to a mean gradient of what `layout` trains; returns the penalties. `importance`
    /// is F for every number, where a modifier asks for it. A penalty is added up as the norm of a gradient is.
    pub fn pull(&self, values: &[f32], importance: &[f32], layout: &Layout, mean: &mut [f32]) -> f64 {
        let mut penalty = 0.0;
        for (id, slot, came, hold) in self.held(layout) {
            let (range, weight) = (self.ranges[id.0].clone(), weight(hold, came) as f32);
            let parts = mean[slot].par_chunks_mut(BLOCK).zip(values[range.clone()].par_chunks(BLOCK));
            let start = self.start[range.clone()].par_chunks(BLOCK);
            let important = hold.importance.filter(|_| came).map(|_| &importance[range]);
            let sums: Vec<f64> = parts
                .zip(start)
                .enumerate()
                .map(|(i, ((mean, now), start))| {
                    let start = if came { start } else { &ZEROS[..now.len()] };
                    let at = i * BLOCK..i * BLOCK + now.len();
                    let f = important.map_or(&ONES[..now.len()], |f| &f[at]);
                    distance(mean, now, start, f, weight)
                })
                .collect();
            penalty += 0.5 * fold_pairs(sums);
        }
        penalty
    }
}

/// What the distance of a parameter counts, by whether it came with the weights.
fn weight(hold: &Hold, came: bool) -> f64 {
    if came { hold.came } else { hold.new }
}

static ZEROS: [f32; BLOCK] = [0.0; BLOCK];
static ONES: [f32; BLOCK] = [1.0; BLOCK];

vectorised! {
    /// Adds `weight·f·(now − start)` to each number of a block; returns Σ weight·f·(now − start)².
    fn distance(mean: &mut [f32], now: &[f32], start: &[f32], f: &[f32], weight: f32) -> f64 {
        let mut sums = [0.0f64; LANES];
        let blocks = mean.chunks_mut(LANES).zip(now.chunks(LANES)).zip(start.chunks(LANES)).zip(f.chunks(LANES));
        for (((mean, now), start), f) in blocks {
            for i in 0..now.len() {
                let away = now[i] - start[i];
                let pull = weight * f[i] * away;
                mean[i] += pull;
                sums[i] += f64::from(pull) * f64::from(away);
            }
        }
        sums.iter().fold(0.0, |sum, lane| sum + lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        modifier::Importance,
        nn::{Builder, Fill, Own},
    };

    /// A network of two layers, of which the first came with the weights, and a tensor of an objective's own.
    fn anchor(holds: Vec<Hold>) -> (Anchor, Layout) {
        let mut b = Builder::new(3);
        b.linear("old", (5, 3));
        b.linear("new", (3, 2));
        b.own(&Own { name: "own".into(), shape: vec![2], fill: Fill::Constant(1.0), span: None });
        let store = b.store;
        let came = vec![Some(true), Some(true), Some(false), Some(false), None];
        let ranges = store.params.iter().map(|e| e.range.clone()).collect();
        // The second tensor is frozen.
        let layout = Layout::new(&store, &[0, 2, 3, 4].map(ParamId), &[]);
        (Anchor { came, start: store.values, ranges, holds }, layout)
    }

    fn moved(anchor: &Anchor) -> Vec<f32> {
        anchor.start.iter().enumerate().map(|(i, v)| v + 0.1 * (i as f32 - 7.0)).collect()
    }

    #[test]
    fn the_pull_is_the_slope_of_the_penalty() {
        let importance: Vec<f32> = (0..28).map(|i| (i % 5) as f32).collect();
        let l2_sp = Hold { came: 0.3, new: 0.2, importance: None };
        let ewc = Hold { came: 2.0, new: 0.0, importance: Some(Importance { samples: 1, given: true }) };
        let (anchor, layout) = anchor(vec![l2_sp, ewc]);
        let mut values = moved(&anchor);
        let penalty = |values: &[f32]| anchor.pull(values, &importance, &layout, &mut vec![0.0; layout.params_len()]);
        let mut pull = vec![1.0; layout.params_len()];
        let own = anchor.pull(&values, &importance, &layout, &mut pull);
        let mut want = 0.0;
        for i in (0..15).chain(18..26) {
            let away = f64::from(values[i]) - if i < 15 { f64::from(anchor.start[i]) } else { 0.0 };
            let weight = if i < 15 { 0.3 + 2.0 * f64::from(importance[i]) } else { 0.2 };
            want += 0.5 * weight * away * away;
        }
        assert!((own - want).abs() < 1e-5 * want, "{own} {want}");
        for (id, slot) in layout.trained() {
            for (at, place) in slot.zip(anchor.ranges[id.0].clone()) {
                let kept = values[place];
                values[place] = kept + 0.01;
                let above = penalty(&values);
                values[place] = kept - 0.01;
                let slope = (above - penalty(&values)) / 0.02;
                values[place] = kept;
                assert!((f64::from(pull[at]) - 1.0 - slope).abs() < 1e-3, "{place}: {} {slope}", pull[at]);
            }
        }
    }

    #[test]
    fn nothing_pulls_where_it_began_and_what_is_new_is_pulled_to_zero() {
        let hold = Hold { came: 5.0, new: 0.5, importance: None };
        let (anchor, layout) = anchor(vec![hold]);
        let mut mean = vec![0.0; layout.params_len()];
        let penalty = anchor.pull(&anchor.start, &[], &layout, &mut mean);
        assert!(mean[..15].iter().all(|g| *g == 0.0), "it came with the weights");
        assert!((15..23).all(|i| mean[i] == 0.5 * anchor.start[i + 3]), "it is new");
        assert_eq!(mean[23..], [0.0, 0.0], "it is the objective's own");
        let norm: f64 = anchor.start[18..26].iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        assert!((penalty - 0.25 * norm).abs() < 1e-6);
    }
}
