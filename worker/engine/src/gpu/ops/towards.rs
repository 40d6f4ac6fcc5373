//! Numbers that move towards others: averages towards values, and by their gradient values towards where they began.

use std::ops::Range;

use crate::{
    gpu::{
        Array, Device, Fault,
        launch::{each, launch, squares},
    },
    num::{BLOCK, fold_pairs},
};

/// `averages += towards · (values − averages)`.
///
/// # Errors
/// Other shapes, or a GPU that has failed.
pub fn average(device: &Device, averages: &mut Array, values: &Array, towards: f32) -> Result<(), Fault> {
    values.expect(averages.shape())?;
    let n = averages.count();
    launch!(device, Towards, "average", each(n), &mut averages.data, &values.data, &(n as u64), &towards);
    Ok(())
}

/// How a run of numbers is pulled back to where it began.
#[derive(Clone, Debug, PartialEq)]
pub struct Pull {
    /// Which numbers.
    pub run: Range<usize>,
    /// What their distance counts.
    pub weight: f32,
    /// Whether each of them counts as much as it matters.
    pub important: bool,
}

/// Where numbers began, and how much each of them matters, where that is known.
#[derive(Clone, Copy, Debug)]
pub struct Began<'a> {
    /// Their first values.
    pub start: &'a Array,
    /// How much they matter.
    pub importance: Option<&'a Array>,
}

/// Adds `weight·f·(now − start)` to a mean gradient, pull after pull; waits for Σ `weight·f·(now − start)²` of each, in the
/// order of `num::squared_norm`.
///
/// # Errors
/// Runs that are not inside, an importance that nobody knows, or a GPU that has failed.
pub fn pull(
    device: &Device,
    mean: &mut Array,
    now: &Array,
    began: Began<'_>,
    pulls: &[Pull],
) -> Result<Vec<f64>, Fault> {
    let blocks = |pull: &Pull| pull.run.len().div_ceil(BLOCK);
    if pulls.is_empty() {
        return Ok(Vec::new());
    }
    for Pull { run, important, .. } in pulls {
        let known = [Some(&*mean), Some(now), Some(began.start), began.importance.filter(|_| *important)];
        known.into_iter().flatten().try_for_each(|array| array.expect_run(run))?;
        if *important && began.importance.is_none() {
            return Err(Fault::shape("nobody knows how much numbers matter"));
        }
    }
    let mut sums = device.fresh::<f64>(&[pulls.iter().map(blocks).sum()])?;
    let mut at = 0;
    for one in pulls {
        let (n, own, run) = (one.run.len(), at..at + blocks(one), one.run.clone());
        at = own.end;
        // Where it is not known, nobody reads it.
        let f = began.importance.filter(|_| one.important).unwrap_or(began.start);
        launch!(
            device,
            Towards,
            "pull",
            squares(own.len())?,
            &mut sums.data.slice_mut(own),
            &mut mean.data.slice_mut(run.clone()),
            &now.data.slice(run.clone()),
            &began.start.data.slice(run.clone()),
            &f.data.slice(run),
            &(n as u64),
            &one.weight,
            &u32::from(one.important)
        );
    }
    let mut sums = device.download(&sums)?.into_iter();
    Ok(pulls.iter().map(|one| fold_pairs(sums.by_ref().take(blocks(one)).collect())).collect())
}
