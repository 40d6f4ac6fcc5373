//! FitNets (Romero et al., 2015): the student's features, mapped to as many as the teacher has, are to be the teacher's.
//! The mean of the squared differences; at named units, of each place with one map for all of them (a 1x1 convolution).

use candle_core::Tensor;
use tl_proto::catalog::{Entry, entry};

use super::{
    super::ops::product,
    Looks, Method,
    maps::{check, fitted, mapped, sides},
    regressed, regressor, regressor_of, taps, weight,
};
use crate::Result;

fn describe() -> Entry {
    Entry {
        params: vec![weight(1.0), taps("units to compare; what the last layers take, if none is named")],
        ..entry("hint", "and a linear map of the student's features is to be the teacher's (FitNets)")
    }
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    looks: |params| match describe().names(params, "taps") {
        named if named.is_empty() => Looks::AtFeatures,
        named => Looks::AtUnits(named, None),
    },
    coupled: false,
    own: |widths| {
        check(&widths.taps, false)?;
        if widths.taps.is_empty() {
            return Ok(regressor(widths));
        }
        let one = |(i, tap): (usize, &super::Tap)| {
            let [own, theirs] = [0, 1].map(|which| sides(&tap.shapes[which])[2]);
            regressor_of(&format!("regressor.{i}"), own, theirs)
        };
        Ok(widths.taps.iter().enumerate().flat_map(one).collect())
    },
    loss: |params, batch, _| {
        let mut all: Option<Tensor> = None;
        let mut add = |own: Tensor, theirs: &Tensor| -> Result<()> {
            let one = own.sub(theirs)?.sqr()?.mean_all()?;
            all = Some(match &all {
                Some(sum) => (sum + one)?,
                None => one,
            });
            Ok(())
        };
        match batch.taught()?.features {
            Some(features) => add(regressed(batch)?, features)?,
            None => {
                for (i, (own, theirs)) in batch.taps.iter().enumerate() {
                    let (own, theirs) = fitted(&mapped(own)?, &mapped(theirs)?)?;
                    let (n, h, w, c) = own.dims4()?;
                    let weight = batch.own(&format!("regressor.{i}.weight"))?;
                    let mapped = product(&own.reshape((n * h * w, c))?, weight)?;
                    let mapped = mapped.broadcast_add(batch.own(&format!("regressor.{i}.bias"))?)?;
                    let theirs = theirs.contiguous()?.reshape(mapped.dims())?;
                    add(mapped, &theirs)?;
                }
            }
        }
        Ok(all.map(|sum| sum * describe().number(params, "feature_weight")).transpose()?)
    },
};
