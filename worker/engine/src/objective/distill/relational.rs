//! Relational distillation (Park et al., 2019): samples are to lie to each other as they do for the teacher, by distance (in
//! units of the mean one) and by the angles of all triangles. Huber's loss, over all pairs and triples of the batch, with
//! the paper's weights; features may be of any width.

use candle_core::Tensor;
use tl_proto::catalog::{Entry, entry, number};

use super::{super::ops::distances, Looks, Method, angles};
use crate::Result;

fn describe() -> Entry {
    let doc = "weight of the distances between two samples (RKD-D); 0 leaves them out";
    let angles = "weight of the angles between three samples (RKD-A), of which there are batch³; 0 leaves them out";
    Entry {
        params: vec![number("distance_weight", 25.0, 0.0, 1e6, doc), number("angle_weight", 50.0, 0.0, 1e6, angles)],
        ..entry("relational", "and samples are to lie to each other as they do for the teacher (RKD)")
    }
}

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

/// Half the square up to one, beyond it straight; the mean.
fn huber(own: &Tensor, theirs: &Tensor) -> Result<Tensor> {
    let by = own.sub(theirs)?.abs()?;
    let near = by.minimum(1.0)?;
    Ok(((near.sqr()? * 0.5)? + by.sub(&near)?)?.mean_all()?)
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    looks: |_| Looks::AtFeatures,
    coupled: true,
    own: |_| Ok(Vec::new()),
    loss: |params, batch, _| {
        let theirs = batch.features_taught()?.detach();
        let (Some(own_far), Some(their_far)) = (relative(batch.features)?, relative(&theirs)?) else {
            return Ok(None);
        };
        let [distance, angle] = ["distance_weight", "angle_weight"].map(|name| describe().number(params, name));
        let mut loss = (huber(&own_far, &their_far)? * distance)?;
        if angle > 0.0 {
            loss = (loss + (angles::loss(batch.features, &theirs)? * angle)?)?;
        }
        Ok(Some(loss))
    },
};
