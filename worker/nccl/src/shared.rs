//! What the threads around one communicator share: the pointer, until somebody aborts it, and why it failed.

use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    time::Duration,
};

use cudarc::nccl::sys::ncclComm_t;

use crate::{
    Code, Nccl, NcclError, Result,
    api::OnComm,
    wait::{Next, Seen, Wait},
};

/// A communicator of the library, alive.
struct Raw(ncclComm_t);

#[expect(unsafe_code, reason = "a pointer that only the library looks behind")]
// SAFETY: NCCL lets any thread call it with a communicator, one at a time; the mutex around it sees to that. What an older one
// keeps in memory of the thread that has made a call is let go of by `settle` when the call is done; where it is aborted
// instead, the thread waits for that.
unsafe impl Send for Raw {}

/// The shared part.
pub(crate) struct Shared {
    pub nccl: &'static Nccl,
    /// None once it is aborted or destroyed: nobody can use it after that.
    comm: Mutex<Option<Raw>>,
    /// Whether the library is taking it back, and what tells that it has.
    ending: (Mutex<bool>, Condvar),
    /// The first failure.
    failure: OnceLock<NcclError>,
    /// Whether a failed communicator is left as it is, for [`crate::Communicator::shrink`].
    keep: bool,
}

/// How long a failed communicator may take to be aborted before whoever saw the failure goes on without waiting for that.
const ABORT: Duration = Duration::from_secs(2);

impl Shared {
    pub fn new(nccl: &'static Nccl, comm: ncclComm_t, keep: bool) -> Arc<Self> {
        let ending = (Mutex::new(false), Condvar::new());
        Arc::new(Self { nccl, comm: Mutex::new(Some(Raw(comm))), ending, failure: OnceLock::new(), keep })
    }

