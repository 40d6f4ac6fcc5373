//! The typed API: a connection, and calls on it.

use std::{path::Path, time::Duration};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tl_proto::{
    MAX_MESSAGE_BYTES, MAX_REPLY_BYTES,
    bearer::Bearer,
    catalog::Catalog,
    spec::JobSpec,
    v1::{self, blobs_client::BlobsClient, user_client::UserClient},
};
use tokio_stream::StreamExt;
use tonic::{
    Code, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use crate::{Error, Job};

/// How long a connection may take, and how long a silent one is believed in.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one call may take. A plan waits for a slot, so it takes longest.
const CALL: Duration = Duration::from_secs(75);
/// How often what does no harm twice is tried again: a submission with the same key, a download.
pub(crate) const TRIES: u32 = 5;

/// The pause before it is tried again after it was tried so often, from 0.4 s to 6.4 s.
pub(crate) fn pause(tried: u32) -> Duration {
    Duration::from_millis(200 << tried)
}

pub(crate) type Channelled = InterceptedService<Channel, Bearer>;

/// A connection to a coordinator. Cheap to clone; reconnects by itself.
#[derive(Clone)]
pub struct Client {
    pub(crate) address: String,
    pub(crate) channel: Channel,
    pub(crate) bearer: Bearer,
}

impl Client {
    /// Connects to the coordinator at `address` (`host:port`, or `http://host:port`), with its user token if it has one.
    ///
    /// # Errors
    /// Nobody answers there.
    pub async fn connect(address: &str, token: Option<&str>) -> Result<Self, Error> {
        let url = if address.contains("://") { address.to_owned() } else { with_port(address)? };
        let endpoint = Endpoint::from_shared(url)
            .map_err(|_| Error::input(format!("`{address}` is not an address"), "write it as `host:port`"))?;
        let endpoint = endpoint
            .connect_timeout(PATIENCE)
            .http2_keep_alive_interval(PATIENCE)
            .keep_alive_timeout(PATIENCE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let bearer = Bearer::new(token).map_err(|e| Error::input(e, "check `TL_TOKEN`"))?;
        let channel = endpoint.connect().await.map_err(|e| {
            // The sentence is in the innermost cause.
            let mut cause: &dyn std::error::Error = &e;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            Error::Unreachable { address: address.into(), cause: cause.to_string() }
        })?;
        Ok(Self { address: address.into(), channel, bearer })
    }

    pub(crate) fn user(&self) -> UserClient<Channelled> {
        UserClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_REPLY_BYTES)
    }

    pub(crate) fn failed(&self) -> impl Fn(Status) -> Error {
        let address = self.address.clone();
        move |status| Error::call(&address, &status)
    }

    pub(crate) async fn call<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Error> {
        let slow = || Error::Unreachable { address: self.address.clone(), cause: "no answer in time".into() };
        let answer = tokio::time::timeout(CALL, call).await.map_err(|_| slow())?;
        answer.map(tonic::Response::into_inner).map_err(|s| self.failed()(s))
    }

    /// Submits a job. Tries again over broken connections; the job is created once all the same.
    ///
    /// # Errors
    /// The job is refused, or the coordinator stays away.
    pub async fn submit(&self, spec: &JobSpec) -> Result<Job, Error> {
        let spec_json = encode(spec)?;
        let idempotency_key = ulid::Ulid::new().to_string();
        let mut tried = 0;
        loop {
            let request = v1::SubmitRequest { idempotency_key: idempotency_key.clone(), spec_json: spec_json.clone() };
            match self.call(self.user().submit(request)).await {
                Ok(reply) => return Ok(self.job(&reply.job_id)),
                Err(Error::Unreachable { .. }) if tried < TRIES => {
                    tried += 1;
                    tokio::time::sleep(pause(tried)).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// A handle on a job, which need not exist.
    pub fn job(&self, id: &str) -> Job {
        Job { client: self.clone(), id: id.into() }
    }

    /// Jobs, newest first.
    ///
    /// # Errors
    /// The call fails.
    pub async fn list(&self, limit: u32, active_only: bool) -> Result<Vec<v1::Job>, Error> {
        Ok(self.call(self.user().list(v1::ListRequest { limit, active_only })).await?.jobs)
    }

    /// Nodes.
    ///
    /// # Errors
    /// The call fails.
    pub async fn nodes(&self) -> Result<Vec<v1::Node>, Error> {
        Ok(self.call(self.user().nodes(v1::NodesRequest {})).await?.nodes)
    }

    /// Empties a node, or uses it again.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn drain(&self, node: &str, undo: bool) -> Result<v1::Node, Error> {
        self.call(self.user().drain(v1::DrainRequest { node_id: node.into(), undo })).await
    }

    /// What a job would do, found out on a node; nothing of it is kept.
    ///
    /// # Errors
    /// What would stop the job at its start.
    pub async fn plan(&self, spec: &JobSpec) -> Result<Value, Error> {
        let reply = self.call(self.user().plan(v1::PlanRequest { spec_json: encode(spec)? })).await?;
        Ok(serde_json::from_slice(&reply.plan_json).unwrap_or(Value::Null))
    }

    /// What the workers can do.
    ///
    /// # Errors
    /// No worker has connected yet.
    pub async fn catalog(&self) -> Result<Catalog, Error> {
        let reply = self.call(self.user().catalog(v1::CatalogRequest {})).await?;
        serde_json::from_slice(&reply.catalog_json).map_err(|e| {
            Error::input(format!("the catalog cannot be read: {e}"), "use a `tlctl` of the coordinator's release")
        })
    }

    /// Brings a blob into a file: written aside, checked, renamed.
    ///
    /// # Errors
    /// The call fails, the disk refuses, or the bytes are wrong.
    pub async fn download(&self, blob: &v1::BlobRef, path: &Path) -> Result<(), Error> {
        let aside = path.with_extension("part");
        let result = self.fetch(blob, &aside).await;
        if result.is_err() {
            let _ = std::fs::remove_file(&aside);
        }
        result?;
        std::fs::rename(&aside, path).map_err(Error::file(path))
    }

    async fn fetch(&self, blob: &v1::BlobRef, path: &Path) -> Result<(), Error> {
        use std::io::Write;
        let mut file = std::fs::File::create(path).map_err(Error::file(path))?;
        let mut blobs = BlobsClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (mut hasher, mut offset, mut tried) = (Sha256::new(), 0, 0);
        while offset < blob.size {
            let request = v1::ReadRequest { digest: blob.digest.clone(), offset };
            let mut stream = match self.call(blobs.read(request)).await {
                // It may be on its way back.
                Err(Error::Unreachable { .. }) if tried < TRIES => {
                    tried += 1;
                    tokio::time::sleep(pause(tried)).await;
                    continue;
                }
                other => other?,
            };
            loop {
                let slow = || Status::new(Code::Unavailable, "the download makes no progress");
                let next = tokio::time::timeout(PATIENCE * 4, stream.next()).await.unwrap_or(Some(Err(slow())));
                match next {
                    Some(Ok(chunk)) => {
                        tried = 0;
                        offset += chunk.data.len() as u64;
                        hasher.update(&chunk.data);
                        file.write_all(&chunk.data).map_err(Error::file(path))?;
                    }
                    // A broken stream goes on where it broke.
                    Some(Err(_)) if tried < TRIES => {
                        tried += 1;
                        tokio::time::sleep(pause(tried)).await;
                        break;
                    }
                    Some(Err(status)) => return Err(self.failed()(status)),
                    None if offset < blob.size => return Err(Error::Damaged(path.display().to_string())),
                    None => break,
                }
            }
        }
        let digest: String = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
        if digest == blob.digest { Ok(()) } else { Err(Error::Damaged(path.display().to_string())) }
    }
}

/// The URL of a `host:port`.
fn with_port(address: &str) -> Result<String, Error> {
    let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(format!("http://{address}")),
        Some(Err(_)) => Err(Error::input(format!("`{address}` is not an address"), "write it as `host:port`")),
        None => Err(Error::input(format!("`{address}` has no port"), format!("write it as `{address}:7070`"))),
    }
}

fn encode(spec: &JobSpec) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(spec).map_err(|e| Error::input(format!("the job cannot be sent: {e}"), ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_is_told_before_anybody_is_asked() {
        for good in ["localhost:7070", "10.0.0.1:1", "[::1]:7070"] {
            assert_eq!(with_port(good).unwrap(), format!("http://{good}"));
        }
        let hint = |address: &str| with_port(address).unwrap_err().hint().to_owned();
        assert_eq!(hint("coordinator"), "write it as `coordinator:7070`");
        assert_eq!(["localhost:99999", "localhost:", "[::1]"].map(hint), ["write it as `host:port`"; 3]);
    }
}
