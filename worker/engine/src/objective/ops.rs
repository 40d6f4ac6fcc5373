//! Operations of losses that candle differentiates. candle's own `exp`, `log` and products are the system's C library and
//! kernels picked by the model of the CPU; these give the same bits on each, and `.clippy.toml` refuses those.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::{
    Result,
    num::gemm::{View, gemm},
};

/// log softmax over the classes of `[n, classes]`.
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    Ok(logits.contiguous()?.apply_op1(LogSoftmax)?)
}

/// eˣ of every element.
pub fn exp(t: &Tensor) -> Result<Tensor> {
    Ok(t.contiguous()?.apply_op1(Exp)?)
}

/// ln of every element.
pub fn ln(t: &Tensor) -> Result<Tensor> {
    Ok(t.contiguous()?.apply_op1(Ln)?)
}

/// log(1 + eˣ) of every element, without overflow.
pub fn softplus(t: &Tensor) -> Result<Tensor> {
    Ok(t.contiguous()?.apply_op1(Softplus)?)
}

/// `a[m, k] · b[k, n]`.
pub fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(a.contiguous()?.apply_op2(&b.contiguous()?, Product)?)
}

/// `aᵀ · b` for `a[k, m]`, `b[k, n]`.
pub fn product_t(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    product(&a.t()?, b)
}

/// Squared Euclidean distances between all rows of `x[n, d]`: `[n, n]`.
pub fn squared_distances(x: &Tensor) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op1(Distances { squared: true })?)
}

/// Euclidean distances between all rows of `x[n, d]`: `[n, n]`. Where two rows are the same, nothing flows back.
pub fn distances(x: &Tensor) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op1(Distances { squared: false })?)
}

/// Squared Euclidean distances of the rows of `a[m, d]` to those of `b[n, d]`: `[m, n]`.
pub fn distances_to(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(a.contiguous()?.apply_op2(&b.contiguous()?, DistancesTo)?)
}

/// The same numbers, whose gradient comes back times −`factor`: Ganin and Lempitsky's gradient reversal.
pub fn reverse(t: &Tensor, factor: f64) -> Result<Tensor> {
    Ok(t.contiguous()?.apply_op1(Reverse(factor))?)
}

/// Added to squared norms, so that a row of zeros has a direction: none.
const EPS: f64 = 1e-12;

/// Rows of length one.
pub fn unit(rows: &Tensor) -> Result<Tensor> {
    Ok(rows.broadcast_div(&(rows.sqr()?.sum_keepdim(1)? + EPS)?.sqrt()?)?)
}

/// The square of the distance of two rows. Differences first: |x|² + |y|² − 2xy would cancel between neighbours.
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| {
        let by = f64::from(a - b);
        sum + by * by
    })
}

type Forward = candle_core::Result<(CpuStorage, Shape)>;

/// The elements of a contiguous input.
fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (from, to) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::Msg("an operation of a loss takes contiguous tensors".into()))?;
    Ok(&storage.as_slice::<f32>()?[from..to])
}

fn values(t: &Tensor) -> candle_core::Result<Vec<f32>> {
    t.flatten_all()?.to_vec1()
}

/// A gradient of the shape of `like`, element by element.
fn each(like: &Tensor, grad: &Tensor, f: impl Fn(f32, f32) -> f32) -> candle_core::Result<Option<Tensor>> {
    let (x, g) = (values(like)?, values(grad)?);
    let dx = x.into_iter().zip(g).map(|(x, g)| f(x, g)).collect();
    Ok(Some(Tensor::from_vec(dx, like.shape(), like.device())?))
}

struct LogSoftmax;

impl CustomOp1 for LogSoftmax {
    fn name(&self) -> &'static str {
        "log-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Forward {
        let classes = layout.dims().last().copied().unwrap_or(1).max(1);
        let mut out = elements(storage, layout)?.to_vec();
        for row in out.chunks_exact_mut(classes) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total = row.iter().map(|v| libm::expf(v - largest)).fold(0.0f32, |sum, e| sum + e);
            let shift = largest + libm::logf(total);
            row.iter_mut().for_each(|v| *v -= shift);
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    /// dx = dy − softmax(x)·Σ dy
    fn bwd(&self, _: &Tensor, result: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let classes = result.dim(D::Minus1)?.max(1);
        let (y, mut dx) = (values(result)?, values(grad)?);
        for (row, y) in dx.chunks_exact_mut(classes).zip(y.chunks_exact(classes)) {
            let total = row.iter().fold(0.0f32, |sum, g| sum + g);
            row.iter_mut().zip(y).for_each(|(g, y)| *g -= libm::expf(*y) * total);
        }
        Ok(Some(Tensor::from_vec(dx, result.shape(), result.device())?))
    }
}

