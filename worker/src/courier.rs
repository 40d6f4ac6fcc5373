//! Takes what a rank has left to the blob store, and then says that it is there.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tl_proto::v1::{self, agent_message::Body};
use tokio::sync::mpsc;

use crate::{process::Context, report::Key};

/// How long a checkpoint waits for the rows that lead to it.
const ROWS_PATIENCE: Duration = Duration::from_secs(10);

/// A file to be taken.
pub enum Parcel {
    /// A checkpoint after this many steps.
    Checkpoint(u64, PathBuf),
    /// A finished file with its name.
    Artifact(String, PathBuf),
}

/// Takes one parcel after the other until the queue is closed; whether all finished files have arrived.
pub async fn run(context: Arc<Context>, key: Key, mut queue: mpsc::UnboundedReceiver<Parcel>) -> bool {
    let mut all = true;
    let mut next = queue.recv().await;
    while let Some(parcel) = next.take() {
        let mut newer = queue.try_recv().ok();
        // A checkpoint that was overtaken while an upload was slow is not worth its way.
        if !(matches!(parcel, Parcel::Checkpoint(..)) && matches!(newer, Some(Parcel::Checkpoint(..)))) {
            let arrived = take(&context, &key, &parcel).await;
            all &= arrived || matches!(parcel, Parcel::Checkpoint(..));
        }
        if let Parcel::Checkpoint(_, path) = &parcel {
            let _ = std::fs::remove_file(path);
        }
        if newer.is_none() {
            newer = queue.recv().await;
        }
        next = newer;
    }
    all
}

async fn take(context: &Context, key: &Key, parcel: &Parcel) -> bool {
    let (Parcel::Checkpoint(_, path) | Parcel::Artifact(_, path)) = parcel;
    let (job_id, phase, generation) = (key.job.to_string(), key.phase.to_string(), key.generation);
    let slow = |why: &str| {
        let (code, text) = ("upload_slow".into(), format!("`{}` waits for the blob store: {why}", path.display()));
        let (job_id, phase) = (job_id.clone(), phase.clone());
        context.outbox.push(Body::Notice(v1::RankNotice { job_id, phase, generation, code, text }));
    };
    let uploaded = context.blobs.upload(path, slow).await;
    let arrived = uploaded.is_ok();
    match (uploaded, parcel) {
        (Ok(blob), Parcel::Checkpoint(step, _)) => {
            // Whoever goes on from here does not compute its rows again.
            context.reporter.rows_arrived(key, ROWS_PATIENCE).await;
            let (step, blob) = (*step, Some(blob));
            context.outbox.push(Body::Checkpoint(v1::CheckpointReady { job_id, phase, generation, step, blob }));
        }
        (Ok(blob), Parcel::Artifact(name, _)) => {
            let (name, blob) = (name.clone(), Some(blob));
            context.outbox.push(Body::Artifact(v1::ArtifactReady { job_id, phase, generation, name, blob }));
        }
        (Err(e), _) => {
            let (code, text) =
                ("upload_failed".into(), format!("`{}` did not reach the blob store: {e}", path.display()));
            tracing::warn!("{text}");
            context.outbox.push(Body::Notice(v1::RankNotice { job_id, phase, generation, code, text }));
        }
    }
    arrived
}
