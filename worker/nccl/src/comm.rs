//! A group of ranks, one per GPU: how it is made, made smaller, and ended.

use std::{
    ffi::c_int,
    fmt,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicPtr, Ordering},
        mpsc::Sender,
    },
    time::Duration,
};

use cudarc::{
    driver::CudaStream,
    nccl::sys::{ncclComm, ncclConfig_t, ncclUniqueId},
};

use crate::{
    Code, Handle, Nccl, NcclError, Result, UniqueId, Version,
    shared::{Shared, watch},
    version,
    wait::Seen,
};

/// How a communicator behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long any one wait may last; see [`Communicator::set_patience`].
    pub patience: Duration,
    /// How often a thread looks whether it has failed; without it only those who wait notice.
    pub watch: Option<Duration>,
    /// Leaves a communicator that has failed as it is, so that [`Communicator::shrink`] can make a smaller one of it; else it
    /// is aborted at once.
    pub keep_failed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { patience: Duration::from_secs(30), watch: Some(Duration::from_millis(20)), keep_failed: false }
    }
}

/// A group of ranks. Dropped without [`Communicator::finish`], it is aborted.
pub struct Communicator {
    pub(crate) shared: Arc<Shared>,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) options: Options,
    /// Ends the thread that watches when it is dropped.
    watching: Option<Sender<()>>,
}

/// `NCCL_CONFIG_UNDEF_INT`, `NCCL_API_MAGIC`, `NCCL_SPLIT_NOCOLOR`, `NCCL_SHRINK_ABORT`, and the version whose layout
/// [`ncclConfig_t`] has: an older library reads the fields that it knows.
const UNDEFINED: c_int = c_int::MIN;
const MAGIC: u32 = 0xcafe_beef;
const NO_COLOR: c_int = -1;
const SHRINK_ABORT: c_int = 1;
const LAYOUT: u32 = 23_000;

/// Non-blocking, all else as the library thinks best.
fn config() -> ncclConfig_t {
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: MAGIC,
        version: LAYOUT,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: std::ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
        graphUsageMode: UNDEFINED,
        numRmaCtx: UNDEFINED,
        maxP2pPeers: UNDEFINED,
    }
}

/// Where the library writes a new communicator, possibly from a thread of its own and after the call has returned. Never
/// given back unless that is known to be over.
struct Place(NonNull<AtomicPtr<ncclComm>>);

impl Place {
    fn new() -> Self {
        Self(NonNull::from(Box::leak(Box::default())))
    }

    /// For the library.
    fn pointer(&self) -> *mut *mut ncclComm {
        self.0.as_ptr().cast()
    }

    #[expect(unsafe_code, reason = "memory that was leaked")]
    fn get(&self) -> *mut ncclComm {
        // SAFETY: it is given back in `settled` only, which takes it away.
        unsafe { self.0.as_ref() }.load(Ordering::Acquire)
    }

    /// Nothing will be written any more.
    #[expect(unsafe_code, reason = "gives memory back that was leaked")]
    fn settled(self) {
        // SAFETY: it came from a box, this is its only owner, and the library is done with it.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Communicator {
    /// Meets the other ranks, which call this at the same time. The GPU is the one of `stream`, on which all that this
    /// communicator does is ordered.
    ///
    /// # Errors
    /// [`NcclError::Deadline`] when not all have come in time; [`NcclError::Blocking`] where the environment takes every deadline
    /// away; the library is missing, too old, or refuses.
    pub fn connect(
        stream: &Arc<CudaStream>,
        rank: usize,
        world: usize,
        id: &UniqueId,
        options: Options,
    ) -> Result<Self> {
        Self::connect_unless(stream, rank, world, id, options, || false)
    }

    /// The same, until `stop` says that it is in vain: for those who hear in another way that a rank will not come. It is asked
    /// again and again, and should not take long to say.
    ///
    /// # Errors
    /// As [`Self::connect`]; [`NcclError::Aborted`] when it is stopped.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn connect_unless(
        stream: &Arc<CudaStream>,
        rank: usize,
        world: usize,
        id: &UniqueId,
        options: Options,
        stop: impl Fn() -> bool,
    ) -> Result<Self> {
        let nccl = Nccl::open()?;
        if let Some(value) = &nccl.blocking {
            return Err(NcclError::Blocking { value: value.clone() });
        }
        let (Ok(number), Ok(ranks)) = (c_int::try_from(rank), c_int::try_from(world)) else {
            return Err(NcclError::Argument(format!("rank {rank} of {world} is beyond what NCCL counts")));
        };
        if rank >= world {
            return Err(NcclError::Argument(format!("there is no rank {rank} in a group of {world}")));
        }
        // The library takes the device of the thread.
        stream.context().bind_to_thread().map_err(NcclError::cuda("the GPU cannot be used"))?;
        let (place, mut config) = (Place::new(), config());
        let id = ncclUniqueId { internal: id.as_bytes().map(|b| b as std::ffi::c_char) };
        // SAFETY: the place outlives every write to it, and the configuration is one of the layout that it names.
        let code = Code(unsafe { (nccl.init)(place.pointer(), ranks, id, number, &mut config) });
        // One that is there all the same has failed before the call was over: it says why, and is aborted.
        if code != Code::SUCCESS && code != Code::IN_PROGRESS && place.get().is_null() {
            place.settled();
            return Err(nccl.refused("ncclCommInitRankConfig", code, std::ptr::null_mut()));
        }
        let going_on = || if stop() { Err(NcclError::Aborted) } else { Ok(()) };
        Self::adopt(nccl, stream, (rank, world), place, options, "the meeting of all ranks", going_on)
    }

