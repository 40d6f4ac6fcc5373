//! Hooks on a run that are independent of its objective. A new one is a file here and a line in [`ALL`].

mod adapter;
mod cutmix;
mod ema;
mod ewc;
mod ia3;
mod l2_sp;
mod lora;
mod lwf;
mod mixup;

use std::{collections::BTreeMap, ops::Range};

use tl_proto::{catalog::Entry, spec::Params};

use crate::{Error, Result, nn::Plan, num::rng::Philox};

/// How the samples of a grain are mixed: each with its mirror image in the grain.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// Weight of the sample itself, and of its target.
    pub keep: f32,
    /// The part of the picture that comes from the other sample as it is; without it all of it is blended.
    pub patch: Option<Patch>,
}

/// A box in a square picture of a side; bounds in pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    /// Side of the picture that it was drawn for.
    pub side: usize,
    /// Its rows.
    pub rows: Range<usize>,
    /// Its columns.
    pub columns: Range<usize>,
}

/// How one grain of a step is mixed, in pictures of `side` pixels.
type MixFn = fn(&Params, &Philox, step: u64, grain: u32, side: usize) -> Mix;

/// One modifier.
pub struct Modifier {
    /// What the catalog says.
    pub entry: fn() -> Entry,
    /// How it mixes samples, if it does.
    pub mix: Option<MixFn>,
    /// How much of an average of the weights, and of the running statistics of batch-norms, is kept in a step, if it keeps
    /// one: at 1 it stays as it is, at 0 it becomes what the step came to, but for rounding. `steps` have moved it in the
    /// stage so far; those without a whole pair do not. Each stage begins with the weights as they are: what the first step,
    /// of 0, keeps of those counts. The average is what is judged, exported and handed on to the next stage. A job has one at
    /// most.
    pub average: Option<fn(&Params, steps: u64) -> f64>,
    /// Which parts it puts on the network, to be trained in place of its weights, if it does.
    pub adapt: Option<fn(&Params) -> Plan>,
    /// How it holds the network to the weights that it began with, if it does.
    pub hold: Option<fn(&Params) -> Hold>,
    /// How it has the head that came with the weights go on, if it does. A job has one such modifier at most.
    pub remember: Option<fn(&Params) -> Remember>,
}

impl Modifier {
    /// One that does nothing yet: `Modifier { mix: Some(…), ..Modifier::new(describe) }`.
    const fn new(entry: fn() -> Entry) -> Self {
        Self { entry, mix: None, average: None, adapt: None, hold: None, remember: None }
    }
}

/// What the old head learns to go on saying.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Remember {
    /// Weight of it.
    pub weight: f64,
    /// Softens what it says, and what it said.
    pub temperature: f64,
}

/// What is added to the loss: `½·came·Σ F·(w − w₀)²` over parameters that came with the weights, and `½·new·Σ w²` over the
/// others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hold {
    /// Weight of what came with the weights.
    pub came: f64,
    /// Weight of what is new.
    pub new: f64,
    /// F, where not everything matters as much: how it is learned from samples of the source.
    pub importance: Option<Importance>,
}

/// How much each parameter matters to the source: the diagonal of a Fisher information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Importance {
    /// Samples that it is learned from, at most.
    pub samples: usize,
    /// Of the labels that they have; else of such as the network itself would give, drawn by its probabilities.
    pub given: bool,
}

/// Every modifier.
pub const ALL: &[Modifier] = &[
    adapter::MODIFIER,
    cutmix::MODIFIER,
    ema::MODIFIER,
    ewc::MODIFIER,
    ia3::MODIFIER,
    l2_sp::MODIFIER,
    lora::MODIFIER,
    lwf::MODIFIER,
    mixup::MODIFIER,
];

/// The modifier of a name.
pub fn find(name: &str) -> Option<&'static Modifier> {
    ALL.iter().find(|m| (m.entry)().name == name)
}

/// Whether the modifiers of a job go together: of those that keep an average, and of those that have the old head go on,
/// there is one at most. Others do: each grain draws one way of mixing, what holds weights adds up, and what puts parts on
/// layers is refused before.
///
/// # Errors
/// Names those that do not.
pub fn check(modifiers: &BTreeMap<String, Params>) -> Result<()> {
    go_together(&modifiers.keys().filter_map(|name| find(name)).collect::<Vec<_>>())
}

fn go_together(chosen: &[&Modifier]) -> Result<()> {
    let alone: [fn(&Modifier) -> bool; 2] = [|m| m.average.is_some(), |m| m.remember.is_some()];
    for has in alone {
        let rivals = chosen.iter().filter(|m| has(m)).map(|m| format!("`modifiers.{}`", (m.entry)().name));
        let rivals: Vec<String> = rivals.collect();
        if rivals.len() > 1 {
            let message = format!("{} are different answers to one question", rivals.join(" and "));
            return Err(Error::user(message, "keep one of them"));
        }
    }
    Ok(())
}

