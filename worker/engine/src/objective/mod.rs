//! What a run minimises. A new objective is a file here and a line in [`ALL`].
//!
//! An objective sees the logits of one grain as a candle variable and returns the *sum* of its loss over the samples;
//! candle differentiates it. Targets are probabilities, so that smoothing and mixing need nothing special.

mod distill;
mod finetune;

use candle_core::{CpuStorage, CustomOp1, D, Layout, Shape, Tensor};
use tl_proto::{catalog::Entry, spec::Params};

use crate::{
    Result,
    nn::{host, tensor},
};

/// One grain as an objective sees it.
pub struct Batch<'a> {
    /// `[n, classes]`: of the student; a variable.
    pub logits: &'a Tensor,
    /// `[n, classes]`: target probabilities.
    pub targets: &'a Tensor,
    /// `[n, classes]`: of the teacher, where the objective has one.
    pub teacher: Option<&'a Tensor>,
    /// `[classes]`: what a class counts, where they do not all count the same.
    pub weights: Option<&'a Tensor>,
}

/// One objective.
pub struct Objective {
    /// What the catalog says.
    pub entry: fn() -> Entry,
    /// The sum of the loss over the samples of a grain.
    pub loss: fn(&Params, &Batch<'_>) -> Result<Tensor>,
}

/// Every objective.
pub const ALL: &[Objective] = &[finetune::OBJECTIVE, distill::OBJECTIVE];

impl Objective {
    /// The objective of a name that the check has let through; the first one otherwise.
    pub fn find(name: &str) -> &'static Self {
        ALL.iter().find(|o| (o.entry)().name == name).unwrap_or(&ALL[0])
    }

    /// Whether it looks at a teacher.
    pub fn has_teacher(&self) -> bool {
        (self.entry)().nets.iter().any(|n| n == "teacher")
    }
}

/// log softmax over the classes of `[n, classes]`.
///
/// An operation of our own: candle's `exp` and `log` are those of the system's C library, which picks them by the model
/// of the CPU; these give the same bits on each.
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    Ok(logits.contiguous()?.apply_op1(LogSoftmax)?)
}

/// exp of every element, of a tensor through which nothing is differentiated.
pub fn exp(t: &Tensor) -> Result<Tensor> {
    tensor(host(t)?.iter().map(|v| libm::expf(*v)).collect(), t.dims())
}

struct LogSoftmax;

impl CustomOp1 for LogSoftmax {
    fn name(&self) -> &'static str {
        "log-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (from, to) = layout
            .contiguous_offsets()
            .ok_or_else(|| candle_core::Error::Msg("log-softmax takes contiguous logits".into()))?;
        let classes = layout.dims().last().copied().unwrap_or(1).max(1);
        let mut out = storage.as_slice::<f32>()?[from..to].to_vec();
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
        let y: Vec<f32> = result.flatten_all()?.to_vec1()?;
        let mut dx: Vec<f32> = grad.flatten_all()?.to_vec1()?;
        for (row, y) in dx.chunks_exact_mut(classes).zip(y.chunks_exact(classes)) {
            let total = row.iter().fold(0.0f32, |sum, g| sum + g);
            row.iter_mut().zip(y).for_each(|(g, y)| *g -= libm::expf(*y) * total);
        }
        Ok(Some(Tensor::from_vec(dx, result.shape(), result.device())?))
    }
}

/// −Σ over samples and classes of w_c·t_c·log p_c. A step divides it by its samples, as PyTorch's `CrossEntropyLoss`
/// with class weights does for targets that are probabilities, and Keras for class weights.
fn cross_entropy(logits: &Tensor, targets: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    let log_p = log_softmax(logits)?;
    let counted = match weights {
        Some(weights) => log_p.mul(&targets.broadcast_mul(weights)?)?,
        None => log_p.mul(targets)?,
    };
    Ok(counted.sum_all()?.neg()?)
}

