//! Batch statistics of both domains: target samples pass the network beside the source's, and nothing is done with what
//! comes out. AdaBN (Li et al., 2016) takes the target's alone, once the network has learned. It is what every method comes
//! to on a network with batch-norms that learn, before it does anything of its own.

use tl_proto::catalog::entry;

use super::{super::nothing_own, Method, Target};

pub(super) const METHOD: Method = Method {
    entry: || {
        entry(
            "statistics",
            "batch-norms take in both domains, and the labels alone are learned: what a method has to beat where some learn",
        )
    },
    target: Target::Passed,
    features: |_| false,
    averages: false,
    own: nothing_own,
    loss: |_, _| Ok(None),
};
