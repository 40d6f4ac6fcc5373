//! What the coordinator knows.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tl_proto::{
    catalog::Catalog,
    compare::Figures,
    failure::{Failure, FailureClass},
    hardware::Hardware,
    ids::{JobId, NodeId, PhaseId},
    spec::{Handed, JobSpec, Source},
};

/// Milliseconds since the epoch; never goes back.
pub type Millis = u64;

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Jobs by id, which is by age.
    pub jobs: BTreeMap<JobId, Job>,
    /// Nodes that have ever joined and not been lost for good.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Idempotency keys.
    pub keys: BTreeMap<String, JobId>,
    /// What the newest worker can do.
    pub catalog: Option<Catalog>,
    /// Pushed data sets, by the digest of their archive.
    #[serde(default)]
    pub data: BTreeMap<String, DataSet>,
    /// How often a node has come that was not there.
    #[serde(default)]
    pub joins: u64,
}

/// A data set in the blob store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSet {
    /// A label.
    pub name: String,
    /// Bytes of its archive.
    pub size: u64,
    /// Files in it.
    pub files: u64,
    /// When it was pushed last.
    pub pushed_ms: Millis,
}

/// A submitted job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// As submitted.
    pub spec: JobSpec,
    /// Whether it is only probed.
    #[serde(default)]
    pub plan_only: bool,
    /// Who submitted it.
    pub owner: String,
    /// When.
    pub submitted_ms: Millis,
    /// When it ended.
    pub finished_ms: Option<Millis>,
    /// Where it stands.
    pub status: JobStatus,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Its phases, each after those it needs.
    pub phases: Vec<Phase>,
    /// Files that it has produced.
    pub artifacts: Vec<Artifact>,
    /// Models of earlier jobs that it names, by the place in its job file. They stay while it does.
    #[serde(default)]
    pub models: BTreeMap<String, Model>,
}

/// A model that a job has left, as it was when another one was submitted that names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The job.
    pub job: JobId,
    /// Its step.
    pub step: String,
    /// Where it lies.
    pub blob: Blob,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Not finished.
    Active,
    /// Every phase succeeded.
    Succeeded,
    /// A phase failed for good.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// A part of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// `STEP/KIND`.
    pub id: PhaseId,
    /// The pipeline step that it belongs to.
    pub step: String,
    /// What it does.
    pub kind: PhaseKind,
    /// Phases that come first.
    pub needs: Vec<PhaseId>,
    /// Where it stands.
    pub status: PhaseStatus,
    /// Number of the newest attempt; 0 before the first.
    pub generation: u64,
    /// The attempt that runs.
    pub attempt: Option<Attempt>,
    /// Nodes of the newest attempt, also when it is over: what they still send belongs to it.
    #[serde(default)]
    pub nodes: Vec<NodeId>,
    /// What the newest attempt runs or ran on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_on: Option<RanOn>,
    /// The kind of device that its checkpoints are of. Another kind would come to other numbers in the middle of a training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stays_on: Option<String>,
    /// How often it failed, by class.
    pub failures: BTreeMap<FailureClass, u32>,
    /// The newest failure, for the waiting reason.
    pub last_failure: Option<Failure>,
    /// Not to be started before.
    pub not_before_ms: Millis,
    /// Checkpoints, newest first.
    pub checkpoints: Vec<(u64, Blob)>,
    /// Which part of the work it is, if that was shared out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
    /// What a part of the work has come to, until the training that it is for is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Blob>,
    /// What it found or made, as JSON.
    pub result: Option<serde_json::Value>,
    /// What happened to it, in words.
    pub history: Vec<(Millis, String)>,
}

/// What a phase does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseKind {
    /// A short look at data and weights, on one slot.
    Probe,
    /// A part of what frozen teachers say of the samples, on one slot.
    Teach,
    /// Training, evaluation and export, by a gang.
    Train,
    /// Whether what the training came to is enough for the steps that need it; no node has a part in it.
    Gate,
}

impl PhaseKind {
    /// As it is written in ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Teach => "teach",
            Self::Train => "train",
            Self::Gate => "gate",
        }
    }
}

/// What the ranks of an attempt compute on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RanOn {
    /// The kind of device.
    pub kind: String,
    /// Which numbers it computes, as [`Node::numbers`] says.
    pub numbers: String,
}

/// A part of work that was shared out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Which one, from 0.
    pub part: u32,
    /// How many there are.
    pub of: u32,
    /// Where it is of use: on nodes of this build.
    pub build: String,
    /// And of this kind of device.
    pub device: String,
    /// And of devices that compute these numbers; of any in units of older releases.
    #[serde(default)]
    pub numbers: String,
}

