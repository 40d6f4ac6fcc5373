//! Batch-norm over the channels of a grain, of all grains of a step, or by running statistics, and the activation after
//! it: one pass over the data to find the statistics, one to apply both.
//!
//! Forward has no side effect. In training mode backward deposits, per channel, Σ(x−r) and Σ(x−r)² around the running
//! mean r: linear terms that any reduction can add up, from which one update per step is made after it.

#[cfg(feature = "cuda")]
mod placed;

use rayon::prelude::*;

use super::{
    Act, Array, BufferId, Gradients, Join, Layer, ParamId, Pass, Saved, Tape, array, grains, host,
    precision::Rounds,
    rows::{BLOCK, total},
};
use crate::{
    Error, Result,
    num::{fresh::Fresh, simd::vectorised},
};

/// Batch-norm (Ioffe and Szegedy, 2015); momentum 0.1 and unbiased running variance as in PyTorch.
#[derive(Debug)]
pub struct BatchNorm {
    pub(super) gamma: ParamId,
    pub(super) beta: ParamId,
    pub(super) mean: BufferId,
    pub(super) var: BufferId,
    pub(super) c: usize,
    pub(super) eps: f32,
    pub(super) act: Act,
}

/// Weight of a new step's statistics.
const MOMENTUM: f64 = 0.1;

/// Updates running statistics from the reduced sums of one step: Σ(x−r) and Σ(x−r)² per channel, then the number of
/// elements of a channel. One element has no variance, and changes nothing: PyTorch refuses to train on it.
pub fn update_running(mean: &mut [f32], var: &mut [f32], sums: &[f32]) {
    let (a, q) = sums.split_at(mean.len());
    let n = f64::from(q[mean.len()]);
    if n <= 1.0 {
        return;
    }
    for i in 0..mean.len() {
        let shift = f64::from(a[i]) / n;
        let biased = (f64::from(q[i]) / n - shift * shift).max(0.0);
        let unbiased = biased * n / (n - 1.0);
        let new_mean = f64::from(mean[i]) + shift;
        mean[i] = (f64::from(mean[i]) * (1.0 - MOMENTUM) + new_mean * MOMENTUM) as f32;
        var[i] = (f64::from(var[i]) * (1.0 - MOMENTUM) + unbiased * MOMENTUM) as f32;
    }
}

/// Numbers of one channel in the pass forward: mean, 1/√(var + eps), var.
const STATS: usize = 3;

vectorised! {
    /// The mean of each channel of a block of rows, then its Σ(x − mean)²; in f64, since a few rows are all there is of a
    /// small grain's last layers.
    fn moments(x: &[f32], line: &mut [f32]) {
        let c = line.len() / 2;
        let (mean, square) = line.split_at_mut(c);
        let mut sums = vec![0.0f64; c];
        for row in x.chunks_exact(c) {
            sums.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
        }
        let inverse = 1.0 / (x.len() / c) as f64;
        mean.iter_mut().zip(&sums).for_each(|(m, s)| *m = (s * inverse) as f32);
        sums.fill(0.0);
        for row in x.chunks_exact(c) {
            for i in 0..c {
                let d = f64::from(row[i] - mean[i]);
                sums[i] += d * d;
            }
        }
        square.iter_mut().zip(&sums).for_each(|(q, s)| *q = *s as f32);
    }

    /// `act((x − mean)·scale + beta)`; folding the mean into one shift would cancel where it is larger than the spread.
    fn normalise(act: Act, x: &[f32], mean: &[f32], scale: &[f32], beta: &[f32], out: &mut [f32]) {
        let c = scale.len();
        for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            for i in 0..c {
                out[i] = (x[i] - mean[i]).mul_add(scale[i], beta[i]);
            }
            act.map(out);
        }
    }

    /// The gradient before the activation.
    fn before(act: Act, x: &[f32], mean: &[f32], scale: &[f32], beta: &[f32], dy: &[f32], dz: &mut [f32]) {
        let c = scale.len();
        macro_rules! rows {
            ($slope:expr) => {
                for ((dz, dy), x) in dz.chunks_exact_mut(c).zip(dy.chunks_exact(c)).zip(x.chunks_exact(c)) {
                    for i in 0..c {
                        let z = (x[i] - mean[i]).mul_add(scale[i], beta[i]);
                        dz[i] = $slope(z, dy[i]);
                    }
                }
            };
        }
        match act {
            Act::None => dz.copy_from_slice(dy),
            Act::Relu => rows!(|z: f32, g: f32| if z > 0.0 { g } else { 0.0 }),
            Act::Relu6 => rows!(|z: f32, g: f32| if z > 0.0 && z < 6.0 { g } else { 0.0 }),
            Act::Silu => rows!(|z: f32, g: f32| g * Act::Silu.slope(z)),
            Act::Gelu => rows!(|z: f32, g: f32| g * Act::Gelu.slope(z)),
            Act::GeluTanh => rows!(|z: f32, g: f32| g * Act::GeluTanh.slope(z)),
            Act::Tanh => rows!(|z: f32, g: f32| g * Act::Tanh.slope(z)),
            Act::Sigmoid => rows!(|z: f32, g: f32| g * Act::Sigmoid.slope(z)),
        }
    }

    /// Σ dy and Σ dy·(x − mean) of each channel.
    fn products(dy: &[f32], x: &[f32], mean: &[f32], line: &mut [f32]) {
        let c = line.len() / 2;
        let (plain, times) = line.split_at_mut(c);
        for (dy, x) in dy.chunks_exact(c).zip(x.chunks_exact(c)) {
            for i in 0..c {
                plain[i] += dy[i];
                times[i] += dy[i] * (x[i] - mean[i]);
            }
        }
    }

    /// `dx = scale·dy + a·(x − mean) + b`
    fn through(dx: &mut [f32], x: &[f32], mean: &[f32], scale: &[f32], a: &[f32], b: &[f32]) {
        let c = scale.len();
        for (dx, x) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            for i in 0..c {
                dx[i] = dx[i] * scale[i] + ((x[i] - mean[i]) * a[i] + b[i]);
            }
        }
    }

    fn scaled(dx: &mut [f32], scale: &[f32]) {
        for dx in dx.chunks_exact_mut(scale.len()) {
            dx.iter_mut().zip(scale).for_each(|(d, s)| *d *= s);
        }
    }
}

