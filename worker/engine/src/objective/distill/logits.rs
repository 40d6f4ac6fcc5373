//! Logits alone.

use tl_proto::catalog::entry;

use super::{Looks, Method};

pub(super) const METHOD: Method = Method {
    entry: || entry("logits", "what the teacher says, and nothing else"),
    looks: |_| Looks::Nowhere,
    coupled: false,
    own: |_| Ok(Vec::new()),
    loss: |_, _, _| Ok(None),
};
