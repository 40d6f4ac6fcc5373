//! Features that point where the teacher's do: one minus the cosine, after the student's are mapped to as many.

use tl_proto::catalog::{Entry, entry};

use super::{super::ops::unit, Looks, Method, regressed, regressor, weight};

fn describe() -> Entry {
    Entry {
        params: vec![weight(1.0)],
        ..entry("cosine", "and a linear map of the student's features is to point where the teacher's do")
    }
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    looks: |_| Looks::AtFeatures,
    coupled: false,
    own: |widths| Ok(regressor(widths)),
    loss: |params, batch, _| {
        let cosines = unit(&regressed(batch)?)?.mul(&unit(batch.features_taught()?)?)?.sum(1)?;
        Ok(Some(((cosines.mean_all()?.neg()? + 1.0)? * describe().number(params, "feature_weight"))?))
    },
};