/// Where a phase stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseStatus {
    /// It has no attempt.
    Waiting,
    /// An attempt runs.
    Running,
    /// Done.
    Succeeded,
    /// Failed for good, or cancelled.
    Failed,
    /// Not run, because something that it needs has failed.
    Skipped,
}

impl PhaseStatus {
    /// Whether it may still run.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Running)
    }

    /// Whether nothing that needs it can run.
    pub fn is_lost(self) -> bool {
        matches!(self, Self::Failed | Self::Skipped)
    }
}

/// One placement of a phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// By rank.
    pub placements: Vec<Placement>,
    /// When it was placed.
    pub started_ms: Millis,
    /// Proves membership at the rendezvous.
    pub secret: String,
    /// Ranks that have ended, with their failure.
    pub exited: BTreeMap<u32, Option<Failure>>,
    /// When the first one failed.
    pub failing_ms: Option<Millis>,
    /// Why it is being stopped, and since when.
    pub stopping: Option<(String, Millis)>,
}

/// Where a rank runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The node.
    pub node: NodeId,
    /// Which start of its agent.
    pub incarnation: String,
    /// The slot.
    pub slot: u32,
    /// Where the rank listens.
    pub address: String,
    /// How much it can do, relative to others.
    #[serde(default = "one")]
    pub weight: u32,
    /// What it runs on: `cpu` or `cuda:N`.
    #[serde(default = "cpu")]
    pub device: String,
}

fn one() -> u32 {
    1
}

fn cpu() -> String {
    "cpu".into()
}

/// A file in the blob store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// SHA-256, hexadecimal.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// A file that a phase produced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// The pipeline step.
    pub step: String,
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub blob: Blob,
}

impl Artifact {
    /// The name of a trained model.
    pub const MODEL: &str = "model.safetensors";
    /// That of what a step came to.
    pub const REPORT: &str = "report.json";
}

/// A machine with an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// A label.
    pub name: String,
    /// Which start of its agent.
    pub incarnation: String,
    /// What it offers.
    pub slots: Vec<Slot>,
    /// Build of its worker.
    pub build: String,
    /// What it is made of.
    #[serde(default)]
    pub hardware: Hardware,
    /// Where it stands.
    pub status: NodeStatus,
    /// Whether it is to be emptied.
    pub draining: bool,
    /// Its place in the order in which nodes have come.
    #[serde(default)]
    pub joined: u64,
    /// Slots that this start of the agent has found not to work any more, with the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub broken: BTreeMap<u32, String>,
    /// When it was last heard of. Not in the log: a restart gives everyone a full lease.
    #[serde(skip)]
    pub seen_ms: Millis,
}

/// A place for one rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its number on the node.
    pub index: u32,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Where a rank on it listens.
    pub address: String,
    /// How much a rank on it can do, relative to others.
    #[serde(default = "one")]
    pub weight: u32,
}

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeStatus {
    /// Connected.
    Ready,
    /// Not heard of since the coordinator or the connection came up; its ranks are left alone until the lease is over.
    Unknown,
    /// Silent for longer than its lease, or gone.
    Lost,
}

impl Placement {
    /// Whether this start of this node's agent has the rank.
    pub fn is_on(&self, node: &NodeId, incarnation: &str) -> bool {
        self.node == *node && self.incarnation == incarnation
    }
}

impl Phase {
    /// Whether it is a unit that was not done, and left to the training.
    pub fn is_left(&self) -> bool {
        self.unit.is_some() && self.status == PhaseStatus::Succeeded && self.result.is_none()
    }

    /// Whether a rank of the newest attempt is or was on a node.
    pub fn was_on(&self, node: &NodeId) -> bool {
        // An attempt that was stored by an older release has its placements only.
        self.nodes.contains(node) || self.attempt.iter().flat_map(|a| &a.placements).any(|p| p.node == *node)
    }
}

impl Job {
    /// A phase by id.
    pub fn phase(&self, id: &PhaseId) -> Option<&Phase> {
        self.phases.iter().find(|p| p.id == *id)
    }

    /// The job of a pipeline step.
    pub fn step_spec(&self, step: &str) -> Option<&JobSpec> {
        self.spec.steps().into_iter().find(|(id, _, _)| *id == step).map(|(_, spec, _)| spec)
    }

    /// The job of a pipeline step as its ranks are to run it: where its probe has found out which commit a revision of the
    /// hub stands for, they all take that one, in every attempt. A node's word for it counts only where it is the same place.
    pub fn pinned_spec(&self, step: &str) -> Option<JobSpec> {
        let mut spec = self.step_spec(step)?.clone();
        let sources = self.sources(step);
        for place in spec.places_mut() {
            if let Some(source) = sources.iter().find(|s| s.place == *place && s.is_sound()) {
                place.clone_from(&source.pinned);
            }
        }
        for place in spec.models_mut() {
            if let Some(model) = self.models.get(place) {
                *place = Handed::of_job(&model.job, &model.step);
            }
        }
        Some(spec)
    }

