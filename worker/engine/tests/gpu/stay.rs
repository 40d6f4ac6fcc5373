//! Whole runs: what is trained stays on the GPU between two checkpoints, and a checkpoint after each step leaves nothing
//! there. Either way it is one model, bit by bit.

use std::path::{Path, PathBuf};

use tl_engine::{
    collective::Solo,
    gpu::Place,
    link::{Link, Notice, Row},
    train::{self, export::Report},
};
use tl_proto::spec::JobSpec;

use crate::{config, shared};

const MODEL: &str = "model = { backbone = \"small_cnn\", input = 8 }";
/// Steps of an epoch of most jobs.
const STEPS: usize = 4;
/// Samples without labels of another domain.
const TARGET: &str = "batch = 4, target = { train = \"shifted\", val = \"shifted\" }";
const EPISODES: &str =
    "batch = 2, episodes = { way = 2, shot = 1, query = 1, per_epoch = 8, val = 2, test = 3, rotations = \"none\" }";

/// A job that trains the head and a block in the middle.
fn job(kind: &str, data: &str, more: &str) -> String {
    format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"{kind}\", seed = 3 }}\n\
         data = {{ format = \"generated\", train = \"source\", val = \"source\", grains = 2, {data}, \
         params = {{ train_samples = 2, val_samples = 2 }} }}\n{more}\n\
         [[stage]]\nname = \"s\"\nepochs = 1\ntrain = [\"head\", \"block1\"]\nlr = 0.02\nbn = \"train\"\n"
    )
}

/// The same by AdamW in bf16, and of what comes of it the average.
fn averaged(data: &str) -> String {
    let model = MODEL.replace("8 }", "8, precision = \"bf16\" }");
    job("finetune", data, &format!("{model}\noptimizer = {{ name = \"adamw\" }}\n[modifiers.ema]\ndecay = 0.8"))
}

/// Takes down what is told, and what has gone up after each step of training, and of a search for a rate.
#[derive(Default)]
struct Watcher {
    rows: Vec<Row>,
    sent: [Vec<u64>; 2],
    checkpoints: Vec<(u64, Vec<u8>)>,
}

impl Link for Watcher {
    fn row(&mut self, row: &Row) {
        let which = ["grad_norm", "lr_find.rate"].into_iter().position(|name| row.values.contains_key(name));
        if let (Some(which), Some(sent)) = (which, nvlib::fake::sent()) {
            self.sent[which].push(sent);
        }
        let mut row = row.clone();
        row.values.retain(|name, _| !name.ends_with("_per_s"));
        self.rows.push(row);
    }
    fn activity(&mut self, _: &str, _: u64, _: u64) {}
    fn checkpoint(&mut self, step: u64, path: &Path) {
        self.checkpoints.push((step, std::fs::read(path).unwrap()));
    }
    fn artifact(&mut self, _: &str, _: &Path) {}
    fn notice(&mut self, _: Notice, _: &str) {}
    fn stop_requested(&self) -> bool {
        false
    }
}

/// What a run leaves.
struct Ran {
    work: tempfile::TempDir,
    report: Report,
    model: Vec<u8>,
    told: Watcher,
}

impl Ran {
    /// Bytes that went up in each step of training but the first of an epoch.
    fn steps(&self) -> Vec<u64> {
        self.told.sent[0].chunks(STEPS).flat_map(differences).collect()
    }

    /// Half the bytes of what the stage trains: an objective's own tensors are the host's too.
    fn half(&self) -> u64 {
        2 * self.report.stages[0].trained as u64
    }
}

