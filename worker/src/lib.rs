//! The agent of a node: a session with the coordinator, one process per rank, all remote IO.
//!
//! [`cli`] reads the command line and starts an agent; `agent.rs` puts its parts together and keeps them going until it is told
//! to end. Each part is a folder:
//!
//! * `session/`: what is said between the node and the coordinator: control, reports, and what must not be lost on the way.
//! * `supervise/`: processes of ranks. What the coordinator wants becomes what runs here, each from its files to its last words.
//! * `machine/`: what the node is made of, which of its GPUs work, and `tl-worker doctor`.
//! * `store/`: files on the node, and how they come here: blobs, data sets, weights of the hub.
//! * `rank/`: the other side, the process that trains, and the only place that knows the engine.
//!
//! An assignment comes in through `session/`. For each launch in it `supervise/` has `store/` bring the files, and starts a
//! process, on a slot that `machine/` has found. What `rank/` says there goes out through `session/`, and the files that it
//! leaves through `store/`. While the coordinator is away all of this goes on, and what is to be said waits.

mod agent;
pub mod cli;
pub mod machine;
pub mod rank;
mod session;
mod store;
mod supervise;
