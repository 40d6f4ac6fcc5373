//! How a rank is started: by the very program that the agent is.

use std::{ffi::OsString, io, os::unix::process::CommandExt, path::PathBuf, process};

use tokio::process::Command;

/// The running program, wherever its file has gone.
const OURSELVES: &str = "/proc/self/exe";

/// What every program that runs agents takes for a process that looks at GPUs; see [`crate::machine::look`].
const LOOK: &str = "look";

/// What names the folder of caches to it, as to an agent.
const CACHE: &str = "TL_CACHE";

/// The command line of a rank.
#[derive(Clone, Debug)]
pub struct RankCommand {
    /// What is run.
    program: PathBuf,
    /// What it is called.
    name: PathBuf,
    arguments: Vec<OsString>,
    /// The folder of the node's caches.
    cache: Option<PathBuf>,
}

impl RankCommand {
    /// This program with `arguments`; the running one, not what its file has become: an upgrade in place must not mix
    /// builds in a gang.
    ///
    /// # Errors
    /// The system does not tell which program this is.
    pub fn ourselves(arguments: Vec<OsString>) -> io::Result<Self> {
        let name = std::env::current_exe()?;
        let program = if cfg!(target_os = "linux") { PathBuf::from(OURSELVES) } else { name.clone() };
        Ok(Self { program, name, arguments, cache: None })
    }

    /// The same on a node that has its caches in a folder: what is compiled for a look at its GPUs is kept there.
    pub fn caching(self, cache: PathBuf) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// The bytes of the program.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        std::fs::read(&self.program)
    }

    /// Ready to be started.
    pub fn to_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg0(&self.name).args(&self.arguments);
        crate::rank::tune(command.as_std_mut());
        command
    }

    /// The same program, to look which GPUs there are, or to try one of them.
    pub fn to_look(&self, gpu: Option<u32>) -> process::Command {
        let mut command = process::Command::new(&self.program);
        command.arg0(&self.name).arg(LOOK).args(gpu.map(|index| format!("--try={index}")));
        command.envs(self.cache.iter().map(|cache| (CACHE, cache)));
        command
    }
}
