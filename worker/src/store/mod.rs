//! Files on this node, and how they come here and leave.

pub(crate) mod blobs;
pub(crate) mod datasets;
mod digests;
pub(crate) mod folder;
pub(crate) mod hub;
mod locks;
pub(crate) mod roots;
