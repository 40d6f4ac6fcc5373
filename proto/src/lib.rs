//! The language that the parts of `tl` speak: messages, ids, the job specification and its checks, the catalog, failures.
//!
//! Nothing here does IO, reads a clock or knows a tensor. With the feature `grpc` the generated services are there too.

#[cfg(feature = "grpc")]
pub mod bearer;
pub mod catalog;
pub mod compare;
pub mod deadlines;
pub mod elastic;
pub mod failure;
pub mod hardware;
pub mod ids;
pub mod interval;
pub mod picked;
pub mod spec;
pub mod teaching;
pub mod words;

/// Messages (and, with `grpc`, clients and servers) generated from `proto/tl/v1`.
#[expect(missing_docs, reason = "generated; documented in the .proto files")]
#[expect(clippy::all, reason = "generated")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/tl.v1.rs"));
}

/// The encoded file descriptors, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Version of the wire protocol; a coordinator refuses agents of another one.
pub const PROTOCOL: u32 = 1;

/// Largest message either side accepts, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// Largest answer about jobs that a client takes from its coordinator, in bytes: one holds the histories of all phases.
pub const MAX_REPLY_BYTES: usize = 64 << 20;

/// Largest job specification, in bytes.
pub const MAX_SPEC_BYTES: usize = 1 << 20;

/// Bytes of one chunk of a blob.
pub const BLOB_CHUNK_BYTES: usize = 1 << 20;

/// Writes bytes that hold JSON as the value that they hold.
fn raw_json<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let value: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    serde::Serialize::serialize(&value, serializer)
}