/// Adds moments to moments (Chan et al., 1979): a count, then the mean of each channel, then its Σ(x − mean)².
fn join<T: Copy + Into<f64>>(all: &mut [f64], own: f64, mean: &[T], square: &[T]) {
    let (count, rest) = all.split_at_mut(1);
    let (means, squares) = rest.split_at_mut(mean.len());
    let share = own / (count[0] + own);
    for ch in 0..mean.len() {
        let delta = mean[ch].into() - means[ch];
        means[ch] += delta * share;
        squares[ch] += square[ch].into() + delta * delta * count[0] * share;
    }
    count[0] += own;
}

/// The same for the moments of grains.
fn join_grains(all: &mut [f64], next: &[f64]) {
    let (mean, square) = next[1..].split_at(next.len() / 2);
    join(all, next[0], mean, square);
}

impl BatchNorm {
    /// With an activation after it.
    pub fn act(self, act: Act) -> Self {
        Self { act, ..self }
    }

    fn check(&self, x: &Array) -> Result<()> {
        if x.dims().len() < 2 || x.dims().last() != Some(&self.c) {
            return Err(Error::Internal(format!("batch-norm of {} channels was given {:?}", self.c, x.dims())));
        }
        Ok(())
    }

    fn is_training(&self, pass: &Pass<'_>) -> bool {
        pass.layout.is_some_and(|l| l.stats(self.mean).is_some())
    }

    /// Whether backward needs the sums of slopes.
    fn learns(&self, pass: &Pass<'_>) -> bool {
        self.is_training(pass) || pass.trains(self.gamma) || pass.trains(self.beta)
    }

    /// Whether backward needs the input.
    fn keeps(&self, pass: &Pass<'_>) -> bool {
        self.is_training(pass) || pass.trains(self.gamma) || self.act != Act::None
    }

    /// Moments of the grain: those of blocks of rows, joined in order in f64.
    fn moments(&self, x: &[f32]) -> Vec<f64> {
        let c = self.c;
        let blocks = x.len().div_ceil(BLOCK * c);
        let mut lines = vec![0.0f32; blocks * 2 * c];
        lines.par_chunks_exact_mut(2 * c).zip(x.par_chunks(BLOCK * c)).for_each(|(line, x)| moments(x, line));
        let mut all = vec![0.0f64; 1 + 2 * c];
        for (i, line) in lines.chunks_exact(2 * c).enumerate() {
            join(&mut all, (x.len() / c - i * BLOCK).min(BLOCK) as f64, &line[..c], &line[c..]);
        }
        all
    }

