//! Minimum class confusion (Jin et al., 2020): target samples that are predicted as one class are not half predicted as
//! another. `Y = softmax(z / T)`, weighed by certainty; `C = (w·Y)ᵀY` with rows of sum one; the loss is what lies off its
//! diagonal, over the classes.

use candle_core::{DType, Device, Tensor};
use tl_proto::catalog::{Entry, entry, number};

use super::{
    super::{
        exp, log_softmax, nothing_own,
        ops::{ln, product},
    },
    Method, Target,
    cdan::certainty,
};

fn describe() -> Entry {
    Entry {
        params: vec![number("temperature", 2.5, 0.1, 100.0, "softens the predictions")],
        ..entry("mcc", "predictions in the other domain are not torn between classes")
    }
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    target: Target::Judged,
    features: |_| false,
    averages: false,
    own: nothing_own,
    loss: |params, batch| {
        let (_, target) = batch.split(batch.logits)?;
        let classes = target.dim(1)?;
        let log_p = log_softmax(&(target / describe().number(params, "temperature"))?)?;
        let p = exp(&log_p)?;
        // A row of C over its sum is a softmax over samples times Y: so that a class that no sample is of is no 0 / 0.
        let certain = ln(&certainty(&p, &log_p)?)?;
        let shares = exp(&log_softmax(&log_p.broadcast_add(&certain.unsqueeze(1)?)?.t()?)?)?;
        let confusion = product(&shares, &p)?;
        let diagonal = confusion.mul(&Tensor::eye(classes, DType::F32, &Device::Cpu)?)?.sum_all()?;
        Ok(Some(((diagonal.neg()? + classes as f64)? / classes as f64)?))
    },
};
