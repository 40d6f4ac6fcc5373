//! Direct transfer: what the labels of one domain alone are worth in the other. The baseline of every method.

use tl_proto::catalog::entry;

use super::{super::nothing_own, Method, Target};

pub(super) const METHOD: Method = Method {
    entry: || entry("direct", "learns from the labels alone: what a method has to beat"),
    target: Target::Left,
    features: |_| false,
    averages: false,
    own: nothing_own,
    loss: |_, _| Ok(None),
};