    /// What the pass forward needs of the moments of all that the statistics are of.
    fn statistics(&self, all: &[f64]) -> Vec<f32> {
        let (count, (mean, square)) = (all[0], all[1..].split_at(self.c));
        let mut stats = Vec::with_capacity(STATS * self.c);
        stats.extend(mean.iter().map(|m| *m as f32));
        stats.extend(square.iter().map(|q| (1.0 / (q / count + f64::from(self.eps)).sqrt()) as f32));
        stats.extend(square.iter().map(|q| (q / count) as f32));
        stats
    }

    /// `γ / √(var + eps)`
    fn scale(&self, pass: &Pass<'_>, inv: &[f32]) -> Vec<f32> {
        pass.store.param(self.gamma).iter().zip(inv).map(|(g, i)| g * i).collect()
    }
}

/// Rows of one task.
const TASK: usize = 128;

impl Layer for BatchNorm {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        self.check(x)?;
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            return Ok(self.placed(x, pass, tape)?.into());
        }
        let (c, input, training) = (self.c, host(x)?, self.is_training(pass));
        let input = &*input;
        let stats = if training {
            let own = self.moments(input);
            match pass.grains {
                Some(grains) => self.statistics(&grains.joined(own, Join::Fold(join_grains))?),
                None => self.statistics(&own),
            }
        } else {
            let (mean, var) = (pass.store.buffer(self.mean), pass.store.buffer(self.var));
            let inverse = var.iter().map(|v| 1.0 / (v + self.eps).sqrt());
            mean.iter().copied().chain(inverse).chain(var.iter().copied()).collect()
        };
        let (scale, beta) = (self.scale(pass, &stats[c..2 * c]), pass.store.param(self.beta));
        let mean = &stats[..c];
        let mut out = Fresh::new(input.len());
        out.parts(TASK * c)
            .zip(input.par_chunks(TASK * c))
            .for_each(|(out, x)| normalise(self.act, x, mean, &scale, beta, out));
        if pass.records() {
            if self.keeps(pass) {
                tape.push(Saved::Array(x.clone()));
            }
            tape.push(Saved::Values(stats));
        }
        array(pass.precision().product(out.done()), x.dims())
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        need_dx: bool,
    ) -> Result<Option<Array>> {
        self.check(dy)?;
        #[cfg(feature = "cuda")]
        if let Array::Device(dy) = dy {
            return Ok(self.placed_backward(dy, pass, tape, grads, need_dx)?.map(Array::from));
        }
        let (c, training) = (self.c, self.is_training(pass));
        let stats = tape.pop_values()?;
        let (mean, inv, var) = (&stats[..c], &stats[c..2 * c], &stats[2 * c..]);
        let learns = self.learns(pass);
        let x = if self.keeps(pass) { Some(tape.pop_array()?) } else { None };
        let x = x.as_ref().map(host).transpose()?;
        let x = x.as_deref();
        let (scale, beta) = (self.scale(pass, inv), pass.store.param(self.beta));
        let g = host(dy)?;
        let g = &*g;
        let rows = g.len() / c;
        let mut dz = Fresh::new(g.len());
        let mut lines = vec![0.0f32; rows.div_ceil(BLOCK) * 2 * c];
        let blocks = dz.parts(BLOCK * c).zip(g.par_chunks(BLOCK * c)).zip(lines.par_chunks_exact_mut(2 * c));
        blocks.enumerate().for_each(|(i, ((dz, dy), line))| {
            let x = x.map(|x| &x[i * BLOCK * c..][..dy.len()]);
            match x {
                Some(x) => before(self.act, x, mean, &scale, beta, dy, dz),
                None => dz.copy_from_slice(dy),
            }
            if learns {
                // Without an input the second sum is nobody's.
                products(dz, x.unwrap_or(dz), mean, line);
            }
        });
        let mut dz = dz.done();
        let mut sums = Vec::new();
        if learns {
            sums = total(&lines, 2 * c);
            if let Some(slot) = grads.slot(self.gamma) {
                (0..c).for_each(|i| slot[i] += (sums[c + i] * f64::from(inv[i])) as f32);
            }
            if let Some(slot) = grads.slot(self.beta) {
                (0..c).for_each(|i| slot[i] += sums[i] as f32);
            }
        }
        let count = rows as f64;
        if let (true, Some(slot)) = (training, grads.stats(self.mean)) {
            let running = pass.store.buffer(self.mean);
            for i in 0..c {
                let shift = f64::from(mean[i]) - f64::from(running[i]);
                slot[i] += (count * shift) as f32;
                slot[c + i] += (count * (f64::from(var[i]) + shift * shift)) as f32;
            }
            slot[2 * c] += count as f32;
        }
        if !need_dx {
            return Ok(None);
        }
        match x {
            Some(x) if training => {
                // What follows is the gradient through the statistics: over all that they are of.
                let mut count = count;
                if let Some(grains) = pass.grains {
                    sums.push(count);
                    sums = grains.joined(sums, grains::PLUS)?.to_vec();
                    count = sums[2 * c];
                }
                // dx = scale·(dy − Σdy/n − x̂·Σ(dy·x̂)/n)
                let slope = |i: usize| f64::from(inv[i]) * f64::from(inv[i]) * sums[c + i] / count;
                let a: Vec<f32> = (0..c).map(|i| (-f64::from(scale[i]) * slope(i)) as f32).collect();
                let b: Vec<f32> = (0..c).map(|i| (-f64::from(scale[i]) * sums[i] / count) as f32).collect();
                dz.par_chunks_mut(TASK * c)
                    .zip(x.par_chunks(TASK * c))
                    .for_each(|(dx, x)| through(dx, x, mean, &scale, &a, &b));
            }
            _ => dz.par_chunks_mut(TASK * c).for_each(|dx| scaled(dx, &scale)),
        }
        Ok(Some(array(pass.precision().product(dz), dy.dims())?))
    }

    fn leaves(&self) -> usize {
        // The activation is a layer of its own, as people count.
        1 + usize::from(self.act != Act::None)
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("norm:{}:{};", self.eps, self.act.name()));
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        out.extend([self.gamma, self.beta]);
    }

    fn norms(&self, out: &mut Vec<(BufferId, BufferId)>) {
        out.push((self.mean, self.var));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, Layout, testing};

    #[test]
    fn gradients_are_those_of_finite_differences_in_every_mode() {
        for (shape, act) in [
            (&[5, 2, 2, 3][..], Act::None),
            (&[6, 3], Act::None),
            (&[5, 2, 2, 3], Act::Relu),
            (&[60, 2, 1, 3], Act::Silu),
            (&[6, 3], Act::Relu6),
        ] {
            let mut b = Builder::new(1);
            let norm = b.norm("n", 3).act(act);
            b.store.values = vec![0.5, 1.5, -0.7, 0.1, 0.2, 0.3];
            b.store.buffer_values = vec![0.3, -0.2, 0.1, 1.5, 0.7, 2.0];
            testing::check_gradients(&norm, &b.store, shape);
            let affine_only = Layout::new(&b.store, &[norm.gamma, norm.beta], &[]);
            testing::check_gradients_of(&norm, &b.store, shape, &affine_only);
            testing::check_gradients_of(&norm, &b.store, shape, &Layout::new(&b.store, &[], &[]));
        }
    }

    #[test]
    fn running_statistics_are_those_of_pytorch() {
        // torch.nn.BatchNorm1d(1) fed [1, 2, 4]: mean 7/3, unbiased variance 7/3; running = 0.1·7/3, 0.9 + 0.1·7/3.
        let (mut mean, mut var) = (vec![0.0], vec![1.0]);
        update_running(&mut mean, &mut var, &[7.0, 21.0, 3.0]);
        assert!((mean[0] - 0.233_333_33).abs() < 1e-6 && (var[0] - 1.133_333_3).abs() < 1e-6);
    }

    #[test]
    fn one_value_of_a_channel_leaves_running_statistics_as_they_are() {
        let (mut mean, mut var) = (vec![0.5], vec![2.0]);
        update_running(&mut mean, &mut var, &[3.0, 9.0, 1.0]);
        assert_eq!((mean, var), (vec![0.5], vec![2.0]));
    }

    #[test]
    fn sums_of_halves_add_up_to_the_sums_of_the_whole() {
        let mut b = Builder::new(1);
        let norm = b.norm("n", 2);
        let layout = Layout::new(&b.store, &[norm.gamma], &[norm.mean]);
        let pass = Pass { store: &b.store, layout: Some(&layout), ..Pass::eval(&b.store) };
        let sums = |x: &Array| {
            let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
            norm.forward(x, &pass, &mut tape).unwrap();
            norm.backward(x, &pass, &mut tape, &mut grads, false).unwrap();
            grads.stats(norm.mean).unwrap().to_vec()
        };
        let x = testing::array(&[6, 3, 3, 2]);
        let whole = sums(&x);
        let (a, b) = (sums(&testing::part(&x, 0, 0, 2)), sums(&testing::part(&x, 0, 2, 4)));
        for i in 0..5 {
            assert!((whole[i] - a[i] - b[i]).abs() < 1e-4, "{i}");
        }
    }
}
