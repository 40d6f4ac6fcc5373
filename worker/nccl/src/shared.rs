//! What the threads around one communicator share: the pointer, until somebody aborts it, and why it failed.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    time::Duration,
};

use cudarc::nccl::sys::ncclComm_t;

use crate::{
    Code, Nccl, NcclError, Result,
    wait::{Next, Seen, Wait},
};

/// A communicator of the library, alive.
struct Raw(ncclComm_t);

#[expect(unsafe_code, reason = "a pointer that only the library looks behind")]
// SAFETY: NCCL lets any thread call it with a communicator, one at a time; the mutex around it sees to that.
unsafe impl Send for Raw {}

/// The shared part.
pub(crate) struct Shared {
    pub nccl: &'static Nccl,
    /// None once it is aborted or destroyed: nobody can use it after that.
    comm: Mutex<Option<Raw>>,
    /// The first failure.
    failure: OnceLock<NcclError>,
    /// Whether a failed communicator is left as it is, for [`crate::Communicator::shrink`].
    keep: bool,
}

/// How long a failed communicator may take to be aborted before whoever saw the failure goes on without waiting for that.
const ABORT: Duration = Duration::from_secs(2);

impl Shared {
    pub fn new(nccl: &'static Nccl, comm: ncclComm_t, keep: bool) -> Arc<Self> {
        Arc::new(Self { nccl, comm: Mutex::new(Some(Raw(comm))), failure: OnceLock::new(), keep })
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

    /// Waits until `look` says that it is done. A communicator that fails, or is late, is aborted.
    ///
    /// # Errors
    /// It failed, was late, or somebody has aborted it.
    pub fn wait(self: &Arc<Self>, what: &'static str, patience: Duration, look: impl FnMut() -> Seen) -> Result<()> {
        match Wait::new(std::time::Instant::now(), patience).run(look) {
            Next::Ready => Ok(()),
            Next::Gone => Err(self.why()),
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
    /// It was not done in time. It goes on in a thread of its own, which cannot be stopped: end the process.
    pub fn abort(self: &Arc<Self>, within: Duration) -> Result<()> {
        let (done, wait) = mpsc::channel();
        let shared = self.clone();
        let started = std::thread::Builder::new().name("nccl-abort".into()).spawn(move || {
            shared.end(shared.nccl.abort);
            let _ = done.send(());
        });
        started.map_err(|e| NcclError::Thread(e.to_string()))?;
        wait.recv_timeout(within).map_err(|_| NcclError::Deadline { what: "ncclCommAbort", after: within })
    }

    /// Gives the communicator back, if it is there still.
    #[expect(unsafe_code, reason = "calls the library")]
    pub fn end(&self, how: unsafe extern "C" fn(ncclComm_t) -> std::ffi::c_int) {
        let taken = self.comm.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(raw) = taken {
            // SAFETY: it was alive, and nobody can get at it any more. Whatever the answer, it is not used again.
            let _ = unsafe { how(raw.0) };
        }
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
