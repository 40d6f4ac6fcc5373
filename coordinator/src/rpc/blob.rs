//! The blob service over gRPC.

use tl_proto::{
    BLOB_CHUNK_BYTES,
    v1::{self, blobs_server},
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::stored;
use crate::store::Blobs;

/// Serves a folder of blobs.
pub struct BlobService {
    /// The folder.
    pub blobs: Blobs,
}

/// Runs what waits for a disk or a bucket on a thread that may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::store::Error> + Send + 'static,
) -> Result<T, Status> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| Status::internal(e.to_string()))?.map_err(stored)
}

#[tonic::async_trait]
impl blobs_server::Blobs for BlobService {
    async fn stat(&self, request: Request<v1::StatRequest>) -> Result<Response<v1::StatReply>, Status> {
        let (blobs, digest) = (self.blobs.clone(), request.into_inner().digest);
        let (complete, received) = blocking(move || blobs.stat(&digest)).await?;
        Ok(Response::new(v1::StatReply { complete, received }))
    }

    async fn put(&self, request: Request<Streaming<v1::PutChunk>>) -> Result<Response<v1::PutReply>, Status> {
        let mut stream = request.into_inner();
        let mut blob: Option<v1::BlobRef> = None;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            let blob = match (&blob, chunk.blob) {
                (Some(named), _) => named.clone(),
                (None, Some(named)) => blob.insert(named).clone(),
                (None, None) => return Err(Status::invalid_argument("the first chunk must name the blob")),
            };
            let blobs = self.blobs.clone();
            blocking(move || blobs.write(&blob.digest, blob.size, chunk.offset, &chunk.data)).await?;
        }
        let blob = blob.ok_or_else(|| Status::invalid_argument("there is no chunk"))?;
        let (blobs, named) = (self.blobs.clone(), blob.clone());
        blocking(move || blobs.commit(&named.digest, named.size)).await?;
        Ok(Response::new(v1::PutReply { blob: Some(blob) }))
    }

    type ReadStream = ReceiverStream<Result<v1::DataChunk, Status>>;

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let v1::ReadRequest { digest, offset } = request.into_inner();
        let (blobs, asked) = (self.blobs.clone(), digest.clone());
        if !blocking(move || blobs.stat(&asked)).await?.0 {
            return Err(Status::not_found(format!("there is no blob {digest}")));
        }
        let (sender, receiver) = mpsc::channel(4);
        let blobs = self.blobs.clone();
        tokio::spawn(async move {
            let mut at = offset;
            loop {
                let (blobs, digest) = (blobs.clone(), digest.clone());
                let chunk = match blocking(move || blobs.read(&digest, at, BLOB_CHUNK_BYTES)).await {
                    Ok(data) if data.is_empty() => return,
                    Ok(data) => data,
                    Err(e) => {
                        let _ = sender.send(Err(e)).await;
                        return;
                    }
                };
                let len = chunk.len() as u64;
                if sender.send(Ok(v1::DataChunk { offset: at, data: chunk })).await.is_err() {
                    return;
                }
                at += len;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
