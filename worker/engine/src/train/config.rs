//! What a rank is given.

use std::{collections::BTreeMap, path::PathBuf};

use tl_proto::spec::{JobSpec, Pushed};

use crate::{Error, Result};

/// What a rank is given.
pub struct Config {
    /// The job of one pipeline step.
    pub spec: JobSpec,
    /// Models of earlier steps.
    pub inputs: BTreeMap<String, PathBuf>,
    /// Folders of pushed data sets, by digest.
    pub pushed: BTreeMap<String, PathBuf>,
    /// A folder for checkpoints and the exported model.
    pub work: PathBuf,
    /// The machine's feature cache.
    pub cache: PathBuf,
    /// Bytes that it may take; what was not used for longest goes first.
    pub cache_bytes: u64,
    /// Checkpoints to go on from, newest first; only rank 0 reads them.
    pub resume: Vec<PathBuf>,
}

impl Config {
    /// The job with paths of this machine in place of pushed data sets. What is exported keeps the names that hold
    /// everywhere.
    ///
    /// # Errors
    /// A data set that was not handed over.
    pub(super) fn local(&self) -> Result<JobSpec> {
        let mut spec = self.spec.clone();
        for place in spec.places_mut() {
            let parsed = Pushed::parse(place).map_err(|e| Error::user(e.message, e.hint))?;
            let Some(Pushed { digest, inside }) = parsed else { continue };
            let folder = self.pushed.get(digest);
            let folder = folder.ok_or_else(|| Error::Internal(format!("data set {digest} was not handed over")))?;
            *place = folder.join(inside).display().to_string();
        }
        Ok(spec)
    }
}
