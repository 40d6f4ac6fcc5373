//! Attention transfer (Zagoruyko and Komodakis, 2017): where the student's maps are strong is to be where the teacher's
//! are. A map is the mean of the squares over channels, as a vector of length one; the loss of a pair is the mean over
//! samples and places of the squared difference, as in the authors' code, whose weight is 1000 too.

use candle_core::Tensor;
use tl_proto::catalog::{Entry, entry};

use super::{
    Look, Looks, Method,
    maps::{check, fitted, mapped},
    taps, weight,
};
use crate::Result;

/// Added to squared lengths, so that a map of zeros has a direction: none.
const EPS: f64 = 1e-12;

fn describe() -> Entry {
    Entry {
        params: vec![
            weight(1e3),
            taps("units to compare; the last of each size of maps that both have, if none is named"),
        ],
        ..entry("attention", "and the student's maps are to be strong where the teacher's are (attention transfer)")
    }
}

/// One number a place is all that counts of a teacher's maps.
const LOOK: Look = Look { name: "strength", of: strength };

/// `[n, h, w, 1]`
fn strength(maps: &Tensor) -> Result<Tensor> {
    Ok(mapped(maps)?.sqr()?.mean_keepdim(3)?)
}

fn unit(maps: &Tensor) -> Result<Tensor> {
    let rows = maps.flatten_from(1)?;
    Ok(rows.broadcast_div(&(rows.sqr()?.sum_keepdim(1)? + EPS)?.sqrt()?)?)
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    looks: |params| Looks::AtUnits(describe().names(params, "taps"), Some(LOOK)),
    coupled: false,
    own: |widths| check(&widths.taps, true).map(|()| Vec::new()),
    loss: |params, batch, _| {
        let mut all: Option<Tensor> = None;
        for (own, theirs) in batch.taps {
            let (own, theirs) = fitted(&strength(own)?, theirs)?;
            let one = unit(&own)?.sub(&unit(&theirs)?)?.sqr()?.mean_all()?;
            all = Some(match all {
                Some(sum) => (sum + one)?,
                None => one,
            });
        }
        Ok(all.map(|sum| sum * describe().number(params, "feature_weight")).transpose()?)
    },
};
