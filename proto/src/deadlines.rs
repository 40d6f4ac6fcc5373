//! The one table of deadlines. Validated at start; every remote wait takes its limit from here.

use serde::{Deserialize, Serialize};

/// All deadlines, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deadlines {
    /// How often an agent tells the coordinator that it is there.
    pub heartbeat_ms: u64,
    /// Silence after which a node is lost.
    pub lease_ms: u64,
    /// How often ranks tell each other that they are there.
    pub beat_ms: u64,
    /// Silence after which a rank gives a peer up.
    pub silence_ms: u64,
    /// How long ranks wait for each other at the start of an attempt, and for each sum over NCCL once all are there for it;
    /// longer by the time that files of the job may take to come.
    pub rendezvous_ms: u64,
    /// The same where NCCL begins: for its ranks to meet, and for each of its first sums, for which it connects them. On a
    /// machine of eight GPUs some of its versions load their kernels for most of a minute
    /// (<https://github.com/NVIDIA/nccl/issues/1646>). A peer that is lost ends it at once. It is never less than
    /// `rendezvous_ms`.
    pub nccl_ready_ms: u64,
    /// How long a rank has to stop by itself before it is killed.
    pub stop_grace_ms: u64,
    /// How long one call to the coordinator may take.
    pub rpc_ms: u64,
    /// First pause between two tries to reach the coordinator; doubles up to `reconnect_max_ms`.
    pub reconnect_min_ms: u64,
    /// Longest pause between two tries.
    pub reconnect_max_ms: u64,
    /// How long a failing gang is watched for a failure that says more than "my peer is gone".
    pub settle_ms: u64,
    /// How long a job runs undisturbed before it may grow onto new slots.
    pub grow_cooldown_ms: u64,
    /// How much sooner a training must begin for its teachers to run on all idle slots before it, by the estimate of its
    /// probe.
    pub teach_saves_ms: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            heartbeat_ms: 500,
            lease_ms: 5_000,
            beat_ms: 200,
            silence_ms: 4_000,
            rendezvous_ms: 20_000,
            nccl_ready_ms: 120_000,
            stop_grace_ms: 3_000,
            rpc_ms: 10_000,
            reconnect_min_ms: 100,
            reconnect_max_ms: 2_000,
            settle_ms: 400,
            grow_cooldown_ms: 5_000,
            teach_saves_ms: 10_000,
        }
    }
}

/// Two deadlines that contradict each other.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline `{0}` must be at least {2} times `{1}`")]
pub struct BadDeadline(&'static str, &'static str, u64);

impl Deadlines {
    /// Checks that every deadline leaves room for what it waits for.
    ///
    /// # Errors
    /// Names the first pair that contradicts.
    pub fn validate(&self) -> Result<(), BadDeadline> {
        let pairs = [
            ("heartbeat_ms", self.heartbeat_ms, "1 ms", 1, 10),
            ("beat_ms", self.beat_ms, "1 ms", 1, 10),
            ("lease_ms", self.lease_ms, "heartbeat_ms", self.heartbeat_ms, 3),
            ("silence_ms", self.silence_ms, "beat_ms", self.beat_ms, 3),
            ("rendezvous_ms", self.rendezvous_ms, "silence_ms", self.silence_ms, 1),
            ("stop_grace_ms", self.stop_grace_ms, "1 ms", 1, 1),
            ("settle_ms", self.settle_ms, "1 ms", 1, 1),
            ("rpc_ms", self.rpc_ms, "1 ms", 1, 100),
            ("reconnect_min_ms", self.reconnect_min_ms, "1 ms", 1, 1),
            ("reconnect_max_ms", self.reconnect_max_ms, "reconnect_min_ms", self.reconnect_min_ms, 1),
        ];
        for (name, value, base_name, base, times) in pairs {
            if value < base.saturating_mul(times) {
                return Err(BadDeadline(name, base_name, times));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_consistent() {
        Deadlines::default().validate().unwrap();
    }

    #[test]
    fn a_lease_shorter_than_three_heartbeats_is_refused() {
        let table = Deadlines { lease_ms: 900, ..Deadlines::default() };
        assert_eq!(table.validate(), Err(BadDeadline("lease_ms", "heartbeat_ms", 3)));
    }
}