    /// Waits for a communicator that the library is making, as long as `going_on` has no reason not to.
    fn adopt(
        nccl: &'static Nccl,
        stream: &Arc<CudaStream>,
        (rank, world): (usize, usize),
        place: Place,
        options: Options,
        what: &'static str,
        going_on: impl Fn() -> Result<()>,
    ) -> Result<Self> {
        // Some versions write the pointer before they return, some when they are done.
        let started = std::time::Instant::now();
        while place.get().is_null() {
            going_on()?;
            if started.elapsed() > options.patience {
                return Err(NcclError::Deadline { what, after: options.patience });
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        let shared = Shared::new(nccl, place.get(), options.keep_failed);
        // From here on whatever goes wrong ends it: there is no use in keeping one that has never been whole.
        let left = options.patience.saturating_sub(started.elapsed());
        let mut whole = Self { shared, stream: stream.clone(), rank, world, options, watching: None };
        let mut stopped = None;
        let met = whole.shared.wait(what, left, || match whole.shared.look() {
            Seen::Pending => going_on().map_or_else(
                |why| {
                    stopped = Some(why);
                    Seen::Gone
                },
                |()| Seen::Pending,
            ),
            seen => seen,
        });
        if let Some(why) = stopped.or(met.err()) {
            return Err(why);
        }
        whole.shared.settle();
        place.settled();
        whole.watching = options.watch.map(|period| watch(&whole.shared, period)).transpose()?;
        Ok(whole)
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Sets how long any one wait may last from here on. The first collectives take longer than those after them: the library
    /// connects ranks when it first has to.
    pub fn set_patience(&mut self, patience: Duration) {
        self.options.patience = patience;
    }

    /// What aborts it from another thread.
    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// Groups of those that give the same color, in the order of their keys; none for those that give no color. Every rank
    /// of this group calls it; which rank one becomes is asked of the others' colors and keys, so they are given: by rank.
    ///
    /// # Errors
    /// The library is older than 2.18, refuses, or not all have come in time.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn split(&self, colors_and_keys: &[(Option<u16>, i32)]) -> Result<Option<Self>> {
        let split = self.shared.nccl.split.ok_or_else(|| self.unsupported("ncclCommSplit", version::SPLIT))?;
        if colors_and_keys.len() != self.world {
            let given = colors_and_keys.len();
            return Err(NcclError::Argument(format!("{given} colors for {} ranks", self.world)));
        }
        let (color, key) = colors_and_keys[self.rank];
        let (place, mut config) = (Place::new(), config());
        let number = color.map_or(NO_COLOR, c_int::from);
        self.enqueue("ncclCommSplit", |comm| {
            // SAFETY: as in `connect`; the communicator is alive.
            unsafe { split(comm, number, key, place.pointer(), &mut config) }
        })?;
        let Some(seat) = seat(colors_and_keys, self.rank) else {
            place.settled();
            return Ok(None);
        };
        // What this one fails with, the new one is not made for.
        let (nccl, whole) = (self.shared.nccl, self.handle());
        let what = "the split of the ranks";
        Self::adopt(nccl, &self.stream, seat, place, self.options, what, || whole.check()).map(Some)
    }

    /// The group without the ranks of `gone`, called by those that are left. With `failed`, what this one was doing is
    /// aborted first; it has to be one of [`Options::keep_failed`].
    ///
    /// # Errors
    /// The library is older than 2.27, refuses, or not all have come in time.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn shrink(&self, gone: &[usize], failed: bool) -> Result<Self> {
        let shrink = self.shared.nccl.shrink.ok_or_else(|| self.unsupported("ncclCommShrink", version::SHRINK))?;
        if gone.iter().any(|rank| *rank >= self.world || *rank == self.rank) {
            let what = format!("ranks {gone:?} cannot leave a group of {} as rank {} sees it", self.world, self.rank);
            return Err(NcclError::Argument(what));
        }
        let left: Vec<usize> = (0..self.world).filter(|rank| !gone.contains(rank)).collect();
        let rank = left.iter().filter(|rank| **rank < self.rank).count();
        let mut gone: Vec<c_int> = (0..self.world).filter(|r| !left.contains(r)).map(|r| r as c_int).collect();
        let (place, mut config) = (Place::new(), config());
        let count = gone.len() as c_int;
        let mut call = |comm, how| {
            // SAFETY: as in `connect`; the communicator is alive, and the list has `count` entries.
            unsafe { shrink(comm, gone.as_mut_ptr(), count, place.pointer(), &mut config, how) }
        };
        if failed {
            // A failed parent never becomes ready again: only the child is waited for.
            let code = Code(self.shared.with(|comm| call(comm, SHRINK_ABORT))?);
            if code != Code::SUCCESS && code != Code::IN_PROGRESS {
                return Err(self.refused("ncclCommShrink", code));
            }
        } else {
            self.enqueue("ncclCommShrink", |comm| call(comm, 0))?;
        }
        let (nccl, seat, what) = (self.shared.nccl, (rank, left.len()), "the shrinking of the group");
        let whole = (!failed).then(|| self.handle());
        let going_on = || whole.as_ref().map_or(Ok(()), Handle::check);
        Self::adopt(nccl, &self.stream, seat, place, self.options, what, going_on)
    }

    /// Ends it in order; every rank calls it.
    ///
    /// # Errors
    /// What it did is not done in time, or has failed; it is gone all the same. Where it is the last step that is not, which the
    /// error calls `ncclCommDestroy`, the library hangs, and only the end of the process ends that.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn finish(self) -> Result<()> {
        let nccl = self.shared.nccl;
        // SAFETY: the communicator is alive.
        self.enqueue("ncclCommFinalize", |comm| unsafe { (nccl.finalize)(comm) })?;
        self.shared.end(nccl.destroy, "ncclCommDestroy", self.options.patience)
    }

