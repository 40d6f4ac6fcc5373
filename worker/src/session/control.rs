//! One connection to the coordinator: hello, heartbeats, messages out, assignments in.

use std::time::Duration;

use tl_proto::{
    PROTOCOL,
    v1::{self, AgentMessage, agent_message::Body, coordinator_message},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::Status;

use super::{outbox::Outbox, remote::Remote};
use crate::supervise::supervisor::Census;

/// How long the coordinator may take to answer a hello.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a node says of itself.
#[derive(Clone)]
pub struct Identity {
    /// Its id.
    pub node: String,
    /// A label.
    pub name: String,
    /// This start of the agent.
    pub incarnation: String,
    /// Its build.
    pub build: String,
    /// What it offers.
    pub slots: Vec<v1::Slot>,
    /// What it is made of.
    pub hardware: v1::Hardware,
    /// What its engine can do.
    pub catalog_json: Vec<u8>,
}

/// What a session works with.
pub struct Session<'a> {
    /// Who we are.
    pub identity: &'a Identity,
    /// Messages out.
    pub outbox: &'a Outbox,
    /// What is wanted of this node; stays as it is while the coordinator is away.
    pub desired: &'a watch::Sender<Vec<v1::Launch>>,
    /// What runs here.
    pub census: watch::Receiver<Census>,
}

impl Session<'_> {
    /// Talks until the connection ends. `welcomed` is called once the coordinator has taken the node in.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn run(&self, remote: &Remote, welcomed: impl FnOnce()) -> Result<(), Status> {
        let (sender, receiver) = mpsc::channel(64);
        let unavailable = |_| Status::unavailable("the stream ended");
        let say = async |body| sender.send(AgentMessage { sequence: 0, body: Some(body) }).await.map_err(unavailable);
        say(Body::Hello(self.hello())).await?;
        let opened = tokio::time::timeout(PATIENCE, remote.control().session(ReceiverStream::new(receiver))).await;
        let mut inbound = opened.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner();
        let first = tokio::time::timeout(PATIENCE, inbound.next()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no welcome"))?.transpose()?;
        let Some(coordinator_message::Body::Welcome(welcome)) = first.and_then(|m| m.body) else {
            return Err(Status::unavailable("the coordinator did not say welcome"));
        };
        welcomed();
        let silence = Duration::from_millis(welcome.lease_ms.max(1_000)) * 4;
        let mut beat = tokio::time::interval(Duration::from_millis(welcome.heartbeat_ms.max(10)));
        let (mut changes, mut sent, mut version) = (self.outbox.changes(), 0, 0);
        changes.mark_changed();
        let mut heard = tokio::time::Instant::now();
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    let running = self.census.borrow().running.clone();
                    say(Body::Heartbeat(v1::Heartbeat { running, applied_version: version })).await?;
                    // Acknowledgements are owed for what was sent; nothing else makes the coordinator speak.
                    if !self.outbox.after(0).is_empty() && heard.elapsed() > silence {
                        return Err(Status::deadline_exceeded("the coordinator is silent"));
                    }
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    for message in self.outbox.after(sent) {
                        sent = message.sequence;
                        sender.send(message).await.map_err(unavailable)?;
                    }
                }
                message = inbound.next() => {
                    heard = tokio::time::Instant::now();
                    match message.transpose()?.ok_or_else(|| Status::unavailable("the coordinator went away"))?.body {
                        Some(coordinator_message::Body::Ack(ack)) => self.outbox.acknowledge(ack.sequence),
                        Some(coordinator_message::Body::Assignment(assignment)) => {
                            version = assignment.version;
                            self.desired.send_replace(assignment.launches);
                        }
                        Some(coordinator_message::Body::Welcome(_)) | None => {}
                    }
                }
            }
        }
    }

    fn hello(&self) -> v1::Hello {
        let me = self.identity.clone();
        v1::Hello {
            node_id: me.node,
            name: me.name,
            incarnation: me.incarnation,
            protocol: PROTOCOL,
            build: me.build,
            slots: me.slots,
            hardware: Some(me.hardware),
            catalog_json: me.catalog_json,
            running: self.census.borrow().running.clone(),
        }
    }
}
