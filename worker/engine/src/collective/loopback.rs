//! Ranks of one process: threads that meet over TCP on loopback, as ranks of several machines would.

use std::{any::Any, net::TcpListener, time::Duration};

use super::{Collective, Mesh, MeshConfig, Solo};
use crate::{Error, Result};

/// How often a rank says that it is alive.
const BEAT: Duration = Duration::from_millis(200);

/// Runs `rank` in a thread for each of `weights`; what each came to, by rank. They wait for each other for so long, when
/// they meet and whenever one is silent. One that is alone talks to nobody.
///
/// # Errors
/// There is no socket. What stops a rank, a panic too, is what it came to.
pub fn on_loopback<T: Send>(
    weights: &[u32],
    patience: Duration,
    rank: impl Fn(&mut dyn Collective) -> Result<T> + Sync,
) -> Result<Vec<Result<T>>> {
    let no_socket = |e: std::io::Error| Error::Internal(format!("no socket on loopback: {e}"));
    let listeners = weights.iter().map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>();
    let listeners = listeners.map_err(no_socket)?;
    let addresses = listeners.iter().map(|l| Ok(l.local_addr()?.to_string())).collect::<std::io::Result<Vec<_>>>();
    let addresses = addresses.map_err(no_socket)?;
    let meet = |at: usize| -> Result<T> {
        if weights.len() == 1 {
            return rank(&mut Solo);
        }
        let config = MeshConfig {
            rank: at,
            addresses: addresses.clone(),
            weights: weights.to_vec(),
            attempt: "loopback".into(),
            secret: "loopback".into(),
            rendezvous: patience,
            beat: BEAT,
            silence: patience,
        };
        rank(&mut Mesh::connect(&listeners[at], &config)?)
    };
    Ok(std::thread::scope(|scope| {
        let meet = &meet;
        let threads: Vec<_> = (0..weights.len()).map(|at| scope.spawn(move || meet(at))).collect();
        let outcome = |ended: Result<Result<T>, Box<dyn Any + Send>>| {
            ended.unwrap_or_else(|panic| Err(Error::Internal(format!("a rank panicked: {}", words(&*panic)))))
        };
        threads.into_iter().map(|thread| outcome(thread.join())).collect()
    }))
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn ranks_meet_with_their_weights_and_one_alone_needs_nobody() {
        for weights in [vec![1], vec![3, 1], vec![1, 2, 3]] {
            let said = on_loopback(&weights, PATIENCE, |group| {
                assert_eq!(group.weights(), weights);
                let own = group.rank() as u8;
                group.all_gather(vec![own])
            });
            let all: Vec<Vec<u8>> = (0..weights.len() as u8).map(|rank| vec![rank]).collect();
            assert!(said.unwrap().into_iter().all(|heard| heard.unwrap() == all));
        }
    }

    #[test]
    fn what_stops_a_rank_is_its_own_outcome_and_the_others_say_who_is_gone() {
        for panics in [false, true] {
            let outcomes = on_loopback(&[1, 1], PATIENCE, |group| match group.rank() {
                0 => group.barrier(),
                _ if panics => panic!("of fright"),
                _ => Err(Error::Stopped),
            });
            let [first, second] = <[Result<()>; 2]>::try_from(outcomes.unwrap()).unwrap();
            assert!(matches!(first, Err(Error::LostPeer { peer: 1, .. })));
            let said = second.unwrap_err().to_string();
            let wanted = ["the rank was asked to stop", "internal error: a rank panicked: of fright"];
            assert_eq!(said, wanted[usize::from(panics)]);
        }
    }
}