    /// Models that the ranks of a step are handed, by the names that its pinned job has for them: of earlier steps, where
    /// they are there, and of earlier jobs.
    pub fn inputs(&self, spec: &JobSpec) -> BTreeMap<String, &Blob> {
        let keys = spec.networks().filter_map(|(_, m)| Handed::key(m.weights.as_deref()?));
        let blob = |key: &str| {
            let model = |a: &&Artifact| a.step == key && a.name == Artifact::MODEL;
            let own = self.artifacts.iter().find(model).map(|a| &a.blob);
            let other = |m: &&Model| Handed::of_job(&m.job, &m.step) == key;
            own.or_else(|| self.models.values().find(other).map(|m| &m.blob))
        };
        keys.filter_map(|key| Some((key.to_owned(), blob(key)?))).collect()
    }

    /// The metrics of each step that is trained.
    pub fn figures(&self) -> Figures {
        let trained = self.phases.iter().filter(|p| p.kind == PhaseKind::Train && p.status == PhaseStatus::Succeeded);
        let numbers = |p: &Phase| {
            let metrics = p.result.as_ref()?.get("metrics")?.as_object()?;
            Some(metrics.iter().filter_map(|(k, v)| Some((k.clone(), v.as_f64()?))).collect())
        };
        trained.map(|p| (p.step.clone(), numbers(p).unwrap_or_default())).collect()
    }

    /// What the probe of a step has found of weights on the hub.
    pub fn sources(&self, step: &str) -> Vec<Source> {
        let probe = self.phases.iter().find(|p| p.step == step && p.kind == PhaseKind::Probe);
        let found = probe.and_then(|p| p.result.as_ref()).and_then(|r| r.get("sources"));
        found.and_then(|s| serde_json::from_value(s.clone()).ok()).unwrap_or_default()
    }

    /// Every blob that it refers to.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        let checkpoints = self.phases.iter().flat_map(|p| p.checkpoints.iter().map(|(_, b)| b).chain(&p.output));
        checkpoints.chain(self.artifacts.iter().map(|a| &a.blob)).chain(self.models.values().map(|m| &m.blob))
    }

    /// Whether the model of a step is in the blob store.
    pub fn has_model(&self, step: &str) -> bool {
        self.artifacts.iter().any(|a| a.step == step && a.name == Artifact::MODEL)
    }

    /// Whether what a step leaves is in the blob store: its model, or, of one that trains nothing, its report, which comes last.
    pub fn has_left(&self, step: &str) -> bool {
        let trains = self.spec.steps().iter().any(|(id, spec, _)| *id == step && !spec.stage.is_empty());
        let reported = || self.artifacts.iter().any(|a| a.step == step && a.name == Artifact::REPORT);
        self.has_model(step) || (!trains && reported())
    }

    /// Whether everything that a phase needs is done.
    pub fn is_unblocked(&self, phase: &Phase) -> bool {
        phase.needs.iter().all(|n| self.phase(n).is_some_and(|p| p.status == PhaseStatus::Succeeded))
    }
}

impl State {
    /// Whether any job or data set refers to a blob.
    pub fn needs_blob(&self, digest: &str) -> bool {
        self.data.contains_key(digest) || self.jobs.values().flat_map(Job::blobs).any(|b| b.digest == digest)
    }

    /// Digests of all blobs that any job or data set refers to.
    pub fn blobs(&self) -> BTreeSet<&str> {
        let jobs = self.jobs.values().flat_map(Job::blobs).map(|b| b.digest.as_str());
        self.data.keys().map(String::as_str).chain(jobs).collect()
    }

    /// The newest time at which anything in it has happened.
    pub fn newest_ms(&self) -> Millis {
        let phases = || self.jobs.values().flat_map(|j| &j.phases);
        let jobs = self.jobs.values().flat_map(|j| [Some(j.submitted_ms), j.finished_ms]);
        let times = |a: &Attempt| [Some(a.started_ms), a.failing_ms, a.stopping.as_ref().map(|(_, at)| *at)];
        let attempts = phases().filter_map(|p| p.attempt.as_ref()).flat_map(times);
        let noted = phases().flat_map(|p| &p.history).map(|(at, _)| *at);
        let pushed = self.data.values().map(|d| d.pushed_ms);
        jobs.chain(attempts).flatten().chain(noted).chain(pushed).max().unwrap_or(0)
    }

    /// Slots that running attempts hold: node, slot.
    pub fn held(&self) -> Vec<(&NodeId, u32)> {
        let attempts = self.jobs.values().flat_map(|j| &j.phases).filter_map(|p| p.attempt.as_ref());
        attempts.flat_map(|a| &a.placements).map(|p| (&p.node, p.slot)).collect()
    }
}
