//! One job: calls on it, and what happens to it as a stream of events.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tl_proto::{
    compare::Figures,
    spec::JobSpec,
    v1::{self, watch_event::Body},
};
use tokio_stream::StreamExt;
use tonic::Streaming;

use crate::{
    Client, Error,
    client::{self, TRIES},
};

/// How long a watch waits for a coordinator that is away.
const AWAY: Duration = Duration::from_secs(300);
/// Pause between two tries to reach it.
const PAUSE: Duration = Duration::from_millis(300);

/// A handle on a job.
#[derive(Clone)]
pub struct Job {
    pub(crate) client: Client,
    pub(crate) id: String,
}

/// A file that was brought here.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Fetched {
    /// Its name.
    pub name: String,
    /// The pipeline step that made it.
    pub step: String,
    /// Where it lies.
    pub path: PathBuf,
    /// SHA-256 of its content.
    pub sha256: String,
}

impl Job {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it stands.
    ///
    /// # Errors
    /// There is no such job.
    pub async fn get(&self) -> Result<v1::Job, Error> {
        self.client.call(self.client.user().get(v1::GetRequest { job_id: self.id.clone() })).await
    }

    /// Ends it.
    ///
    /// # Errors
    /// It is over.
    pub async fn cancel(&self) -> Result<v1::Job, Error> {
        self.client.call(self.client.user().cancel(v1::CancelRequest { job_id: self.id.clone() })).await
    }

    /// Lets it go on from its newest checkpoint after it has failed or was cancelled.
    ///
    /// # Errors
    /// It has not failed.
    pub async fn retry(&self) -> Result<v1::Job, Error> {
        self.client.call(self.client.user().retry(v1::RetryRequest { job_id: self.id.clone() })).await
    }

    /// Forgets it, with its series, logs and files.
    ///
    /// # Errors
    /// It is not over.
    pub async fn remove(&self) -> Result<(), Error> {
        self.client.call(self.client.user().remove(v1::RemoveRequest { job_id: self.id.clone() })).await.map(|_| ())
    }

    /// Files that it has made.
    ///
    /// # Errors
    /// There is no such job.
    pub async fn artifacts(&self) -> Result<Vec<v1::Artifact>, Error> {
        let request = v1::ArtifactsRequest { job_id: self.id.clone() };
        Ok(self.client.call(self.client.user().artifacts(request)).await?.artifacts)
    }

    /// Brings its files into `dir`: there for a plain job, and of one with baselines for the job itself; else in a folder
    /// per step.
    ///
    /// # Errors
    /// The call fails, or the disk refuses.
    pub async fn fetch(&self, dir: &Path) -> Result<Vec<Fetched>, Error> {
        self.fetch_step(dir, None).await
    }

    /// The same for one step, if one is named.
    ///
    /// # Errors
    /// The call fails, or the disk refuses.
    pub async fn fetch_step(&self, dir: &Path, step: Option<&str>) -> Result<Vec<Fetched>, Error> {
        let mut tried = 0;
        let mut artifacts = loop {
            match self.artifacts().await {
                // It may be on its way back.
                Err(Error::Unreachable { .. }) if tried < TRIES => {
                    tried += 1;
                    tokio::time::sleep(client::pause(tried)).await;
                }
                other => break other?,
            }
        };
        artifacts.retain(|a| step.is_none_or(|step| a.step == step));
        let mut fetched = Vec::new();
        for a in artifacts {
            let Some(blob) = &a.blob else { continue };
            // Names come over the network: only the last part of each counts.
            let plain = |name: &str| Path::new(name).file_name().map(PathBuf::from).unwrap_or_default();
            let folder = if a.step == JobSpec::MAIN { dir.to_owned() } else { dir.join(plain(&a.step)) };
            std::fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
            let path = folder.join(plain(&a.name));
            self.client.download(blob, &path).await?;
            fetched.push(Fetched { name: a.name, step: a.step, path, sha256: blob.digest.clone() });
        }
        Ok(fetched)
    }

    /// What happens to it, from `cursor` (0: its beginning) to its end.
    pub fn watch(&self, cursor: u64) -> Watch {
        Watch { job: self.clone(), cursor, stream: None, away: None, over: false }
    }

    /// Lines of its ranks after `cursor`; with `follow` until the job is over.
    ///
    /// # Errors
    /// There is no such job.
    pub async fn logs(&self, follow: bool, cursor: u64) -> Result<Streaming<v1::LogChunk>, Error> {
        let request = v1::LogsRequest { job_id: self.id.clone(), follow, cursor };
        self.client.call(self.client.user().logs(request)).await
    }
}

/// Something that happens to a job.
#[derive(Clone, Debug)]
pub enum Event {
    /// It has changed.
    Job(Box<v1::Job>),
    /// A row of its series.
    Metric(v1::MetricRow),
    /// What a phase is doing.
    Activity(v1::Activity),
    /// The coordinator is away; the watch goes on when it is back.
    Away(String),
}

/// Events of a job. Reconnects, and goes on after the last event that it has seen.
pub struct Watch {
    job: Job,
    cursor: u64,
    stream: Option<Streaming<v1::WatchEvent>>,
    away: Option<Instant>,
    over: bool,
}

impl Watch {
    /// The next event; `None` after the job has ended.
    ///
    /// # Errors
    /// There is no such job, or the coordinator stays away.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        while !self.over {
            match self.receive().await {
                Ok(event) => {
                    self.away = None;
                    self.cursor = event.cursor;
                    match event.body {
                        Some(Body::Job(job)) => {
                            self.over = job.finished_ms != 0;
                            return Ok(Some(Event::Job(Box::new(job))));
                        }
                        Some(Body::Metric(row)) => return Ok(Some(Event::Metric(row))),
                        Some(Body::Activity(activity)) => return Ok(Some(Event::Activity(activity))),
                        None => {}
                    }
                }
                Err(Error::Unreachable { address, cause }) => {
                    self.stream = None;
                    let first = self.away.is_none();
                    if self.away.get_or_insert_with(Instant::now).elapsed() > AWAY {
                        return Err(Error::Unreachable { address, cause });
                    }
                    tokio::time::sleep(PAUSE).await;
                    if first {
                        return Ok(Some(Event::Away(cause)));
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    async fn receive(&mut self) -> Result<v1::WatchEvent, Error> {
        let client = &self.job.client;
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = v1::WatchRequest { job_id: self.job.id.clone(), cursor: self.cursor };
                self.stream.insert(client.call(client.user().watch(request)).await?)
            }
        };
        let next = stream.next().await.transpose().map_err(client.failed())?;
        // A stream that ends before its job was cut off.
        next.ok_or_else(|| Error::Unreachable { address: client.address.clone(), cause: "the stream ended".into() })
    }
}

/// The metrics of each finished step, from the results of its training.
pub fn metrics(job: &v1::Job) -> Figures {
    let trained = job.phases.iter().filter(|p| p.kind == "train" && !p.result_json.is_empty());
    trained
        .map(|p| {
            let result: serde_json::Value = serde_json::from_slice(&p.result_json).unwrap_or_default();
            let values = result["metrics"].as_object().into_iter().flatten();
            (p.step.clone(), values.filter_map(|(k, v)| Some((k.clone(), v.as_f64()?))).collect())
        })
        .collect()
}
