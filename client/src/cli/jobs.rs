//! Commands about jobs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tl_proto::{
    catalog::nearest_hint,
    compare::Comparison,
    ids::JobId,
    picked::{self, Picked},
    spec::JobSpec,
    v1,
};
use tokio_stream::StreamExt;

use super::{
    CANCELLED, FAILED, INTERRUPTED,
    args::{Fetch, Logs, Ls, Submit},
    compared, earlier,
    output::{Output, shown, table},
    told,
};
use crate::{Client, Error, Event, Fetched, Job, metrics, spec_file};

/// Steps of which all reports are printed; of more, only that of the main one.
const REPORTS: usize = 6;

pub(super) async fn submit(client: &Client, a: Submit, output: &Output) -> Result<u8, Error> {
    let spec = spec_file::load(&a.job.file, &a.job.set, &told(client).await)?;
    let job = client.submit(&spec).await?;
    output.print(&json!({ "event": "submitted", "job": job.id() }), || job.id().to_owned());
    if a.watch { follow(&job, None, output).await } else { Ok(0) }
}

/// Whether this is the whole of an id; a long name is none.
fn is_whole(id: &str) -> bool {
    id.parse::<JobId>().is_ok()
}

/// The job with this id, with an id that begins or ends so, or with this name.
async fn find(client: &Client, id: &str) -> Result<Job, Error> {
    if is_whole(id) {
        return Ok(client.job(id));
    }
    let jobs = client.list(1_000, false).await?;
    let fits = |j: &&v1::Job| j.id.starts_with(id) || j.id.ends_with(id) || j.name == id;
    let mut found = jobs.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(job), None) => Ok(client.job(&job.id)),
        (Some(_), Some(_)) => Err(Error::input(format!("`{id}` is more than one job"), "`tlctl ls` has whole ids")),
        (None, _) => Err(Error::Refused {
            code: tonic::Code::NotFound,
            message: format!("there is no job `{id}`"),
            hint: "`tlctl ls` lists jobs".into(),
        }),
    }
}

pub(super) async fn watch(client: &Client, id: &str, output: &Output) -> Result<u8, Error> {
    follow(&find(client, id).await?, None, output).await
}

/// Follows a job to its end, brings its files to `out` if that is given, where those of an earlier one make room, and prints
/// what came of it.
pub(super) async fn follow(job: &Job, out: Option<&Path>, output: &Output) -> Result<u8, Error> {
    let mut progress = output.progress();
    let mut watch = job.watch(0);
    let mut last = None;
    loop {
        let event = tokio::select! {
            event = watch.next() => event?,
            _ = tokio::signal::ctrl_c() => {
                progress.clear();
                output.say(&format!("the job goes on; `tlctl watch {}` follows it again", job.id()));
                return Ok(INTERRUPTED);
            }
        };
        match event {
            Some(Event::Job(job)) => {
                progress.job(&job);
                last = Some(job);
            }
            Some(Event::Metric(row)) => progress.metric(&row),
            Some(Event::Activity(activity)) => progress.activity(&activity),
            Some(Event::Away(cause)) => {
                progress.line(&format!("the coordinator is away ({cause}); training goes on, and so does this watch"));
            }
            None => break,
        }
    }
    progress.clear();
    let Some(ended) = last else { return Ok(FAILED) };
    // Steps that are done have files, whatever became of the others.
    let files = match out.filter(|_| ended.status != "cancelled") {
        Some(dir) => {
            let done = |p: &v1::Phase| p.kind == "train" && p.status == "succeeded";
            if ended.phases.iter().any(done)
                && let Some(said) = earlier::make_room(dir, &steps(&ended))
            {
                output.say(&said);
            }
            job.fetch(dir).await?
        }
        None => Vec::new(),
    };
    finished(&ended, &files, output);
    Ok(match ended.status.as_str() {
        "succeeded" => 0,
        "cancelled" => CANCELLED,
        _ => FAILED,
    })
}

/// The steps of a job.
fn steps(job: &v1::Job) -> Vec<&str> {
    let mut steps: Vec<&str> = job.phases.iter().map(|p| p.step.as_str()).collect();
    steps.dedup();
    steps
}