fn differences(all: &[u64]) -> Vec<u64> {
    all.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// The GPU as a place; nothing where there is none.
fn place() -> Option<Place> {
    Some(Place::of(shared()?.clone()).unwrap())
}

/// Runs a job with a checkpoint after so many steps, or one an epoch.
fn run(place: &Place, job: &str, every: u32, dir: &Path, resume: Vec<PathBuf>) -> Ran {
    let work = tempfile::tempdir_in(dir).unwrap();
    let mut spec = JobSpec::from_toml(job, &[]).unwrap();
    spec.checkpoint.every = every;
    let config = config(spec, work.path().into(), place.clone());
    let config = train::Config { cache: dir.join("cache"), resume, ..config };
    let mut told = Watcher::default();
    // A thread of its own: what goes up is counted by thread, and a pool would lend it to other runs.
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let report = alone.install(|| train::run(&config, &mut Solo, &mut told)).unwrap_or_else(|e| panic!("{e}: {job}"));
    let model = std::fs::read(work.path().join("model/model.safetensors")).unwrap_or_default();
    Ran { work, report, model, told }
}

/// Runs a job both ways and compares; what the way leaves in which everything stays. Where one thread computes all grains,
/// less must have gone up.
fn both(place: &Place, job: &str, dir: &Path, in_turn: bool) -> Ran {
    let [apart, stays] = [1, 0].map(|every| run(place, job, every, dir, Vec::new()));
    assert!(!stays.model.is_empty() && apart.model == stays.model, "two models of\n{job}");
    assert_eq!(apart.told.rows, stays.told.rows, "{job}");
    let figures = |ran: &Ran| (ran.report.history.clone(), ran.report.evaluation.clone(), ran.report.source.clone());
    assert_eq!(figures(&apart), figures(&stays), "{job}");
    if in_turn {
        let (all, less) = (apart.steps(), stays.steps());
        assert_eq!((all.len(), less.is_empty()), (less.len(), nvlib::fake::sent().is_none()));
        let fewer = all.iter().zip(&less).all(|(all, less)| *all >= less + stays.half());
        assert!(fewer, "{all:?} bytes went up, and {less:?} where everything stays:\n{job}");
    }
    stays
}

/// Sums have other orders on a GPU, and a sample between two classes may fall to either.
fn near(name: &str, got: f64, want: f64) {
    let room = if name.contains("accuracy") { 0.15 } else { 5e-3 * (1.0 + want.abs()) };
    assert!((got - want).abs() <= room, "{name}: {got} on the GPU and {want} on the host");
}

#[test]
fn a_model_is_the_same_whether_its_weights_stay_or_go() {
    let Some(place) = place() else { return };
    let dir = tempfile::tempdir().unwrap();
    let descent = job("finetune", "batch = 4", &format!("{MODEL}\noptimizer = {{ name = \"sgd\", clip_norm = 0.5 }}"));
    both(&place, &descent.replace("epochs = 1", "epochs = 2"), dir.path(), true);
    both(&place, &averaged("batch = 4"), dir.path(), true);
    // Of one grain only what takes little memory is kept within a step, and nothing from step to step.
    for precision in ["f32", "bf16"] {
        let one =
            averaged("batch = 4").replace("grains = 2", "grains = 1").replace("\"bf16\"", &format!("{precision:?}"));
        both(&place, &one, dir.path(), true);
    }
}

#[test]
fn what_holds_a_run_and_an_old_head_go_on_where_the_weights_stay() {
    let Some(place) = place() else { return };
    let dir = tempfile::tempdir().unwrap();
    let first = run(&place, &job("finetune", "batch = 4", MODEL), 0, dir.path(), Vec::new());
    let weights = first.work.path().join("model").display().to_string();
    let model = MODEL.replace("8 }", &format!("8, weights = {weights:?} }}"));
    let held = job(
        "finetune",
        "batch = 4, source = { train = \"source\", val = \"source\" }",
        &format!(
            "{model}\noptimizer = {{ name = \"sgd\", clip_norm = 5.0 }}\n[modifiers.ema]\ndecay = 0.5\n\
             [modifiers.l2_sp]\nalpha = 0.3\nbeta = 0.2\n[modifiers.ewc]\nlambda = 30.0\nsamples = 3\n\
             [modifiers.lwf]\nlambda = 0.5"
        ),
    );
    let stays = both(&place, &held, dir.path(), true);
    let penalties: Vec<f64> = stays.told.rows.iter().filter_map(|row| row.values.get("penalty").copied()).collect();
    assert!(penalties.len() == STEPS && penalties.iter().all(|p| *p > 0.0), "{penalties:?}");
    let host = run(&Place::Host, &held, 0, dir.path(), Vec::new());
    assert_eq!(stays.told.rows.len(), host.told.rows.len());
    for (got, want) in stays.told.rows.iter().zip(&host.told.rows) {
        assert_eq!(got.values.keys().collect::<Vec<_>>(), want.values.keys().collect::<Vec<_>>());
        got.values.iter().zip(want.values.values()).for_each(|((name, got), want)| near(name, *got, *want));
    }
}

#[test]
fn what_an_objective_trains_for_itself_is_the_hosts_too() {
    let Some(place) = place() else { return };
    let dir = tempfile::tempdir().unwrap();
    let tasks = "objective = { method = \"uncertainty\" }\n[tasks.outline.classes]\n\
        plain = [\"circle\", \"square\", \"triangle\", \"star-4\"]\n\
        outlined = [\"ring\", \"square-outline\", \"triangle-outline\", \"star-6\"]";
    both(&place, &job("multitask", "batch = 4", &format!("{MODEL}\n{tasks}")), dir.path(), true);
    let domains = "objective = { method = \"dann\", hidden = 8 }";
    both(&place, &job("adapt", TARGET, &format!("{MODEL}\n{domains}")), dir.path(), false);
    // It begins at the limit of its scale.
    let pairs = "batch = 4, pairs = { format = \"generated\", train = \"shifted\", val = \"shifted\", by = \"label\", \
        params = { train_samples = 2, val_samples = 2 } }";
    let clip = "objective = { dimensions = 4, method = \"clip\", init_temperature = 0.01 }\n\
        [nets.tower]\nbackbone = \"small_cnn\"\ninput = 8";
    let clip = job("contrastive", pairs, &format!("{MODEL}\n{clip}"));
    both(&place, &clip.replace("\"block1\"]", "\"block1\", \"tower.head\"]"), dir.path(), false);
}

#[test]
fn averages_that_speak_in_each_step_are_the_hosts() {
    let Some(place) = place() else { return };
    let dir = tempfile::tempdir().unwrap();
    let teaches = "objective = { method = \"self_training\", threshold = 0.2 }\n[modifiers.ema]\ndecay = 0.5";
    both(&place, &job("adapt", TARGET, &format!("{MODEL}\n{teaches}")), dir.path(), false);
}

#[test]
fn steps_on_an_episode_begin_with_what_is_there() {
    let Some(place) = place() else { return };
    let dir = tempfile::tempdir().unwrap();
    let maml = "objective = { method = \"maml\", steps = 2, inner_lr = 0.05 }";
    both(&place, &job("fewshot", EPISODES, &format!("{MODEL}\n{maml}")), dir.path(), true);
    let half = MODEL.replace("8 }", "8, precision = \"bf16\" }");
    let one = job("fewshot", EPISODES, &format!("{half}\n{maml}")).replace("grains = 2", "grains = 1");
    both(&place, &one, dir.path(), true);
    let prototype = job("fewshot", EPISODES, &format!("{MODEL}\nobjective = {{ method = \"prototype\" }}"));
    both(&place, &prototype.replace("\"head\", ", ""), dir.path(), true);
    let tune = "objective = { method = \"fine_tune\", steps = 3, rate = 0.05, layers = [\"head\", \"block1\"] }";
    let tune = job("fewshot", EPISODES, &format!("{MODEL}\n{tune}"));
    let tune = tune.split("[[stage]]").next().unwrap();
    let [there, here] = [&place, &Place::Host].map(|place| run(place, tune, 0, dir.path(), Vec::new()).report);
    near("loss", there.evaluation.loss, here.evaluation.loss);
    near("accuracy", there.evaluation.accuracy, here.evaluation.accuracy);
}

#[test]
fn a_search_for_a_rate_sends_nothing_up_but_samples_and_leaves_nothing_behind() {
    let Some(place) = place() else { return };
    let dir = tempfile::tempdir().unwrap();
    let plain = job("finetune", "batch = 4", &format!("{MODEL}\noptimizer = {{ name = \"adamw\" }}"));
    let find = plain.replace("lr = 0.02", "lr = 0.02\nlr_find = { start = 1e-4, end = 0.01, steps = 6 }");
    let apart = run(&place, &plain, 1, dir.path(), Vec::new());
    let searched = run(&place, &find, 0, dir.path(), Vec::new());
    assert!(searched.model == apart.model);
    let host = run(&Place::Host, &find, 0, dir.path(), Vec::new());
    let losses = |ran: &Ran| ran.report.lr_find[0].losses.clone();
    let (got, want) = (losses(&searched), losses(&host));
    assert_eq!((got.len(), want.len()), (6, 6));
    got.iter().zip(&want).for_each(|(got, want)| near("loss", *got, *want));
    let (steps, search) = (apart.steps(), differences(&searched.told.sent[1]));
    let fewer = steps.iter().all(|all| search.iter().all(|less| *all >= less + apart.half()));
    assert!(fewer, "{search:?} bytes went up in the search, and {steps:?} where nothing stays");
}

#[test]
fn a_run_that_is_killed_at_a_checkpoint_goes_on_to_the_same_bits() {
    let Some(place) = place() else { return };
    let dir = tempfile::tempdir().unwrap();
    // Eight steps: what is trained stays before the checkpoint and after it.
    let job = averaged("batch = 2");
    let whole = run(&place, &job, 4, dir.path(), Vec::new());
    assert!(whole.model == run(&place, &job, 1, dir.path(), Vec::new()).model);
    let (_, left) = whole.told.checkpoints.iter().find(|(step, _)| *step == 4).unwrap();
    let path = dir.path().join("left.tlc");
    std::fs::write(&path, left).unwrap();
    let again = run(&place, &job, 4, dir.path(), vec![path]);
    assert!(again.model == whole.model);
    assert_eq!(again.report.history, whole.report.history);
    assert_eq!(again.told.rows, whole.told.rows[4..]);
}
