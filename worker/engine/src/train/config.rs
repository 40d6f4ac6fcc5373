//! What a rank is given.

use std::{collections::BTreeMap, path::PathBuf};

use tl_proto::spec::{Fetched, Hub, JobSpec, Pushed, Source};

use super::net::Net;
use crate::{Error, Result, gpu::Place};

/// What a rank is given.
#[derive(Clone)]
pub struct Config {
    /// The job of one pipeline step.
    pub spec: JobSpec,
    /// Models of earlier steps and jobs: by the step, or by all that names the job.
    pub inputs: BTreeMap<String, PathBuf>,
    /// Folders of pushed data sets, by digest.
    pub pushed: BTreeMap<String, PathBuf>,
    /// Weights of the hub, by the names that the job gives them.
    pub hub: BTreeMap<String, Fetched>,
    /// For a look only: weights of the hub that are not here, and the bytes that it would take to download them.
    pub absent: BTreeMap<String, u64>,
    /// A look that nothing comes after: what the feature cache is worth is measured for it.
    pub look: bool,
    /// A folder for checkpoints and the exported model.
    pub work: PathBuf,
    /// The machine's feature cache.
    pub cache: PathBuf,
    /// Bytes that it may take; what was not used for longest goes first.
    pub cache_bytes: u64,
    /// What teachers have said on other nodes, packed; see [`super::teach`].
    pub features: Vec<PathBuf>,
    /// Checkpoints to go on from, newest first; only rank 0 reads them.
    pub resume: Vec<PathBuf>,
    /// Where layers compute.
    pub place: Place,
}

impl Config {
    /// The job with paths of this machine in place of pushed data sets and of weights of the hub, but for those that are
    /// absent. What is exported keeps the names that hold everywhere.
    ///
    /// # Errors
    /// A data set, or weights, that were not handed over.
    pub(super) fn local(&self) -> Result<JobSpec> {
        let mut spec = self.spec.clone();
        for place in spec.places_mut() {
            if matches!(Hub::parse(place), Ok(Some(_))) {
                match self.hub.get(place) {
                    Some(fetched) => *place = fetched.path.display().to_string(),
                    None if self.absent.contains_key(place) => {}
                    None => return Err(Error::Internal(format!("`{place}` was not handed over"))),
                }
                continue;
            }
            let parsed = Pushed::parse(place).map_err(|e| Error::user(e.message, e.hint))?;
            let Some(Pushed { digest, inside }) = parsed else { continue };
            let folder = self.pushed.get(digest);
            let folder = folder.ok_or_else(|| Error::Internal(format!("data set {digest} was not handed over")))?;
            *place = folder.join(inside).display().to_string();
        }
        Ok(spec)
    }

    /// A network of the job, whose layers compute where the rank does.
    pub(super) fn placed(&self, mut net: Net) -> Net {
        net.network.initial.place = self.place.clone();
        net
    }

    /// Where the weights of the hub came from.
    pub(super) fn sources(&self) -> Vec<Source> {
        self.hub.values().map(|fetched| fetched.source.clone()).collect()
    }
}
