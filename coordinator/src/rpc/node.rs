//! The node API: one session per agent for control, and a stream of its own for reports.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tl_proto::{
    PROTOCOL,
    catalog::Catalog,
    deadlines::Deadlines,
    ids::{JobId, NodeId, PhaseId},
    spec::Source,
    v1::{self, agent_message, coordinator_message, node_api_server},
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{blob::blocking, id, status, stored};
use crate::{
    core::{Attempt, Blob, Command, Job, NodeStatus, Phase, Slot, State},
    driver::{Driver, Rejection},
    records::Records,
    store::Blobs,
};

/// Largest weight of a slot.
const MAX_WEIGHT: u32 = 1 << 20;
/// Bytes a second at which a node is trusted to fetch what its rank needs, before others wait for it in vain.
const FETCHES: u64 = 10 << 20;
/// Messages of one agent that may wait for their turn.
const MAX_WAITING: usize = 4_096;
/// Slots that one node may offer.
const MAX_SLOTS: usize = 256;

/// Serves agents.
#[derive(Clone)]
pub struct NodeService {
    driver: Driver,
    records: Records,
    blobs: Blobs,
    deadlines: Deadlines,
    sessions: Sessions,
}

/// The newest session of each node: the end of an older one says nothing about the node.
#[derive(Clone, Default)]
struct Sessions {
    newest: Arc<Mutex<BTreeMap<NodeId, u64>>>,
    counter: Arc<AtomicU64>,
}

impl Sessions {
    fn open(&self, node: &NodeId) -> u64 {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), number);
        number
    }

    fn is_newest(&self, node: &NodeId, number: u64) -> bool {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).get(node) == Some(&number)
    }
}

type Outbound = mpsc::Sender<Result<v1::CoordinatorMessage, Status>>;

impl NodeService {
    /// A service over these stores.
    pub fn new(driver: Driver, records: Records, blobs: Blobs, deadlines: Deadlines) -> Self {
        Self { driver, records, blobs, deadlines, sessions: Sessions::default() }
    }

    /// A node from its hello until its stream ends, its lease runs out, or it leaves.
    async fn session(&self, mut inbound: Streaming<v1::AgentMessage>, out: &Outbound) -> Result<(), Status> {
        let patience = Duration::from_millis(self.deadlines.rpc_ms);
        let first = tokio::time::timeout(patience, inbound.next()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("the agent did not say hello"))?;
        let Some(agent_message::Body::Hello(hello)) = first.transpose()?.and_then(|m| m.body) else {
            return Err(Status::invalid_argument("the first message must be hello"));
        };
        let (node, incarnation) = self.join(hello).await?;
        let number = self.sessions.open(&node);
        let (heartbeat_ms, lease_ms) = (self.deadlines.heartbeat_ms, self.deadlines.lease_ms);
        send(out, coordinator_message::Body::Welcome(v1::Welcome { heartbeat_ms, lease_ms })).await?;
        let result = self.serve(&node, &incarnation, &mut inbound, out).await;
        if self.sessions.is_newest(&node, number) {
            let _ = self.driver.decide(Command::Disconnect { node, incarnation }).await;
        }
        result
    }

