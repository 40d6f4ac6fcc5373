//! Prototypical networks (Snell et al., 2017): a class is the mean of the features that are shown of it, and a query's
//! scores are minus its squared Euclidean distances to these.

use tl_proto::catalog::{Entry, entry};

use super::{super::ops::distances_to, Learns, Method, means};

pub(super) const METHOD: Method = Method {
    entry: || -> Entry {
        entry(
            "prototype",
            "a class is the mean of its shown features, and the nearest one is taken (ProtoNet); without stages, on \
             any network as it is",
        )
    },
    learns: Learns::Compares(|_, shown| Ok(distances_to(shown.query, &means(shown)?)?.neg()?)),
};
