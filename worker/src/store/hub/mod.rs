//! Weights from the Hugging Face hub: brought once per machine into the cache that Hugging Face's own libraries use, and
//! handed to ranks as paths. The engine never sees the network.
//!
//! [`web`] asks, [`cache`] is the layout of the cache (by the `hf-hub` crate), [`bring`] joins the two. Transfers are ours:
//! that crate's have no timeouts, no limit of size and no check of what has come.

mod bring;
mod cache;
mod error;
mod patience;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod web;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hf_hub::Cache;
use tl_proto::spec::Fetched;

pub use self::error::Error;
use self::{bring::Errand, web::Web};
use super::{digests::Digests, locks::Keyed};

/// The hub, as a node sees it. Cheap to clone.
#[derive(Clone)]
pub struct Models {
    web: Arc<Web>,
    cache: Cache,
    bringing: Keyed,
    digests: Arc<Digests>,
}

/// Weights of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// They are on this machine.
    Here(Fetched),
    /// They are not, and were not to be brought.
    Absent {
        /// What would have to be downloaded.
        bytes: u64,
    },
}

/// What an errand tells on its way.
#[derive(Debug)]
pub enum Told<'a> {
    /// Something for the history of the job.
    Notice(&'a str),
    /// Bytes that are here, and all of them.
    Progress(u64, u64),
}

impl Models {
    /// The hub and the cache that the environment names; a cache in `fallback` where it names none.
    ///
    /// # Errors
    /// `HF_ENDPOINT` is no address; `SSL_CERT_FILE` or `SSL_CERT_DIR` names no certificates.
    pub fn from_env(fallback: PathBuf) -> Result<Self, Error> {
        let web = Web::from_env(cache::token())?;
        let (bringing, digests) = (Keyed::default(), Arc::default());
        Ok(Self { web: Arc::new(web), cache: cache::cache(fallback), bringing, digests })
    }

    /// Weights, downloaded unless they are here; with `look`, never downloaded. The download ends when nobody waits for it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn take(
        &self,
        place: &str,
        look: bool,
        tell: impl Fn(Told<'_>) + Send + 'static,
    ) -> Result<Found, Error> {
        // The next rank that wants the same finds it there.
        let _one = self.bringing.lock(place).await;
        let (web, cache, place) = (self.web.clone(), self.cache.clone(), place.to_owned());
        let digests = self.digests.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let _guard = Stop(stop.clone());
        let work = move || {
            let (web, cache, digests, place) = (&web, &cache, &digests, &place);
            Errand { web, cache, digests, place, tell: &tell, stop: &stop }.run(look)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(found) => found,
            Err(e) => Err(e.try_into_panic().map_or(Error::Stopped, |panic| {
                let said = panic.downcast_ref::<String>().map(String::as_str);
                let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
                Error::Internal(said.unwrap_or("a panic").to_owned())
            })),
        }
    }
}

/// Tells the thread that nobody waits any more.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
