//! The project's side of `tests/bench/run`: prepares one piece of work, then does it as often as it is told to.
//!
//! It says `{"ready": true}` when it is warm, or `{"missing": WHY}` where it cannot do the work; to each line `go N` on its
//! standard input it answers with the seconds that one of N repetitions took, to `memory` with the bytes that it needed at its
//! worst: on top of what it began with, or of a GPU those of its arrays. It ends with its input.

mod harness;
mod input;
mod reduce;
mod steps;

use std::{os::unix::process::CommandExt, path::PathBuf};

use clap::{Parser, ValueEnum};
use tl_engine::{environment, num::pool};
use tl_proto::hardware::Device;

use crate::harness::Harness;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Work {
    /// Training steps: forward, backward, AdamW.
    Step,
    /// Ten epochs of a new head on photos, frozen MobileNetV2 below.
    HeadOnly,
    /// JPEG files to network inputs.
    Input,
    /// The sum of numbers over two ranks.
    Allreduce,
}

/// What the harness wants to know.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// What to measure.
    work: Work,
    /// Threads of a rank.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Whose steps.
    #[arg(long, default_value = "")]
    backbone: String,
    /// What steps compute on, `cpu` or a GPU as in `cuda:0`.
    #[arg(long, default_value = "cpu", value_parser = device)]
    device: Device,
    /// What their products compute with, `f32`, `tf32` or `bf16`.
    #[arg(long, default_value = "f32")]
    precision: String,
    /// Side of their pictures, or the most tokens of a text [default: the network's]
    #[arg(long)]
    input: Option<u32>,
    /// Samples of each class that an epoch has. What a GPU keeps between steps comes down after it.
    #[arg(long, default_value_t = 8)]
    samples: usize,
    /// Steps at the beginning that nobody counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    warm: u32,
    /// Samples of a step, over all ranks.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Grains of a step.
    #[arg(long, default_value_t = 1)]
    grains: usize,
    /// Ranks.
    #[arg(long, default_value_t = 1)]
    world: usize,
    /// Elements of the all-reduce.
    #[arg(long, default_value_t = 1000)]
    elements: usize,
    /// A folder with photos and weights.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where rank 0 listens; makes this process rank 1.
    #[arg(long)]
    join: Option<String>,
}

fn device(name: &str) -> Result<Device, String> {
    Device::parse(name).ok_or_else(|| format!("`{name}` is neither `cpu` nor a GPU as in `cuda:0`"))
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if !environment::is_tuned() {
        // A rank is started so by its agent.
        let mut command = std::process::Command::new(std::env::current_exe()?);
        environment::tune(command.args(std::env::args_os().skip(1)));
        return Err(command.exec().into());
    }
    let mut harness = Harness::new();
    pool::init(options.threads);
    if options.work == Work::Step && tl_engine::backbone::find(&options.backbone).is_none() {
        return harness.missing(&format!("not built: there is no backbone `{}`", options.backbone));
    }
    match options.work {
        Work::Step => steps::steps(&options, harness),
        Work::HeadOnly => steps::head_only(&options, &mut harness),
        Work::Input => input::images(&options, &mut harness),
        Work::Allreduce => reduce::all_reduce(&options, &mut harness),
    }
}

impl Options {
    /// The folder of the photos, which the harness looks for.
    fn data(&self) -> anyhow::Result<&std::path::Path> {
        self.data.as_deref().ok_or_else(|| anyhow::anyhow!("--data is missing"))
    }
}