struct Exp;

impl CustomOp1 for Exp {
    fn name(&self) -> &'static str {
        "exp"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Forward {
        let out = elements(storage, layout)?.iter().map(|v| libm::expf(*v)).collect();
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, result: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        each(result, grad, |y, g| y * g)
    }
}

struct Ln;

impl CustomOp1 for Ln {
    fn name(&self) -> &'static str {
        "ln"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Forward {
        let out = elements(storage, layout)?.iter().map(|v| libm::logf(*v)).collect();
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    /// dx = dy / x
    fn bwd(&self, arg: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        each(arg, grad, |x, g| g / x)
    }
}

struct Softplus;

impl CustomOp1 for Softplus {
    fn name(&self) -> &'static str {
        "softplus"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Forward {
        let one = |v: &f32| v.max(0.0) + libm::log1pf(libm::expf(-v.abs()));
        Ok((CpuStorage::F32(elements(storage, layout)?.iter().map(one).collect()), layout.shape().clone()))
    }

    /// dx = σ(x)·dy
    fn bwd(&self, arg: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        each(arg, grad, |x, g| {
            let small = libm::expf(-x.abs());
            g * if x >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) }
        })
    }
}

struct Reverse(f64);

impl CustomOp1 for Reverse {
    fn name(&self) -> &'static str {
        "reverse-gradient"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Forward {
        Ok((CpuStorage::F32(elements(storage, layout)?.to_vec()), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some((grad * -self.0)?))
    }
}

struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Forward {
        let ((m, k), (rows, n)) = (la.shape().dims2()?, lb.shape().dims2()?);
        if k != rows {
            return Err(candle_core::Error::Msg(format!("a product of {m} x {k} and {rows} x {n}")));
        }
        let mut out = vec![0.0; m * n];
        gemm(&mut out, n, View::rows(elements(a, la)?, k), View::rows(elements(b, lb)?, n), (m, n, k), false);
        Ok((CpuStorage::F32(out), Shape::from((m, n))))
    }

    /// da = dy·bᵀ, db = aᵀ·dy
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let times = |a: &Tensor, b: &Tensor| a.contiguous()?.apply_op2_no_bwd(&b.contiguous()?, &Product);
        Ok((Some(times(&grad, &b.t()?)?), Some(times(&a.t()?, &grad)?)))
    }
}

struct Distances {
    squared: bool,
}

impl CustomOp1 for Distances {
    fn name(&self) -> &'static str {
        "distances"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Forward {
        let (n, d) = layout.shape().dims2()?;
        let x = elements(storage, layout)?;
        let mut out = vec![0.0; n * n];
        out.par_chunks_mut(n.max(1)).zip(x.par_chunks(d.max(1))).for_each(|(row, a)| {
            for (out, b) in row.iter_mut().zip(x.chunks_exact(d)) {
                let sum = squared_distance(a, b);
                *out = if self.squared { sum } else { sum.sqrt() } as f32;
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((n, n))))
    }

    /// dxᵢ = Σⱼ 2·(gᵢⱼ + gⱼᵢ)·(xᵢ − xⱼ) for squares; without, over twice the distance.
    fn bwd(&self, arg: &Tensor, result: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (n, d) = arg.dims2()?;
        let (x, y, g) = (values(arg)?, values(result)?, values(grad)?);
        let slope = |at: usize| match (self.squared, y[at] > 0.0) {
            (true, _) => 2.0,
            (false, true) => 1.0 / y[at],
            (false, false) => 0.0,
        };
        let mut dx = vec![0.0f32; n * d];
        dx.par_chunks_mut(d.max(1)).enumerate().for_each(|(i, out)| {
            for j in 0..n {
                let weight = slope(i * n + j) * (g[i * n + j] + g[j * n + i]);
                let (a, b) = (&x[i * d..(i + 1) * d], &x[j * d..(j + 1) * d]);
                out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o += weight * (a - b));
            }
        });
        Ok(Some(Tensor::from_vec(dx, (n, d), arg.device())?))
    }
}

struct DistancesTo;

