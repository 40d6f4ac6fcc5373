//! Features that point where the teacher's do: one minus the cosine, after the student's are mapped to as many.

use tl_proto::catalog::{Entry, entry};

use super::{super::ops::unit, Method, regressed, regressor, weight};

pub(super) const METHOD: Method = Method {
    entry: || -> Entry {
        Entry {
            params: weight(1.0),
            ..entry("cosine", "and a linear map of the student's features is to point where the teacher's do")
        }
    },
    inside: true,
    coupled: false,
    own: regressor,
    loss: |batch, features| {
        let cosines = unit(&regressed(batch)?)?.mul(&unit(features)?)?.sum(1)?;
        Ok(Some((cosines.mean_all()?.neg()? + 1.0)?))
    },
};
