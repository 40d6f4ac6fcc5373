//! The user API.

use std::time::Duration;

use serde_json::json;
use tl_proto::{
    MAX_SPEC_BYTES,
    failure::Failure,
    ids::{JobId, NodeId},
    spec::JobSpec,
    v1::{self, user_server},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{brief::brief, failed, id, status, stored, view};
use crate::{
    core::{Command, JobStatus, NodeStatus, State},
    driver::Driver,
    records::Records,
};

/// Rows or lines read from the store at once.
const PAGE: u32 = 500;
/// How long a plan may take, with its wait for a slot.
const PLAN: Duration = Duration::from_secs(60);
/// How much of that it waits for a first node: one may just be starting, or be on its way back.
const FIRST_NODE: Duration = Duration::from_secs(5);

/// Serves users.
#[derive(Clone)]
pub struct UserService {
    /// The state.
    pub driver: Driver,
    /// What ranks report.
    pub records: Records,
}

type Reply<T> = Result<Response<T>, Status>;

impl UserService {
    fn job(&self, id: &JobId) -> Result<v1::Job, Status> {
        let now = self.driver.now_ms();
        let job = self.driver.read(|s| view::job(s, &self.records, id, now, view::Detail::Whole));
        job.ok_or_else(|| Status::not_found(format!("there is no job `{id}`")))
    }

    async fn change(&self, id: JobId, command: Command) -> Reply<v1::Job> {
        self.driver.decide(command).await.map_err(|e| status(&e))?;
        self.job(&id).map(Response::new)
    }

    async fn submit_spec(&self, key: String, spec: JobSpec, plan_only: bool) -> Result<(JobId, bool), Status> {
        let fresh = JobId::from_bits(ulid::Ulid::new().0);
        let owner = "local".to_owned();
        let command = Command::Submit { job: fresh.clone(), key: key.clone(), owner, spec: Box::new(spec), plan_only };
        self.driver.decide(command).await.map_err(|e| status(&e))?;
        let known = self.driver.read(|s| s.keys.get(&key).cloned());
        let job = known.ok_or_else(|| Status::aborted("the job was removed at once"))?;
        let created = job == fresh;
        Ok((job, created))
    }

    /// Lets a slot look at a job, and forgets it.
    async fn probe(&self, spec: JobSpec) -> Result<v1::PlanReply, Status> {
        let (job, _) = self.submit_spec(format!("plan/{}", ulid::Ulid::new()), spec, true).await?;
        let look = || self.driver.read(|s| (is_over(s, &job), is_alone(s)));
        let waiting = settled(self.driver.changes(), FIRST_NODE, look);
        let waited = tokio::time::timeout(PLAN, waiting).await.is_ok();
        let now = self.driver.now_ms();
        let found = self.driver.read(|s| {
            let job_state = s.jobs.get(&job)?;
            let wait = crate::core::why(s, &job, now).map(|w| w.to_string()).unwrap_or_default();
            let plans: serde_json::Map<_, _> =
                job_state.phases.iter().filter_map(|p| Some((p.step.clone(), brief(p.result.as_ref()?)))).collect();
            Some((waited && is_over(s, &job), job_state.failure.clone(), plans, wait, last_failure(s, &job)))
        });
        // Nothing of a plan is kept.
        let _ = self.driver.decide(Command::Cancel { job: job.clone() }).await;
        let _ = self.driver.decide(Command::Remove { job: job.clone() }).await;
        let _ = self.records.remove(job).await;
        match found {
            Some((true, None, plans, ..)) => {
                let plan_json = serde_json::to_vec(&json!({ "steps": plans })).unwrap_or_default();
                Ok(v1::PlanReply { plan_json })
            }
            Some((_, Some(failure), ..)) => Err(failed(&failure)),
            // Nobody is there to look at it.
            Some((_, None, _, wait, _)) if waited => Err(Status::failed_precondition(wait)),
            Some((_, None, _, wait, tried)) => {
                let tried = tried.map(|f| format!("; its last try failed: {f}")).unwrap_or_default();
                let text = format!("no slot looked at the job within {} s: {wait}{tried}", PLAN.as_secs());
                Err(Status::deadline_exceeded(text))
            }
            None => Err(Status::aborted("the plan was removed")),
        }
    }
}

fn spec(bytes: &[u8]) -> Result<JobSpec, Status> {
    if bytes.len() > MAX_SPEC_BYTES {
        return Err(Status::resource_exhausted(format!(
            "the job has {} bytes, more than the limit of {MAX_SPEC_BYTES}",
            bytes.len()
        )));
    }
    serde_json::from_slice(bytes).map_err(|e| Status::invalid_argument(format!("the job cannot be read: {e}")))
}

#[tonic::async_trait]
impl user_server::User for UserService {
    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Reply<v1::SubmitReply> {
        let request = request.into_inner();
        let key = request.idempotency_key;
        if key.is_empty() || key.len() > 200 {
            return Err(Status::invalid_argument("the idempotency key must have 1 to 200 characters"));
        }
        let (job, created) = self.submit_spec(key, spec(&request.spec_json)?, false).await?;
        Ok(Response::new(v1::SubmitReply { job_id: job.to_string(), created }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Reply<v1::Job> {
        self.job(&id(&request.into_inner().job_id)?).map(Response::new)
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Reply<v1::ListReply> {
        let v1::ListRequest { limit, active_only } = request.into_inner();
        let limit = if limit == 0 { 100 } else { limit.min(1_000) } as usize;
        let now = self.driver.now_ms();
        let jobs = self.driver.read(|s| {
            // Ids sort by age; the newest come first.
            let wanted = s.jobs.iter().rev().filter(|(_, j)| !j.plan_only);
            let wanted = wanted.filter(|(_, j)| !active_only || j.status == JobStatus::Active).take(limit);
            wanted.filter_map(|(id, _)| view::job(s, &self.records, id, now, view::Detail::Line)).collect()
        });
        Ok(Response::new(v1::ListReply { jobs }))
    }

    type WatchStream = ReceiverStream<Result<v1::WatchEvent, Status>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Reply<Self::WatchStream> {
        let v1::WatchRequest { job_id, cursor } = request.into_inner();
        let job = id(&job_id)?;
        self.job(&job)?;
        let (sender, receiver) = mpsc::channel(64);
        let service = self.clone();
        tokio::spawn(async move { service.feed(job, cursor, sender).await });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type LogsStream = ReceiverStream<Result<v1::LogChunk, Status>>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Reply<Self::LogsStream> {
        let v1::LogsRequest { job_id, follow, mut cursor } = request.into_inner();
        let job = id(&job_id)?;
        self.job(&job)?;
        let (sender, receiver) = mpsc::channel(16);
        let service = self.clone();
        tokio::spawn(async move {
            let (mut changes, mut reports) = (service.driver.changes(), service.records.changes());
            loop {
                changes.mark_unchanged();
                reports.mark_unchanged();
                let over = service.driver.read(|s| is_over(s, &job));
                let page = service.records.lines(job.clone(), cursor, PAGE).await;
                let end = page.as_ref().map_or(true, |(_, lines)| lines.is_empty());
                let failed = page.is_err();
                if !end || failed {
                    let chunk = page.map(|(at, lines)| {
                        cursor = at;
                        v1::LogChunk { cursor, lines }
                    });
                    if sender.send(chunk.map_err(stored)).await.is_err() || failed {
                        return;
                    }
                } else if over || !follow || !either(&mut changes, &mut reports, &sender).await {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Reply<v1::Job> {
        let job: JobId = id(&request.into_inner().job_id)?;
        self.change(job.clone(), Command::Cancel { job }).await
    }

    async fn retry(&self, request: Request<v1::RetryRequest>) -> Reply<v1::Job> {
        let job: JobId = id(&request.into_inner().job_id)?;
        self.change(job.clone(), Command::Retry { job }).await
    }

    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Reply<v1::RemoveReply> {
        let job: JobId = id(&request.into_inner().job_id)?;
        self.driver.decide(Command::Remove { job: job.clone() }).await.map_err(|e| status(&e))?;
        self.records.remove(job).await.map_err(stored)?;
        Ok(Response::new(v1::RemoveReply {}))
    }

    async fn nodes(&self, _: Request<v1::NodesRequest>) -> Reply<v1::NodesReply> {
        let nodes = self.driver.read(|s| s.nodes.keys().filter_map(|id| view::node(s, id)).collect());
        Ok(Response::new(v1::NodesReply { nodes }))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Reply<v1::Node> {
        let v1::DrainRequest { node_id, undo } = request.into_inner();
        let node: NodeId = id(&node_id)?;
        self.driver.decide(Command::Drain { node: node.clone(), undo }).await.map_err(|e| status(&e))?;
        let found = self.driver.read(|s| view::node(s, &node));
        found.map(Response::new).ok_or_else(|| Status::not_found(format!("there is no node `{node}`")))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Reply<v1::PlanReply> {
        let spec = spec(&request.into_inner().spec_json)?;
        let service = self.clone();
        // A task of its own cleans up behind itself also when the caller goes away in the middle.
        let probed = tokio::spawn(async move { service.probe(spec).await }).await;
        probed.unwrap_or_else(|e| Err(Status::internal(e.to_string()))).map(Response::new)
    }

    async fn artifacts(&self, request: Request<v1::ArtifactsRequest>) -> Reply<v1::ArtifactsReply> {
        let job: JobId = id(&request.into_inner().job_id)?;
        let artifacts = self.driver.read(|s| {
            let found = s.jobs.get(&job)?.artifacts.iter().map(|a| v1::Artifact {
                name: a.name.clone(),
                step: a.step.clone(),
                blob: Some(v1::BlobRef { digest: a.blob.digest.clone(), size: a.blob.size }),
            });
            Some(found.collect())
        });
        let artifacts = artifacts.ok_or_else(|| Status::not_found(format!("there is no job `{job}`")))?;
        Ok(Response::new(v1::ArtifactsReply { artifacts }))
    }

    async fn catalog(&self, _: Request<v1::CatalogRequest>) -> Reply<v1::CatalogReply> {
        let catalog = self.driver.read(|s| s.catalog.clone());
        let catalog = catalog.ok_or_else(|| Status::failed_precondition("no node has told yet what it can do"))?;
        let catalog_json = serde_json::to_vec(&catalog).unwrap_or_default();
        let digest = blake3::hash(&catalog_json).to_hex().to_string();
        Ok(Response::new(v1::CatalogReply { catalog_json, digest }))
    }
}

fn is_over(state: &State, job: &JobId) -> bool {
    state.jobs.get(job).is_none_or(|j| j.status != JobStatus::Active)
}

/// Whether no node is there, and none is expected back.
fn is_alone(state: &State) -> bool {
    state.nodes.values().all(|n| n.status == NodeStatus::Lost)
}

/// Returns when a plan is over, or nobody is there to look at its job: with `patience` for a first node, and none from then
/// on. `look` says whether it is over, and whether nobody is there.
async fn settled(mut changes: watch::Receiver<u64>, patience: Duration, look: impl Fn() -> (bool, bool)) {
    let met = changes.wait_for(|_| {
        let (over, alone) = look();
        over || !alone
    });
    let _ = tokio::time::timeout(patience, met).await.is_ok();
    let ended = changes.wait_for(|_| {
        let (over, alone) = look();
        over || alone
    });
    // An error means that the driver is gone, which is an end too.
    let _ = ended.await.is_ok();
}

/// What ended the last try of a job's phases.
fn last_failure(state: &State, job: &JobId) -> Option<Failure> {
    state.jobs.get(job)?.phases.iter().rev().find_map(|p| p.last_failure.clone())
}

/// Waits for a change of either; false if nobody listens any more.
async fn either<T>(
    changes: &mut watch::Receiver<u64>,
    reports: &mut watch::Receiver<u64>,
    sender: &mpsc::Sender<T>,
) -> bool {
    tokio::select! {
        a = changes.changed() => a.is_ok(),
        b = reports.changed() => b.is_ok(),
        () = sender.closed() => false,
    }
}

impl UserService {
    /// Sends what happens to a job until it is over and everything was sent.
    async fn feed(&self, job: JobId, mut cursor: u64, sender: mpsc::Sender<Result<v1::WatchEvent, Status>>) {
        use v1::watch_event::Body;
        let (mut changes, mut reports) = (self.driver.changes(), self.records.changes());
        let mut last: Option<v1::Job> = None;
        loop {
            changes.mark_unchanged();
            reports.mark_unchanged();
            let Ok(mut now) = self.job(&job) else { return };
            let over = now.finished_ms != 0;
            let mut events = Vec::new();
            for phase in &mut now.phases {
                // Activities travel on their own: they change far more often than the job.
                let activity = phase.activity.take();
                let known = last.as_ref().and_then(|l| l.phases.iter().find(|p| p.id == phase.id));
                let running = phase.status == "running";
                if running && let Some(a) = activity {
                    if known.and_then(|p| p.activity.as_ref()) != Some(&a) {
                        events.push(Body::Activity(a.clone()));
                    }
                    phase.activity = Some(a);
                }
            }
            let stripped = |j: &v1::Job| {
                let mut j = j.clone();
                j.phases.iter_mut().for_each(|p| p.activity = None);
                j
            };
            let changed = last.as_ref().map(stripped).as_ref() != Some(&stripped(&now));
            // The end is told last, after all rows.
            if changed && !over {
                events.insert(0, Body::Job(now.clone()));
            }
            let rows = match self.records.rows(job.clone(), cursor, PAGE).await {
                Ok(rows) => rows,
                Err(e) => {
                    let _ = sender.send(Err(stored(e))).await;
                    return;
                }
            };
            let full = rows.len() == PAGE as usize;
            for body in events {
                if sender.send(Ok(v1::WatchEvent { cursor, body: Some(body) })).await.is_err() {
                    return;
                }
            }
            for (at, row) in rows {
                cursor = at;
                if sender.send(Ok(v1::WatchEvent { cursor, body: Some(Body::Metric(row)) })).await.is_err() {
                    return;
                }
            }
            if over && !full {
                let _ = sender.send(Ok(v1::WatchEvent { cursor, body: Some(Body::Job(now)) })).await;
                return;
            }
            last = Some(now);
            if !full && !either(&mut changes, &mut reports, &sender).await {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_plan_waits_for_a_first_node_and_not_for_one_that_has_gone() {
        let (changed, changes) = watch::channel(0);
        let (over, alone) = (Cell::new(false), Cell::new(true));
        let look = || (over.get(), alone.get());
        let hour = Duration::from_secs(3_600);
        // Nobody comes.
        settled(changes.clone(), Duration::ZERO, look).await;
        let waits = tokio::time::timeout(Duration::ZERO, settled(changes.clone(), hour, look)).await;
        assert!(waits.is_err(), "somebody may come");
        // One comes, looks at the job, and that is the end of it; or it goes.
        for end in [&over, &alone] {
            over.set(false);
            alone.set(true);
            let came = Cell::new(false);
            let story = async {
                alone.set(false);
                changed.send_modify(|v| *v += 1);
                // Either of the two may have its turn first.
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                came.set(true);
                end.set(true);
                changed.send_modify(|v| *v += 1);
            };
            let waiting = async {
                settled(changes.clone(), hour, look).await;
                assert!(came.get(), "it waited for the end");
            };
            tokio::join!(waiting, story);
        }
    }
}
