//! Weights of the hub for one rank: brought before its process starts, announced and followed in the history of its job.

use std::collections::BTreeMap;

use tl_proto::{
    failure::Failure,
    spec::{Fetched, JobSpec},
    v1::{self, agent_message::Body},
};

use super::process::Context;
use crate::{
    session::report::Key,
    store::hub::{Found, Told},
};

/// Units of progress, in bytes.
const UNIT: u64 = 1 << 20;

/// What a job names of the hub: paths of what is here, and with `look` the bytes of what would have to be downloaded.
///
/// # Errors
/// What cannot be fetched, by name, with a hint.
pub async fn bring(
    context: &Context,
    key: &Key,
    spec: &JobSpec,
    look: bool,
) -> Result<(BTreeMap<String, Fetched>, BTreeMap<String, u64>), Failure> {
    let (mut here, mut absent) = (BTreeMap::new(), BTreeMap::new());
    for place in spec.hub() {
        let (outbox, reporter, key) = (context.outbox.clone(), context.reporter.clone(), key.clone());
        let tell = move |told: Told<'_>| {
            let (phase, generation) = (key.phase.to_string(), key.generation);
            match told {
                Told::Notice(text) => {
                    tracing::info!("{text}");
                    let (job_id, code, text) = (key.job.to_string(), "hub".into(), text.to_owned());
                    outbox.push(Body::Notice(v1::RankNotice { job_id, phase, generation, code, text }));
                }
                Told::Progress(done, total) => {
                    let (name, done, total) = ("download (MiB)".into(), done.div_ceil(UNIT), total.div_ceil(UNIT));
                    reporter.activity(&key.job, v1::Activity { phase, generation, name, done, total });
                }
            }
        };
        match context.models.take(place, look, tell).await.map_err(|e| e.to_failure(place))? {
            Found::Here(fetched) => drop(here.insert(place.to_owned(), fetched)),
            Found::Absent { bytes } => drop(absent.insert(place.to_owned(), bytes)),
        }
    }
    Ok((here, absent))
}
