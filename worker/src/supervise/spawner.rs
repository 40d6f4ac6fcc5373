//! Starts processes from one thread that lives as long as the agent: the parent-death signal is tied to the thread that
//! forked, and threads of a pool come and go.

use std::io;

use tokio::{
    process::{Child, Command},
    runtime::Handle,
    sync::{mpsc, oneshot},
};

type Wanted = (Command, oneshot::Sender<io::Result<Child>>);

/// The thread.
pub struct Spawner {
    wanted: mpsc::UnboundedSender<Wanted>,
}

impl Spawner {
    /// Starts the thread; processes belong to the runtime of `handle`.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(handle: Handle) -> io::Result<Self> {
        let (wanted, mut commands) = mpsc::unbounded_channel::<Wanted>();
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            let _inside = handle.enter();
            while let Some((mut command, reply)) = commands.blocking_recv() {
                // Whoever wanted it may have gone; the child is killed when it is dropped.
                let _ = reply.send(command.spawn());
            }
        })?;
        Ok(Self { wanted })
    }

    /// Starts a process.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (reply, child) = oneshot::channel();
        let gone = || io::Error::other("the agent stops");
        self.wanted.send((command, reply)).map_err(|_| gone())?;
        child.await.unwrap_or_else(|_| Err(gone()))
    }
}
