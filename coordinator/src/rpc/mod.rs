//! gRPC: what users, agents and blobs are served with.

mod auth;
mod blob;
mod brief;
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
    let refusal = match rejection {
        Rejection::Refused(refusal) => refusal,
        // What `tlctl rm` gives up is an event too, for which there is no room.
        Rejection::Store(e) if e.is_full() => {
            return full(e, "free some space on its machine and repeat the command; what runs goes on by itself");
        }
        Rejection::Store(_) | Rejection::Unavailable => return Status::unavailable(rejection.to_string()),
    };
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
        // Whoever asks where it stands can go on there.
        store::Error::Gap { .. } => Status::aborted(e.to_string()),
        e if e.is_full() => {
            full(&e, "free some space on its machine, or give up jobs with `tlctl rm` and data with `tlctl data rm`")
        }
        other => Status::unavailable(other.to_string()),
    }
}

/// The coordinator is there, and its disk is full. Agents ask again, and people need not be told that it is away.
fn full(e: &store::Error, hint: &str) -> Status {
    let mut status = Status::resource_exhausted(match e {
        store::Error::Tight(_) => format!("the disk of the coordinator is nearly full: {e}"),
        e => format!("the disk of the coordinator is full: {e}"),
    });
    with_hint(&mut status, hint);
    status
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

    #[test]
    fn a_full_disk_is_not_a_coordinator_that_is_away() {
        let io = |kind: std::io::ErrorKind| store::Error::Io(kind.into());
        let sql = |code| store::Error::Sql(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None));
        let (disk, log) = (io(std::io::ErrorKind::StorageFull), sql(rusqlite::ffi::SQLITE_FULL));
        for (refused, removes) in [(status(&Rejection::Store(log)), false), (stored(disk), true)] {
            assert_eq!(refused.code(), Code::ResourceExhausted);
            assert!(refused.message().starts_with("the disk of the coordinator is full: "), "{}", refused.message());
            let hint = refused.metadata().get_bin("tl-hint-bin").and_then(|h| h.to_bytes().ok()).unwrap();
            assert_eq!(String::from_utf8_lossy(&hint).contains("tlctl rm"), removes);
        }
        let tight = stored(store::Error::Tight(256 << 20));
        let says = "the disk of the coordinator is nearly full: less than 256 MiB are left, which the log needs";
        assert_eq!((tight.code(), tight.message()), (Code::ResourceExhausted, says));
        assert_eq!(stored(store::Error::Gap { there: 0, at: 3 }).code(), Code::Aborted, "not wrong, but overtaken");
        let (broken, busy) = (io(std::io::ErrorKind::PermissionDenied), sql(rusqlite::ffi::SQLITE_BUSY));
        let away = [status(&Rejection::Store(busy)), stored(broken), status(&Rejection::Unavailable)];
        assert!(away.iter().all(|s| s.code() == Code::Unavailable), "{away:?}");
    }
}
