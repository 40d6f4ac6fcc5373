//! DANN (Ganin et al., 2016): a discriminator learns to tell the domains apart by the features, which learn the opposite.
//! The mean of its cross-entropies in both domains, as in the Transfer-Learning-Library.

use tl_proto::catalog::{Entry, entry};

use super::{super::ops::reverse, Method, Target, domain};

fn describe() -> Entry {
    Entry {
        params: domain::params(),
        ..entry(
            "dann",
            "a discriminator learns to tell the domains apart, and the features learn to be told apart by none",
        )
    }
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    target: Target::Judged,
    features: |_| true,
    averages: false,
    own: |params, widths| domain::own(widths.features, describe().number(params, "hidden") as usize),
    loss: |params, batch| {
        let features = reverse(batch.features, domain::reversed(&describe(), params, batch.progress))?;
        let losses = domain::losses(batch, &domain::judge(batch, &features)?)?;
        let (source, target) = batch.split(&losses)?;
        Ok(Some(((source.mean_all()? + target.mean_all()?)? * 0.5)?))
    },
};
