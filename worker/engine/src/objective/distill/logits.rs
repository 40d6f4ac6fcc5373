//! Logits alone.

use tl_proto::catalog::entry;

use super::Method;

pub(super) const METHOD: Method = Method {
    entry: || entry("logits", "what the teacher says, and nothing else"),
    inside: false,
    coupled: false,
    own: |_| Vec::new(),
    loss: |_, _| Ok(None),
};