/// Prints how a job ended.
fn finished(job: &v1::Job, files: &[Fetched], output: &Output) {
    let steps = metrics(job);
    let spec: Option<JobSpec> = serde_json::from_slice(&job.spec_json).ok();
    let compared = spec.as_ref().and_then(|s| Comparison::of(s, &steps));
    // A pipeline is what it was made for: the candidate of its comparison, or its last step.
    let main = spec.as_ref().map(JobSpec::main_step).unwrap_or_default();
    let figures = steps.get(main).cloned().unwrap_or_default();
    let artifacts: Vec<Value> =
        files.iter().map(|f| json!({ "name": f.name, "step": f.step, "path": f.path, "sha256": f.sha256 })).collect();
    let line = json!({
        "event": "finished", "job": job.id, "phase": job.status, "metrics": figures, "steps": steps,
        "failure": job.failure, "artifacts": artifacts, "compared": compared, "selection": selections(job),
    });
    output.print(&line, || {
        let mut text = format!("{} ({}): {}\n", shown(&job.name), job.id, job.why);
        if let Some(failure) = job.failure.as_ref().filter(|f| !f.hint.is_empty()) {
            text += &format!("hint: {}\n", failure.hint);
        }
        // Of many steps, the figures say enough.
        let told = |step: &str| steps.len() <= REPORTS || step == main;
        for file in files.iter().filter(|f| f.name == "report.txt" && told(&f.step)) {
            if steps.len() > 1 {
                text += &format!("\n{}\n", file.step);
            }
            text += &format!("\n{}", std::fs::read_to_string(&file.path).unwrap_or_default());
        }
        // A report that was printed has said it.
        let silent = |step: &str| !files.iter().any(|f| f.name == "report.txt" && f.step == step && told(step));
        text += &picks(job, silent);
        if let Some(compared) = &compared {
            text += &format!("\n{}", compared::text(compared));
        }
        if let Some(model) =
            files.iter().rfind(|f| f.name == "model.safetensors" && (f.step == main || main.is_empty()))
        {
            text += &format!("\nmodel: {}\n", model.path.display());
        }
        text
    });
}

pub(super) async fn list(client: &Client, a: &Ls, output: &Output) -> Result<u8, Error> {
    let jobs = client.list(a.limit, a.active).await?;
    output.print(&json!({ "event": "jobs", "jobs": jobs }), || {
        // How most have ended is their status already.
        let why = |j: &v1::Job| if j.why == j.status { String::new() } else { j.why.clone() };
        let rows = jobs.iter().map(|j| vec![j.id.clone(), j.name.clone(), j.kind.clone(), j.status.clone(), why(j)]);
        table(&["ID", "NAME", "KIND", "STATUS", "WHY"], &rows.collect::<Vec<_>>())
    });
    Ok(0)
}

pub(super) async fn show(client: &Client, id: &str, output: &Output) -> Result<u8, Error> {
    let job = find(client, id).await?.get().await?;
    output.print(&json!({ "event": "job", "job": job }), || {
        let name = shown(&job.name);
        let mut text = format!("{name} ({})\nkind: {}\nstatus: {}\nwhy: {}\n", job.id, job.kind, job.status, job.why);
        if let Some(failure) = job.failure.as_ref().filter(|f| !f.hint.is_empty()) {
            text += &format!("hint: {}\n", failure.hint);
        }
        let ranks =
            |p: &v1::Phase| p.ranks.iter().map(|r| format!("{}#{}", r.node_id, r.slot)).collect::<Vec<_>>().join(" ");
        let rows = job.phases.iter().map(|p| {
            let attempt = if p.kind == "gate" { String::new() } else { p.generation.to_string() };
            vec![p.id.clone(), p.status.clone(), attempt, waits(&job, p), ranks(p)]
        });
        let head = ["PHASE", "STATUS", "ATTEMPT", "WAITS FOR", "RANKS"];
        text += &format!("\n{}\n", table(&head, &rows.collect::<Vec<_>>()));
        for phase in &job.phases {
            phase.history.iter().for_each(|h| text += &format!("{}: {h}\n", phase.id));
        }
        let steps = metrics(&job);
        if !steps.is_empty() {
            text += &format!("\n{}\n", compared::figures(&steps));
        }
        text += &picks(&job, |_| true);
        let spec: Option<JobSpec> = serde_json::from_slice(&job.spec_json).ok();
        if let Some(compared) = spec.and_then(|s| Comparison::of(&s, &steps)) {
            text += &format!("\n{}", compared::text(&compared));
        }
        text
    });
    Ok(0)
}

/// Of finished steps that keep the best epoch or bring a network to another domain: which epoch the model is of, what each
/// criterion picks, and of the latter who looks at labels there.
fn selections(job: &v1::Job) -> BTreeMap<String, Vec<Picked>> {
    let of = |p: &v1::Phase| {
        let result: Value = serde_json::from_slice(&p.result_json).ok()?;
        let picked: Vec<Picked> = serde_json::from_value(result["selection"].clone()).ok()?;
        (!picked.is_empty()).then(|| (p.step.clone(), picked))
    };
    job.phases.iter().filter(|p| p.kind == "train").filter_map(of).collect()
}

/// The same of some steps for people.
fn picks(job: &v1::Job, wanted: impl Fn(&str) -> bool) -> String {
    let all = selections(job);
    let wanted = all.iter().filter(|(step, _)| wanted(step));
    wanted.map(|(step, all)| format!("\n{step}: {}", picked::to_text(all))).collect()
}

/// Phases that a phase still waits for.
fn waits(job: &v1::Job, phase: &v1::Phase) -> String {
    let done = |id: &str| job.phases.iter().any(|p| p.id == id && p.status == "succeeded");
    let needs = phase.needs.iter().filter(|need| phase.status == "waiting" && !done(need));
    needs.map(String::as_str).collect::<Vec<_>>().join(" ")
}