/// Modifiers of a job that mix samples, with their parameters.
fn mixing(modifiers: &BTreeMap<String, Params>) -> Vec<(&str, &Params, MixFn)> {
    modifiers.iter().filter_map(|(name, params)| Some((name.as_str(), params, find(name)?.mix?))).collect()
}

/// Whether samples of a job are mixed: then nothing of a picture alone can be used again.
pub fn mixes(modifiers: &BTreeMap<String, Params>) -> bool {
    !mixing(modifiers).is_empty()
}

/// How one grain of a step is mixed. Where a job asks for several ways, each grain draws one of them.
pub fn mix(modifiers: &BTreeMap<String, Params>, seed: u32, step: u64, grain: u32, side: usize) -> Option<Mix> {
    let all = mixing(modifiers);
    let chosen = match all.len() {
        0 => return None,
        1 => 0,
        n => Philox::new(seed, "mix-choice").stream(step, grain).below(n as u64) as usize,
    };
    let (name, params, draw) = all[chosen];
    Some(draw(params, &Philox::new(seed, name), step, grain, side))
}

/// How much of the average of the weights is kept in a step, after so many of the stage; nothing where a job keeps none.
pub fn average(modifiers: &BTreeMap<String, Params>, steps: u64) -> Option<f64> {
    modifiers.iter().find_map(|(name, params)| Some((find(name)?.average?)(params, steps)))
}

/// What part of an average of the weights is still what the first step of a stage came to, once so many have moved it;
/// nothing where a job keeps none.
pub fn held(modifiers: &BTreeMap<String, Params>, steps: u64) -> Option<f64> {
    let (keep, params) = modifiers.iter().find_map(|(name, params)| Some((find(name)?.average?, params)))?;
    let (mut held, mut step) = (1.0, 1);
    while step < steps {
        // Late steps keep much the same, one as the other: the middle one of a few stands for them.
        let run = (step / 64).clamp(1, steps - step);
        held *= libm::pow(keep(params, step + run / 2), run as f64);
        step += run;
    }
    Some(held)
}

impl Mix {
    /// Targets, `keep·y_i + (1−keep)·y_{n−1−i}`, in rows of `width`.
    pub fn targets(&self, rows: &[f32], width: usize) -> Vec<f32> {
        self.blend(rows, width)
    }

    /// Pictures `[n, side, side, 3]`.
    pub fn pictures(&self, pixels: &[f32], side: usize) -> Vec<f32> {
        let width = 3 * side * side;
        let Some(patch) = &self.patch else { return self.blend(pixels, width) };
        // A teacher may look at larger pictures than its student.
        let scaled = |r: &Range<usize>| r.start * side / patch.side..(r.end * side).div_ceil(patch.side).min(side);
        let (rows, columns) = (scaled(&patch.rows), scaled(&patch.columns));
        let mut out = pixels.to_vec();
        let n = pixels.len() / width;
        for (i, picture) in out.chunks_exact_mut(width).enumerate() {
            let other = &pixels[(n - 1 - i) * width..(n - i) * width];
            for row in rows.clone() {
                let line = (row * side + columns.start) * 3..(row * side + columns.end) * 3;
                picture[line.clone()].copy_from_slice(&other[line]);
            }
        }
        out
    }

    fn blend(&self, rows: &[f32], width: usize) -> Vec<f32> {
        let n = rows.len() / width;
        let mut out = Vec::with_capacity(rows.len());
        for i in 0..n {
            let (a, b) = (&rows[i * width..(i + 1) * width], &rows[(n - 1 - i) * width..(n - i) * width]);
            out.extend(a.iter().zip(b).map(|(a, b)| self.keep * a + (1.0 - self.keep) * b));
        }
        out
    }
}

/// A weight drawn from Beta(α, α).
fn beta(rng: &Philox, step: u64, grain: u32, alpha: f64) -> (f64, crate::num::rng::Stream) {
    let mut s = rng.stream(step, grain);
    let (a, b) = (s.gamma(alpha), s.gamma(alpha));
    (if a + b > 0.0 { a / (a + b) } else { 0.5 }, s)
}

/// The modifier of a job that puts parts on its network, with its parameters, and what it puts where.
pub fn adapt(modifiers: &BTreeMap<String, Params>) -> Option<(&str, &Params, Plan)> {
    modifiers.iter().find_map(|(name, params)| Some((name.as_str(), params, (find(name)?.adapt?)(params))))
}

