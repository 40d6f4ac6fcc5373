//! The recurrent part of an LSTM: one time step of all samples that go on. Rows lie time by time, and samples have the same
//! order at every time, longest first, so that those of a step are the first ones of the step before.

use std::ops::Range;

use super::{Matrix, product, round_bf16};
use crate::gpu::{
    Array, Device, Fault,
    launch::{each, launch, small},
};

/// The rows of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its own.
    pub rows: Range<usize>,
    /// Where those of the step before begin; `None` at the first time.
    pub before: Option<usize>,
}

impl Step {
    /// That it lies in matrices of so many rows, behind the step before.
    fn expect(&self, rows: usize) -> Result<(), Fault> {
        let Range { start, end } = self.rows;
        let behind = self.before.is_none_or(|before| start.checked_sub(before).is_some_and(|n| n >= end - start));
        if start >= end || end > rows || !behind {
            return Err(Fault::shape(format!("{self:?} of {rows} rows")));
        }
        Ok(())
    }
}

/// Some rows of `x` times `w`, a matrix of `x`'s width and `columns`; with what is taken and given rounded to bf16, if
/// `rounds`.
fn times(
    device: &Device,
    x: &Array,
    rows: Range<usize>,
    (w, columns): (Matrix<'_, f32>, usize),
    rounds: bool,
) -> Result<Array, Fault> {
    let (m, width) = (rows.len(), x.width());
    let mut y = device.fresh::<f32>(&[m, columns])?;
    let size = (1, m, columns, width);
    let own = Matrix { of: x, first: rows.start * width, stride: width, step: 0, turned: false };
    if !rounds {
        product(device, (own, w), size, &mut y, false)?;
        return Ok(y);
    }
    let Some(part) = x.data.try_slice(rows.start * width..rows.end * width) else {
        return Err(Fault::shape(format!("rows {rows:?} of {:?}", x.shape())));
    };
    let part = Array::new(device.stream().clone_dtod(&part)?, &[m, width]);
    let part = round_bf16(device, &part)?;
    product(device, (Matrix { of: &part, first: 0, ..own }, w), size, &mut y, false)?;
    round_bf16(device, &y)
}

/// Adds to the `gates` `[rows, 4w]` of a step what the states of the step before give them through `wh` `[4w, w]`, and
/// activates them; sets the step's `memories` and `states` `[rows, w]`. `rounds`: with the product of bf16.
///
/// # Errors
/// Other shapes, a full memory, or a GPU that has failed.
pub fn lstm_step(
    device: &Device,
    [gates, memories, states]: [&mut Array; 3],
    wh: &Array,
    step: &Step,
    rounds: bool,
) -> Result<(), Fault> {
    let (rows, w) = (memories.rows(), memories.width());
    step.expect(rows)?;
    gates.expect(&[rows, 4 * w])?;
    states.expect(&[rows, w])?;
    wh.expect(&[4 * w, w])?;
    let m = step.rows.len();
    let more = match step.before {
        Some(before) => times(device, states, before..before + m, (Matrix::of(wh).turned(), 4 * w), rounds)?,
        None => device.zeros(&[m, 4 * w])?,
    };
    let n = m * w;
    launch!(
        device,
        Lstm,
        "lstm_step",
        each(n),
        &mut gates.data,
        &mut memories.data,
        &mut states.data,
        &more.data,
        &(step.rows.start as u64),
        &(step.before.unwrap_or(0) as u64),
        &i32::from(step.before.is_none()),
        &(n as u64),
        &small(w)?
    );
    Ok(())
}

/// The same backwards: a step's activated `gates` become slopes of what they were given, and `dmemory` `[samples, w]` that of
/// the memories before. `outer` `[rows, w]` is the slope of the states from outside, `dstate` that from the step behind, of
/// the samples that have one; gives that for the step before. `rounds`: slopes are rounded where the product takes them.
///
/// # Errors
/// As [`lstm_step`].
pub fn lstm_back(
    device: &Device,
    gates: &mut Array,
    [memories, outer, wh]: [&Array; 3],
    dstate: Option<&Array>,
    dmemory: &mut Array,
    step: &Step,
    rounds: bool,
) -> Result<Option<Array>, Fault> {
    let (rows, w) = (memories.rows(), memories.width());
    step.expect(rows)?;
    gates.expect(&[rows, 4 * w])?;
    outer.expect(&[rows, w])?;
    wh.expect(&[4 * w, w])?;
    let m = step.rows.len();
    let later = dstate.map_or(0, Array::rows);
    if dmemory.width() != w || dmemory.rows() < m || dstate.is_some_and(|d| d.width() != w) || later > m {
        return Err(Fault::shape(format!("slopes of {later} and {:?} for {step:?}", dmemory.shape())));
    }
    let n = m * w;
    launch!(
        device,
        Lstm,
        "lstm_back",
        each(n),
        &mut gates.data,
        &memories.data,
        &outer.data,
        // What is not there is not read.
        &dstate.unwrap_or(outer).data,
        &mut dmemory.data,
        &(step.rows.start as u64),
        &(step.before.unwrap_or(0) as u64),
        &i32::from(step.before.is_none()),
        &((later * w) as u64),
        &(n as u64),
        &small(w)?
    );
    if step.before.is_none() {
        return Ok(None);
    }
    times(device, gates, step.rows.clone(), (Matrix::of(wh), w), rounds).map(Some)
}
