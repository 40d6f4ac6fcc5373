//! The discriminator that tells domains apart, as the Transfer-Learning-Library builds it: two hidden layers with
//! batch-norm and a rectifier. It sees the whole batch, so its batch-norms take the statistics of both domains.

use candle_core::Tensor;
use tl_proto::catalog::{Entry, Param, integer, number};

use super::super::{
    Batch,
    ops::{product, softplus},
};
use crate::{
    Error, Result,
    nn::{Fill, Own},
};

/// What batch-norms add to a variance.
const EPS: f64 = 1e-5;
/// Most parameters of a discriminator: each grain of a rank has a gradient of them in memory.
const MOST: usize = 1 << 25;

/// Parameters of every method with a discriminator.
pub(super) fn params() -> Vec<Param> {
    vec![
        integer("hidden", 1024, 1, 8192, "width of the discriminator's hidden layers"),
        number("alpha", 10.0, 0.0, 1e3, "how fast the reversed gradient grows over the run"),
        number("reverse", 1.0, 0.0, 100.0, "what the reversed gradient grows to"),
    ]
}

/// Its tensors, for an input of so many numbers. Layers in front of a batch-norm have no bias: it would change nothing.
///
/// # Errors
/// More numbers than [`MOST`].
pub(super) fn own(width: usize, hidden: usize) -> Result<Vec<Own>> {
    let all = (width + hidden) * hidden;
    if all > MOST {
        return Err(Error::user(
            format!(
                "a discriminator of {width} inputs and {hidden} hidden units has {all} parameters, more than {MOST}"
            ),
            "lower `objective.hidden`, or set `model.head.hidden = [256]`: it sees what that layer gives",
        ));
    }
    let dense = |name: &str, shape: [usize; 2]| {
        let fill = Fill::Uniform(1.0 / (shape[0] as f32).sqrt());
        Own { name: format!("domain.{name}.weight"), shape: shape.to_vec(), fill, span: None }
    };
    let vector = |name: &str, len: usize, value: f32| Own {
        name: format!("domain.{name}"),
        shape: vec![len],
        fill: Fill::Constant(value),
        span: None,
    };
    Ok(vec![
        dense("0", [width, hidden]),
        vector("0.scale", hidden, 1.0),
        vector("0.shift", hidden, 0.0),
        dense("1", [hidden, hidden]),
        vector("1.scale", hidden, 1.0),
        vector("1.shift", hidden, 0.0),
        dense("2", [hidden, 1]),
        vector("2.bias", 1, 0.0),
    ])
}

/// One number for each row: above zero where it takes the row for one of the source.
pub(super) fn judge(batch: &Batch<'_>, rows: &Tensor) -> Result<Tensor> {
    let mut x = rows.clone();
    for layer in ["0", "1"] {
        let own = |what: &str| batch.own(&format!("domain.{layer}.{what}"));
        x = product(&x, own("weight")?)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(0)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(0)? + EPS)?.sqrt()?;
        x = centred.broadcast_div(&deviation)?.broadcast_mul(own("scale")?)?.broadcast_add(own("shift")?)?.relu()?;
    }
    Ok(product(&x, batch.own("domain.2.weight")?)?.broadcast_add(batch.own("domain.2.bias")?)?.squeeze(1)?)
}

/// Cross-entropy of each row with its domain, the source being one: `[n + m]`.
pub(super) fn losses(batch: &Batch<'_>, judged: &Tensor) -> Result<Tensor> {
    let (source, target) = batch.split(judged)?;
    Ok(Tensor::cat(&[softplus(&source.neg()?)?, softplus(&target)?], 0)?)
}

/// How much of the gradient comes back reversed: 2·hi / (1 + e^(−α·p)) − hi (Ganin and Lempitsky, 2015), a function of
/// the step alone.
pub(super) fn reversed(entry: &Entry, params: &tl_proto::spec::Params, progress: f64) -> f64 {
    let (alpha, top) = (entry.number(params, "alpha"), entry.number(params, "reverse"));
    2.0 * top / (1.0 + libm::exp(-alpha * progress)) - top
}
