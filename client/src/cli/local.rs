//! Commands that use the cluster and the engine inside this program.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::json;
use tl_proto::{failure::Failure, spec, spec::Ranks};
use tl_worker::{
    machine::device::Here,
    rank::{Asked, Evaluation, Found, Model, Said, Towers},
};

use super::{
    INTERRUPTED,
    args::{Cli, Command, Evaluate, LocalCommand, LocalPlan, LocalRun, LocalUp, OnDevice, Predict},
    earlier, jobs,
    output::Output,
    plan,
    settings::folder,
};
use crate::{
    Error,
    local::{Cluster, Config},
    spec_file,
};

/// Runs this process as a part of a cluster, if that is what it was started for.
pub(super) fn role(cli: Cli) -> Result<ExitCode, Box<Cli>> {
    let result = match cli.command {
        Command::Coordinator(args) => {
            tl_worker::cli::logging();
            tl_coordinator::cli::main(args)
        }
        Command::Worker(args) => {
            tl_worker::cli::logging();
            tl_worker::cli::main(args, vec!["rank".into()])
        }
        Command::Rank => {
            tl_worker::cli::logging();
            return Ok(tl_worker::rank::main());
        }
        Command::Look(args) => {
            tl_worker::cli::logging();
            return Ok(tl_worker::machine::look::main(&args));
        }
        _ => return Err(Box::new(cli)),
    };
    Ok(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    })
}

pub(super) async fn run(command: LocalCommand, output: &Output) -> Result<u8, Error> {
    match command {
        LocalCommand::Run(a) => run_one(a, output).await,
        LocalCommand::Plan(a) => plan_one(a, output).await,
        LocalCommand::Up(a) => up(a, output).await,
    }
}

async fn run_one(a: LocalRun, output: &Output) -> Result<u8, Error> {
    let catalog = tl_worker::rank::catalog();
    let mut spec = spec_file::load(&a.job.file, &a.job.set, &catalog)?;
    if let Some(n) = a.ranks {
        let all = spec.step.iter_mut().filter_map(|s| s.spec.as_deref_mut()).map(|s| &mut s.cluster.ranks);
        all.for_each(|r| *r = Ranks { min: n, max: n });
        spec.cluster.ranks = Ranks { min: n, max: n };
    }
    // Before anything is started.
    check(&spec, &a.job.file)?;
    let workers = a.ranks.unwrap_or_else(|| workers(&spec));
    let out = a.out.unwrap_or_else(|| PathBuf::from("tl-out").join(plain(&spec.job.name)));
    let steps: Vec<&str> = spec.steps().into_iter().map(|(step, ..)| step).collect();
    earlier::check(&out, &steps)?;
    let kept = a.data.is_some();
    let data = a.data.unwrap_or_else(|| std::env::temp_dir().join(format!("tl-{}", ulid::Ulid::new())));
    let cache = a.cache.unwrap_or_else(default_cache);
    std::fs::create_dir_all(&data).map_err(Error::file(&data))?;
    let log = data.join("cluster.log");
    let any = "127.0.0.1:0".to_owned();
    let config = Config { data: data.clone(), cache, workers, listen: any.clone(), http: any, log: Some(log) };
    let scratch = Scratch((!kept).then_some(data));
    let result = tokio::select! {
        result = train(&config, &spec, &out, output) => result,
        () = asked_to_end() => Ok(INTERRUPTED),
    };
    drop(scratch);
    result
}

/// How many workers a job gets that asks for none: as many as its steps need, and two where steps can run side by side or
/// one takes them. One rank alone has all cores to itself.
fn workers(spec: &spec::JobSpec) -> u32 {
    let steps = spec.steps();
    let needed = steps.iter().map(|(_, s, _)| s.cluster.ranks.min).max().unwrap_or(1);
    let used = if steps.len() > 1 { 2 } else { spec.cluster.ranks.max.min(2) };
    needed.max(used)
}

/// Checks a job that a cluster of its own is to be started for.
fn check(spec: &spec::JobSpec, file: &Path) -> Result<(), Error> {
    spec::check(spec, &tl_worker::rank::catalog())
        .map_err(|e| Error::input(format!("{}: {e}", file.display()), e.hint))?;
    match spec.steps().iter().find_map(|(_, s, _)| s.models().next()) {
        Some((key, place)) => {
            Err(elsewhere(&key, place, "`tlctl local` starts a cluster of its own, which knows no earlier job"))
        }
        None => Ok(()),
    }
}