    /// Makes a call that every rank makes, and waits until the library has taken it over.
    pub(crate) fn enqueue(
        &self,
        function: &'static str,
        call: impl FnOnce(cudarc::nccl::sys::ncclComm_t) -> c_int,
    ) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(NcclError::cuda("the GPU cannot be used"))?;
        match Code(self.shared.with(call)?) {
            Code::SUCCESS => Ok(()),
            Code::IN_PROGRESS => {
                self.shared.wait(function, self.options.patience, || self.shared.look())?;
                self.shared.settle();
                Ok(())
            }
            code => Err(self.shared.refused(function, code)),
        }
    }

    fn refused(&self, function: &'static str, code: Code) -> NcclError {
        let nccl = self.shared.nccl;
        self.shared.with(|comm| nccl.refused(function, code, comm)).unwrap_or_else(|gone| gone)
    }

    fn unsupported(&self, function: &'static str, since: Version) -> NcclError {
        NcclError::Unsupported { function, since, found: self.shared.nccl.version() }
    }

    /// Waits until all that was asked for so far is done, and says whether it can be used: the gate before results.
    ///
    /// # Errors
    /// It failed, was aborted, or took too long: what lies in the buffers is worth nothing.
    pub fn complete(&self) -> Result<()> {
        let cuda = NcclError::cuda;
        self.stream.context().bind_to_thread().map_err(cuda("the GPU cannot be used"))?;
        let event = self.stream.record_event(None).map_err(cuda("no event on the stream"))?;
        let mut broken = None;
        let result = self.shared.wait("a collective", self.options.patience, || {
            // First the stream, then the communicator: an abort in between is seen, and one that ended the stream's work was
            // before both.
            let done = event.try_is_complete().unwrap_or_else(|e| {
                broken = Some(e);
                true
            });
            match self.shared.look() {
                Seen::Ready if !done => Seen::Pending,
                seen => seen,
            }
        });
        match broken {
            Some(e) => Err(cuda("the stream has failed")(e)),
            None => result,
        }
    }
}

/// Which rank of how many one becomes in a split.
fn seat(colors_and_keys: &[(Option<u16>, i32)], rank: usize) -> Option<(usize, usize)> {
    let (color, key) = colors_and_keys[rank];
    color?;
    let mine = colors_and_keys.iter().enumerate().filter(|(_, (c, _))| *c == color);
    let before = mine.clone().filter(|(r, (_, k))| (*k, *r) < (key, rank)).count();
    Some((before, mine.count()))
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.watching = None;
        // Nothing is left to abort after `finish`, or where somebody has done it. Who gives up does not wait for long.
        if self.shared.with(|_| ()).is_ok() {
            let _ = self.shared.abort(Duration::from_secs(2));
        }
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Communicator").field("rank", &self.rank).field("world", &self.world).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_split_are_counted_by_key_and_then_by_rank() {
        let all = [(Some(1), 5), (Some(2), 0), (Some(1), 1), (None, 9), (Some(1), 5)];
        let seats: Vec<_> = (0..5).map(|rank| seat(&all, rank)).collect();
        assert_eq!(seats, [Some((1, 3)), Some((0, 1)), Some((0, 3)), None, Some((2, 3))]);
    }
}