    /// Calls the library. Its calls on a non-blocking communicator return at once, so the lock is held for moments.
    ///
    /// # Errors
    /// Why the communicator is gone.
    pub fn with<T>(&self, call: impl FnOnce(ncclComm_t) -> T) -> Result<T> {
        let comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner);
        comm.as_ref().map(|raw| call(raw.0)).ok_or_else(|| self.why())
    }

    /// Why it is gone.
    fn why(&self) -> NcclError {
        self.failure.get().cloned().unwrap_or(NcclError::Aborted)
    }

    /// How it stands.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn look(&self) -> Seen {
        let seen = self.with(|comm| {
            let mut state = 0;
            // SAFETY: a live communicator; writes one int.
            let asked = unsafe { (self.nccl.async_error)(comm, &mut state) };
            if asked == Code::SUCCESS.0 { Code(state) } else { Code(asked) }
        });
        match seen {
            Ok(Code::SUCCESS) => Seen::Ready,
            Ok(Code::IN_PROGRESS) => Seen::Pending,
            Ok(code) => Seen::Failed(code),
            Err(_) => Seen::Gone,
        }
    }

    /// Has the library let go of this thread, which has made a call and seen it done. In older ones, what works on a call lies in
    /// memory of the thread that made it, and is joined there by the next call only; the thread may have ended by then.
    ///
    /// Who joins is known from NVIDIA's sources (`src/group.cc` and `src/init.cc` of <https://github.com/NVIDIA/nccl>) and was
    /// not tried on a GPU: in 2.14 and 2.15 a group of the same thread that begins; from 2.16 to 2.25.1 whatever asks a
    /// communicator for something, as `ncclCommCount` does; from 2.26.2 on already the look that has seen the call done.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn settle(&self) {
        let nccl = self.nccl;
        // What may be wrong with it is seen by the next look.
        let _ = self.with(|comm| {
            let mut ranks = 0;
            // SAFETY: a live communicator, of which one int is asked, and a group of no calls.
            unsafe {
                // In this order for all of them. From 2.23.4 to 2.25.1 a group that ends before its thread has joined takes what
                // the last one left for its own, and follows a pointer there that points nowhere.
                let asked = (nccl.count)(comm, &mut ranks);
                if asked == Code::SUCCESS.0 && (nccl.group_start)() == Code::SUCCESS.0 {
                    (nccl.group_end)();
                }
            }
        });
    }

    /// Waits until `look` says that it is done. A communicator that fails, or is late, is aborted.
    ///
    /// # Errors
    /// It failed, was late, or somebody has aborted it.
    pub fn wait(self: &Arc<Self>, what: &'static str, patience: Duration, look: impl FnMut() -> Seen) -> Result<()> {
        match Wait::new(std::time::Instant::now(), patience).run(look) {
            Next::Ready => Ok(()),
            Next::Gone => {
                // What was asked for is at work until then, maybe in memory of this thread.
                self.until_ended(ABORT);
                Err(self.why())
            }
            Next::Failed(code) => Err(self.fail(code)),
            Next::Late | Next::Again(_) => Err(self.give_up(NcclError::Deadline { what, after: patience })),
        }
    }

    /// Remembers a failure that the communicator has reported, and aborts it.
    pub fn fail(self: &Arc<Self>, code: Code) -> NcclError {
        let words = self.with(|comm| self.nccl.words(code, comm)).unwrap_or_default();
        self.give_up(NcclError::reported(code, words))
    }

    /// Why a call on it was answered with a code. One that has failed by itself, also a moment ago, has nothing else to answer:
    /// then that is the reason, whatever was called.
    pub fn refused(self: &Arc<Self>, function: &'static str, code: Code) -> NcclError {
        match self.look() {
            Seen::Failed(failed) => self.fail(failed),
            Seen::Gone => self.why(),
            Seen::Ready | Seen::Pending if code == Code::REMOTE => self.fail(code),
            Seen::Ready | Seen::Pending => {
                self.with(|comm| self.nccl.refused(function, code, comm)).unwrap_or_else(|gone| gone)
            }
        }
    }

    fn give_up(self: &Arc<Self>, error: NcclError) -> NcclError {
        let _ = self.failure.set(error);
        if !self.keep {
            // What was aborted is of no further interest; what hangs in an abort is told by the next call.
            let _ = self.abort(ABORT);
        }
        self.why()
    }

    /// Takes the communicator away from everybody and ends what it does on the device.
    ///
    /// # Errors
    /// As [`Self::end`].
    pub fn abort(self: &Arc<Self>, within: Duration) -> Result<()> {
        self.end(self.nccl.abort, "ncclCommAbort", within)
    }

    /// Takes the communicator away from everybody and gives it back, if it is there still, by what the library calls
    /// `function`. Where the system has no thread to give, this one does it, and waits for as long as it takes: whatever is
    /// asked of the device next would have to wait for the same.
    ///
    /// # Errors
    /// It was not done in time. It goes on in a thread of its own, which cannot be stopped: end the process.
    pub fn end(self: &Arc<Self>, how: OnComm, function: &'static str, within: Duration) -> Result<()> {
        let (done, wait) = mpsc::channel();
        let shared = self.clone();
        let started = std::thread::Builder::new().name("nccl-end".into()).spawn(move || {
            shared.end_here(how);
            let _ = done.send(());
        });
        if started.is_err() {
            self.end_here(how);
            return Ok(());
        }
        wait.recv_timeout(within).map_err(|_| NcclError::Deadline { what: function, after: within })
    }

    /// Gives the communicator back, if it is there still.
    #[expect(unsafe_code, reason = "calls the library")]
    fn end_here(&self, how: OnComm) {
        let mut comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(raw) = comm.take() else { return };
        // Before anybody sees that it is gone.
        self.set_ending(true);
        drop(comm);
        // SAFETY: it was alive, and nobody can get at it any more. Whatever the answer, it is not used again.
        let _ = unsafe { how(raw.0) };
        self.set_ending(false);
    }

    fn set_ending(&self, ending: bool) {
        let (state, changed) = &self.ending;
        *state.lock().unwrap_or_else(PoisonError::into_inner) = ending;
        changed.notify_all();
    }

    /// Waits while somebody gives the communicator back, for so long at most.
    fn until_ended(&self, within: Duration) {
        let (state, changed) = &self.ending;
        let ending = state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(changed.wait_timeout_while(ending, within, |ending| *ending));
    }
}

/// Looks at a communicator every `period`, so that a failure ends what waits on the device even while nobody asks. Ends
/// when the sender is dropped.
pub(crate) fn watch(shared: &Arc<Shared>, period: Duration) -> Result<Sender<()>> {
    let (alive, over) = mpsc::channel::<()>();
    let watched = Arc::downgrade(shared);
    let looking = move || {
        while over.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
            let Some(shared) = watched.upgrade() else { return };
            match shared.look() {
                Seen::Pending | Seen::Ready => {}
                Seen::Gone => return,
                Seen::Failed(code) => {
                    shared.fail(code);
                    return;
                }
            }
        }
    };
    let started = std::thread::Builder::new().name("nccl-watch".into()).spawn(looking);
    started.map_err(|e| NcclError::Thread(e.to_string()))?;
    Ok(alive)
}

/// Ends a communicator from any thread.
#[derive(Clone)]
pub struct Handle(pub(crate) Arc<Shared>);

impl Handle {
    /// Aborts it: whoever waits for it, or uses it next, hears [`NcclError::Aborted`]. More than once is no error.
    ///
    /// # Errors
    /// [`NcclError::Deadline`]: the library hangs, and only the end of the process ends that.
    pub fn abort(&self, within: Duration) -> Result<()> {
        self.0.abort(within)
    }

    /// Whether it is whole.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check(&self) -> Result<()> {
        match self.0.look() {
            Seen::Ready | Seen::Pending => Ok(()),
            Seen::Gone => Err(self.0.why()),
            Seen::Failed(code) => Err(self.0.fail(code)),
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.0.look()).finish()
    }
}
