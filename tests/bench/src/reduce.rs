//! Two ranks on loopback, each a process of its own.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tl_engine::collective::{self, Collective, Mesh, MeshConfig, tree::Node};

use crate::{Options, harness::Harness};

/// Connects this process with the other rank, which the first one starts.
pub fn meet(options: &Options) -> anyhow::Result<(Mesh, Option<Child>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (rank, first) = match &options.join {
        Some(address) => (1, address.clone()),
        None => (0, listener.local_addr()?.to_string()),
    };
    let peer = if rank == 0 {
        let arguments = std::env::args().skip(1);
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).args(["--join", &first]).stdin(Stdio::null()).stdout(Stdio::null());
        Some(command.spawn()?)
    } else {
        None
    };
    let config = MeshConfig {
        rank,
        // The second rank calls the first: nobody asks where it listens itself.
        addresses: vec![first, listener.local_addr()?.to_string()],
        weights: vec![1, 1],
        attempt: "bench".into(),
        secret: "bench".into(),
        rendezvous: Duration::from_secs(30),
        beat: Duration::from_millis(500),
        silence: Duration::from_secs(30),
    };
    Ok((Mesh::connect(&listener, &config)?, peer))
}

/// Sums of as many elements as it was told, a leaf from each rank. Making the leaf is not part of it: in a step it is the
/// gradient.
pub fn all_reduce(options: &Options, harness: &mut Harness) -> anyhow::Result<()> {
    let (mut mesh, peer) = meet(options)?;
    let (rank, len) = (mesh.rank(), options.elements);
    let several = |mesh: &mut Mesh, n: usize| -> anyhow::Result<f64> {
        // The first rank says how many; none ends it.
        let count = mesh.broadcast((n as u64).to_le_bytes().to_vec(), 0)?;
        let n = count.try_into().map_or(0, u64::from_le_bytes) as usize;
        let mut leaves: Vec<Vec<f32>> = vec![vec![rank as f32 + 0.5; len]; n];
        mesh.barrier()?;
        let started = Instant::now();
        for _ in 0..n {
            let leaf = Node::leaf(rank, leaves.pop().unwrap_or_default());
            let sum = collective::reduce(mesh, vec![leaf], 2, len)?;
            anyhow::ensure!(sum.last() == Some(&2.0), "the sum is wrong");
        }
        Ok(if n == 0 { f64::INFINITY } else { started.elapsed().as_secs_f64() / n as f64 })
    };
    if rank != 0 {
        while several(&mut mesh, 0)?.is_finite() {}
        return Ok(());
    }
    several(&mut mesh, 2)?;
    harness.ready();
    while let Some(n) = harness.next() {
        harness.answer(several(&mut mesh, n)?);
    }
    several(&mut mesh, 0)?;
    drop(mesh);
    if let Some(mut peer) = peer {
        peer.wait()?;
    }
    Ok(())
}