impl CustomOp2 for DistancesTo {
    fn name(&self) -> &'static str {
        "distances-to"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Forward {
        let ((m, d), (n, width)) = (la.shape().dims2()?, lb.shape().dims2()?);
        if d != width {
            return Err(candle_core::Error::Msg(format!("distances of rows of {d} and of {width}")));
        }
        let (a, b) = (elements(a, la)?, elements(b, lb)?);
        let mut out = vec![0.0; m * n];
        out.par_chunks_mut(n.max(1)).zip(a.par_chunks(d.max(1))).for_each(|(row, a)| {
            for (out, b) in row.iter_mut().zip(b.chunks_exact(d)) {
                *out = squared_distance(a, b) as f32;
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((m, n))))
    }

    /// daᵢ = Σⱼ 2·gᵢⱼ·(aᵢ − bⱼ), dbⱼ = −Σᵢ 2·gᵢⱼ·(aᵢ − bⱼ)
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (d, n) = (a.dim(1)?, b.dim(0)?);
        let (x, y, g) = (values(a)?, values(b)?, values(grad)?);
        let (mut da, mut db) = (vec![0.0f32; x.len()], vec![0.0f32; y.len()]);
        for (i, row) in g.chunks_exact(n.max(1)).enumerate() {
            for (j, g) in row.iter().enumerate() {
                for k in 0..d {
                    let by = 2.0 * g * (x[i * d + k] - y[j * d + k]);
                    da[i * d + k] += by;
                    db[j * d + k] -= by;
                }
            }
        }
        let shaped = |v: Vec<f32>, like: &Tensor| Tensor::from_vec(v, like.shape(), like.device());
        Ok((Some(shaped(da, a)?), Some(shaped(db, b)?)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::nn::{host, tensor, testing};

    /// The gradient of a sum over an operation's outputs times fixed numbers, against finite differences.
    fn check(name: &str, shape: &[usize], f: impl Fn(&Tensor) -> Result<Tensor>) {
        let x = testing::input(shape);
        let weights = f(&x).unwrap();
        let weights = testing::input(weights.dims());
        let total = |x: &Tensor| f(x).unwrap().mul(&weights).unwrap().sum_all().unwrap();
        let var = Var::from_tensor(&x).unwrap();
        let grads = total(var.as_tensor()).backward().unwrap();
        let got = host(&grads.get(&var).unwrap().contiguous().unwrap()).unwrap().to_vec();
        let values = host(&x).unwrap().to_vec();
        for i in 0..values.len() {
            let moved = |by: f32| {
                let mut values = values.clone();
                values[i] += by;
                let y = f(&tensor(values, shape).unwrap()).unwrap();
                let (y, w) = (host(&y).unwrap().to_vec(), host(&weights).unwrap().to_vec());
                y.iter().zip(w).map(|(y, w)| f64::from(*y) * f64::from(w)).sum::<f64>()
            };
            let want = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((f64::from(got[i]) - want).abs() < 2e-3 * (1.0 + want.abs()), "{name}[{i}]: {} for {want}", got[i]);
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let other = testing::input(&[4, 3]);
        check("log_softmax", &[3, 4], log_softmax);
        check("exp", &[5], exp);
        check("ln", &[5], |x| ln(&(x.sqr()? + 1.0)?));
        check("softplus", &[7], |x| softplus(&(x * 4.0)?));
        check("left", &[2, 4], |x| product(x, &other));
        check("right", &[3, 5], |x| product(&other, x));
        check("transposed", &[4, 2], |x| product_t(x, &other));
        check("squared distances", &[4, 3], squared_distances);
        check("distances", &[4, 3], distances);
        check("of itself", &[3, 3], |x| product_t(x, x));
        check("distances of", &[2, 3], |x| distances_to(x, &other));
        check("distances to", &[5, 3], |x| distances_to(&other, x));
        check("distances of itself", &[3, 2], |x| distances_to(x, &(x * 0.5)?));
    }

    #[test]
    fn a_reversed_gradient_is_the_same_backwards() {
        let x = Var::from_tensor(&testing::input(&[4])).unwrap();
        let y = reverse(x.as_tensor(), 0.25).unwrap();
        assert_eq!(host(&y).unwrap().to_vec(), host(x.as_tensor()).unwrap().to_vec());
        let grads = (y * 3.0).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(host(grads.get(&x).unwrap()).unwrap().to_vec(), [-0.75; 4]);
    }

    #[test]
    fn far_away_numbers_neither_overflow_nor_vanish() {
        let x = tensor(vec![-1e4, -40.0, 0.0, 40.0, 1e4], &[5]).unwrap();
        let y = host(&softplus(&x).unwrap()).unwrap().to_vec();
        assert_eq!((y[0], y[3], y[4]), (0.0, 40.0, 1e4));
        assert!(y[1] > 0.0 && (y[2] - std::f32::consts::LN_2).abs() < 1e-7);
    }
}
