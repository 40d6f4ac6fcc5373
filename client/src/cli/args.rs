//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "Exit codes: 0 done, 1 the job failed, 2 wrong input, 3 the job was cancelled,
4 the coordinator cannot be reached, 5 the coordinator refuses, 130 interrupted.";

/// Submits, watches and fetches transfer-learning jobs.
#[derive(Parser)]
#[command(name = "tlctl", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
pub struct Global {
    /// The coordinator's address [default: 127.0.0.1:7070]
    #[arg(long, global = true, env = "TL_COORDINATOR")]
    pub coordinator: Option<String>,
    /// The coordinator's user token
    #[arg(long, global = true, env = "TL_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// How to print
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// One JSON object per line, on standard output
    Json,
}

#[derive(Subcommand)]
pub enum Command {
    /// Submit a job file
    Submit(Submit),
    /// Follow a job to its end
    Watch(JobId),
    /// List jobs, newest first
    Ls(Ls),
    /// Show everything about a job
    Show(JobId),
    /// Say in one sentence why a job is where it is
    Why(JobId),
    /// Print what the ranks of a job have logged
    Logs(Logs),
    /// End a job
    Cancel(JobId),
    /// Let a failed or cancelled job go on from its newest checkpoint
    Retry(JobId),
    /// Forget a finished job, with its logs and files
    Rm(JobId),
    /// Bring the files of a job here
    Fetch(Fetch),
    /// Say what a job would do, without doing it
    Plan(JobFile),
    /// Push data sets to the cluster, list and forget them
    #[command(subcommand)]
    Data(DataCommand),
    /// List nodes
    Nodes,
    /// Empty a node, or use it again
    Drain(Drain),
    /// Check a job file
    Check(JobFile),
    /// List what can be trained, how and on what
    Catalog,
    /// Print the JSON Schema of a job file, for editors and programs
    Schema,
    /// Write a job file to start from
    Init(Init),
    /// Print completions for a shell
    Completions(Completions),
    /// Say what images, texts, sounds or drawings are, by a finished model
    #[cfg(feature = "local")]
    Predict(Predict),
    /// Score a finished model on a data set
    #[cfg(feature = "local")]
    Evaluate(Evaluate),
    /// Run the first steps of a job here on one, two and three ranks, and compare them
    #[cfg(feature = "local")]
    Verify(Verify),
    /// Run a whole cluster on this machine
    #[cfg(feature = "local")]
    Local(Local),
    /// Be a coordinator, as `tl-coordinator` is
    #[cfg(feature = "local")]
    #[command(hide = true)]
    Coordinator(tl_coordinator::cli::Args),
    /// Be an agent, as `tl-worker` is
    #[cfg(feature = "local")]
    #[command(hide = true)]
    Worker(tl_worker::cli::Args),
    /// Be a rank
    #[cfg(feature = "local")]
    #[command(hide = true)]
    Rank,
    /// Look at GPUs for an agent
    #[cfg(feature = "local")]
    #[command(hide = true)]
    Look(tl_worker::machine::look::Args),
}

#[derive(Args)]
pub struct JobId {
    /// Id of the job, or the beginning of it
    pub job: String,
}

#[derive(Args)]
pub struct JobFile {
    /// The job file
    pub file: PathBuf,
    /// Replace a key: `--set stage.0.lr=0.01`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Args)]
pub struct Submit {
    #[command(flatten)]
    pub job: JobFile,
    /// Follow it to its end
    #[arg(long)]
    pub watch: bool,
}

#[derive(Args)]
pub struct Ls {
    /// Only jobs that are not over
    #[arg(long)]
    pub active: bool,
    /// Most jobs to list
    #[arg(long, default_value_t = 50)]
    pub limit: u32,
}

#[derive(Args)]
pub struct Logs {
    /// Id of the job, or the beginning of it
    pub job: String,
    /// Go on until the job is over
    #[arg(short, long)]
    pub follow: bool,
}

#[derive(Args)]
pub struct Fetch {
    /// Id of the job, or the beginning of it
    pub job: String,
    /// Folder for the files [default: tl-out/JOB]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Only the files of this step of a pipeline
    #[arg(long)]
    pub step: Option<String>,
}

#[derive(Subcommand)]
pub enum DataCommand {
    /// Push a folder (or a file), and print the name to use for it in a job
    Push(DataPush),
    /// List data sets, newest first
    Ls,
    /// Forget a data set that no job needs any more
    Rm {
        /// Its label, its name, or the first six digits of it or more
        data: String,
    },
}

#[derive(Args)]
pub struct DataPush {
    /// The folder
    pub path: PathBuf,
    /// A label [default: the name of the folder]
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Args)]
pub struct Drain {
    /// Id or name of the node
    pub node: String,
    /// Use it again
    #[arg(long)]
    pub undo: bool,
}

#[derive(Args)]
pub struct Init {
    /// Which one; without it they are listed
    pub recipe: Option<String>,
    /// Folder to write into
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
}

#[derive(Args)]
pub struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}

#[cfg(feature = "local")]
#[derive(Args)]
pub struct OnDevice {
    /// What to compute on: cpu, cuda (or a GPU by its number, as in cuda:1), or auto, the first GPU that works, else the CPU
    #[arg(long, default_value = "auto")]
    pub device: tl_worker::machine::device::Choice,
}