async fn plan_one(a: LocalPlan, output: &Output) -> Result<u8, Error> {
    let LocalPlan { job, cache } = a;
    check(&spec_file::load(&job.file, &job.set, &tl_worker::rank::catalog())?, &job.file)?;
    let data = std::env::temp_dir().join(format!("tl-{}", ulid::Ulid::new()));
    std::fs::create_dir_all(&data).map_err(Error::file(&data))?;
    let (log, any) = (Some(data.join("cluster.log")), "127.0.0.1:0".to_owned());
    let scratch = Scratch(Some(data.clone()));
    // Each step is looked at by one rank.
    let cache = cache.unwrap_or_else(default_cache);
    let config = Config { data, cache, workers: 1, listen: any.clone(), http: any, log };
    let look = async {
        let mut cluster = Cluster::start(&config).await?;
        let client = cluster.client().await?;
        let result = tokio::select! {
            code = plan::run(&client, &job, output) => code,
            broken = cluster.broken() => Err(broken),
        };
        cluster.stop().await;
        result
    };
    let result = tokio::select! {
        result = look => result,
        () = asked_to_end() => Ok(INTERRUPTED),
    };
    drop(scratch);
    result
}

/// A model of a job is named where there is no cluster that could have it.
pub(super) fn elsewhere(key: &str, place: &str, why: &str) -> Error {
    let step = place.split_once('/').map(|(_, step)| step).filter(|step| *step != spec::JobSpec::MAIN);
    let folder = step.map_or_else(|| "FOLDER".to_owned(), |step| format!("FOLDER/{step}"));
    let hint = format!("`tlctl fetch JOB --out FOLDER` brings the model here: name `{folder}` (`--set`)");
    Error::input(format!("`{key}` is `{place}`, and {why}"), hint)
}

async fn train(config: &Config, spec: &spec::JobSpec, out: &Path, output: &Output) -> Result<u8, Error> {
    let mut cluster = Cluster::start(config).await?;
    let client = cluster.client().await?;
    if let Some(http) = &cluster.http {
        output.say(&format!("dashboard: http://{http} (while the job runs)"));
    }
    let job = client.submit(spec).await?;
    let result = tokio::select! {
        code = jobs::follow(&job, Some(out), output) => code,
        broken = cluster.broken() => Err(broken),
    };
    cluster.stop().await;
    result
}

/// Done when somebody wants this command to end.
async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// A folder that goes when the command ends.
pub(super) struct Scratch(pub(super) Option<PathBuf>);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

async fn up(a: LocalUp, output: &Output) -> Result<u8, Error> {
    let cache = a.data.join("cache");
    let config = Config { data: a.data, cache, workers: a.ranks, listen: a.listen, http: a.http, log: None };
    let mut cluster = tokio::select! {
        cluster = Cluster::start(&config) => cluster?,
        () = asked_to_end() => return Ok(INTERRUPTED),
    };
    let (grpc, http) = (cluster.grpc.clone(), cluster.http.clone());
    output.print(&json!({ "event": "up", "grpc": grpc, "http": http }), || {
        let shown = http.clone().unwrap_or_default();
        format!("coordinator: {grpc}\ndashboard: http://{shown}\nCtrl-C ends it")
    });
    let broken = tokio::select! {
        broken = cluster.broken() => Some(broken),
        () = asked_to_end() => None,
    };
    cluster.stop().await;
    broken.map_or(Ok(INTERRUPTED), Err)
}

/// A name as a folder's.
fn plain(name: &str) -> String {
    let kept = name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' });
    let kept: String = kept.collect();
    let kept = kept.trim_matches('.');
    if kept.is_empty() { "job".into() } else { kept.into() }
}

fn default_cache() -> PathBuf {
    folder("XDG_CACHE_HOME", ".cache").map_or_else(|| std::env::temp_dir().join("tl-cache"), |f| f.join("tl/features"))
}

pub(super) fn refused(e: &Failure) -> Error {
    Error::input(&e.message, &e.hint)
}

/// What a model says of a file, or of a line of it, which has a name then.
type Answer = (Option<String>, Vec<Said>);

/// Opens what a command is to compute on, and says which GPUs it passes over.
pub(super) fn here(on: &OnDevice, output: &Output) -> Result<Here, Error> {
    let here = on.device.open().map_err(|e| refused(&e))?;
    if !here.note.is_empty() {
        output.say(&here.note);
    }
    Ok(here)
}

