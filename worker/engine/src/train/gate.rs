//! The gradient-flow gate: a job that cannot learn is refused, with names.
//!
//! In the first step backward must reach every trained tensor with finite values; each must be non-zero at least once
//! in the first twenty; what is frozen must be the same, bit by bit, at the end of its stage.

use super::state::{Progress, RunState};
use crate::{
    Error, Result,
    nn::{Layout, ParamId, Store},
};

/// Steps within which every gradient must have been non-zero once.
const WATCH: u32 = 20;

/// Whether gradients are still looked at.
pub fn watches(progress: &Progress) -> bool {
    progress.watched < WATCH
}

/// Looks at the reduced gradient of one step.
///
/// # Errors
/// Names what backward did not reach, what is not finite, or what stayed zero.
pub fn check(progress: &mut Progress, store: &Store, layout: &Layout, touched: &[bool], mean: &[f32]) -> Result<()> {
    if !watches(progress) {
        return Ok(());
    }
    let name = |id: ParamId| &store.params[id.0].name;
    if progress.watched == 0 {
        progress.alive = vec![false; store.params.len()];
        if let Some((id, _)) = layout.trained().find(|(id, _)| !touched[id.0]) {
            return Err(Error::user(
                format!("backward does not reach `{}`, which the stage is to train", name(id)),
                "freeze it, or mend the network: it would never learn",
            ));
        }
    }
    for (id, slot) in layout.trained() {
        let gradient = &mean[slot];
        if gradient.iter().any(|g| !g.is_finite()) {
            return Err(Error::NotFinite(format!("the gradient of `{}` is not finite", name(id))));
        }
        progress.alive[id.0] |= gradient.iter().any(|g| *g != 0.0);
    }
    progress.watched += 1;
    if progress.watched == WATCH
        && let Some((id, _)) = layout.trained().find(|(id, _)| !progress.alive[id.0])
    {
        return Err(Error::user(
            format!("the gradient of `{}` was zero in each of the first {WATCH} steps of the stage", name(id)),
            "freeze it, or mend the network: it does not learn",
        ));
    }
    Ok(())
}

/// Looks at a stage that ended before [`WATCH`] steps: what was never touched was never trained. Tensors that are `late`
/// have a gradient of zero before the first update, and are not judged by it.
///
/// # Errors
/// Names what stayed zero.
pub fn check_short(progress: &Progress, store: &Store, layout: &Layout, late: &[ParamId]) -> Result<()> {
    if !(1..WATCH).contains(&progress.watched) {
        return Ok(());
    }
    let excused = |id| progress.watched == 1 && late.contains(&id);
    match layout.trained().find(|(id, _)| !progress.alive[id.0] && !excused(*id)) {
        None => Ok(()),
        Some((id, _)) => Err(Error::user(
            format!(
                "the gradient of `{}` was zero in each of the {} steps of the stage",
                store.params[id.0].name, progress.watched
            ),
            "freeze it, or mend the network: it does not learn",
        )),
    }
}

/// Digest of every parameter and buffer that the stage must not change.
pub fn frozen_digest(state: &RunState, store: &Store, layout: &Layout, norms: &[usize]) -> String {
    let mut hasher = blake3::Hasher::new();
    for (i, entry) in store.params.iter().enumerate().filter(|(i, _)| layout.slot(ParamId(*i)).is_none()) {
        hasher.update(&i.to_le_bytes()).update(&crate::collective::to_bytes(&state.store.values[entry.range.clone()]));
    }
    for (i, entry) in store.buffers.iter().enumerate().filter(|(i, _)| !norms.contains(i)) {
        hasher
            .update(&i.to_le_bytes())
            .update(&crate::collective::to_bytes(&state.store.buffer_values[entry.range.clone()]));
    }
    hasher.finalize().to_hex().to_string()
}

/// Compares with the digest from the start of the stage.
///
/// # Errors
/// Something frozen has moved: a bug of a layer or a technique.
pub fn check_frozen(progress: &Progress, now: &str, stage: &str) -> Result<()> {
    if progress.frozen == now {
        return Ok(());
    }
    Err(Error::Internal(format!("stage `{stage}` changed a tensor that it had frozen")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Builder;

    #[test]
    fn planted_faults_are_refused_by_name() {
        let mut b = Builder::new(1);
        b.linear("fc", (2, 1));
        let store = b.store;
        let layout = Layout::new(&store, &[ParamId(0), ParamId(1)], &[]);
        let run = |touched: [bool; 2], mean: [f32; 3]| {
            let mut progress = Progress::default();
            (0..WATCH).try_for_each(|_| check(&mut progress, &store, &layout, &touched, &mean))
        };
        run([true, true], [0.0, 1.0, 1.0]).unwrap();
        assert!(run([true, false], [1.0; 3]).unwrap_err().to_string().contains("does not reach `fc.bias`"));
        assert!(run([true, true], [1.0, f32::NAN, 1.0]).unwrap_err().to_string().contains("`fc.weight` is not finite"));
        let mut short = Progress::default();
        check(&mut short, &store, &layout, &[true, true], &[1.0, 1.0, 0.0]).unwrap();
        let judge = |short: &Progress, late: &[ParamId]| check_short(short, &store, &layout, late);
        assert!(judge(&short, &[]).unwrap_err().to_string().contains("each of the 1 steps"));
        judge(&short, &[ParamId(1)]).unwrap();
        check(&mut short, &store, &layout, &[true, true], &[1.0, 1.0, 0.0]).unwrap();
        assert!(judge(&short, &[ParamId(1)]).unwrap_err().to_string().contains("each of the 2 steps"));
        assert!(run([true, true], [1.0, 1.0, 0.0]).unwrap_err().to_string().contains("`fc.bias` was zero in each"));
    }

    #[test]
    fn a_frozen_tensor_that_moves_is_noticed() {
        let mut b = Builder::new(1);
        b.linear("fc", (2, 1));
        let layout = Layout::new(&b.store, &[ParamId(1)], &[]);
        let mut state = RunState::new(b.store.clone(), crate::optim::Moments::default());
        let digest = |s: &RunState| frozen_digest(s, &b.store, &layout, &[]);
        let progress = Progress { frozen: digest(&state), ..Progress::default() };
        state.store.values[2] += 1.0;
        check_frozen(&progress, &digest(&state), "s").unwrap();
        state.store.values[0] += 1.0;
        assert!(check_frozen(&progress, &digest(&state), "s").is_err());
    }
}
