//! GPUs are looked for and tried by processes of their own: a driver that hangs or falls over takes nobody with it, and what it
//! holds of a GPU goes when the process does.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, ExitCode, Output, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tl_proto::hardware::{Device, Gpu, Hardware};

use super::inventory;
use crate::rank::gpu;

/// How long looking may take, and how long trying, all GPUs at a time: contexts are made, cold libraries loaded, kernels
/// compiled.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// What such a process is to do.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Try this GPU, instead of looking which there are
    #[arg(long = "try", value_name = "GPU")]
    gpu: Option<u32>,
    /// Say which files of NVIDIA's libraries are taken, instead of looking which GPUs there are
    #[arg(long, conflicts_with = "gpu")]
    libraries: bool,
}

/// What came of trying a GPU.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Tried {
    /// Why it does not work; empty if it does.
    problem: String,
    /// Which numbers it computes.
    numbers: String,
}

/// Is such a process: prints one line of JSON.
pub fn main(args: &Args) -> ExitCode {
    crate::supervise::orphans::die_with_parent();
    let said = match args.gpu {
        None if args.libraries => serde_json::to_string(&gpu::look().libraries),
        None => serde_json::to_string(&inventory::with(gpu::look())),
        Some(index) => serde_json::to_string(&tried(index)),
    };
    match said {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Has a GPU do a small step of training, and whatever tells its numbers from those of others.
fn tried(index: u32) -> Tried {
    let opened = gpu::works(index).and_then(|_| gpu::Place::open(Device::Cuda(index)));
    match opened {
        Ok(place) => {
            let numbers = place.numbers().iter().take(8).map(|b| format!("{b:02x}")).collect();
            Tried { numbers, ..Tried::default() }
        }
        Err(e) => Tried { problem: e.to_string(), ..Tried::default() },
    }
}

/// What a process sees of this machine that was told to look.
///
/// # Errors
/// How it ended instead of saying so, as the end of a sentence about it.
pub(crate) fn look(command: Command, limit: Duration) -> Result<Hardware, String> {
    Asked::start(command)?.answer(Instant::now() + limit, limit)
}

/// Tries GPUs, each by a process that `command` makes, and says in each what came of it. One that has not ended within the
/// time has failed.
pub(crate) fn each(gpus: Vec<&mut Gpu>, command: impl Fn(u32) -> Command, limit: Duration) {
    let until = Instant::now() + limit;
    let asked: Vec<_> = gpus.into_iter().map(|gpu| (Asked::start(command(gpu.index)), gpu)).collect();
    for (asked, gpu) in asked {
        let said = asked.and_then(|asked| asked.answer::<Tried>(until, limit));
        let silent = |why: String| {
            let problem = format!("GPU {} has not shown that it works: the process that tried it {why}", gpu.index);
            Tried { problem, ..Tried::default() }
        };
        let said = said.unwrap_or_else(silent);
        (gpu.problem, gpu.numbers) = (said.problem, said.numbers);
    }
}

/// A process that was told to say something.
struct Asked {
    id: u32,
    output: Receiver<std::io::Result<Output>>,
}

impl Asked {
    fn start(mut command: Command) -> Result<Self, String> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let child = child.map_err(|e| format!("cannot be started: {e}"))?;
        let (id, (done, output)) = (child.id(), mpsc::channel());
        // Not waited for: a driver that hangs in the kernel must not hang us.
        std::thread::spawn(move || done.send(child.wait_with_output()));
        Ok(Self { id, output })
    }

    /// The last line of what it says that is an answer; before and after it there may be words of libraries.
    fn answer<T: DeserializeOwned>(self, until: Instant, limit: Duration) -> Result<T, String> {
        let Ok(output) = self.output.recv_timeout(until.saturating_duration_since(Instant::now())) else {
            let _ = kill(Pid::from_raw(self.id as i32), Signal::SIGKILL);
            return Err(format!("has not ended within {} s", limit.as_secs()));
        };
        let output = output.map_err(|e| format!("cannot be waited for: {e}"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let answer = said.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        match (output.status.signal(), output.status.code()) {
            (Some(signal), _) => Err(format!("died of signal {signal}")),
            (None, Some(0)) => answer.ok_or_else(|| "said something odd: nothing that is an answer".to_owned()),
            (None, code) => Err(format!("ended with code {}", code.unwrap_or(-1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]).stderr(Stdio::null());
        command
    }

    #[test]
    fn a_gpu_that_fails_hangs_or_kills_its_process_is_left_out_and_takes_no_other_with_it() {
        let works = |index: u32| {
            shell(match index {
                0 => r#"echo 'NCCL version 2.27'; echo '{"problem": "", "numbers": "0123"}'"#,
                1 => r#"echo '{"problem": "GPU 1 is broken", "numbers": ""}'"#,
                2 => "kill -SEGV $$",
                3 => r#"echo '{"problem": "", "numbers": "0123"}'; exit 7"#,
                4 => "echo hello",
                _ => "exec sleep 600",
            })
        };
        let mut gpus: Vec<Gpu> = (0..6).rev().map(|index| Gpu { index, ..Gpu::default() }).collect();
        each(gpus.iter_mut().collect(), works, Duration::from_secs(2));
        let problem = |index: usize| gpus[5 - index].problem.as_str();
        assert_eq!((problem(0), gpus[5].numbers.as_str(), problem(1)), ("", "0123", "GPU 1 is broken"));
        for (index, why) in [(2, "died of signal 11"), (3, "ended with code 7"), (5, "has not ended within 2 s")] {
            let want = format!("GPU {index} has not shown that it works: the process that tried it {why}");
            assert_eq!(problem(index), want);
        }
        assert!(problem(4).contains("said something odd"), "{}", problem(4));
        assert!(gpus[..5].iter().all(|gpu| gpu.numbers.is_empty()), "{gpus:?}");
    }

    #[test]
    fn a_machine_is_looked_at_by_another_process_whatever_becomes_of_it() {
        let found = look(shell(r#"echo '{"cores": 3, "note": "no driver"}'"#), LIMIT).unwrap();
        assert_eq!((found.cores, found.note.as_str()), (3, "no driver"));
        assert_eq!(look(shell("exec sleep 600"), Duration::from_secs(1)).unwrap_err(), "has not ended within 1 s");
        assert_eq!(look(shell("kill -ABRT $$"), LIMIT).unwrap_err(), "died of signal 6");
        let why = look(Command::new("/no/such/program"), LIMIT).unwrap_err();
        assert!(why.starts_with("cannot be started: "), "{why}");
    }
}
