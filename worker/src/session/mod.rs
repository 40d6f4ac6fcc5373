//! What is said between this node and the coordinator. Every connection is made anew when it is lost, and what runs goes on
//! meanwhile.
//!
//! [`remote`] is the way there: a connection each for control, reports and blobs. [`control`] is the first of them: hello,
//! heartbeats, assignments in. What the coordinator must not miss goes out over it from the [`outbox`], again until it is
//! acknowledged. [`report`] sends rows and lines over the second, from the files that ranks write them to.

pub(crate) mod control;
pub(crate) mod outbox;
pub(crate) mod remote;
pub(crate) mod report;
