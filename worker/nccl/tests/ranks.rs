//! Ranks as threads over an NCCL and a driver that need no GPU (`nvlib::fake`): that calls are made as they should be, and
//! that waits end.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};
use half::{bf16, f16};
use nccl_rs::{Code, Communicator, Element, Nccl, NcclError, Options, Standing, UniqueId};
use nvlib::Library;

/// A stream of the fake GPU; nothing where a real driver comes first.
fn stream() -> Option<Arc<CudaStream>> {
    static FAKES: OnceLock<bool> = OnceLock::new();
    let fake = FAKES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        nvlib::fake::build(dir.path()).unwrap();
        Library::Driver.open_from(&[dir.path().into()]).unwrap();
        Library::Nccl.open_from(&[dir.path().into()]).unwrap();
        let fake = CudaContext::new(0).is_ok_and(|c| c.name().is_ok_and(|name| name == nvlib::fake::GPU));
        if !fake {
            eprintln!("skipped: this machine has a driver of its own");
        }
        fake
    });
    fake.then(|| CudaContext::new(0).unwrap().new_stream().unwrap())
}

fn options(patience: u64) -> Options {
    let patience = Duration::from_millis(patience);
    Options { patience, watch: Some(Duration::from_millis(5)), keep_failed: false }
}

/// Runs a group of ranks, each a thread with a stream of its own.
fn group<T: Send>(world: usize, options: Options, rank: impl Fn(Communicator, UniqueId) -> T + Sync) -> Option<Vec<T>> {
    stream()?;
    let id = Nccl::open().unwrap().unique_id().unwrap();
    Some(std::thread::scope(|s| {
        let start = |r| {
            let (id, rank) = (id.clone(), &rank);
            s.spawn(move || {
                let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
                rank(Communicator::connect(&stream, r, world, &id, options).unwrap(), id)
            })
        };
        let threads: Vec<_> = (0..world).map(start).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    }))
}

fn host<T: DeviceRepr + Clone + Default>(stream: &Arc<CudaStream>, data: &cudarc::driver::CudaSlice<T>) -> Vec<T> {
    stream.clone_dtoh(data).unwrap()
}

fn sums<T: Element + Clone + Default + PartialEq + std::fmt::Debug>(from: impl Fn(f32) -> T + Sync) {
    group(3, options(5000), |ranks, _| {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let rank = ranks.rank() as f32;
        let own: Vec<T> = (0..6).map(|i| from(rank * 10.0 + i as f32)).collect();
        let all = |scale: f32, first: usize, n: usize| -> Vec<T> {
            (first..first + n).map(|i| from(30.0 + scale * i as f32)).collect()
        };

        let mut data = stream.clone_htod(&own).unwrap();
        ranks.all_reduce(&mut data).unwrap();
        ranks.complete().unwrap();
        assert_eq!(host(&stream, &data), all(3.0, 0, 6));

        let source = stream.clone_htod(&own).unwrap();
        let mut target = stream.clone_htod(&vec![from(-1.0); 6]).unwrap();
        ranks.all_reduce_into(&source, &mut target).unwrap();
        ranks.complete().unwrap();
        assert_eq!((host(&stream, &source), host(&stream, &target)), (own.clone(), all(3.0, 0, 6)));

        let mut part = stream.clone_htod(&vec![from(-1.0); 2]).unwrap();
        ranks.reduce_scatter(&source, &mut part).unwrap();
        ranks.complete().unwrap();
        assert_eq!(host(&stream, &part), all(3.0, 2 * ranks.rank(), 2));

        let mut whole = stream.clone_htod(&vec![from(-1.0); 6]).unwrap();
        ranks.all_gather(&part, &mut whole).unwrap();
        ranks.complete().unwrap();
        assert_eq!(host(&stream, &whole), all(3.0, 0, 6));

        let mut told = stream.clone_htod(&own).unwrap();
        ranks.broadcast(&mut told, 1).unwrap();
        ranks.complete().unwrap();
        assert_eq!(host(&stream, &told), (0..6).map(|i| from(10.0 + i as f32)).collect::<Vec<_>>());
        ranks.finish().unwrap();
    });
}

