//! What a run minimises. A new objective is a file here and a line in [`ALL`].
//!
//! An objective sees the logits of one grain as a candle variable and returns the *sum* of its loss over the samples;
//! candle differentiates it. Targets are probabilities, so that smoothing and mixing need nothing special.

mod distill;
mod finetune;

use candle_core::{D, Tensor};
use tl_proto::{catalog::Entry, spec::Params};

use crate::Result;

/// One grain as an objective sees it.
pub struct Batch<'a> {
    /// `[n, classes]`: of the student; a variable.
    pub logits: &'a Tensor,
    /// `[n, classes]`: target probabilities.
    pub targets: &'a Tensor,
    /// `[n, classes]`: of the teacher, where the objective has one.
    pub teacher: Option<&'a Tensor>,
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

/// log softmax over classes, of primitives that candle differentiates.
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    // The largest value only shifts; its own gradient cancels out, so it is taken as a constant.
    let largest = logits.detach().max_keepdim(D::Minus1)?;
    let shifted = logits.broadcast_sub(&largest)?;
    let total = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok(shifted.broadcast_sub(&total)?)
}

/// Σ over samples of the cross-entropy with target probabilities.
fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    Ok(log_softmax(logits)?.mul(targets)?.sum_all()?.neg()?)
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
    use crate::nn::{host, testing};

    /// The gradient by candle and by the formula (softmax − target), and for distillation T·(p_s − p_t).
    #[test]
    fn gradients_of_the_losses_are_the_textbook_ones() {
        let logits = Var::from_tensor(&testing::input(&[3, 4])).unwrap();
        let teacher = (testing::input(&[3, 4]) * 2.0).unwrap();
        let targets = crate::nn::tensor(vec![1., 0., 0., 0., 0., 0.5, 0.5, 0., 0.1, 0.2, 0.3, 0.4], &[3, 4]).unwrap();
        let batch = Batch { logits: logits.as_tensor(), targets: &targets, teacher: Some(&teacher) };
        let softmax = |t: &Tensor, temperature: f64| log_softmax(&(t / temperature).unwrap()).unwrap().exp().unwrap();
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

    #[test]
    fn huge_logits_give_a_finite_loss() {
        let logits = crate::nn::tensor(vec![1e4, -1e4], &[1, 2]).unwrap();
        let targets = crate::nn::tensor(vec![1.0, 0.0], &[1, 2]).unwrap();
        let loss = cross_entropy(&logits, &targets).unwrap();
        assert_eq!(host(&loss).unwrap()[0], 0.0);
    }
}
