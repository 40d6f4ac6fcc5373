//! Data sets of the cluster: pushed once, named by digest in any job.

use std::{io::Write, path::Path, sync::Arc, time::Duration};

use tl_proto::{
    BLOB_CHUNK_BYTES, MAX_MESSAGE_BYTES,
    spec::Pushed,
    v1::{self, blobs_client::BlobsClient, data_client::DataClient},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{Client, Error, archive::Archive};

/// How often an upload is taken up again after a broken connection.
const TRIES: u32 = 8;

/// How far a push is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushing {
    /// Bytes of files read to name the data set.
    Hashed(u64),
    /// Bytes of the archive sent.
    Sent(u64),
}

/// What tells how far a push is.
type Tell = Arc<dyn Fn(Pushing) + Send + Sync>;

impl Client {
    /// Pushes a folder (or a file) and makes it a data set; what is there already is not sent again. The name to use in
    /// a job is `data:` and the digest of the archive.
    ///
    /// # Errors
    /// The folder cannot be read or changes meanwhile, the call fails, or the coordinator refuses.
    pub async fn push_data(
        &self,
        path: &Path,
        name: &str,
        tell: impl Fn(Pushing) + Send + Sync + 'static,
    ) -> Result<v1::DataSet, Error> {
        let tell: Tell = Arc::new(tell);
        let (root, hashing) = (path.to_owned(), tell.clone());
        let listed = blocking(move || {
            let archive = Archive::list(&root)?;
            let blob = archive.blob(|n| hashing(Pushing::Hashed(n))).map_err(Error::file(&root))?;
            Ok((archive, blob))
        });
        let (archive, blob) = listed.await?;
        let archive = Arc::new(archive);
        let mut tried = 0;
        loop {
            match self.upload(&archive, &blob, &tell).await {
                Ok(()) => break,
                Err(e) if goes_on(&e) && tried < TRIES => {
                    tried += 1;
                    tokio::time::sleep(Duration::from_millis(100 << tried)).await;
                }
                Err(e) => return Err(e),
            }
        }
        let request = v1::PushDataRequest { archive: Some(blob), name: name.into(), files: archive.files() };
        self.call(self.data().push(request)).await
    }

    /// Every data set, newest first.
    ///
    /// # Errors
    /// The call fails.
    pub async fn data_sets(&self) -> Result<Vec<v1::DataSet>, Error> {
        Ok(self.call(self.data().list(v1::ListDataRequest {})).await?.sets)
    }

    /// Forgets a data set.
    ///
    /// # Errors
    /// There is none, or a job needs it.
    pub async fn remove_data(&self, digest: &str) -> Result<(), Error> {
        let request = v1::RemoveDataRequest { digest: digest.into() };
        self.call(self.data().remove(request)).await.map(|_| ())
    }

    fn data(&self) -> DataClient<crate::client::Channelled> {
        DataClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    async fn upload(&self, archive: &Arc<Archive>, blob: &v1::BlobRef, tell: &Tell) -> Result<(), Error> {
        let mut blobs = BlobsClient::with_interceptor(self.channel.clone(), self.bearer.clone());
        let there = self.call(blobs.clone().stat(v1::StatRequest { digest: blob.digest.clone() })).await?;
        if there.complete {
            tell(Pushing::Sent(blob.size));
            return Ok(());
        }
        let (sender, chunks) = mpsc::channel(4);
        let mut out = Chunks {
            first: Some(blob.clone()),
            skip: there.received,
            offset: there.received,
            buffer: Vec::with_capacity(BLOB_CHUNK_BYTES),
            sender,
            tell: tell.clone(),
        };
        let packed = archive.clone();
        // A receiver that is gone has said why.
        let packing = tokio::task::spawn_blocking(move || packed.write(&mut out, |_| ()).and_then(|()| out.flush()));
        // An upload has no deadline of its own: a dead connection is found by its keep-alive.
        let sent = blobs.put(ReceiverStream::new(chunks)).await.map_err(self.failed());
        let packed = packing.await;
        sent?;
        match packed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(Error::Local(format!("the data set cannot be read: {e}"))),
            Err(e) => Err(Error::Local(e.to_string())),
        }
    }
}

/// Whether an upload that ended so can be taken up again: its connection broke, or another one of the same data got in its way.
fn goes_on(e: &Error) -> bool {
    matches!(e, Error::Unreachable { .. } | Error::Refused { code: tonic::Code::Aborted, .. })
}

/// The name of a data set in a job.
pub fn place(set: &v1::DataSet) -> String {
    Pushed::name(set.archive.as_ref().map_or("", |a| &a.digest))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Error::Local(e.to_string())))
}

/// Cuts what is written into chunks; leaves out what has arrived before.
struct Chunks {
    first: Option<v1::BlobRef>,
    skip: u64,
    offset: u64,
    buffer: Vec<u8>,
    sender: mpsc::Sender<v1::PutChunk>,
    tell: Tell,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.skip > 0 {
            let n = self.skip.min(bytes.len() as u64);
            self.skip -= n;
            return Ok(n as usize);
        }
        let n = bytes.len().min(BLOB_CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        if self.buffer.len() == BLOB_CHUNK_BYTES {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        // The first chunk is sent even if it is empty: it names what is to be committed.
        if self.buffer.is_empty() && self.first.is_none() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.buffer, Vec::with_capacity(BLOB_CHUNK_BYTES));
        let (blob, offset) = (self.first.take(), self.offset);
        self.offset += data.len() as u64;
        let sent = self.sender.blocking_send(v1::PutChunk { blob, offset, data });
        sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        (self.tell)(Pushing::Sent(self.offset));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    #[test]
    fn an_upload_goes_on_after_a_broken_connection_or_another_upload_and_not_where_it_is_refused() {
        let goes_on = |code| goes_on(&Error::call("c:7070", &Status::new(code, "")));
        assert!([Code::Unavailable, Code::Aborted].into_iter().all(goes_on));
        assert!(![Code::ResourceExhausted, Code::InvalidArgument, Code::Unauthenticated].into_iter().any(goes_on));
    }
}
