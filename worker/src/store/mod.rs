//! Files on this node, and how they come here and leave: who asks for one gets a path, and what several ranks want is brought
//! once.
//!
//! [`folder`] is the agent's data folder, where all lies that has no other place by settings. [`blobs`] are files of the
//! cluster, on their way to and from the coordinator; [`datasets`] are unpacked from them; [`hub`] brings weights from the
//! Hugging Face hub. They share [`locks`], one for each file that is brought, and [`digests`] of what is here. [`roots`] says
//! which files of the node's own a job may name.

pub(crate) mod blobs;
pub(crate) mod datasets;
mod digests;
pub(crate) mod folder;
pub(crate) mod hub;
mod locks;
pub(crate) mod roots;