/// How the modifiers of a job hold its network to the weights that it began with.
pub fn holds(modifiers: &BTreeMap<String, Params>) -> Vec<Hold> {
    modifiers.iter().filter_map(|(name, params)| Some((find(name)?.hold?)(params))).collect()
}

/// How a job has the head that came with the weights go on, if it does.
pub fn remembers(modifiers: &BTreeMap<String, Params>) -> Option<Remember> {
    modifiers.iter().find_map(|(name, params)| Some((find(name)?.remember?)(params)))
}

/// What the catalog says: what each says of itself, and what its hooks say of it.
pub fn catalog() -> Vec<Entry> {
    let listed = |m: &Modifier| Entry { mixes: m.mix.is_some(), one_head: m.remember.is_some(), ..(m.entry)() };
    ALL.iter().map(listed).collect()
}

#[cfg(test)]
mod tests {
    use tl_proto::catalog::entry;

    use super::*;

    #[test]
    fn one_average_is_kept_and_one_old_head_and_the_rest_goes_together() {
        let all = ["cutmix", "ema", "ewc", "l2_sp", "lora", "lwf", "mixup"].map(|n| (n.to_owned(), Params::new()));
        check(&all.into()).unwrap();
        let swa = Modifier { entry: || entry("swa", ""), ..ema::MODIFIER };
        let recall = Modifier { entry: || entry("recall", ""), ..lwf::MODIFIER };
        for (chosen, named) in [
            ([&mixup::MODIFIER, &ema::MODIFIER, &swa], "`modifiers.ema` and `modifiers.swa`"),
            ([&lwf::MODIFIER, &ema::MODIFIER, &recall], "`modifiers.lwf` and `modifiers.recall`"),
        ] {
            let error = go_together(&chosen).unwrap_err().to_string();
            assert_eq!(error, format!("{named} are different answers to one question"));
        }
    }

    #[test]
    fn an_average_lets_go_of_where_it_began_and_says_how_much_of_that_is_left() {
        let held = |params: &[(&str, f64)], steps| {
            let params: Params = params.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
            held(&[("ema".to_owned(), params)].into(), steps).unwrap()
        };
        let from_the_start = [("warmup", 0.0)];
        assert!((held(&from_the_start, 256) - 0.9998f64.powi(255)).abs() < 1e-9);
        assert!((held(&[("decay", 0.9), ("warmup", 0.0)], 9) - 0.9f64.powi(8)).abs() < 1e-12);
        assert_eq!((held(&from_the_start, 1), held(&[], 0), held(&[], 1)), (1.0, 1.0, 1.0));
        // 1 - 2^(-2/3), 1 - 3^(-2/3) and 1 - 4^(-2/3).
        let rising = 0.370_039_475_052_563_4 * 0.519_250_143_230_863_8 * 0.603_149_737_007_950_2;
        assert!((held(&[], 4) - rising).abs() < 1e-9, "{}", held(&[], 4));
        // Each step by itself, where runs of them are taken for one.
        let each = (1..5000).map(|t| 1.0 - (1.0 + f64::from(t)).powf(-2.0 / 3.0)).product::<f64>();
        assert!((held(&[], 5000) / each - 1.0).abs() < 0.02, "{:e} {each:e}", held(&[], 5000));
        assert_eq!(super::held(&BTreeMap::new(), 9), None);
    }

    #[test]
    fn a_job_with_two_ways_of_mixing_draws_one_for_each_grain() {
        let both: BTreeMap<String, Params> = ["cutmix", "mixup"].map(|n| (n.to_owned(), Params::new())).into();
        let cut = (0..400).filter(|k| mix(&both, 1, *k, 0, 32).unwrap().patch.is_some()).count();
        assert!((150..250).contains(&cut), "{cut}");
        assert!(mix(&BTreeMap::new(), 1, 0, 0, 32).is_none() && mixes(&both) && !mixes(&BTreeMap::new()));
    }

    #[test]
    fn the_catalog_says_what_checks_and_baselines_go_by() {
        let all = catalog();
        let names =
            |of: fn(&Entry) -> bool| -> Vec<&str> { all.iter().filter(|e| of(e)).map(|e| e.name.as_str()).collect() };
        assert_eq!((names(|e| e.mixes), names(|e| e.one_head)), (vec!["cutmix", "mixup"], vec!["lwf"]));
        for (modifier, entry) in ALL.iter().zip(&all) {
            assert_eq!(entry.freezes, modifier.adapt.is_some(), "{}", entry.name);
            assert_eq!(entry.begins_with_weights, modifier.hold.is_some() || modifier.remember.is_some());
        }
    }
}