#[test]
fn what_ranks_do_together_gives_what_it_should_in_every_type() {
    sums(|v| v);
    sums(f16::from_f32);
    sums(bf16::from_f32);
}

#[test]
fn a_version_and_its_standing_are_known() {
    if stream().is_none() {
        return;
    }
    let nccl = Nccl::open().unwrap();
    assert_eq!((nccl.version().to_string(), nccl.version().standing()), ("2.27.6".into(), Standing::Untested));
}

#[test]
fn who_waits_for_a_rank_that_does_not_come_gives_up_at_the_deadline() {
    let Some(stream) = stream() else { return };
    let id = Nccl::open().unwrap().unique_id().unwrap();
    let started = Instant::now();
    let error = Communicator::connect(&stream, 0, 2, &id, options(50)).unwrap_err();
    assert!(matches!(&error, NcclError::Deadline { what, .. } if what.contains("meeting")), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(50));
}

#[test]
fn a_collective_that_a_rank_does_not_join_ends_at_the_deadline_and_the_communicator_with_it() {
    group(2, options(1000), |ranks, _| {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        if ranks.rank() == 0 {
            let mut data = stream.clone_htod(&[1.0f32]).unwrap();
            for _ in 0..2 {
                let error = ranks.all_reduce(&mut data).unwrap_err();
                assert!(matches!(error, NcclError::Deadline { what: "ncclAllReduce", .. }), "{error}");
            }
            assert!(ranks.complete().is_err() && ranks.finish().is_err());
        }
    });
}

#[test]
fn an_abort_from_another_thread_ends_a_wait_and_everything_after_it() {
    group(2, options(60_000), |ranks, _| {
        if ranks.rank() == 1 {
            return;
        }
        let handle = ranks.handle();
        handle.check().unwrap();
        std::thread::scope(|s| {
            s.spawn(|| {
                // Whenever it comes: before, during or after the call.
                handle.abort(Duration::from_secs(5)).unwrap();
                handle.abort(Duration::from_secs(5)).unwrap();
            });
            let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
            let mut data = stream.clone_htod(&[1.0f32]).unwrap();
            assert_eq!(ranks.all_reduce(&mut data), Err(NcclError::Aborted));
        });
        assert_eq!((ranks.complete(), handle.check()), (Err(NcclError::Aborted), Err(NcclError::Aborted)));
    });
}

/// Makes the communicator of a rank report a failure.
fn fail(id: &UniqueId, rank: i32, code: i32) {
    type Fail = unsafe extern "C" fn(*const u8, i32, i32);
    // SAFETY: the type of the fake's own function.
    #[expect(unsafe_code, reason = "a function of the fake library")]
    unsafe {
        let fail: Fail = Library::Nccl.open().unwrap().function("fakeFail").unwrap();
        fail(id.as_bytes().as_ptr(), rank, code);
    }
}

/// Has the next communicator of this thread fail before the call that makes it returns.
fn fail_next(code: i32) {
    // SAFETY: the type of the fake's own function.
    #[expect(unsafe_code, reason = "a function of the fake library")]
    unsafe {
        let fail: unsafe extern "C" fn(i32) = Library::Nccl.open().unwrap().function("fakeFailNext").unwrap();
        fail(code);
    }
}

/// Has what ends the communicator of a rank not return.
fn hold(id: &UniqueId, rank: i32) {
    // SAFETY: the type of the fake's own function.
    #[expect(unsafe_code, reason = "a function of the fake library")]
    unsafe {
        let hold: unsafe extern "C" fn(*const u8, i32) = Library::Nccl.open().unwrap().function("fakeHold").unwrap();
        hold(id.as_bytes().as_ptr(), rank);
    }
}

/// Whether the communicator of a rank was aborted.
fn aborted(id: &UniqueId, rank: i32) -> bool {
    type Aborted = unsafe extern "C" fn(*const u8, i32) -> i32;
    // SAFETY: the type of the fake's own function.
    #[expect(unsafe_code, reason = "a function of the fake library")]
    unsafe {
        let aborted: Aborted = Library::Nccl.open().unwrap().function("fakeAborted").unwrap();
        aborted(id.as_bytes().as_ptr(), rank) != 0
    }
}

