//! Relational distillation by distance (Park et al., 2019): samples are to lie as far from each other, in units of the mean
//! distance, as they do for the teacher. Huber's loss, over all pairs of the batch; features may be of any width.

use candle_core::Tensor;
use tl_proto::catalog::{Entry, entry};

use super::{super::ops::distances, Method, weight};
use crate::Result;

/// Distances over the mean of those that are not zero.
fn relative(rows: &Tensor) -> Result<Option<Tensor>> {
    let far = distances(rows)?;
    let apart = far.gt(0.0)?.to_dtype(far.dtype())?.sum_all()?.to_scalar::<f32>()?;
    if apart == 0.0 {
        return Ok(None);
    }
    let mean = (far.sum_all()? / f64::from(apart))?;
    Ok(Some(far.broadcast_div(&mean)?))
}

pub(super) const METHOD: Method = Method {
    entry: || -> Entry {
        Entry {
            params: weight(25.0),
            ..entry("relational", "and samples are to be as far from each other as they are for the teacher (RKD-D)")
        }
    },
    inside: true,
    coupled: true,
    own: |_| Vec::new(),
    loss: |batch, features| {
        let (Some(own), Some(theirs)) = (relative(batch.features)?, relative(&features.detach())?) else {
            return Ok(None);
        };
        let by = own.sub(&theirs)?.abs()?;
        // Half the square up to one, beyond it straight.
        let near = by.minimum(1.0)?;
        Ok(Some(((near.sqr()? * 0.5)? + by.sub(&near)?)?.mean_all()?))
    },
};
