//! The recurrent part of an LSTM: one time step of all samples that go on. Rows lie time by time, and samples have the same
//! order at every time, longest first, so that those of a step are the first ones of the step before.

use std::ops::Range;

use super::{Element, Math, Matrix, multiplied};
use crate::gpu::{
    Array, Fault,
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

/// Some rows of `x` times `w`, a matrix of `x`'s width and `columns`.
fn times<T: Element>(
    math: Math<'_>,
    x: &Array,
    rows: Range<usize>,
    (w, columns): (Matrix<'_, T>, usize),
) -> Result<Array, Fault> {
    let (device, m, width, first) = (math.device, rows.len(), x.width(), rows.start * x.width());
    // What has to be made of them is made of these rows alone.
    let part = if T::HALF { Some(device.part(x, first..rows.end * width, &[m, width])?) } else { None };
    let (from, first) = part.as_ref().map_or((x, first), |part| (part, 0));
    let own = T::taken(device, from)?;
    let own = Matrix { of: own.array(), first, stride: width, step: 0, turned: false };
    T::wide(device, multiplied(math, (own, w), (1, m, columns, width), &[m, columns])?)
}

/// Adds to the `gates` `[rows, 4w]` of a step what the states of the step before give them through `wh` `[4w, w]`, and
/// activates them; sets the step's `memories` and `states` `[rows, w]`.
///
/// # Errors
/// Other shapes, a full memory, or a GPU that has failed.
pub fn lstm_step<'d, T: Element>(
    math: impl Into<Math<'d>>,
    [gates, memories, states]: [&mut Array; 3],
    wh: &Array<T>,
    step: &Step,
) -> Result<(), Fault> {
    let (math, rows, w) = (math.into(), memories.rows(), memories.width());
    let device = math.device;
    step.expect(rows)?;
    gates.expect(&[rows, 4 * w])?;
    states.expect(&[rows, w])?;
    wh.expect(&[4 * w, w])?;
    let m = step.rows.len();
    let more = match step.before {
        Some(before) => times(math, states, before..before + m, (Matrix::of(wh).turned(), 4 * w))?,
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
/// the samples that have one; gives that for the step before.
///
/// # Errors
/// As [`lstm_step`].
pub fn lstm_back<'d, T: Element>(
    math: impl Into<Math<'d>>,
    gates: &mut Array,
    [memories, outer]: [&Array; 2],
    wh: &Array<T>,
    dstate: Option<&Array>,
    dmemory: &mut Array,
    step: &Step,
) -> Result<Option<Array>, Fault> {
    let (math, rows, w) = (math.into(), memories.rows(), memories.width());
    let device = math.device;
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
    times(math, gates, step.rows.clone(), (Matrix::of(wh), w)).map(Some)
}