#[cfg(feature = "local")]
#[derive(Args)]
pub struct Predict {
    /// The model's file, or its folder
    pub model: PathBuf,
    /// Images, or files with text, sound or one drawing, as the model takes
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    /// Take files of texts as data of the format `text`, without its labels: each line is a text
    #[arg(long, conflicts_with = "support")]
    pub lines: bool,
    /// A parameter of the format, for `--lines`: `--param text=sentence`
    #[arg(long = "param", value_name = "KEY=VALUE", requires = "lines")]
    pub params: Vec<String>,
    /// Classes in place of the model's own: a folder with a folder of a few samples for each, or with one file for each;
    /// for texts and drawings, lines that say their class
    #[arg(long, value_name = "FOLDER")]
    pub support: Option<PathBuf>,
    /// Take the negatives of the images: dark ink on light paper, say, where the model knows light ink on dark
    #[arg(long)]
    pub invert: bool,
    /// Most classes to print of each
    #[arg(long, default_value_t = 3)]
    pub top: usize,
    #[command(flatten)]
    pub on: OnDevice,
}

#[cfg(feature = "local")]
#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    pub job: JobFile,
    /// Steps of each stage, 2 to 100; each is run seven times, and of one rank a checkpoint of each is kept meanwhile
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub steps: u32,
    #[command(flatten)]
    pub on: OnDevice,
}

#[cfg(feature = "local")]
#[derive(Args)]
pub struct Evaluate {
    /// The model's file, or its folder
    pub model: PathBuf,
    /// The data set: a folder, a list of files (with `--param root=FOLDER`, paths of that), or a file, as its format has it
    pub data: String,
    /// Which of several tasks [default: the first]
    #[arg(long, conflicts_with_all = ["way", "shot", "query", "episodes"])]
    pub task: Option<String>,
    /// Its format [default: that of samples for the model; of images, image_folder]
    #[arg(long)]
    pub format: Option<String>,
    /// A parameter of the format: `--param depth=2`
    #[arg(long = "param", value_name = "KEY=VALUE")]
    pub params: Vec<String>,
    /// Seed of the job, for generated data and few-shot episodes
    #[arg(long, default_value_t = 0)]
    pub seed: u32,
    /// How many samples may fail to decode; they are left out
    #[arg(long, default_value_t = 0, conflicts_with_all = ["runs", "pairs"])]
    pub skip_bad: u32,
    /// Only these classes, as `data.val_classes` names them: `--classes 'Greek/*'`
    #[arg(long, value_name = "CLASS")]
    pub classes: Vec<String>,
    /// Judge by few-shot episodes of so many classes [default: what a job of `fewshot` said]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub way: Option<u32>,
    /// Samples of each class that an episode shows
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub shot: Option<u32>,
    /// Samples of each class that it asks for
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub query: Option<u32>,
    /// Episodes
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub episodes: Option<u32>,
    /// The data set is one-shot runs such as Omniglot's: folders with `training/` and `class_labels.txt`, an episode each
    #[arg(long, conflicts_with_all = ["task", "classes", "way", "shot", "query", "episodes"])]
    pub runs: bool,
    /// What goes with the samples, for two networks that learned from pairs: how many of either find their other half
    #[arg(long, value_name = "DATA", conflicts_with_all = ["task", "way", "shot", "query", "episodes", "runs"])]
    pub pairs: Option<String>,
    /// Its format [default: that of samples for the second network]
    #[arg(long, requires = "pairs")]
    pub pairs_format: Option<String>,
    /// A parameter of that format
    #[arg(long = "pairs-param", value_name = "KEY=VALUE", requires = "pairs")]
    pub pairs_params: Vec<String>,
    /// What makes them pairs, as in `data.pairs.by`
    #[arg(long, default_value = "name", value_parser = ["name", "label", "order"], requires = "pairs")]
    pub pairs_by: String,
    #[command(flatten)]
    pub on: OnDevice,
}

#[cfg(feature = "local")]
#[derive(Args)]
pub struct Local {
    #[command(subcommand)]
    pub command: LocalCommand,
}

#[cfg(feature = "local")]
#[derive(Subcommand)]
pub enum LocalCommand {
    /// Run one job on a cluster of its own, bring its files here and end the cluster
    Run(LocalRun),
    /// Say what a job would do here, on a cluster of its own, without doing it
    Plan(LocalPlan),
    /// Start a cluster that stays until it is interrupted
    Up(LocalUp),
}

#[cfg(feature = "local")]
#[derive(Args)]
pub struct LocalRun {
    #[command(flatten)]
    pub job: JobFile,
    /// Workers, and ranks of the job [default: the ranks of the job, and for several steps 2 workers or more]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub ranks: Option<u32>,
    /// Folder for the files of the job; an earlier model there is moved to FOLDER.1 [default: tl-out/NAME]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Keep the state of the cluster in this folder [default: none is kept]
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Folder for features of frozen networks [default: in the user's cache folder]
    #[arg(long, env = "TL_CACHE")]
    pub cache: Option<PathBuf>,
}

#[cfg(feature = "local")]
#[derive(Args)]
pub struct LocalPlan {
    #[command(flatten)]
    pub job: JobFile,
    /// Folder for features of frozen networks [default: in the user's cache folder]
    #[arg(long, env = "TL_CACHE")]
    pub cache: Option<PathBuf>,
}

#[cfg(feature = "local")]
#[derive(Args)]
pub struct LocalUp {
    /// Workers of one rank each
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub ranks: u32,
    /// Folder for the state of the cluster
    #[arg(long, default_value = "tl-data")]
    pub data: PathBuf,
    /// Where gRPC listens
    #[arg(long, default_value = "127.0.0.1:7070")]
    pub listen: String,
    /// Where the dashboard listens
    #[arg(long, default_value = "127.0.0.1:7080")]
    pub http: String,
}
