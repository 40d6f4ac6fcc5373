//! The gang that a rank is of: how it comes together, and what its devices settle of the job.

use std::{net::TcpListener, time::Duration};

use tl_proto::{hardware::Device, spec::JobSpec};

use super::{Collective, Error, MeshConfig, Way, meet, reduction};
use crate::supervise::ipc::Order;

/// What each rank runs on.
fn devices(order: &Order) -> Vec<Device> {
    order.devices.iter().filter_map(|name| Device::parse(name)).collect()
}

/// The job, with what it leaves to the devices.
pub(super) fn settled(order: &Order) -> JobSpec {
    let mut spec = order.spec.clone();
    spec.cluster.reduction = reduction(spec.cluster.reduction, &devices(order));
    spec
}

/// Brings the rank together with the others, in a way that they have found to have.
pub(super) fn join(order: &Order, way: Way, listener: &TcpListener) -> Result<Box<dyn Collective>, Error> {
    let config = MeshConfig {
        rank: order.rank,
        addresses: order.addresses.clone(),
        weights: order.weights.clone(),
        attempt: order.attempt.clone(),
        secret: order.secret.clone(),
        rendezvous: Duration::from_millis(order.rendezvous_ms),
        beat: Duration::from_millis(order.beat_ms),
        silence: Duration::from_millis(order.silence_ms),
    };
    let own = devices(order).get(order.rank).copied().unwrap_or(Device::Cpu);
    let ready = Duration::from_millis(order.nccl_ready_ms);
    let group = meet(way, settled(order).cluster.reduction, own, listener, &config, ready)?;
    let others = group.world() - 1;
    if others > 0 {
        tracing::info!("it shares memory with {} of {others} other ranks", group.neighbours());
    }
    Ok(group)
}

#[cfg(test)]
pub(super) mod tests {
    use tl_proto::spec::Reduction;

    use super::*;

    /// Two ranks of a job that leaves the reduction open, or does not.
    pub(in crate::rank) fn order(device: &str, cluster: &str) -> Order {
        let job = format!(
            r#"
            schema = 1
            job = {{ name = "a", kind = "finetune" }}
            cluster = {{ {cluster} }}
            data = {{ format = "generated", train = "target", val = "target", batch = 16 }}
            model = {{ backbone = "small_cnn" }}
            stage = [{{ name = "all", epochs = 1, train = ["*"], lr = 0.1, bn = "train" }}]
            "#
        );
        Order {
            probe: false,
            look: false,
            unit: None,
            spec: JobSpec::from_toml(&job, &[]).unwrap(),
            rank: 1,
            addresses: vec!["a:1".into(), "b:1".into()],
            weights: vec![1; 2],
            devices: vec![device.into(); 2],
            attempt: "a/1".into(),
            secret: "s".into(),
            rendezvous_ms: 1,
            nccl_ready_ms: 1,
            beat_ms: 1,
            silence_ms: 1,
            threads: 1,
            work: "w".into(),
            cache: "c".into(),
            cache_bytes: 0,
            inputs: Default::default(),
            pushed: Default::default(),
            hub: Default::default(),
            absent: Default::default(),
            features: Vec::new(),
            resume: Vec::new(),
        }
    }

    #[test]
    fn devices_settle_how_gradients_are_added_up_where_the_job_leaves_it_open() {
        let how = |device: &str, cluster: &str| {
            let order = order(device, cluster);
            let spec = settled(&order);
            let rest = JobSpec { cluster: order.spec.cluster.clone(), ..spec.clone() };
            assert_eq!(rest, order.spec, "nothing else is");
            spec.cluster.reduction
        };
        assert_eq!(how("cpu", ""), Reduction::Ordered);
        assert_eq!(how("cuda:1", ""), Reduction::Fast);
        assert_eq!(how("cuda:1", r#"reduction = "ordered""#), Reduction::Ordered);
        assert_eq!(how("cpu", r#"reduction = "fast""#), Reduction::Fast);
    }
}