/// What the catalog says.
pub fn catalog() -> Vec<Entry> {
    ALL.iter().map(|o| (o.entry)()).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use tl_proto::spec::Params;

    use super::*;
    use crate::nn::testing;

    /// The gradient by candle and by the formula (softmax − target), and for distillation T·(p_s − p_t).
    #[test]
    fn gradients_of_the_losses_are_the_textbook_ones() {
        let logits = Var::from_tensor(&testing::input(&[3, 4])).unwrap();
        let teacher = (testing::input(&[3, 4]) * 2.0).unwrap();
        let targets = crate::nn::tensor(vec![1., 0., 0., 0., 0., 0.5, 0.5, 0., 0.1, 0.2, 0.3, 0.4], &[3, 4]).unwrap();
        let batch = Batch { logits: logits.as_tensor(), targets: &targets, teacher: Some(&teacher), weights: None };
        // By candle's own functions, as a second opinion.
        let softmax =
            |t: &Tensor, temperature: f64| candle_nn::ops::softmax(&(t / temperature).unwrap(), D::Minus1).unwrap();
        let grad = |kind: &str, params: &Params| {
            let loss = (Objective::find(kind).loss)(params, &batch).unwrap();
            loss.backward().unwrap().get(&logits).unwrap().clone()
        };
        let hard = (softmax(logits.as_tensor(), 1.0) - &targets).unwrap();
        testing::assert_close(&grad("finetune", &Params::new()), &hard, 1e-5);
        let smoothing = [("label_smoothing".to_owned(), 0.2.into())].into();
        let smoothed = (softmax(logits.as_tensor(), 1.0) - targets.affine(0.8, 0.05).unwrap()).unwrap();
        testing::assert_close(&grad("finetune", &smoothing), &smoothed, 1e-5);
        let params: Params = [("temperature", 3.0), ("soft_weight", 0.7), ("hard_weight", 0.3)]
            .map(|(k, v)| (k.to_owned(), v.into()))
            .into();
        let soft = ((softmax(logits.as_tensor(), 3.0) - softmax(&teacher, 3.0)).unwrap() * (0.7 * 3.0)).unwrap();
        testing::assert_close(&grad("distill", &params), &(soft + (hard * 0.3).unwrap()).unwrap(), 1e-5);
    }

    /// torch.nn.functional.cross_entropy(z, t, weight=w, label_smoothing=0.1, reduction="sum") with the targets as
    /// probabilities, written out in f64.
    #[test]
    fn classes_are_weighed_after_smoothing() {
        let z = [[0.5f32, -1.0, 2.0], [0.0, 0.3, -0.7]];
        let (labels, w) = ([0usize, 2], [0.5f32, 1.0, 3.0]);
        let mut want = 0.0;
        for (z, label) in z.iter().zip(labels) {
            let total: f64 = z.iter().map(|v| f64::from(*v).exp()).sum();
            for c in 0..3 {
                let target = 0.1 / 3.0 + if c == label { 0.9 } else { 0.0 };
                want -= f64::from(w[c]) * target * (f64::from(z[c]).exp() / total).ln();
            }
        }
        let logits = tensor(z.concat(), &[2, 3]).unwrap();
        let targets = tensor(vec![1.0, 0.0, 0.0, 0.0, 0.0, 1.0], &[2, 3]).unwrap();
        let weights = tensor(w.to_vec(), &[3]).unwrap();
        let batch = Batch { logits: &logits, targets: &targets, teacher: None, weights: Some(&weights) };
        let params = [("label_smoothing".to_owned(), 0.1.into())].into();
        let got = (Objective::find("finetune").loss)(&params, &batch).unwrap();
        assert!((f64::from(host(&got).unwrap()[0]) - want).abs() < 1e-5, "{want}");
    }

    #[test]
    fn huge_logits_give_a_finite_loss() {
        let logits = crate::nn::tensor(vec![1e4, -1e4], &[1, 2]).unwrap();
        let targets = crate::nn::tensor(vec![1.0, 0.0], &[1, 2]).unwrap();
        let loss = cross_entropy(&logits, &targets, None).unwrap();
        assert_eq!(host(&loss).unwrap()[0], 0.0);
    }
}
