//! What teachers have said on other nodes, for one rank: brought before its process starts, unless its node has it already.

use std::path::{Path, PathBuf};

use tl_proto::v1::{self, agent_message::Body};

use super::process::Context;
use crate::{rank, session::report::Key};

/// The files that the rank is to unpack. What does not come is computed again.
pub async fn bring(
    context: &Context,
    key: &Key,
    launch: &v1::Launch,
    folder: &Path,
    slow: impl Fn(&str),
) -> Vec<PathBuf> {
    let mut features = Vec::new();
    for blob in &launch.features {
        // The rank leaves a mark of this name when it has unpacked it.
        let name = format!("features-{}", blob.digest);
        if rank::has_features(&context.cache, &name) {
            continue;
        }
        let path = folder.join(name);
        match context.blobs.place(blob, &path, &slow).await {
            Ok(()) => features.push(path),
            Err(e) => {
                let (job_id, phase, generation) = (key.job.to_string(), key.phase.to_string(), key.generation);
                let text = format!("what a teacher has said on another node is computed again: {e}");
                let code = "features_lost".into();
                context.outbox.push(Body::Notice(v1::RankNotice { job_id, phase, generation, code, text }));
            }
        }
    }
    features
}
