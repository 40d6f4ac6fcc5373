//! Knowledge distillation (Hinton et al., 2015): `hard·CE(z_s, y) + soft·T²·KL(softmax(z_t/T) ‖ softmax(z_s/T))`.

use tl_proto::{
    catalog::{Entry, entry, number},
    spec::Params,
};

use super::{Batch, Objective, cross_entropy, exp, log_softmax, nothing_own};
use crate::Error;

fn describe() -> Entry {
    Entry {
        params: vec![
            number("temperature", 4.0, 0.1, 100.0, "softens both distributions"),
            number("soft_weight", 0.9, 0.0, 100.0, "weight of the teacher's part"),
            number("hard_weight", 0.1, 0.0, 100.0, "weight of the labels' part"),
        ],
        nets: vec!["teacher".into()],
        ..entry("distill", "a student learns from a teacher's logits and from labels")
    }
}

pub(super) const OBJECTIVE: Objective = Objective {
    entry: describe,
    coupled: false,
    looks: |_| false,
    own: nothing_own,
    loss: |params: &Params, batch: &Batch<'_>| {
        let number = |name: &str| describe().number(params, name);
        let (t, soft, hard) = (number("temperature"), number("soft_weight"), number("hard_weight"));
        let teacher = batch.teacher.ok_or_else(|| Error::Internal("distillation without a teacher".into()))?;
        let student = log_softmax(&(batch.logits / t)?)?;
        let teacher = log_softmax(&(teacher / t)?)?;
        let kl = exp(&teacher)?.mul(&teacher.sub(&student)?)?.sum_all()?;
        Ok(((kl * (soft * t * t))? + (cross_entropy(batch.logits, batch.targets, batch.weights)? * hard)?)?)
    },
};
