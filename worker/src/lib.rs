//! The agent of a node: a session with the coordinator, one process per rank, all remote IO.
//!
//! [`agent`] holds the parts together: [`session`] talks to the coordinator, [`supervisor`] makes what runs what is
//! wanted, [`process`] is the life of one rank, [`courier`] takes its files to the blob store, [`report`] sends its rows
//! and lines. [`rank`] is the other side: the process that trains, and the only place that knows the engine.

pub mod agent;
pub mod blobs;
pub mod cli;
pub mod command;
pub mod courier;
pub mod datasets;
pub mod digests;
pub mod doctor;
pub mod features;
pub mod here;
pub mod home;
pub mod hub;
pub mod inventory;
pub mod keyed;
pub mod order;
pub mod outbox;
pub mod parent;
pub mod process;
pub mod rank;
pub mod remote;
pub mod report;
pub mod roots;
pub mod session;
pub mod spawner;
pub mod supervisor;
pub mod threads;
pub mod trial;
pub mod ward;
pub mod weights;
