//! An LSTM on the GPU that its rows lie on. They lie time by time there, so that each step is one product and one kernel.

use super::{Lstm, Times};
use crate::{
    Result,
    gpu::{
        Mixed, Placed,
        ops::{self, Step},
    },
    nn::{Act, Gradients, Pass, Ragged, Saved, Tape},
};

/// Rows time by time.
struct ByTime {
    steps: Vec<Step>,
    /// Which packed row each one is.
    packed: Vec<usize>,
    /// Which row of all frames each one is.
    framed: Vec<usize>,
}

impl ByTime {
    fn of(ragged: &Ragged) -> Self {
        let samples = ragged.lengths.iter().enumerate();
        let room = ragged.room + 1;
        let frames: Vec<usize> =
            samples.flat_map(|(sample, length)| (1..=*length).map(move |row| sample * room + row)).collect();
        let times = Times::of(ragged);
        let (mut steps, mut packed) = (Vec::<Step>::new(), Vec::with_capacity(frames.len()));
        for time in 0..times.steps() {
            let first = packed.len();
            packed.extend(times.rows(time));
            steps.push(Step { rows: first..packed.len(), before: steps.last().map(|step| step.rows.start) });
        }
        let framed = packed.iter().map(|row| frames[*row]).collect();
        Self { steps, packed, framed }
    }

    /// For each row of frames, and of their headers and padding, the one here.
    fn in_frames(&self, ragged: &Ragged) -> Vec<Option<usize>> {
        inverse(&self.framed, ragged.lengths.len() * (ragged.room + 1))
    }

    /// For each row that of the same sample at the time before.
    fn before(&self) -> Vec<Option<usize>> {
        let rows = |step: &Step| {
            let before = step.before;
            (0..step.rows.len()).map(move |row| before.map(|first| first + row))
        };
        self.steps.iter().flat_map(rows).collect()
    }
}

/// For each of `count` numbers where it is in the list.
fn inverse(list: &[usize], count: usize) -> Vec<Option<usize>> {
    let mut places = vec![None; count];
    list.iter().enumerate().for_each(|(place, number)| places[*number] = Some(place));
    places
}

/// The last packed row of each sample.
fn ends(ragged: &Ragged) -> Vec<usize> {
    ragged.starts().into_iter().zip(&ragged.lengths).map(|(start, length)| start + length - 1).collect()
}

fn some(rows: &[usize]) -> Vec<Option<usize>> {
    rows.iter().copied().map(Some).collect()
}

impl Lstm {
    pub(super) fn placed(&self, x: &Placed, pass: &Pass<'_>, tape: &mut Tape) -> Result<Placed> {
        let ragged = Ragged::of(x)?;
        let order = ByTime::of(&ragged);
        let (total, w) = (ragged.rows(), self.hidden);
        let weights = |id, n: usize| pass.operand_of(id, &[4 * w, n], x.device());
        let (wi, wh) = (weights(self.wi, self.input)?, weights(self.wh, w)?);
        let [bi, bh] = [self.bi, self.bh].map(|id| pass.placed(id, &[4 * w], x.device()));
        let (bi, bh) = (bi?, bh?);
        let input: Mixed = x.made(|device, x| ops::take_rows(device, x, &some(&order.framed)))?.into();
        let bias = bi.made(|device, bi| ops::add_activate(device, Act::None, bi, bh.array()))?;
        let device = x.device();
        let (mut memories, mut states) = (device.zeros(&[total, w])?, device.zeros(&[total, w])?);
        // bf16 has either bias, and not their sum.
        let gates = pass.operand(&input)?.linear_added(&wi, &bias)?.into_full()?.changed(|_, gates| {
            for step in &order.steps {
                wh.lstm_step([&mut *gates, &mut memories, &mut states], step)?;
            }
            Ok(())
        })?;
        let states = x.beside(states);
        let places = inverse(&order.packed, total);
        let which = if self.last { ends(&ragged).iter().map(|end| places[*end]).collect() } else { places };
        let mut out = states.made(|device, states| ops::take_rows(device, states, &which))?;
        if !self.last {
            out = ragged.frame_placed(&out, true)?;
        }
        if pass.records() {
            for kept in [input, gates.into(), x.beside(memories).into(), states.into()] {
                tape.push(Saved::Array(kept.into()));
            }
        }
        ragged.save(pass, tape);
        Ok(out)
    }

    pub(super) fn placed_backward(
        &self,
        dy: &Placed,
        ragged: &Ragged,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Placed>> {
        let (states, memories) = (tape.pop_array()?, tape.pop_array()?);
        let gates = tape.pop_array()?.placed()?;
        let input = tape.pop_array()?;
        let order = ByTime::of(ragged);
        let (n, w) = (ragged.lengths.len(), self.hidden);
        let which = if self.last {
            let ends = inverse(&ends(ragged), ragged.rows());
            order.packed.iter().map(|row| ends[*row]).collect()
        } else {
            some(&order.framed)
        };
        let outer = dy.made(|device, dy| ops::take_rows(device, dy, &which))?;
        let wh = pass.operand_of(self.wh, &[4 * w, w], dy.device())?;
        let memories = memories.placed()?;
        let given = [memories.array(), outer.array()];
        let slopes = gates.changed(|device, gates| {
            let (mut dstate, mut dmemory) = (None, device.zeros(&[n, w])?);
            for step in order.steps.iter().rev() {
                dstate = wh.lstm_back(gates, given, dstate.as_ref(), &mut dmemory, step)?;
            }
            Ok(())
        })?;
        // From here on slopes are what products take.
        let slopes = pass.operand(&slopes.into())?;
        if pass.trains(self.wi) {
            let input = pass.operand(input.mixed()?)?;
            grads.add_placed(self.wi, &[4 * w, self.input], dy.device(), |_, dw| slopes.linear_weights(&input, dw))?;
        }
        if pass.trains(self.wh) {
            let before = order.before();
            let before = states.placed()?.made(|device, states| ops::take_rows(device, states, &before))?;
            let before = pass.operand(&before.into())?;
            grads.add_placed(self.wh, &[4 * w, w], dy.device(), |_, dw| slopes.linear_weights(&before, dw))?;
        }
        for bias in [self.bi, self.bh] {
            grads.add_placed(bias, &[4 * w], dy.device(), |_, db| slopes.add_sums(db))?;
        }
        if !need_dx {
            return Ok(None);
        }
        let wi = pass.operand_of(self.wi, &[4 * w, self.input], dy.device())?;
        let which = order.in_frames(ragged);
        let shape = [n, ragged.room + 1, self.input];
        let dx = slopes.linear_input(&wi)?.into_full()?;
        Ok(Some(dx.made(|device, dx| ops::take_rows(device, dx, &which)?.reshaped(&shape))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_time_lie_together_and_find_their_way_back() {
        let ragged = Ragged { lengths: vec![1, 3, 2], room: 4 };
        let order = ByTime::of(&ragged);
        assert_eq!(order.packed, [1, 4, 0, 2, 5, 3]);
        assert_eq!(order.framed, [6, 11, 1, 7, 12, 8]);
        let steps = [(0..3, None), (3..5, Some(0)), (5..6, Some(3))].map(|(rows, before)| Step { rows, before });
        assert_eq!(order.steps, steps);
        assert_eq!(order.before(), [None, None, None, Some(0), Some(1), Some(3)]);
        assert_eq!(ends(&ragged), [0, 3, 5]);
        let frames = order.in_frames(&ragged);
        assert_eq!((frames.len(), frames[8], frames[9], frames[0]), (15, Some(5), None, None));
    }
}
