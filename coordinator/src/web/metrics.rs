//! `/metrics`: counters from all over the coordinator, gauges taken from the state when Prometheus asks.

use std::sync::{Arc, OnceLock};

use axum::extract::State;
use metrics::gauge;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::Shared;
use crate::core::{JobStatus, NodeStatus};

/// What renders the figures. The recorder is one per process.
pub(super) struct Exporter(PrometheusHandle);

impl Exporter {
    pub(super) fn install() -> Self {
        static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
        let handle = HANDLE.get_or_init(|| {
            let recorder = PrometheusBuilder::new().build_recorder();
            let handle = recorder.handle();
            // Another recorder can only be that of a program around us, which then has the figures.
            let _ = metrics::set_global_recorder(recorder);
            handle
        });
        Self(handle.clone())
    }
}

pub(super) async fn scrape(State(shared): State<Arc<Shared>>) -> String {
    shared.driver.read(|state| {
        for (name, status) in [
            ("active", JobStatus::Active),
            ("succeeded", JobStatus::Succeeded),
            ("failed", JobStatus::Failed),
            ("cancelled", JobStatus::Cancelled),
        ] {
            let count = state.jobs.values().filter(|j| !j.plan_only && j.status == status).count();
            gauge!("tl_jobs", "status" => name).set(count as f64);
        }
        for (name, status) in
            [("ready", NodeStatus::Ready), ("unknown", NodeStatus::Unknown), ("lost", NodeStatus::Lost)]
        {
            let count = state.nodes.values().filter(|n| n.status == status).count();
            gauge!("tl_nodes", "status" => name).set(count as f64);
        }
        let there = state.nodes.values().filter(|n| n.status == NodeStatus::Ready);
        gauge!("tl_slots").set(there.map(|n| n.slots.len()).sum::<usize>() as f64);
        gauge!("tl_slots_held").set(state.held().len() as f64);
    });
    shared.metrics.0.run_upkeep();
    shared.metrics.0.render()
}
