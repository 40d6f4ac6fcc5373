//! Takes what a rank has left to the blob store, and then says that it is there.

use std::{collections::VecDeque, path::PathBuf, sync::Arc, time::Duration};

use tl_proto::v1::{self, agent_message::Body};
use tokio::sync::mpsc;

use super::process::Context;
use crate::session::report::Key;

/// How long a checkpoint waits for the rows that lead to it.
const ROWS_PATIENCE: Duration = Duration::from_secs(10);

/// Checkpoints of an attempt that stay here, so that a rank that starts anew need not fetch them: the newest, and the one
/// before it for when the newest is damaged.
const STAY: usize = 2;

/// A file to be taken.
pub enum Parcel {
    /// A checkpoint after this many steps.
    Checkpoint(u64, PathBuf),
    /// A finished file with its name.
    Artifact(String, PathBuf),
}

/// Takes one parcel after the other until the queue is closed; whether all finished files have arrived.
pub async fn run(context: Arc<Context>, key: Key, mut queue: mpsc::UnboundedReceiver<Parcel>) -> bool {
    let (mut all, mut here) = (true, VecDeque::new());
    let mut next = queue.recv().await;
    while let Some(parcel) = next.take() {
        let mut newer = queue.try_recv().ok();
        // A checkpoint that was overtaken while an upload was slow is not worth its way.
        if !(matches!(parcel, Parcel::Checkpoint(..)) && matches!(newer, Some(Parcel::Checkpoint(..)))) {
            let arrived = take(&context, &key, &parcel).await;
            all &= arrived.is_some() || matches!(parcel, Parcel::Checkpoint(..));
            if let (Some(digest), Parcel::Checkpoint(..)) = (arrived, &parcel)
                && let Some(old) = overtaken(&mut here, digest)
            {
                context.blobs.forget(&old);
            }
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

/// Adds the digest of a checkpoint to those that are here; which of them go for it.
fn overtaken(here: &mut VecDeque<String>, newest: String) -> Option<String> {
    here.retain(|known| *known != newest);
    here.push_back(newest);
    if here.len() > STAY { here.pop_front() } else { None }
}

/// Takes one parcel; the digest of what has arrived.
async fn take(context: &Context, key: &Key, parcel: &Parcel) -> Option<String> {
    let (Parcel::Checkpoint(_, path) | Parcel::Artifact(_, path)) = parcel;
    let (job_id, phase, generation) = (key.job.to_string(), key.phase.to_string(), key.generation);
    let slow = |why: &str| {
        let (code, text) = ("upload_slow".into(), format!("`{}` waits for the blob store: {why}", path.display()));
        let (job_id, phase) = (job_id.clone(), phase.clone());
        context.outbox.push(Body::Notice(v1::RankNotice { job_id, phase, generation, code, text }));
    };
    let uploaded = context.blobs.upload(path, slow).await;
    let arrived = uploaded.as_ref().ok().map(|blob| blob.digest.clone());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_newest_checkpoints_stay_and_no_other() {
        let mut here = VecDeque::new();
        let mut goes = |digest: &str| overtaken(&mut here, digest.into());
        assert_eq!((goes("a"), goes("b"), goes("c")), (None, None, Some("a".into())));
        // One that has come again is the newest, and stays.
        assert_eq!((goes("b"), goes("d"), goes("e")), (None, Some("c".into()), Some("b".into())));
    }
}