/// A finished model, to be run there, and what that is called.
fn opened(model: &Path, on: &OnDevice, output: &Output) -> Result<(Model, String), Error> {
    // A file that is no model is told before a GPU is tried.
    let model = Model::open(model).map_err(|e| refused(&e.to_failure()))?;
    let Here { device, place, .. } = here(on, output)?;
    Ok((model.at(place), device.to_string()))
}

pub(super) fn predict(a: &Predict, output: &Output) -> Result<u8, Error> {
    let (model, device) = opened(&a.model, &a.on, output)?;
    let model = model.inverting(a.invert).map_err(|e| refused(&e.to_failure()))?;
    let learned = a.support.as_ref().map(|folder| model.learn(folder)).transpose();
    let learned = learned.map_err(|e| refused(&e.to_failure()))?;
    if learned.is_none() {
        model.predicts(a.lines).map_err(|e| refused(&e.to_failure()))?;
    }
    let params = params_of(&a.params, "--param")?;
    let says = |image: &Path| -> Result<Vec<Answer>, Error> {
        let said = match &learned {
            Some(learned) => learned.predict(image).map(|chances| {
                let chances = learned.classes().iter().cloned().zip(chances).collect();
                vec![(None, vec![Said { task: None, chances }])]
            }),
            None if a.lines => model
                .predict_lines(image, &params)
                .map(|lines| lines.into_iter().map(|(line, said)| (Some(line), said)).collect()),
            None => model.predict_all(image).map(|said| vec![(None, said)]),
        };
        said.map_err(|e| refused(&e.to_failure()))
    };
    let mut code = 0;
    for image in &a.images {
        match says(image) {
            Ok(all) => all.into_iter().for_each(|(line, said)| {
                predicted(a, image, line.as_deref(), said, &device, output);
            }),
            // The others can be answered all the same.
            Err(e) => {
                output.error(&e);
                code = e.exit_code();
                continue;
            }
        }
        if model.reads_text() && !a.lines {
            let text = std::fs::read_to_string(image).unwrap_or_default();
            let n = text.lines().filter(|line| !line.trim().is_empty()).count();
            if n > 1 {
                output.say(&format!("`{}` was taken as one text of {n} lines: `--lines` takes each", image.display()));
            }
        }
    }
    Ok(code)
}

/// Prints what the model says of a file, or of a line of it.
fn predicted(a: &Predict, image: &Path, line: Option<&str>, said: Vec<Said>, device: &str, output: &Output) {
    for Said { task, chances: mut ranked } in said {
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(a.top.max(1));
        let classes: Vec<_> = ranked.iter().map(|(c, p)| json!({ "class": c, "probability": p })).collect();
        let mut event = json!({ "event": "prediction", "image": image, "classes": classes, "device": device });
        if let Some(task) = &task {
            event["task"] = task.clone().into();
        }
        if let Some(line) = line {
            event["sample"] = line.into();
        }
        output.print(&event, || {
            let shown: Vec<String> = ranked.iter().map(|(c, p)| format!("{c} {:.1} %", 100.0 * p)).collect();
            let task = task.as_ref().map(|task| format!("{task}: ")).unwrap_or_default();
            let line = line.map(|line| format!(", {line}")).unwrap_or_default();
            format!("{}{line}: {task}{}", image.display(), shown.join(", "))
        });
    }
}