    async fn join(&self, hello: v1::Hello) -> Result<(NodeId, String), Status> {
        if hello.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "the coordinator speaks protocol {PROTOCOL} and the agent {}; use the same release for both",
                hello.protocol
            )));
        }
        if hello.slots.is_empty() || hello.slots.len() > MAX_SLOTS {
            return Err(Status::invalid_argument(format!("a node offers 1 to {MAX_SLOTS} slots")));
        }
        if hello.name.chars().any(char::is_control) {
            return Err(Status::invalid_argument(
                "a node's name has no control characters; `--name` gives another one",
            ));
        }
        let node: NodeId = id(&hello.node_id)?;
        let catalog: Catalog = serde_json::from_slice(&hello.catalog_json)
            .map_err(|e| Status::invalid_argument(format!("the catalog cannot be read: {e}")))?;
        let slots = hello.slots.into_iter().map(|s| {
            let weight = s.weight.clamp(1, MAX_WEIGHT);
            Slot { index: s.index, device: s.device, address: s.address, weight }
        });
        let command = Command::Join {
            node: node.clone(),
            name: hello.name,
            incarnation: hello.incarnation.clone(),
            build: hello.build,
            slots: slots.collect(),
            catalog: Box::new(catalog),
            hardware: Box::new(hello.hardware.unwrap_or_default().into()),
        };
        self.driver.decide(command).await.map_err(|e| status(&e))?;
        Ok((node, hello.incarnation))
    }

    async fn serve(
        &self,
        node: &NodeId,
        incarnation: &str,
        inbound: &mut Streaming<v1::AgentMessage>,
        out: &Outbound,
    ) -> Result<(), Status> {
        let mut changes = self.driver.changes();
        changes.mark_changed();
        let mut sent: Option<Vec<v1::Launch>> = None;
        let silence = Duration::from_millis(self.deadlines.lease_ms);
        let (mut waiting, mut taking) = (VecDeque::<v1::AgentMessage>::new(), None);
        loop {
            if taking.is_none()
                && let Some(message) = waiting.pop_front()
            {
                taking = Some(Box::pin(async move {
                    if let Some(body) = message.body {
                        self.take(node, incarnation, body).await?;
                    }
                    Ok::<u64, Status>(message.sequence)
                }));
            }
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the coordinator stops"));
                    }
                    let version = *changes.borrow_and_update();
                    let (ours, launches) = self.driver.read(|s| {
                        let known = s.nodes.get(node);
                        let ours = known.is_some_and(|n| n.status == NodeStatus::Ready && n.incarnation == incarnation);
                        (ours, self.launches(s, node, incarnation))
                    });
                    if !ours {
                        return Err(Status::aborted("the node was given up; say hello again"));
                    }
                    if sent.as_ref() != Some(&launches) {
                        let assignment = v1::Assignment { version, launches: launches.clone() };
                        send(out, coordinator_message::Body::Assignment(assignment)).await?;
                        sent = Some(launches);
                    }
                }
                message = tokio::time::timeout(silence, inbound.next()) => {
                    let message = message.map_err(|_| Status::deadline_exceeded("the agent is silent"))?;
                    let Some(message) = message.transpose()? else { return Ok(()) };
                    self.driver.seen(node);
                    if waiting.len() >= MAX_WAITING {
                        return Err(Status::resource_exhausted("too many messages wait"));
                    }
                    waiting.push_back(message);
                }
                // In a future of its own, because it may wait for a bucket: meanwhile heartbeats are heard.
                done = async { taking.as_mut().expect("guarded").await }, if taking.is_some() => {
                    taking = None;
                    let sequence: u64 = done?;
                    if sequence > 0 {
                        send(out, coordinator_message::Body::Ack(v1::Ack { sequence })).await?;
                    }
                }
            }
        }
    }

    /// Carries one message out. What the core refuses is stale and needs no answer; what cannot be stored comes again.
    async fn take(&self, node: &NodeId, incarnation: &str, body: agent_message::Body) -> Result<(), Status> {
        use agent_message::Body;
        let (from, node, incarnation) = (node, node.clone(), incarnation.to_owned());
        let command = match body {
            Body::Hello(_) => return Err(Status::invalid_argument("hello comes once")),
            Body::Heartbeat(_) => return Ok(()),
            Body::Draining(_) => Command::Drain { node, undo: false },
            Body::Leaving(_) => Command::Leave { node },
            Body::Slot(m) => Command::Judge { node, incarnation, slot: m.slot, problem: m.problem },
            Body::Exited(m) => {
                let (job, phase, generation, rank) = (id(&m.job_id)?, PhaseId(m.phase), m.generation, m.rank);
                let failure = m.failure.filter(|_| !m.success).map(Into::into);
                Command::Exited { job, phase, generation, rank, failure, node, incarnation }
            }
            Body::Checkpoint(m) => {
                let Some(blob) = self.whole(m.blob).await? else { return Ok(()) };
                let (job, phase) = (id(&m.job_id)?, PhaseId(m.phase));
                Command::Checkpoint { job, phase, generation: m.generation, step: m.step, blob, node }
            }
            Body::Artifact(m) => {
                let Some(blob) = self.whole(m.blob).await? else { return Ok(()) };
                let (job, phase) = (id(&m.job_id)?, PhaseId(m.phase));
                Command::Artifact { job, phase, generation: m.generation, name: m.name, blob, node }
            }
            Body::Result(m) => {
                let result = serde_json::from_slice(&m.result_json)
                    .map_err(|e| Status::invalid_argument(format!("the result cannot be read: {e}")))?;
                let (job, phase) = (id(&m.job_id)?, PhaseId(m.phase));
                Command::Result { job, phase, generation: m.generation, result, node, incarnation }
            }
            Body::Notice(m) => {
                let (job, phase) = (id(&m.job_id)?, PhaseId(m.phase));
                Command::Notice { job, phase, generation: m.generation, text: m.text, node }
            }
        };
        match self.driver.decide(command).await {
            Ok(()) => Ok(()),
            Err(Rejection::Refused(refusal)) => {
                tracing::debug!("a message of {from} had no effect: {refusal}");
                Ok(())
            }
            Err(e) => Err(status(&e)),
        }
    }

    /// The blob, if the store has all of it: nothing else may be referred to.
    async fn whole(&self, blob: Option<v1::BlobRef>) -> Result<Option<Blob>, Status> {
        let blob = blob.ok_or_else(|| Status::invalid_argument("the message names no blob"))?;
        let (blobs, asked) = (self.blobs.clone(), blob.digest.clone());
        let (complete, size) = blocking(move || blobs.stat(&asked)).await?;
        if !complete || size != blob.size {
            tracing::warn!("blob {} was announced and is not there", blob.digest);
            return Ok(None);
        }
        Ok(Some(Blob { digest: blob.digest, size }))
    }

    /// The whole desired assignment of a node: one launch per rank of every attempt that is to go on.
    fn launches(&self, state: &State, node: &NodeId, incarnation: &str) -> Vec<v1::Launch> {
        let mut launches = Vec::new();
        for (id, job) in &state.jobs {
            for phase in &job.phases {
                let Some(attempt) = phase.attempt.as_ref().filter(|a| a.stopping.is_none()) else { continue };
                let here = attempt.placements.iter().enumerate();
                let here = here.filter(|(_, p)| p.is_on(node, incarnation));
                for (rank, placement) in here.filter(|(r, _)| !attempt.exited.contains_key(&(*r as u32))) {
                    launches.extend(self.launch(state, (id, job), phase, attempt, rank as u32, placement.slot));
                }
            }
        }
        launches
    }

    fn launch(
        &self,
        state: &State,
        (id, job): (&JobId, &Job),
        phase: &Phase,
        attempt: &Attempt,
        rank: u32,
        slot: u32,
    ) -> Option<v1::Launch> {
        let spec = &job.pinned_spec(&phase.step)?;
        let blob = |b: &Blob| v1::BlobRef { digest: b.digest.clone(), size: b.size };
        let data: Vec<v1::BlobRef> = spec
            .pushed()
            .into_iter()
            .filter_map(|digest| Some(v1::BlobRef { digest: digest.to_owned(), size: state.data.get(digest)?.size }))
            .collect();
        let inputs: BTreeMap<String, v1::BlobRef> =
            job.inputs(spec).into_iter().map(|(name, b)| (name, blob(b))).collect();
        let waited = job.units(&phase.step).filter(|unit| phase.needs.contains(&unit.id));
        let features: Vec<v1::BlobRef> = waited.filter_map(|unit| unit.output.as_ref().map(blob)).collect();
        // Whoever is ready first waits for those who still fetch.
        let newest = phase.checkpoints.first().map_or(0, |(_, b)| b.size);
        // The sizes of sources are what a node says.
        let hub = job.sources(&phase.step).iter().map(Source::bytes).fold(0, u64::saturating_add);
        let files = data.iter().chain(inputs.values()).chain(&features);
        let fetched = files.map(|b| b.size).fold(newest, u64::saturating_add);
        let fetched_ms = fetched.saturating_add(hub).saturating_mul(1_000) / FETCHES;
        let rendezvous_ms = self.deadlines.rendezvous_ms.saturating_add(fetched_ms);
        Some(v1::Launch {
            job_id: id.to_string(),
            phase: phase.id.to_string(),
            kind: phase.kind.as_str().into(),
            generation: phase.generation,
            rank,
            slot,
            addresses: attempt.placements.iter().map(|p| p.address.clone()).collect(),
            secret: attempt.secret.clone(),
            spec_json: serde_json::to_vec(spec).ok()?,
            checkpoints: phase
                .checkpoints
                .iter()
                .map(|(step, b)| v1::Checkpoint { step: *step, blob: Some(blob(b)) })
                .collect(),
            weights: attempt.placements.iter().map(|p| p.weight).collect(),
            devices: attempt.placements.iter().map(|p| p.device.clone()).collect(),
            data,
            inputs,
            silence_ms: self.deadlines.silence_ms,
            rendezvous_ms,
            nccl_ready_ms: self.deadlines.nccl_ready_ms.max(rendezvous_ms),
            beat_ms: self.deadlines.beat_ms,
            plan: job.plan_only,
            stop_grace_ms: self.deadlines.stop_grace_ms,
            unit: phase.unit.as_ref().map_or(0, |unit| unit.part),
            units: phase.unit.as_ref().map_or(0, |unit| unit.of),
            features,
        })
    }
}

