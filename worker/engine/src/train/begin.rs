//! How ranks begin together: with the same numbers, from the same state.

use tl_proto::spec::{JobSpec, Reduction};

use super::{Config, RunState};
use crate::{
    Error, Result,
    collective::Collective,
    link::{Link, Notice},
    num::fingerprint::fingerprint,
};

/// An ordered reduction gives the same bits only among ranks that compute the same bits.
pub(super) fn same_numbers(spec: &JobSpec, group: &mut dyn Collective) -> Result<()> {
    let all = group.all_gather(fingerprint().to_vec())?;
    let odd = all.iter().position(|f| *f != all[0]).filter(|_| spec.cluster.reduction != Reduction::Fast);
    match odd {
        None => Ok(()),
        Some(rank) => Err(Error::user(
            format!("rank {rank} computes other bits than rank 0: its node has another kind of CPU or another release"),
            "use nodes of one kind, or set `cluster.reduction = \"fast\"`",
        )),
    }
}

/// Rank 0 reads the newest checkpoint that is whole and hands it to the others.
pub(super) fn resume(
    config: &Config,
    fresh: RunState,
    group: &mut dyn Collective,
    link: &mut dyn Link,
) -> Result<RunState> {
    let mut bytes = Vec::new();
    if group.rank() == 0 {
        for path in &config.resume {
            let found = std::fs::read(path).ok();
            if found.as_ref().is_some_and(|b| RunState::from_bytes(b.clone(), &fresh.store).is_some()) {
                bytes = found.unwrap_or_default();
                break;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            link.notice(
                Notice::CheckpointDamaged,
                &format!("checkpoint `{name}` is not whole; the one before it is used"),
            );
        }
    }
    let bytes = group.broadcast(bytes, 0)?;
    if bytes.is_empty() {
        return Ok(fresh);
    }
    let state = RunState::from_bytes(bytes, &fresh.store)
        .ok_or_else(|| Error::Internal("the state of rank 0 is not whole".into()))?;
    if group.rank() == 0 {
        link.notice(
            Notice::Resumed,
            &format!("training goes on from step {} with {} ranks", state.progress.step, group.world()),
        );
    }
    Ok(state)
}
