//! Everything mutable of a run in one value, independent of the number of ranks; and its checkpoint.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{export::Baseline, lr_find::Found, tasks::Weighing, watch::Watch};
use crate::{
    Error, Result, collective,
    eval::shift::Apart,
    files,
    nn::{BufferId, Store},
    optim::{Group, Moments},
};

/// One epoch's figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochFigures {
    /// Name of the stage.
    pub stage: String,
    /// Epoch within the stage, from 1.
    pub epoch: u32,
    /// `train.loss`, `val.accuracy` and so on.
    pub values: BTreeMap<String, f64>,
}

/// Sums over the steps of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Samples.
    pub samples: u64,
    /// Σ loss.
    pub loss: f64,
    /// Right predictions by the samples' own labels, also where targets are mixed, of which nothing is told.
    pub correct: u64,
}

/// The numbers of a run's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Current stage.
    pub stage: usize,
    /// Epochs done in it.
    pub epoch: u32,
    /// Steps done in the epoch.
    pub step_in_epoch: usize,
    /// Optimizer steps done in the run.
    pub step: u64,
    /// Steps done in the stage.
    pub stage_step: u64,
    /// Epochs begun before this stage, for the order of samples.
    pub epochs_before: u64,
    /// Whether the current stage has been set up.
    pub stage_open: bool,
    /// Learning rate reduced on plateaus: times this.
    pub plateau_factor: f64,
    /// Epochs without improvement, for plateaus.
    pub plateau_wait: u32,
    /// Epochs without improvement, for stopping.
    pub stop_wait: u32,
    /// Best value of the monitored metric in this stage.
    pub best: Option<f64>,
    /// The epoch of the stage that it is of, from 1; 0 if there is none.
    #[serde(default)]
    pub best_epoch: u32,
    /// Digest of what the stage must not change.
    pub frozen: String,
    /// Trained parameters whose gradient was once not zero, by index.
    pub alive: Vec<bool>,
    /// Steps that `alive` has watched.
    pub watched: u32,
    /// Which numbers the machines of the run compute.
    #[serde(default)]
    pub numbers: String,
    /// Digest of the small parts that are trained, and of where they come from.
    #[serde(default)]
    pub parts: String,
    /// Sums of the current epoch.
    pub sums: Sums,
    /// Finished epochs.
    pub history: Vec<EpochFigures>,
    /// What is watched for going on to the next stage.
    #[serde(default)]
    pub advance: Watch,
    /// What is watched for lowering the rate.
    #[serde(default)]
    pub plateau: Watch,
    /// Updates of the averages.
    #[serde(default)]
    pub averaged: u64,
    /// What there is to beat, measured before the first step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baselines: Vec<Baseline>,
    /// What tasks count, where there are several.
    #[serde(default)]
    pub weighing: Weighing,
    /// What searches for a learning rate came to, by stage.
    #[serde(default)]
    pub found: BTreeMap<usize, Found>,
    /// How far apart two domains lay before anything was learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Apart>,
    /// How often the optimizer updated each run of parameters.
    #[serde(default)]
    pub updates: BTreeMap<usize, u64>,
    /// Running products of the optimizer's betas, as bits, by where the run of parameters begins.
    pub products: BTreeMap<usize, [u64; 2]>,
}

impl Progress {
    /// Optimizer steps that are in the network: those of searches for a rate count for the series, and were undone.
    pub fn taken(&self) -> u64 {
        self.step.saturating_sub(self.found.values().map(|found| found.steps).sum())
    }
}

/// Everything mutable.
#[derive(Clone, Debug, Default)]
pub struct RunState {
    /// Parameters and buffers.
    pub store: Store,
    /// The optimizer's memory.
    pub moments: Moments,
    /// Best values and buffers of the stage, if they are to be restored.
    pub best: Option<(Vec<f32>, Vec<f32>)>,
    /// Averages of values and buffers over the steps of the stage, if they are kept.
    pub averages: Option<(Vec<f32>, Vec<f32>)>,
    /// How much each value matters to what the weights were trained on, where a modifier asks: learned once, before the
    /// first step. Releases from before there was such a modifier refuse a state with it, and read one without.
    pub importance: Vec<f32>,
    /// The rest.
    pub progress: Progress,
}

/// What a checkpoint is called on disk.
pub fn file_name(step: u64) -> String {
    format!("checkpoint-{step:010}.tlc")
}

const MAGIC: &[u8; 8] = b"tlckpt01";

impl RunState {
    /// A run that has not begun.
    pub fn new(store: Store, moments: Moments) -> Self {
        let numbers = blake3::Hash::from_bytes(store.place.numbers()).to_hex().to_string();
        let progress = Progress { plateau_factor: 1.0, numbers, ..Progress::default() };
        Self { store, moments, best: None, averages: None, importance: Vec::new(), progress }
    }