async fn send(out: &Outbound, body: coordinator_message::Body) -> Result<(), Status> {
    let message = v1::CoordinatorMessage { body: Some(body) };
    out.send(Ok(message)).await.map_err(|_| Status::cancelled("the agent went away"))
}

#[tonic::async_trait]
impl node_api_server::NodeApi for NodeService {
    type SessionStream = ReceiverStream<Result<v1::CoordinatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (out, receiver) = mpsc::channel(64);
        let service = self.clone();
        tokio::spawn(async move {
            if let Err(e) = service.session(request.into_inner(), &out).await {
                tracing::debug!("a session ended: {e}");
                let _ = out.send(Err(e)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type ReportStream = ReceiverStream<Result<v1::ReportAck, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<v1::ReportBatch>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let (out, receiver) = mpsc::channel(64);
        let service = self.clone();
        tokio::spawn(async move {
            let mut inbound = request.into_inner();
            while let Some(Ok(batch)) = inbound.next().await {
                let sequence = batch.reports.last().map_or(0, |r| r.sequence);
                let reports = batch.reports.into_iter().filter_map(|r| Some((r.job_id.parse().ok()?, r.body?)));
                // What belongs to a job that was removed is dropped.
                let reports: Vec<(JobId, _)> =
                    service.driver.read(|s| reports.filter(|(j, _)| s.jobs.contains_key(j)).collect());
                let answer = service.records.append(reports).await;
                let answer = answer.map(|()| v1::ReportAck { sequence }).map_err(stored);
                let failed = answer.is_err();
                if out.send(answer).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