pub(super) async fn why(client: &Client, id: &str, output: &Output) -> Result<u8, Error> {
    let job = find(client, id).await?.get().await?;
    output.print(&json!({ "event": "why", "job": job.id, "code": job.why_code, "why": job.why }), || job.why.clone());
    Ok(0)
}

pub(super) async fn logs(client: &Client, a: &Logs, output: &Output) -> Result<u8, Error> {
    let job = find(client, &a.job).await?;
    let mut cursor = 0;
    let mut tries = 0;
    loop {
        let result = async {
            let mut stream = job.logs(a.follow, cursor).await?;
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(client.failed())?;
                cursor = chunk.cursor;
                tries = 0;
                for l in chunk.lines {
                    output.print(&json!({ "event": "log", "line": l }), || {
                        format!("{} #{} rank {}: {}", l.phase, l.generation, l.rank, l.text)
                    });
                }
            }
            Ok(())
        };
        let failed: Result<(), Error> = tokio::select! {
            result = result => result,
            _ = tokio::signal::ctrl_c() => return Ok(INTERRUPTED),
        };
        match failed {
            Ok(()) => return Ok(0),
            Err(Error::Unreachable { .. }) if a.follow && tries < 100 => {
                tries += 1;
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
            Err(e) => return Err(e),
        }
    }
}

pub(super) async fn cancel(client: &Client, id: &str, output: &Output) -> Result<u8, Error> {
    let job = find(client, id).await?.cancel().await?;
    output.print(&json!({ "event": "job", "job": job }), || format!("{} is cancelled", job.id));
    Ok(0)
}

pub(super) async fn retry(client: &Client, id: &str, output: &Output) -> Result<u8, Error> {
    let job = find(client, id).await?.retry().await?;
    output.print(&json!({ "event": "job", "job": job }), || format!("{} goes on", job.id));
    Ok(0)
}

pub(super) async fn remove(client: &Client, id: &str, output: &Output) -> Result<u8, Error> {
    let job = find(client, id).await?;
    job.remove().await?;
    output.print(&json!({ "event": "removed", "job": job.id() }), || format!("{} is removed", job.id()));
    Ok(0)
}

pub(super) async fn fetch(client: &Client, a: &Fetch, output: &Output) -> Result<u8, Error> {
    let job = find(client, &a.job).await?;
    let dir = a.out.clone().unwrap_or_else(|| PathBuf::from("tl-out").join(job.id()));
    if a.step.is_some() || a.out.is_some() {
        let known = job.get().await?;
        let mut steps = steps(&known);
        if let Some(step) = &a.step {
            if !steps.contains(&step.as_str()) {
                let message = format!("job `{}` has no step `{step}`", job.id());
                return Err(Error::input(message, nearest_hint(step, &steps)));
            }
            steps = vec![step.as_str()];
        }
        // They may be those that are fetched again.
        if a.out.is_some() && earlier::is_used(&dir, &steps) {
            let dir = dir.display();
            output.say(&format!(
                "`{dir}` has files of a job: those of the same names are written over, and the others stay"
            ));
        }
    }
    let files = job.fetch_step(&dir, a.step.as_deref()).await?;
    if files.is_empty() {
        return Err(Error::Refused {
            code: tonic::Code::FailedPrecondition,
            message: match &a.step {
                Some(step) => format!("step `{step}` of job `{}` has no files", job.id()),
                None => format!("job `{}` has no files yet", job.id()),
            },
            hint: "`tlctl why` says where it stands".into(),
        });
    }
    output.print(&json!({ "event": "fetched", "job": job.id(), "artifacts": files }), || {
        files.iter().map(|f| format!("{}\n", f.path.display())).collect()
    });
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_criteria_pick_is_told_of_each_step_that_adapts() {
        let result = json!({ "metrics": {}, "selection": [
            { "criterion": "target.snd", "epoch": 2, "value": 3.25, "accuracy": 0.7, "used": true },
            { "criterion": "oracle", "epoch": 4, "value": 0.75, "accuracy": 0.75, "used": false },
        ] });
        let phase = |step: &str, result: &Value| v1::Phase {
            kind: "train".into(),
            step: step.into(),
            result_json: serde_json::to_vec(result).unwrap(),
            ..v1::Phase::default()
        };
        let phases = vec![phase("adapt", &result), phase("student", &json!({ "metrics": {} }))];
        let job = v1::Job { phases, ..v1::Job::default() };
        let text = picks(&job, |_| true);
        assert!(text.starts_with("\nadapt: ") && text.contains("70.0 % right") && text.contains("oracle"), "{text}");
        assert!(!text.contains("student") && picks(&job, |step| step != "adapt").is_empty());
        assert_eq!(selections(&job)["adapt"][0].value, Some(3.25));
    }

    #[test]
    fn a_long_name_is_no_id() {
        assert!(is_whole(JobId::from_bits(7).as_str()));
        for name in ["a-name-of-rather-more-than-thirty-characters", "job_0000", "node_00000000000000000000000000"] {
            assert!(!is_whole(name), "{name}");
        }
    }
}
