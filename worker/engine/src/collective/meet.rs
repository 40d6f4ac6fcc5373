//! How the ranks of an attempt come together.

use std::{net::TcpListener, time::Duration};

use tl_proto::{hardware::Device, spec::Reduction};

use super::{Collective, Mesh, MeshConfig, Solo, choice::Way};
use crate::{Error, Result};

/// Brings this rank, which runs on `device`, together with the others of its attempt. Over NCCL only where gradients are added
/// up fast: the tree of the ordered reduction adds in the hosts' memory. There NCCL may take as long as `ready` for each step of
/// its beginning, and for a sum after that as long as ranks wait for each other.
///
/// # Errors
/// [`Error::LostPeer`] where others do not come in time; a GPU or an NCCL that cannot be used.
pub fn meet(
    way: Way,
    reduction: Reduction,
    device: Device,
    listener: &TcpListener,
    config: &MeshConfig,
    ready: Duration,
) -> Result<Box<dyn Collective>> {
    if way == Way::Solo {
        return Ok(Box::new(Solo));
    }
    match (way, reduction, device) {
        (Way::Nccl, Reduction::Fast, Device::Cuda(index)) => {
            over_nccl(Mesh::connect_apart(listener, config)?, index, ready, config)
        }
        _ => Ok(Box::new(Mesh::connect(listener, config)?)),
    }
}

#[cfg(feature = "cuda")]
fn over_nccl(mesh: Mesh, index: u32, ready: Duration, config: &MeshConfig) -> Result<Box<dyn Collective>> {
    use super::{BUCKET, NcclGroup, Patience};

    let patience = Patience { ready: ready.max(config.rendezvous), sum: config.rendezvous };
    match crate::gpu::Device::open(index) {
        Ok(device) => Ok(Box::new(NcclGroup::join(mesh, device.into(), patience, BUCKET)?)),
        Err(fault) => Err(give_up(mesh, fault.into())),
    }
}

#[cfg(not(feature = "cuda"))]
fn over_nccl(mesh: Mesh, _: u32, _: Duration, _: &MeshConfig) -> Result<Box<dyn Collective>> {
    Err(give_up(mesh, Error::user("this build has no CUDA", "build with `--features cuda`")))
}

/// The others hear why.
fn give_up(mut mesh: Mesh, error: Error) -> Error {
    mesh.abort(&error.to_string());
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long NCCL may take, which is not there.
    const READY: Duration = Duration::from_secs(5);

    /// Two ranks meet; what `then` makes of each.
    fn two<T: Send>(
        way: Way,
        reduction: Reduction,
        device: Device,
        then: impl Fn(Result<Box<dyn Collective>>) -> T + Sync,
    ) -> Vec<T> {
        let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        let config = |rank| MeshConfig {
            rank,
            addresses: addresses.clone(),
            weights: vec![1; 2],
            attempt: "a/1".into(),
            secret: "s".into(),
            rendezvous: Duration::from_secs(5),
            beat: Duration::from_millis(20),
            silence: Duration::from_secs(5),
        };
        let rank = |at: usize| then(meet(way, reduction, device, &listeners[at], &config(at), READY));
        std::thread::scope(|s| {
            let other = s.spawn(|| rank(1));
            vec![rank(0), other.join().unwrap()]
        })
    }

    #[test]
    fn ranks_meet_over_tcp_on_cpus_and_where_gradients_are_added_up_in_order() {
        let ways = [
            (Way::Tcp, Reduction::Fast, Device::Cpu),
            (Way::Tcp, Reduction::Ordered, Device::Cpu),
            (Way::Nccl, Reduction::Ordered, Device::Cuda(0)),
        ];
        for (way, reduction, device) in ways {
            let said = two(way, reduction, device, |group| {
                let mut group = group.unwrap();
                assert!(!group.sum(&mut [1.0]).unwrap(), "it has no way of its own");
                assert_eq!(group.neighbours(), usize::from(cfg!(target_os = "linux")));
                let own = vec![group.rank() as u8];
                group.all_gather(own).unwrap()
            });
            assert_eq!(said, [vec![vec![0u8], vec![1u8]], vec![vec![0u8], vec![1u8]]]);
        }
    }

    #[test]
    fn one_rank_needs_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = MeshConfig {
            rank: 0,
            addresses: vec!["nowhere:1".into()],
            weights: vec![1],
            attempt: "a/1".into(),
            secret: "s".into(),
            rendezvous: Duration::ZERO,
            beat: Duration::ZERO,
            silence: Duration::ZERO,
        };
        let mut group = meet(Way::Solo, Reduction::Fast, Device::Cuda(0), &listener, &config, READY).unwrap();
        assert_eq!(group.world(), 1);
        group.barrier().unwrap();
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_refuses_gpus_that_would_add_up_fast() {
        let errors = two(Way::Nccl, Reduction::Fast, Device::Cuda(0), |group| group.err());
        let known = |e: &Error| matches!(e, Error::User { .. } | Error::LostPeer { peer: 0 | 1, .. });
        assert!(errors.iter().all(|e| e.as_ref().is_some_and(known)), "{errors:?}");
        assert!(errors.iter().any(|e| matches!(e, Some(Error::User { .. }))));
    }
}
