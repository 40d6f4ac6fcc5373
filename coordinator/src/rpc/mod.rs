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
pub use view::{Detail, job as job_view, node as node_view};

use tl_proto::failure::{Failure, FailureClass};
use tonic::{Code, Status};

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

/// The status of a call for which a job has failed.
fn failed(failure: &Failure) -> Status {
    let code = match failure.class {
        FailureClass::User | FailureClass::Nan => Code::InvalidArgument,
        FailureClass::OutOfMemory | FailureClass::Disk => Code::ResourceExhausted,
        // Not `Unavailable`: for clients that is a coordinator that cannot be reached.
        FailureClass::LostNode | FailureClass::LostPeer | FailureClass::LostDevice | FailureClass::Stopped => {
            Code::Aborted
        }
        FailureClass::Gate => Code::FailedPrecondition,
        FailureClass::Crash => Code::Internal,
    };
    let mut status = Status::new(code, &failure.message);
    with_hint(&mut status, &failure.hint);
    status
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_user_can_mend_is_called_wrong_input() {
        let code = |class| failed(&Failure::new(class, "m", "h")).code();
        let wrong = FailureClass::ALL.into_iter().filter(|c| code(*c) == Code::InvalidArgument);
        assert_eq!(wrong.collect::<Vec<_>>(), [FailureClass::User, FailureClass::Nan]);
        assert_eq!(code(FailureClass::Disk), Code::ResourceExhausted);
        let status = failed(&Failure::user("no such folder", "check the path"));
        let hint = status.metadata().get_bin("tl-hint-bin").and_then(|h| h.to_bytes().ok()).unwrap();
        assert_eq!((status.message(), &*hint), ("no such folder", b"check the path".as_slice()));
    }
}
