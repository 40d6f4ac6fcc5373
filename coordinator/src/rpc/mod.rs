//! gRPC: what users, agents and blobs are served with.

mod auth;
mod blob;
mod data;
mod node;
mod user;
mod view;

pub use auth::{Gate, Role};
pub use blob::BlobService;
pub use data::DataService;
pub use node::NodeService;
pub use user::UserService;
pub use view::{job as job_view, node as node_view};

use tonic::Status;

use crate::{core::Refusal, driver::Rejection, store};

/// The status that means what happened.
fn status(rejection: &Rejection) -> Status {
    let Rejection::Refused(refusal) = rejection else { return Status::unavailable(rejection.to_string()) };
    let text = refusal.to_string();
    match refusal {
        Refusal::NotFound(_) => Status::not_found(text),
        Refusal::Invalid { message, hint } => {
            let mut status = Status::invalid_argument(message);
            with_hint(&mut status, hint);
            status
        }
        Refusal::Precondition(_) | Refusal::Stale => Status::failed_precondition(text),
        Refusal::AlreadyExists(_) => Status::already_exists(text),
        Refusal::Exhausted(_) => Status::resource_exhausted(text),
    }
}

/// Adds what to do next, as the trailer `tl-hint-bin`.
fn with_hint(status: &mut Status, hint: &str) {
    let value = tonic::metadata::MetadataValue::from_bytes(hint.as_bytes());
    status.metadata_mut().insert_bin("tl-hint-bin", value);
}

fn stored(e: store::Error) -> Status {
    match e {
        store::Error::Refused(text) => Status::invalid_argument(text),
        other => Status::unavailable(other.to_string()),
    }
}

/// Parses an id, or says that it is none.
fn id<T: std::str::FromStr<Err = tl_proto::ids::BadId>>(text: &str) -> Result<T, Status> {
    text.parse().map_err(|e: tl_proto::ids::BadId| Status::invalid_argument(e.to_string()))
}
