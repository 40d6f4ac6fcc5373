//! Values that both sides of the parity test can compute: a function of a tensor's name, its shape and the element's
//! index. `tests/parity/rule.py` is the same in Python.

use std::collections::BTreeSet;

use rayon::prelude::*;
use tl_engine::nn::{Entry, Store};

/// FNV-1a, 64 bits.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// splitmix64: number `i` of those that begin with `seed`.
fn mix(seed: u64, i: usize) -> u64 {
    let z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// In [-1, 1): the top 24 bits.
fn unit(bits: u64) -> f64 {
    (bits >> 40) as f64 / f64::from(1 << 23) - 1.0
}

/// In [-1, 1): the elements of `name`, from the first on.
pub fn uniform(name: &str) -> impl Iterator<Item = f64> + use<> {
    let seed = fnv(name);
    (0..).map(move |i| unit(mix(seed, i)))
}

/// Which of `classes` each of `count` samples is of.
pub fn labels(count: usize, classes: usize) -> Vec<usize> {
    self::classes("labels", classes).take(count).collect()
}

/// One of `count` for each element.
pub fn classes(name: &str, count: usize) -> impl Iterator<Item = usize> + use<> {
    let seed = fnv(name);
    (0..).map(move |i| ((mix(seed, i) >> 40) % count as u64) as usize)
}

/// What batch-norms add where a value passes a rectifier, and where it is beyond the upper kink of ReLU6.
const LEVEL: f64 = 3.0;
const ABOVE: f64 = 9.0;

/// How a network is filled.
#[derive(Clone, Debug)]
pub struct Fill {
    /// Of kernels, in a network of rectifiers that is kept away from their kinks; zero for any other.
    pub gain: f64,
    /// Parts of the names of layers that a rectifier follows, besides batch-norms.
    pub shifts: Vec<String>,
    /// Whether what batch-norms add is near 3 where `gain` is zero.
    pub lifted: bool,
}

/// Fills every parameter and running statistic of a network without care for single kinks; constants stay as they are.
pub fn fill(store: &mut Store) {
    Fill::LIFTED.apply(store);
}

impl Fill {
    /// Weights of either sign; few values lie near a kink of a rectifier, where batch-norms use the batch.
    pub const LIFTED: Self = Self { gain: 0.0, shifts: Vec::new(), lifted: true };

    /// Fills every parameter and running statistic of a network; constants stay as they are.
    pub fn apply(&self, store: &mut Store) {
        let Store { params, buffers, values, buffer_values, .. } = store;
        let running = |e: &&Entry| e.name.ends_with(".running_mean") || e.name.ends_with(".running_var");
        let norms: BTreeSet<_> = buffers.iter().filter(running).map(|e| layer(&e.name)).collect();
        for entry in &*params {
            let layer = layer(&entry.name);
            let named = self.shifts.iter().any(|part| format!(".{layer}.").contains(part.as_str()));
            let shifts = named || (self.lifted || self.gain > 0.0) && norms.contains(layer);
            self.tensor(entry, shifts, &mut values[entry.range.clone()]);
        }
        buffers.iter().filter(running).for_each(|e| self.tensor(e, false, &mut buffer_values[e.range.clone()]));
    }

    fn tensor(&self, entry: &Entry, shifts: bool, out: &mut [f32]) {
        let bound = (3.0 / entry.shape[1..].iter().product::<usize>() as f64).sqrt();
        let norm = if self.gain > 0.0 { 0.4 } else { 1.0 };
        let value: &(dyn Fn(f64) -> f64 + Sync) = match entry.name.rsplit('.').next() {
            Some("running_mean") => &|u| 0.1 * u,
            Some("running_var") => &|u| 1.0 + 0.1 * u.abs(),
            Some("ia3_l") => &|u| 1.0 + 0.5 * u,
            _ if entry.shape.len() > 1 && self.gain > 0.0 => return kernel(entry, self.gain, bound, out),
            _ if entry.shape.len() > 1 => &|u| u * bound,
            Some("weight") => &|u| norm * (1.0 + 0.1 * u),
            _ if shifts && self.gain == 0.0 => &|u| LEVEL + 0.1 * u,
            _ if shifts => &|u| 0.05 * u,
            _ => &|u| 0.1 * u,
        };
        let sides = shifts && self.gain > 0.0 && !entry.name.ends_with(".weight");
        let seed = fnv(&entry.name);
        out.par_iter_mut().enumerate().for_each(|(i, o)| {
            let level = if sides { level(i) } else { 0.0 };
            *o = (level + value(unit(mix(seed, i)))) as f32;
        });
    }
}

fn layer(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(layer, _)| layer)
}

/// On which side of the kinks of a rectifier a channel lies: see `rule.py`.
fn level(channel: usize) -> f64 {
    match (channel % 4 < 2, channel / 4 % 4 == 3) {
        (true, true) => ABOVE,
        (true, false) => LEVEL,
        (false, _) => -LEVEL,
    }
}

/// Two neighbouring inputs have all but opposite weights; a kernel of one input is near the identity.
fn kernel(entry: &Entry, gain: f64, bound: f64, out: &mut [f32]) {
    let (inputs, taps) = (entry.shape[1], entry.shape[2..].iter().product::<usize>());
    let seed = fnv(&entry.name);
    if inputs == 1 {
        for (i, (o, u)) in out.iter_mut().zip(uniform(&entry.name)).enumerate() {
            let middle = if i % taps == taps / 2 { 1.0 } else { 0.0 };
            *o = (0.3 * bound * u + middle) as f32;
        }
        return;
    }
    out.par_chunks_exact_mut(inputs * taps).enumerate().for_each(|(filter, kernels)| {
        let at = |i: usize| gain * bound * unit(mix(seed, filter * inputs * taps + i));
        for (i, o) in kernels.iter_mut().enumerate() {
            *o = if i / taps % 2 == 1 { 0.05 * at(i) - at(i - taps) } else { at(i) } as f32;
        }
    });
}

/// Signs of the two projections of a tensor, made once.
pub struct Signs(Vec<[bool; 2]>);

impl Signs {
    /// Those of `count` elements of `name`.
    pub fn new(name: &str, count: usize) -> Self {
        let seeds = ["p1", "p2"].map(|p| fnv(&format!("{name}/{p}")));
        Self((0..count).into_par_iter().map(|i| seeds.map(|seed| mix(seed, i) >> 63 == 1)).collect())
    }

    /// Norm and two projections of a tensor.
    pub fn figures(&self, values: &[f32]) -> [f64; 3] {
        assert_eq!(values.len(), self.0.len());
        let mut sums = [0.0; 3];
        for (v, [a, b]) in values.iter().zip(&self.0) {
            let v = f64::from(*v);
            sums[0] += v * v;
            sums[1] += if *a { v } else { -v };
            sums[2] += if *b { v } else { -v };
        }
        [sums[0].sqrt(), sums[1], sums[2]]
    }
}
