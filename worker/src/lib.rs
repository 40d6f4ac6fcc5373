//! The agent of a node. It is not built yet: see the README for what is.