    /// The state as bytes that know whether they are whole.
    ///
    /// # Errors
    /// None that can be caused from outside.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut progress = self.progress.clone();
        progress.products = self.moments.products.iter().map(|(at, p)| (*at, p.map(f64::to_bits))).collect();
        progress.updates = self.moments.updates.clone();
        let json = serde_json::to_vec(&progress).map_err(|e| Error::Internal(e.to_string()))?;
        let empty = (Vec::new(), Vec::new());
        let best = self.best.as_ref().unwrap_or(&empty);
        let averages = self.averages.as_ref().unwrap_or(&empty);
        let mut out = MAGIC.to_vec();
        out.extend((json.len() as u64).to_le_bytes());
        out.extend(json);
        let (store, moments) = (&self.store, &self.moments);
        let parts = [
            &store.values,
            &store.buffer_values,
            &moments.first,
            &moments.second,
            &best.0,
            &best.1,
            &averages.0,
            &averages.1,
        ];
        // What most runs do not have leaves no trace.
        for part in parts.into_iter().chain(Some(&self.importance).filter(|all| !all.is_empty())) {
            out.extend((part.len() as u64).to_le_bytes());
            out.extend(collective::to_bytes(part));
        }
        Ok(files::seal(out))
    }

    /// What a whole state, for a network of any size, says of its parts.
    pub fn parts_of(bytes: &[u8]) -> Option<String> {
        #[derive(Deserialize)]
        struct Said {
            #[serde(default)]
            parts: String,
        }
        let bytes = files::unseal(bytes.to_vec())?;
        let (len, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
        let json = rest.get(..usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        serde_json::from_slice::<Said>(json).ok().map(|said| said.parts)
    }

    /// Reads what [`RunState::to_bytes`] wrote; `None` if it is not whole or not for a network of this size.
    pub fn from_bytes(bytes: Vec<u8>, store: &Store) -> Option<Self> {
        let bytes = files::unseal(bytes)?;
        let rest = bytes.strip_prefix(MAGIC)?;
        let take = |rest: &[u8], scale: usize| -> Option<(Vec<u8>, usize)> {
            let (len, tail) = rest.split_first_chunk::<8>()?;
            let len = usize::try_from(u64::from_le_bytes(*len)).ok()?.checked_mul(scale)?;
            Some((tail.get(..len)?.to_vec(), 8 + len))
        };
        let (json, used) = take(rest, 1)?;
        let mut rest = &rest[used..];
        let mut progress: Progress = serde_json::from_slice(&json).ok()?;
        let mut parts = Vec::new();
        for i in 0..8 {
            // Before there were averages, there were six parts.
            if i == 6 && rest.is_empty() {
                parts.extend([Vec::new(), Vec::new()]);
                break;
            }
            let (part, used) = take(rest, 4)?;
            rest = &rest[used..];
            parts.push(collective::from_bytes(&part).ok()?);
        }
        let mut importance = Vec::new();
        if !rest.is_empty() {
            let (part, used) = take(rest, 4)?;
            rest = &rest[used..];
            importance = collective::from_bytes(&part).ok()?;
        }
        let [values, buffers, first, second, best_values, best_buffers, average, average_buffers] =
            <[Vec<f32>; 8]>::try_from(parts).ok()?;
        let pair = |v: &Vec<f32>, b: &Vec<f32>| v.is_empty() || (v.len() == values.len() && b.len() == buffers.len());
        let fits = values.len() == store.values.len()
            && buffers.len() == store.buffer_values.len()
            && first.len() == values.len()
            && (second.is_empty() || second.len() == values.len())
            && (importance.is_empty() || importance.len() == values.len())
            && pair(&best_values, &best_buffers)
            && pair(&average, &average_buffers);
        let bits = std::mem::take(&mut progress.products);
        let products = bits.into_iter().map(|(at, p)| (at, p.map(f64::from_bits))).collect();
        let best = (!best_values.is_empty()).then_some((best_values, best_buffers));
        let averages = (!average.is_empty()).then_some((average, average_buffers));
        let updates = std::mem::take(&mut progress.updates);
        let store = Store { values, buffer_values: buffers, ..store.clone() };
        (fits && rest.is_empty()).then_some(Self {
            store,
            moments: Moments { first, second, products, updates },
            best,
            averages,
            importance,
            progress,
        })
    }

    /// Moves the averages of what some groups train, and of running statistics, towards where these stand, by 1 − `keep`.
    /// What is frozen stays the same in both, bit by bit.
    pub fn average(&mut self, groups: &[Group], norms: &[(BufferId, BufferId)], keep: f64) {
        let Some((values, buffers)) = &mut self.averages else { return };
        let towards = (1.0 - keep) as f32;
        let lerp = |average: &mut [f32], now: &[f32]| {
            average.iter_mut().zip(now).for_each(|(a, n)| *a += towards * (n - *a));
        };
        for group in groups {
            lerp(&mut values[group.values.clone()], &self.store.values[group.values.clone()]);
        }
        for buffer in norms.iter().flat_map(|(mean, var)| [mean, var]) {
            let range = self.store.buffers[buffer.0].range.clone();
            lerp(&mut buffers[range.clone()], &self.store.buffer_values[range]);
        }
        self.progress.averaged += 1;
    }

    /// Puts the averages, where they are kept, in the place of what they are averages of; and back again.
    pub fn swap_averages(&mut self) {
        if let Some((values, buffers)) = &mut self.averages {
            std::mem::swap(values, &mut self.store.values);
            std::mem::swap(buffers, &mut self.store.buffer_values);
        }
    }

    /// Writes a checkpoint into `dir`; on error nothing is left behind.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save(&self, dir: &Path) -> Result<std::path::PathBuf> {
        let path = dir.join(file_name(self.progress.step));
        files::write_whole(&path, &self.to_bytes()?)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (RunState, Store) {
        let store = Store { values: vec![1.0, f32::NAN, 3.0], buffer_values: vec![4.0], ..Store::default() };
        let mut state = RunState::new(
            store.clone(),
            Moments {
                first: vec![0.5; 3],
                second: vec![0.25; 3],
                products: [(1, [0.9, 0.1 + 0.2])].into(),
                updates: [(1, 3)].into(),
            },
        );
        state.best = Some((vec![7.0; 3], vec![8.0]));
        state.averages = Some((vec![9.0; 3], vec![10.0]));
        state.importance = vec![0.0, 0.25, 1e-9];
        state.progress.step = 12;
        // Numbers that a careless reader of decimal digits gets wrong by one bit.
        state.progress.best = Some(148.0 / 153.0);
        state.progress.sums.loss = 144.0 / 153.0;
        state.progress.history = vec![EpochFigures {
            values: [("val.accuracy".to_owned(), 277.0 / 300.0)].into(),
            ..EpochFigures::default()
        }];
        (state, store)
    }

    #[test]
    fn a_state_comes_back_with_every_bit() {
        let (state, store) = state();
        let bytes = state.to_bytes().unwrap();
        let back = RunState::from_bytes(bytes.clone(), &store).unwrap();
        assert_eq!(back.to_bytes().unwrap(), bytes);
        assert_eq!((&back.moments.products, &back.averages), (&state.moments.products, &state.averages));
        assert_eq!((&back.moments.updates, &back.importance), (&state.moments.updates, &state.importance));
        assert_eq!(back.progress, state.progress);
    }

    #[test]
    fn a_state_from_before_there_were_averages_is_read() {
        let (mut state, store) = state();
        (state.averages, state.importance) = (None, Vec::new());
        let mut bytes = files::unseal(state.to_bytes().unwrap()).unwrap();
        // The two last parts are empty: a length of zero each.
        bytes.truncate(bytes.len() - 16);
        let back = RunState::from_bytes(files::seal(bytes), &store).unwrap();
        assert_eq!(back.to_bytes().unwrap(), state.to_bytes().unwrap());
    }

    proptest::proptest! {
        #[test]
        fn a_damaged_checkpoint_is_refused_without_a_panic(at in 0usize..10_000, by in 1u8.., cut: bool, reseal: bool) {
            let (state, store) = state();
            let mut bytes = state.to_bytes().unwrap();
            let at = at % bytes.len();
            if cut { bytes.truncate(at) } else { bytes[at] ^= by }
            if reseal && bytes.len() > 32 {
                bytes.truncate(bytes.len() - 32);
                let _ = RunState::from_bytes(files::seal(bytes), &store);
            } else {
                assert!(RunState::from_bytes(bytes, &store).is_none());
            }
        }
    }

    proptest::proptest! {
        /// Whatever lies in a file that is sealed as ours, it is a state or it is refused.
        #[test]
        fn bytes_that_are_no_state_are_refused_without_a_panic(
            at in 0usize..4096, with in proptest::prelude::any::<[u8; 8]>(), cut in 0usize..4096,
        ) {
            let (state, store) = state();
            let mut bytes = files::unseal(state.to_bytes().unwrap()).unwrap();
            bytes.truncate(bytes.len() - cut % 32);
            let at = at % bytes.len();
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&with[..end - at]);
            if let Some(read) = RunState::from_bytes(files::seal(bytes), &store) {
                assert_eq!(read.store.values.len(), store.values.len());
            }
        }
    }
}
