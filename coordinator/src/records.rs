//! What ranks report while they run: series and logs on disk, the current activity in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tl_proto::{
    ids::{JobId, PhaseId},
    v1,
};
use tokio::sync::watch;

use crate::store::{Error, Logs, Series};

/// Reports of all jobs. Cheap to clone.
#[derive(Clone)]
pub struct Records {
    inner: Arc<Inner>,
}

struct Inner {
    series: Mutex<Series>,
    logs: Mutex<Logs>,
    activity: Mutex<BTreeMap<(JobId, PhaseId), v1::Activity>>,
    version: watch::Sender<u64>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Records {
    /// Opens series and logs in `dir`.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let inner = Inner {
            series: Mutex::new(Series::open(dir)?),
            logs: Mutex::new(Logs::open(dir)?),
            activity: Mutex::default(),
            version: watch::Sender::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes a batch of reports; when it returns, rows and lines are stored.
    ///
    /// # Errors
    /// The disk refuses; the batch may be sent again.
    pub async fn append(&self, reports: Vec<(JobId, v1::report::Body)>) -> Result<(), Error> {
        let (mut rows, mut lines) = (Vec::new(), Vec::new());
        for (job, body) in reports {
            match body {
                v1::report::Body::Metric(row) => rows.push((job, row)),
                v1::report::Body::Log(line) => lines.push((job, line)),
                v1::report::Body::Activity(a) => {
                    let mut all = lock(&self.inner.activity);
                    let known = all.entry((job, PhaseId(a.phase.clone()))).or_default();
                    if a.generation >= known.generation {
                        *known = a;
                    }
                }
            }
        }
        metrics::counter!("tl_rows_total").increment(rows.len() as u64);
        metrics::counter!("tl_log_lines_total").increment(lines.len() as u64);
        let inner = self.inner.clone();
        blocking(move || {
            lock(&inner.series).append(&rows)?;
            lock(&inner.logs).append(&lines)
        })
        .await?;
        self.inner.version.send_modify(|v| *v += 1);
        Ok(())
    }

    /// Rows of a job after a cursor, each with its cursor.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn rows(&self, job: JobId, cursor: u64, limit: u32) -> Result<Vec<(u64, v1::MetricRow)>, Error> {
        let inner = self.inner.clone();
        blocking(move || lock(&inner.series).read(&job, cursor, limit)).await
    }

    /// Lines of a job after a cursor, and the cursor after them.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn lines(&self, job: JobId, cursor: u64, limit: u32) -> Result<(u64, Vec<v1::LogLine>), Error> {
        let inner = self.inner.clone();
        blocking(move || lock(&inner.logs).read(&job, cursor, limit)).await
    }

    /// What a phase is doing now.
    pub fn activity(&self, job: &JobId, phase: &PhaseId) -> Option<v1::Activity> {
        lock(&self.inner.activity).get(&(job.clone(), phase.clone())).cloned()
    }

    /// Forgets a job.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn remove(&self, job: JobId) -> Result<(), Error> {
        lock(&self.inner.activity).retain(|(j, _), _| *j != job);
        let inner = self.inner.clone();
        blocking(move || {
            lock(&inner.series).remove(&job)?;
            lock(&inner.logs).remove(&job)
        })
        .await
    }

    /// Forgets every job that is not among these.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn retain(&self, jobs: BTreeSet<JobId>) -> Result<(), Error> {
        lock(&self.inner.activity).retain(|(j, _), _| jobs.contains(j));
        let inner = self.inner.clone();
        blocking(move || {
            let known = |job: &str| job.parse::<JobId>().is_ok_and(|job| jobs.contains(&job));
            lock(&inner.series).retain(known)?;
            lock(&inner.logs).retain(known)
        })
        .await
    }

    /// Counts batches.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.version.subscribe()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|e| Err(Error::Refused(format!("the store was interrupted: {e}"))))
}
