//! Prototypical networks (Snell et al., 2017): a class is the mean of the features that are shown of it, and a query's
//! scores are minus its squared Euclidean distances to these. On features of length one it is the nearest class mean that
//! suits networks trained for something else (Wang et al., 2019, SimpleShot).

use tl_proto::catalog::{Entry, choice, entry};

use super::{
    super::ops::{distances_to, unit},
    Learns, Method, Shown, means,
};

fn describe() -> Entry {
    let doc = "`unit`: features are scaled to length one first, for networks that were trained for something else";
    Entry {
        params: vec![choice("features", &["plain", "unit"], doc)],
        ..entry(
            "prototype",
            "a class is the mean of its shown features, and the nearest one is taken (ProtoNet); without stages, on \
             any network as it is",
        )
    }
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    learns: Learns::Compares(|params, shown| {
        if describe().word(params, "features") == "unit" {
            let (support, query) = (unit(shown.support)?, unit(shown.query)?);
            let shown = Shown { support: &support, counts: shown.counts, query: &query };
            return Ok(distances_to(&query, &means(&shown)?)?.neg()?);
        }
        Ok(distances_to(shown.query, &means(shown)?)?.neg()?)
    }),
};