/// Parameters of a format, as `flag` gives them.
fn params_of(given: &[String], flag: &str) -> Result<spec::Params, Error> {
    let pair = |text: &String| -> Result<(String, serde_json::Value), Error> {
        let bad = || Error::input(format!("`{flag} {text}` has no `=`"), format!("write it as `{flag} noise=0.1`"));
        let (key, value) = text.split_once('=').ok_or_else(bad)?;
        Ok((key.into(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
    };
    given.iter().map(pair).collect()
}

pub(super) fn evaluate(a: &Evaluate, output: &Output) -> Result<u8, Error> {
    if let Some(pairs) = &a.pairs {
        return by_pairs(a, pairs, output);
    }
    let (model, device) = opened(&a.model, &a.on, output)?;
    let params = params_of(&a.params, "--param")?;
    let asked = Asked {
        format: a.format.clone().unwrap_or_else(|| model.format().to_owned()),
        place: a.data.clone(),
        params,
        seed: a.seed,
        task: a.task.clone(),
        classes: a.classes.clone(),
        skip_bad: a.skip_bad,
        way: a.way,
        shot: a.shot,
        query: a.query,
        episodes: a.episodes,
    };
    let scored = match a.runs {
        true => model.evaluate_runs(&asked),
        false => model.evaluate_telling(&asked, &mut |text| output.say(text)),
    };
    let scored: Evaluation = scored.map_err(|e| refused(&e.to_failure()))?;
    let mut metrics = json!({ "val.accuracy": scored.accuracy, "val.loss": scored.loss });
    if let Some(episodes) = &scored.episodes {
        metrics["val.interval"] = episodes.interval.into();
    }
    let event = json!({ "event": "evaluated", "metrics": metrics, "evaluation": scored, "device": device });
    output.print(&event, || scored.to_text());
    Ok(0)
}

/// Scores two networks by how many samples and other halves of theirs find each other.
fn by_pairs(a: &Evaluate, pairs: &str, output: &Output) -> Result<u8, Error> {
    let towers = Towers::open(&a.model).map_err(|e| refused(&e.to_failure()))?;
    let Here { device, place, .. } = here(&a.on, output)?;
    let by = serde_json::from_value(a.pairs_by.clone().into())
        .map_err(|e| Error::input(format!("`--pairs-by {}`: {e}", a.pairs_by), "`name`, `label` or `order`"))?;
    let asked = |format: &str, data: &str, params: spec::Params| Asked {
        classes: a.classes.clone(),
        ..Asked::of(format, data, params, a.seed)
    };
    let formats = towers.formats();
    let ours = a.format.as_deref().unwrap_or(formats[0]);
    let ours = asked(ours, &a.data, params_of(&a.params, "--param")?);
    let theirs = a.pairs_format.as_deref().unwrap_or(formats[1]);
    let theirs = asked(theirs, pairs, params_of(&a.pairs_params, "--pairs-param")?);
    let found = towers.at(&place).evaluate([&ours, &theirs], by).map_err(|e| refused(&e.to_failure()))?;
    let Found { pairs: [samples, halves], retrieval, by_class, left_out } = &found;
    left_out.iter().for_each(|text| output.say(text));
    let [r1, r5, r10] = retrieval.mean();
    let mut event = json!({
        "event": "evaluated",
        "metrics": { "val.recall_1": r1, "val.recall_5": r5, "val.recall_10": r10 },
        "samples": samples, "halves": halves, "retrieval": retrieval, "device": device.to_string(),
    });
    if let Some(by_class) = by_class {
        event["metrics"]["val.accuracy"] = by_class.accuracy.into();
        event["evaluation"] = json!(by_class);
    }
    output.print(&event, || {
        let by_class = by_class.as_ref().map(|by_class| format!("{}\n", by_class.to_text())).unwrap_or_default();
        format!("{by_class}{samples} samples and {halves} halves\n{}", retrieval.to_text())
    });
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_of_one_rank_shares_the_cores_with_nobody() {
        let one = |ranks: &str| {
            let text = format!(
                "schema = 1\njob = {{ name = \"t\", kind = \"finetune\" }}\ncluster = {{ ranks = {ranks} }}\n\
                 data = {{ format = \"generated\", train = \"a\", val = \"a\", batch = 8 }}\n\
                 model = {{ backbone = \"small_cnn\" }}\n\
                 stage = [{{ name = \"all\", epochs = 1, train = [\"*\"], lr = 0.1 }}]\n"
            );
            spec::parse(&text).unwrap()
        };
        let counts = ["1", "\"1..4\"", "3", "\"3..8\""].map(|ranks| workers(&one(ranks)));
        assert_eq!(counts, [1, 2, 3, 3]);
        let mut seeds = one("1");
        seeds.job.seeds = vec![1, 2];
        seeds.write_out_runs(&tl_worker::rank::catalog()).unwrap();
        assert_eq!(workers(&seeds), 2);
    }

    #[test]
    fn the_model_of_a_step_lies_in_a_folder_of_its_own() {
        let hint = |place: &str| elsewhere("model.weights", place, "why").hint().to_owned();
        assert!(hint("job:J/teacher").contains("name `FOLDER/teacher`"));
        for main in ["job:J", "job:J/main"] {
            assert!(hint(main).contains("name `FOLDER` "), "{main}");
        }
    }
}
