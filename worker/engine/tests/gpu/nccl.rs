//! Ranks that add up over NCCL, as threads of this process over the fake one. A real one wants a GPU for each rank: there,
//! one rank is tried, and `worker/nccl/tests/processes.rs` tries two on one GPU.

use std::{
    net::TcpListener,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use nccl_rs::{Communicator, Options, UniqueId};
use tl_engine::{
    Error, Result,
    collective::{Collective, Mesh, MeshConfig, NcclGroup, Patience, reduce_fast, reduce_flat, tree::Node},
    gpu::{Array, Device, Placed},
    nn::Flat,
};

use crate::{numbers, shared, up};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Numbers of a bucket.
pub(crate) const BUCKET: usize = 64;

/// Meets over TCP, as a thread for each rank; what `rank` makes of each. Nothing where there is no NCCL for so many.
fn meshes<T: Send>(world: usize, silence: Duration, rank: impl Fn(Mesh) -> T + Sync) -> Option<Vec<T>> {
    let device = shared()?;
    let fake = device.stream().context().name().is_ok_and(|name| name == nvlib::fake::GPU);
    if !fake && world > 1 {
        eprintln!("left out: NCCL wants a GPU for each of {world} ranks");
        return None;
    }
    if let Err(e) = nccl_rs::Nccl::open() {
        eprintln!("left out: {e}");
        return None;
    }
    let listeners: Vec<_> = (0..world).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let config = |rank| MeshConfig {
        rank,
        addresses: addresses.clone(),
        weights: vec![1; world],
        attempt: "a/1".into(),
        secret: "s".into(),
        rendezvous: PATIENCE,
        beat: Duration::from_millis(20),
        silence,
    };
    let run = |at: usize| rank(Mesh::connect(&listeners[at], &config(at)).unwrap());
    Some(std::thread::scope(|s| {
        let run = &run;
        let ranks: Vec<_> = (0..world).map(|at| s.spawn(move || run(at))).collect();
        ranks.into_iter().map(|r| r.join().unwrap()).collect()
    }))
}

fn join(mesh: Mesh, ready: Duration, sum: Duration) -> Result<NcclGroup> {
    NcclGroup::join(mesh, shared().unwrap().clone(), Patience { ready, sum }, BUCKET)
}

/// A group of ranks; what `rank` makes of each.
pub(crate) fn group<T: Send>(world: usize, rank: impl Fn(NcclGroup) -> T + Sync) -> Option<Vec<T>> {
    group_with(world, BUCKET, rank)
}

/// The same with buckets of another size.
pub(crate) fn group_with<T: Send>(world: usize, bucket: usize, rank: impl Fn(NcclGroup) -> T + Sync) -> Option<Vec<T>> {
    group_on(world, bucket, shared()?, rank)
}

/// The same on a GPU that is open once more.
pub(crate) fn group_on<T: Send>(
    world: usize,
    bucket: usize,
    device: &Arc<Device>,
    rank: impl Fn(NcclGroup) -> T + Sync,
) -> Option<Vec<T>> {
    let patience = Patience { ready: PATIENCE, sum: PATIENCE };
    let join = |mesh| NcclGroup::join(mesh, device.clone(), patience, bucket).unwrap();
    meshes(world, PATIENCE, |mesh| rank(join(mesh)))
}

/// What a rank adds.
fn own(rank: usize, len: usize) -> Vec<f32> {
    numbers(100 + rank as u32, len)
}

/// The sum of what all ranks add, and of its magnitudes, which bounds how far another order may lead.
fn sums(world: usize, len: usize) -> Vec<(f64, f64)> {
    let all: Vec<Vec<f32>> = (0..world).map(|rank| own(rank, len)).collect();
    let sum = |i: usize| {
        let numbers = all.iter().map(|of| f64::from(of[i]));
        numbers.fold((0.0, 0.0), |(sum, most), v| (sum + v, most + v.abs()))
    };
    (0..len).map(sum).collect()
}

/// Of one rank and of two there is one sum; of more, it may be rounded otherwise.
fn is_sum(got: &[f32], world: usize) {
    for (i, (got, (sum, most))) in got.iter().zip(sums(world, got.len())).enumerate() {
        let fine = if world < 3 { *got == sum as f32 } else { (f64::from(*got) - sum).abs() <= 1e-6 * most };
        assert!(fine, "number {i} of {world} ranks: {got} instead of {sum}");
    }
}

#[test]
fn sums_are_the_hosts_whatever_buckets_they_are_cut_into() {
    for world in 1..=3 {
        group(world, |mut group| {
            assert_eq!((group.world(), group.weights().len()), (world, world));
            // The same memory twice; more, fewer, and as many numbers as buckets hold.
            for len in [1, 63, 64, 64, 65, 128, 129, 320] {
                let mut sum = own(group.rank(), len);
                assert!(group.sum(&mut sum).unwrap());
                is_sum(&sum, world);
            }
            assert!(group.sum(&mut []).unwrap());
            // Messages go between sums as before.
            let rank = group.rank() as u8;
            assert_eq!(group.all_gather(vec![rank]).unwrap(), (0..world as u8).map(|r| vec![r]).collect::<Vec<_>>());
        });
    }
}

#[test]
fn the_fast_reduction_takes_this_way_and_who_has_no_grain_adds_nothing() {
    group(3, |mut group| {
        let rank = group.rank();
        let pieces = if rank == 1 { Vec::new() } else { vec![Node::leaf(rank / 2, own(rank / 2, 100))] };
        is_sum(&reduce_fast(&mut group, pieces, 2, 100).unwrap(), 2);
        // Who leaves while another still waits for NCCL would be lost to it.
        group.barrier().unwrap();
    });
}

#[test]
fn flat_gradients_are_added_up_where_they_lie() {
    group(3, |mut group| {
        let rank = group.rank();
        let device = shared().unwrap();
        let there = |of: usize| Flat::Device(Placed::new(device.clone(), flat(&own(of, 100))));
        let pieces = if rank == 1 { Vec::new() } else { vec![Node::leaf(rank / 2, there(rank / 2))] };
        let sum = reduce_flat(&mut group, pieces, true, 2, 100).unwrap();
        assert_eq!(sum.is_here(), rank == 1, "who has no grain has none there");
        is_sum(&sum.into_host().unwrap(), 2);
        group.barrier().unwrap();
    });
}

fn flat(values: &[f32]) -> Array {
    up(shared().unwrap(), values, &[values.len()])
}

fn down(array: &Array) -> Vec<f32> {
    shared().unwrap().download(array).unwrap()
}

#[test]
fn what_lies_on_a_gpu_is_summed_there() {
    group(2, |mut group| {
        let (there, summed) = group.sum_placed(flat(&own(group.rank(), 200))).unwrap();
        assert!(summed);
        is_sum(&down(&there), 2);
        group.barrier().unwrap();
    });
}

#[test]
fn parts_of_a_gradient_come_in_any_order_and_from_either_side() {
    const LEN: usize = 300;
    group(2, |mut group| {
        let rank = group.rank();
        let values = own(rank, LEN);
        let mut buckets = group.begin(flat(&[f32::NAN; LEN])).unwrap();
        assert_eq!(buckets.left(), [256..300, 192..256, 128..192, 64..128, 0..64]);
        // Each rank has an order of its own; the sums have one.
        let mut runs: Vec<Range<usize>> = vec![290..300, 100..290, 0..70, 70..71, 71..100];
        runs.rotate_left(2 * rank);
        for (at, run) in runs.into_iter().enumerate() {
            if at % 2 == 0 {
                buckets.fill(run.clone(), &values[run.clone()]).unwrap();
            } else {
                buckets.place(run.clone(), &flat(&values[run.clone()])).unwrap();
            }
            buckets.ready(run).unwrap();
        }
        assert!(buckets.left().is_empty());
        let there = buckets.finish().unwrap();
        is_sum(&down(&there), 2);
        group.barrier().unwrap();
    });
}

#[test]
fn numbers_that_are_final_are_not_written_again_and_all_have_to_be_made() {
    group(1, |mut group| {
        let mut buckets = group.begin(flat(&[1.0; 100])).unwrap();
        buckets.ready(10..100).unwrap();
        let more = flat(&[2.0; 5]);
        for run in [8..13, 95..100, 99..104] {
            assert!(buckets.fill(run.clone(), &[2.0; 5]).is_err());
            assert!(buckets.place(run.clone(), &more).is_err());
            assert!(buckets.ready(run).is_err());
        }
        assert!(buckets.fill(0..4, &[2.0; 5]).is_err(), "more than there is room for");
        buckets.fill(0..5, &[2.0; 5]).unwrap();
        buckets.ready(0..10).unwrap();
        let there = buckets.finish().unwrap();
        assert_eq!(down(&there), [[2.0f32; 5].as_slice(), &[1.0; 95]].concat());
        let mut buckets = group.begin(there).unwrap();
        buckets.ready(10..100).unwrap();
        let error = buckets.finish().unwrap_err();
        assert!(matches!(&error, Error::Internal(text) if text.contains("never made")), "{error}");
    });
}

#[test]
fn sums_begin_while_numbers_are_made_and_what_lies_behind_the_gradient_goes_last() {
    const LEN: usize = 300;
    group(2, |mut group| {
        let rank = group.rank();
        let (values, device) = (own(rank, LEN), shared().unwrap());
        // What others have added is there already.
        let mut buckets = group.open(flat(&[0.0; LEN]), 200);
        assert_eq!(buckets.left(), [192..200, 128..192, 64..128, 0..64, 264..300, 200..264]);
        let mut ready = |run: Range<usize>, left: usize| {
            buckets.add(device, run.clone(), &flat(&values[run.clone()])).unwrap();
            assert!(buckets.add(device, run.clone(), &flat(&[1.0; 2])).is_err(), "not as many");
            buckets.ready(run).unwrap();
            assert_eq!(buckets.left().len(), left);
        };
        // Each rank has an order of its own; the sums have one.
        let runs = [(250..300, 6), (100..200, 4), (64..100, 3), (200..250, 3), (0..64, 0)];
        let others = [(200..300, 6), (64..192, 6), (192..200, 3), (0..1, 3), (1..64, 0)];
        (if rank == 0 { runs } else { others }).into_iter().for_each(|(run, left)| ready(run, left));
        let there = buckets.finish().unwrap();
        is_sum(&down(&there), 2);
        group.barrier().unwrap();
    });
}

#[test]
fn who_has_nothing_hands_it_in_at_once_and_who_opens_a_sum_may_still_leave_it() {
    group(3, |mut group| {
        let rank = group.rank();
        // Nobody else has heard of it.
        drop(group.open(flat(&[1.0; 10]), 10));
        let there = if rank == 1 { flat(&[0.0; 200]) } else { flat(&own(rank / 2, 200)) };
        let mut buckets = group.open(there, 150);
        if rank == 1 {
            buckets.ready(0..200).unwrap();
        } else {
            [150..200, 100..150, 0..100].into_iter().for_each(|run| buckets.ready(run).unwrap());
        }
        let there = buckets.finish().unwrap();
        is_sum(&down(&there), 2);
        group.barrier().unwrap();
    });
}

#[test]
fn what_the_library_may_still_write_is_never_given_back() {
    const LEN: usize = 100;
    if nvlib::fake::streams().is_none() {
        eprintln!("left out: a real driver does not tell what is taken");
        return;
    }
    group(1, |mut group| {
        // The last one ends the group.
        for (end, want) in [("finished", 0), ("forgotten", 4 * LEN as u64), ("dropped", 4 * LEN as u64)] {
            let mut buckets = group.begin(flat(&[1.0; LEN])).unwrap();
            buckets.ready(0..LEN).unwrap();
            let taken = nvlib::fake::most(|| {
                match end {
                    "finished" => drop(buckets.finish().unwrap()),
                    "forgotten" => std::mem::forget(buckets),
                    _ => drop(buckets),
                }
                // It takes more memory, unless that of the sum is free.
                drop(flat(&[2.0; LEN]));
            });
            assert_eq!(taken, Some(want), "{end}");
        }
    });
}

#[test]
fn ranks_that_cut_their_numbers_otherwise_are_told_so_before_anything_is_added() {
    let errors = group(2, |mut group| {
        let rank = group.rank();
        let mut buckets = group.open(flat(&own(rank, 200)), 150 + rank);
        let error = buckets.ready(100..200).and_then(|()| buckets.ready(0..100)).unwrap_err();
        drop(buckets);
        // Had a sum begun, that would have ended the group.
        let (there, summed) = group.sum_placed(flat(&own(rank, 200))).unwrap();
        assert!(summed);
        is_sum(&down(&there), 2);
        group.barrier().unwrap();
        error.to_string()
    });
    let says = |text: &str| format!("internal error: rank {text} does");
    let all = ["1 does not cut 200 numbers, as rank 0", "0 does not cut 200 numbers, as rank 1"].map(says);
    assert!(errors.is_none_or(|e| e == all));
}

#[test]
fn ranks_that_add_up_different_numbers_of_numbers_are_told_so_before_anything_is_added() {
    let errors = group(2, |mut group| {
        let mut values = own(group.rank(), 10 + group.rank());
        let error = group.sum(&mut values).unwrap_err();
        assert_eq!(values, own(group.rank(), 10 + group.rank()));
        error.to_string()
    });
    let says = |text: &str| format!("internal error: rank {text} does");
    let all = ["1 does not add up 10 numbers, as rank 0", "0 does not add up 11 numbers, as rank 1"].map(says);
    assert!(errors.is_none_or(|e| e == all));
}

/// Runs two ranks: the second begins a sum and does not go on, the first hears within the patience what `second` did.
fn left_alone(second: impl Fn(NcclGroup) + Sync) -> Option<Error> {
    let outcomes = group(2, |mut group| {
        if group.rank() == 1 {
            drop(group.begin(flat(&own(1, 100))).unwrap());
            second(group);
            return None;
        }
        let started = Instant::now();
        let error = group.sum(&mut own(0, 100)).unwrap_err();
        assert!(started.elapsed() < PATIENCE / 2, "it waited for the deadline");
        // And so does whatever comes next.
        assert!(matches!(group.sum(&mut own(0, 100)), Err(Error::LostPeer { peer: 1, .. })));
        Some(error)
    });
    outcomes?.swap_remove(0)
}

#[test]
fn a_rank_that_dies_in_a_sum_is_a_lost_peer_at_once() {
    let Some(error) = left_alone(drop) else { return };
    assert_eq!(error.to_string(), "rank 1 was lost: its connection was closed");
}

#[test]
fn a_rank_that_gives_up_in_a_sum_says_why() {
    let Some(error) = left_alone(|mut group| group.abort("the loss is NaN")) else { return };
    assert_eq!(error.to_string(), "rank 1 was lost: it gave up: the loss is NaN");
}

#[test]
fn a_rank_that_dies_between_sums_is_a_lost_peer_too() {
    group(3, |mut group| {
        let rank = group.rank();
        group.sum(&mut own(rank, 100)).unwrap();
        // All have this one.
        group.barrier().unwrap();
        if rank < 2 {
            let error = group.sum(&mut own(rank, 100)).unwrap_err();
            // The other one leaves because of it.
            assert!(matches!(error, Error::LostPeer { .. }), "{error}");
        }
    });
}

#[test]
fn a_rank_that_lives_and_does_not_come_is_given_up_at_the_deadline() {
    let started = Instant::now();
    let outcomes = meshes(2, Duration::from_millis(300), |mesh| {
        // That of the beginning is over.
        let mut group = join(mesh, PATIENCE, Duration::from_secs(1)).unwrap();
        if group.rank() == 1 {
            drop(group.begin(flat(&[1.0; 10])).unwrap());
            // Until the other one leaves.
            assert!(group.receive(0).is_err());
            return None;
        }
        group.sum(&mut [1.0; 10]).err()
    });
    let Some(outcomes) = outcomes else { return };
    let error = outcomes.into_iter().flatten().next().unwrap();
    assert!(matches!(&error, Error::LostGroup(text) if text.contains("was not done within")), "{error}");
    assert_eq!(error.to_failure().class, tl_proto::failure::FailureClass::LostPeer);
    assert!(started.elapsed() < PATIENCE / 2);
}

#[test]
fn who_waits_to_meet_a_rank_that_is_gone_hears_of_it() {
    // Before it has said which NCCL it has, and after it was told the name of the group.
    for knows_the_name in [false, true] {
        let started = Instant::now();
        let outcomes = meshes(2, PATIENCE, |mut mesh| {
            if mesh.rank() == 0 {
                return join(mesh, PATIENCE, PATIENCE).err();
            }
            if knows_the_name {
                let version = nccl_rs::Nccl::open().unwrap().version().to_string();
                mesh.all_gather(version.into_bytes()).unwrap();
                mesh.broadcast(Vec::new(), 0).unwrap();
            }
            mesh.abort("its GPU is gone");
            None
        });
        let Some(outcomes) = outcomes else { return };
        let error = outcomes.into_iter().flatten().next().unwrap();
        assert_eq!(error.to_string(), "rank 1 was lost: it gave up: its GPU is gone");
        assert!(started.elapsed() < PATIENCE / 2, "it waited for the deadline");
    }
}

/// NCCL connects ranks when they meet, or later, for their first sum.
#[test]
fn ranks_that_meet_over_tcp_alone_are_told_what_nccl_has_to_know() {
    for comes_to_the_meeting in [false, true] {
        let started = Instant::now();
        let outcomes = meshes(2, Duration::from_millis(300), |mut mesh| {
            if mesh.rank() == 0 {
                return join(mesh, Duration::from_secs(1), PATIENCE).err();
            }
            let version = nccl_rs::Nccl::open().unwrap().version().to_string();
            mesh.all_gather(version.into_bytes()).unwrap();
            let id = UniqueId::try_from(&mesh.broadcast(Vec::new(), 0).unwrap()[..]).unwrap();
            let stream = shared().unwrap().stream().context().new_stream().unwrap();
            let _met = comes_to_the_meeting.then(|| {
                let met = Communicator::connect(&stream, 1, 2, &id, Options::default()).unwrap();
                mesh.barrier().unwrap();
                // As many numbers as are in the first sum, and in its gradient.
                mesh.all_gather([1u64.to_le_bytes(); 2].concat()).unwrap();
                met
            });
            // It lives, until the other one leaves.
            assert!(mesh.barrier().is_err());
            None
        });
        let Some(outcomes) = outcomes else { return };
        let error = outcomes.into_iter().flatten().next().unwrap();
        let failure = error.to_failure();
        assert!(failure.message.starts_with("the ranks reach each other over TCP and not over NCCL: "), "{failure}");
        assert_eq!(failure.class, tl_proto::failure::FailureClass::Crash, "it is not tried for ever");
        assert!(failure.hint.contains("`NCCL_SOCKET_IFNAME`"), "{}", failure.hint);
        assert!(started.elapsed() < PATIENCE / 2, "it waited as long as for a later sum");
    }
}

#[test]
fn ranks_with_different_libraries_are_refused_by_name() {
    let outcomes = meshes(2, PATIENCE, |mut mesh| {
        if mesh.rank() == 0 {
            return join(mesh, PATIENCE, PATIENCE).err();
        }
        mesh.all_gather(b"1.2.3".to_vec()).unwrap();
        // Until the other one leaves.
        assert!(mesh.barrier().is_err());
        None
    });
    let Some(outcomes) = outcomes else { return };
    let Some(Error::User { message, .. }) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert!(message.starts_with("rank 1 has NCCL 1.2.3, and rank 0 has 2."), "{message}");
}
