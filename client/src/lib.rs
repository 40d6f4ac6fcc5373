//! The client. It is not built yet: see the README for what is.
