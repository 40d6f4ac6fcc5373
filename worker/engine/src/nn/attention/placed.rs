//! Attention on the GPU that its rows lie on: heads apart, `[samples·heads, t, depth]`, and one product for all of them.

use super::{KEY, QUERY, SelfAttention, VALUE};
use crate::{
    Result,
    gpu::{
        self, Device, Fault, Placed,
        ops::{self, Dropped, Heads, Matrix},
    },
    nn::{Array, Pass, Ragged, Saved, Tape},
};

/// A batch of matrices.
type Matrices = gpu::Array;

/// Every head of every sample of one batch.
struct Apart<'a> {
    device: &'a Device,
    heads: Heads,
    /// Heads of all samples.
    all: usize,
    /// What is dropped of their probabilities.
    dropped: Option<Dropped>,
    /// Whether products are those of bf16.
    rounds: bool,
}

impl Apart<'_> {
    /// What a product takes, or gives.
    fn rounded(&self, x: Matrices) -> Result<Matrices, Fault> {
        if self.rounds { ops::round_bf16(self.device, &x) } else { Ok(x) }
    }

    /// Heads, from the columns of a matrix that begin with `first`.
    fn split(&self, of: &Array, first: usize) -> Result<Matrices> {
        Ok(self.rounded(ops::split_heads(self.device, of.placed()?.array(), &self.heads, first)?)?)
    }

    /// Products of `m` rows and `n` columns, of `k` numbers each.
    fn times(
        &self,
        left: Matrix<'_, f32>,
        right: Matrix<'_, f32>,
        (m, n, k): (usize, usize, usize),
    ) -> Result<Matrices, Fault> {
        let mut out = self.device.zeros(&[self.all, m, n])?;
        ops::product(self.device, (left, right), (self.all, m, n, k), &mut out, false)?;
        Ok(out)
    }

    /// Drops what is dropped of probabilities, and of their gradients.
    fn drop_of(&self, scores: &mut Matrices) -> Result<(), Fault> {
        match &self.dropped {
            Some(dropped) => ops::dropout_scores(self.device, scores, dropped, self.heads.lengths()),
            None => Ok(()),
        }
    }
}

impl SelfAttention {
    fn apart<'a>(&self, device: &'a Device, ragged: &Ragged, pass: &Pass<'_>) -> Result<Apart<'a>> {
        let samples = ragged.lengths.len();
        Ok(Apart {
            device,
            heads: Heads::new(device, &ragged.lengths, self.heads, self.depth)?,
            all: samples * self.heads,
            dropped: self.drop.placed_of(device, pass, samples)?,
            rounds: !pass.precision().is_f32(),
        })
    }

    /// Queries, keys and values.
    fn split(&self, made: &[Array], apart: &Apart<'_>) -> Result<[Matrices; 3]> {
        let part = |which: usize| {
            let (matrix, first) = self.parts().place(which, 0);
            apart.split(&made[matrix], first)
        };
        Ok([part(QUERY)?, part(KEY)?, part(VALUE)?])
    }

    pub(super) fn placed_look(
        &self,
        at: &Placed,
        made: Vec<Array>,
        ragged: &Ragged,
        pass: &Pass<'_>,
        tape: &mut Tape,
    ) -> Result<Placed> {
        let apart = self.apart(at.device(), ragged, pass)?;
        let (device, d, t) = (apart.device, self.depth, apart.heads.longest());
        let [query, key, value] = self.split(&made, &apart)?;
        let scores = apart.times(Matrix::of(&query), Matrix::of(&key).turned(), (t, t, d))?;
        let mut scores = apart.rounded(scores)?;
        let notes = ops::softmax(device, &mut scores, apart.heads.lengths(), self.scale())?;
        apart.drop_of(&mut scores)?;
        let scores = apart.rounded(scores)?;
        let heads = apart.times(Matrix::of(&scores), Matrix::of(&value), (t, d, t))?;
        let mut out = device.zeros(&[ragged.rows(), self.parts().width])?;
        ops::join_heads(device, &heads, &apart.heads, &mut out, 0)?;
        if pass.records() {
            // As on the host, probabilities are computed again.
            made.into_iter().for_each(|kept| tape.push(Saved::Array(kept)));
            tape.push(Saved::Array(at.beside(notes).into()));
        }
        pass.rounded(at.beside(out))
    }

    pub(super) fn placed_slopes(
        &self,
        dout: &Placed,
        ragged: &Ragged,
        pass: &Pass<'_>,
        tape: &mut Tape,
    ) -> Result<Vec<Array>> {
        let notes = tape.pop_array()?;
        let mut made = self.projections.iter().map(|_| tape.pop_array()).collect::<Result<Vec<_>>>()?;
        made.reverse();
        let apart = self.apart(dout.device(), ragged, pass)?;
        let (device, lengths) = (apart.device, apart.heads.lengths());
        let (d, t) = (self.depth, apart.heads.longest());
        let [query, key, value] = self.split(&made, &apart)?;
        let g = apart.split(&dout.clone().into(), 0)?;
        let scores = apart.times(Matrix::of(&query), Matrix::of(&key).turned(), (t, t, d))?;
        let mut p = apart.rounded(scores)?;
        ops::softmax_again(device, &mut p, notes.placed()?.array(), lengths, self.scale())?;
        let dp = apart.times(Matrix::of(&g), Matrix::of(&value).turned(), (t, t, d))?;
        let mut dp = apart.rounded(dp)?;
        // What was dropped of the probabilities had no part in the output.
        apart.drop_of(&mut dp)?;
        let shown = if apart.dropped.is_some() || apart.rounds {
            let mut shown = device.copy(&p)?;
            apart.drop_of(&mut shown)?;
            Some(apart.rounded(shown)?)
        } else {
            None
        };
        let dvalue = apart.times(Matrix::of(shown.as_ref().unwrap_or(&p)).turned(), Matrix::of(&g), (t, d, t))?;
        drop(shown);
        ops::softmax_back(device, &mut dp, &p, lengths, self.scale())?;
        drop(p);
        let dp = apart.rounded(dp)?;
        let dquery = apart.times(Matrix::of(&dp), Matrix::of(&key), (t, d, t))?;
        let dkey = apart.times(Matrix::of(&dp).turned(), Matrix::of(&query), (t, d, t))?;
        let parts = self.parts();
        let shape = [ragged.rows(), parts.stride];
        let mut slopes = made.iter().map(|_| device.zeros(&shape)).collect::<Result<Vec<Matrices>, Fault>>()?;
        for (part, heads) in [dquery, dkey, dvalue].iter().enumerate() {
            let (matrix, first) = parts.place(part, 0);
            ops::join_heads(device, heads, &apart.heads, &mut slopes[matrix], first)?;
        }
        slopes.into_iter().map(|slope| pass.rounded(dout.beside(slope)).map(Array::from)).collect()
    }
}
