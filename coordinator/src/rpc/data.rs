//! The service of pushed data sets.

use tl_proto::v1::{self, data_server};
use tonic::{Request, Response, Status};

use super::{blob::blocking, status};
use crate::{
    core::{Blob, Command, DataSet},
    driver::Driver,
    store::Blobs,
};

/// Longest label, in bytes.
const MAX_NAME: usize = 200;

/// Serves data sets.
pub struct DataService {
    /// The state.
    pub driver: Driver,
    /// Where their archives lie.
    pub blobs: Blobs,
}

fn view(digest: &str, set: &DataSet) -> v1::DataSet {
    let archive = Some(v1::BlobRef { digest: digest.to_owned(), size: set.size });
    v1::DataSet { archive, name: set.name.clone(), files: set.files, pushed_ms: set.pushed_ms }
}

#[tonic::async_trait]
impl data_server::Data for DataService {
    async fn push(&self, request: Request<v1::PushDataRequest>) -> Result<Response<v1::DataSet>, Status> {
        let v1::PushDataRequest { archive, name, files } = request.into_inner();
        let archive = archive.ok_or_else(|| Status::invalid_argument("the request names no archive"))?;
        if name.len() > MAX_NAME {
            return Err(Status::invalid_argument(format!("a name has at most {MAX_NAME} bytes")));
        }
        if name.chars().any(char::is_control) {
            return Err(Status::invalid_argument("a name has no control characters; `--name` gives another one"));
        }
        let (blobs, asked) = (self.blobs.clone(), archive.digest.clone());
        let (whole, size) = blocking(move || blobs.stat(&asked)).await?;
        if !whole || size != archive.size {
            return Err(Status::failed_precondition("the archive is not in the blob store; upload it first"));
        }
        let digest = archive.digest.clone();
        let blob = Blob { digest: archive.digest, size };
        self.driver.decide(Command::PushData { blob, name, files }).await.map_err(|e| status(&e))?;
        let found = self.driver.read(|s| s.data.get(&digest).map(|set| view(&digest, set)));
        found.map(Response::new).ok_or_else(|| Status::aborted("the data set was removed at once"))
    }

    async fn list(&self, _: Request<v1::ListDataRequest>) -> Result<Response<v1::ListDataReply>, Status> {
        let mut sets: Vec<_> = self.driver.read(|s| s.data.iter().map(|(d, set)| view(d, set)).collect());
        sets.sort_by_key(|set| std::cmp::Reverse(set.pushed_ms));
        Ok(Response::new(v1::ListDataReply { sets }))
    }

    async fn remove(&self, request: Request<v1::RemoveDataRequest>) -> Result<Response<v1::RemoveDataReply>, Status> {
        let digest = request.into_inner().digest;
        self.driver.decide(Command::RemoveData { digest }).await.map_err(|e| status(&e))?;
        Ok(Response::new(v1::RemoveDataReply {}))
    }
}
