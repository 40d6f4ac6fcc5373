//! FitNets (Romero et al., 2015): the student's features, mapped to as many as the teacher has, are to be the teacher's.
//! The mean of the squared differences.

use tl_proto::catalog::{Entry, entry};

use super::{Method, regressed, regressor, weight};

pub(super) const METHOD: Method = Method {
    entry: || -> Entry {
        Entry {
            params: weight(1.0),
            ..entry("hint", "and a linear map of the student's features is to be the teacher's (FitNets)")
        }
    },
    inside: true,
    coupled: false,
    own: regressor,
    loss: |batch, features| Ok(Some(regressed(batch)?.sub(features)?.sqr()?.mean_all()?)),
};