#[test]
fn a_communicator_that_has_failed_before_it_is_handed_out_says_why_and_is_aborted() {
    let Some(stream) = stream() else { return };
    let nccl = Nccl::open().unwrap();
    let lost = NcclError::PeerLost { detail: "remote process exited (the last words)".into() };
    let failed = NcclError::Async { code: Code(2), detail: "fake error (the last words)".into() };
    for (code, want) in [(6, lost), (2, failed)] {
        let id = nccl.unique_id().unwrap();
        fail_next(code);
        assert_eq!(Communicator::connect(&stream, 0, 1, &id, options(60_000)).unwrap_err(), want);
        assert!(aborted(&id, 0));
    }
}

#[test]
fn who_waits_for_ranks_that_will_not_come_leaves_when_told_so() {
    let Some(stream) = stream() else { return };
    let id = Nccl::open().unwrap().unique_id().unwrap();
    let asked = AtomicUsize::new(0);
    // Not at once: it waits by then.
    let stop = || asked.fetch_add(1, Ordering::Relaxed) >= 100;
    let error = Communicator::connect_unless(&stream, 0, 2, &id, options(60_000), stop).unwrap_err();
    assert_eq!((error, asked.into_inner()), (NcclError::Aborted, 101));
    assert!(aborted(&id, 0));
}

#[test]
fn a_communicator_outlives_the_threads_that_made_and_used_it() {
    if stream().is_none() {
        return;
    }
    let id = Nccl::open().unwrap().unique_id().unwrap();
    let fresh = || CudaContext::new(0).unwrap().new_stream().unwrap();
    let made = std::thread::spawn(move || Communicator::connect(&fresh(), 0, 1, &id, options(5000)).unwrap());
    let mut ranks = made.join().unwrap();
    for _ in 0..2 {
        let used = std::thread::spawn(move || {
            let mut data = fresh().clone_htod(&[1.0f32]).unwrap();
            ranks.all_reduce(&mut data).unwrap();
            ranks.complete().unwrap();
            ranks
        });
        ranks = used.join().unwrap();
    }
    ranks.finish().unwrap();
}

#[test]
fn who_finishes_what_the_library_does_not_give_back_is_told_at_the_deadline() {
    group(1, options(1000), |ranks, id| {
        hold(&id, 0);
        let (handle, error) = (ranks.handle(), ranks.finish().unwrap_err());
        assert!(matches!(error, NcclError::Deadline { what: "ncclCommDestroy", .. }), "{error}");
        assert_eq!(handle.check(), Err(NcclError::Aborted));
    });
}

#[test]
fn who_waits_for_what_is_being_aborted_leaves_when_that_is_over_or_hangs() {
    group(2, options(60_000), |ranks, id| {
        if ranks.rank() == 1 {
            return;
        }
        hold(&id, 0);
        let handle = ranks.handle();
        std::thread::scope(|s| {
            let aborts = s.spawn(|| {
                // The other one waits by then.
                while format!("{handle:?}") != "Handle(Pending)" {
                    std::thread::yield_now();
                }
                let started = Instant::now();
                let error = handle.abort(Duration::from_millis(50)).unwrap_err();
                assert!(matches!(error, NcclError::Deadline { what: "ncclCommAbort", .. }), "{error}");
                started
            });
            let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
            let mut data = stream.clone_htod(&[1.0f32]).unwrap();
            assert_eq!(ranks.all_reduce(&mut data), Err(NcclError::Aborted));
            let left = Instant::now();
            // Two seconds are what an abort is given.
            assert!(left - aborts.join().unwrap() >= Duration::from_secs(2));
        });
    });
}

#[test]
fn a_lost_rank_is_noticed_by_those_who_wait_and_by_the_thread_that_watches() {
    group(2, options(60_000), |ranks, id| {
        if ranks.rank() == 1 {
            return;
        }
        fail(&id, 0, 6);
        let error = ranks.complete().unwrap_err();
        let words = "remote process exited (the last words)";
        assert_eq!(error, NcclError::PeerLost { detail: words.into() });
        assert_eq!(ranks.handle().check(), Err(error));
    });
    group(1, options(60_000), |ranks, id| {
        fail(&id, 0, 3);
        // Nobody asks: the watch aborts it, and says why to whoever comes next.
        let handle = ranks.handle();
        while format!("{handle:?}") != "Handle(Gone)" {
            std::thread::yield_now();
        }
        let error = ranks.complete().unwrap_err();
        assert!(matches!(&error, NcclError::Async { code, .. } if code.name() == "ncclInternalError"), "{error}");
    });
}

#[test]
fn a_call_on_a_communicator_that_has_failed_is_answered_with_what_it_has_failed_with() {
    // Nobody has looked before the call is made.
    let unwatched = Options { watch: None, ..options(60_000) };
    for code in [6, 3] {
        group(1, unwatched, |ranks, id| {
            let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
            let mut data = stream.clone_htod(&[1.0f32]).unwrap();
            fail(&id, 0, code);
            let error = ranks.all_reduce(&mut data).unwrap_err();
            match &error {
                NcclError::PeerLost { .. } => assert_eq!(code, 6),
                NcclError::Async { code: own, .. } => assert_eq!((own.0, code), (3, 3)),
                other => panic!("{other}"),
            }
            // It is aborted: nobody waits for it any more.
            assert_eq!((format!("{:?}", ranks.handle()), ranks.complete()), ("Handle(Gone)".into(), Err(error)));
        });
    }
}

#[test]
fn a_group_splits_by_color_and_the_parts_sum_by_themselves() {
    let sums = group(4, options(5000), |ranks, _| {
        let colors = [(Some(0), 0), (Some(1), 9), (Some(1), 3), (None, 0)];
        let part = ranks.split(&colors).unwrap()?;
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let mut data = stream.clone_htod(&[1.0 + ranks.rank() as f32]).unwrap();
        part.all_reduce(&mut data).unwrap();
        part.complete().unwrap();
        Some((part.rank(), part.world(), host(&stream, &data)[0]))
    });
    assert!(sums.is_none_or(|s| s == [Some((0, 1, 1.0)), Some((1, 2, 5.0)), Some((0, 2, 5.0)), None]));
}

#[test]
fn those_who_are_left_shrink_a_group_that_has_lost_a_rank() {
    let kept = Options { keep_failed: true, watch: None, ..options(5000) };
    let seats = group(3, kept, |ranks, id| {
        if ranks.rank() == 1 {
            return None;
        }
        fail(&id, ranks.rank() as i32, 6);
        assert!(matches!(ranks.complete(), Err(NcclError::PeerLost { .. })));
        assert!(matches!(ranks.shrink(&[3], true), Err(NcclError::Argument(_))));
        let left = ranks.shrink(&[1], true).unwrap();
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let mut data = stream.clone_htod(&[2.0f32]).unwrap();
        left.all_reduce(&mut data).unwrap();
        left.complete().unwrap();
        Some((left.rank(), left.world(), host(&stream, &data)[0]))
    });
    assert!(seats.is_none_or(|s| s == [Some((0, 2, 4.0)), None, Some((1, 2, 4.0))]));
}

#[test]
fn lengths_and_ranks_that_do_not_fit_are_refused_before_the_library_sees_them() {
    group(1, options(5000), |ranks, id| {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let (three, mut two) = (stream.clone_htod(&[1.0f32; 3]).unwrap(), stream.clone_htod(&[1.0f32; 2]).unwrap());
        let refusals = [
            ranks.all_reduce_into(&three, &mut two),
            ranks.all_gather(&three, &mut two),
            ranks.reduce_scatter(&three, &mut two),
            ranks.broadcast(&mut two, 1),
            ranks.split(&[]).map(|_| ()),
            Communicator::connect(&stream, 1, 1, &id, options(10)).map(|_| ()),
        ];
        for refusal in refusals {
            assert!(matches!(refusal, Err(NcclError::Argument(_))), "{refusal:?}");
        }
        ranks.handle().check().unwrap();
    });
}
