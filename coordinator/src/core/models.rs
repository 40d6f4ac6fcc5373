//! `job:ID`: models that earlier jobs have left. A job that names one takes it as it is when it is submitted: its digest is
//! kept in the job, and the blob with it, whatever becomes of the earlier one.

use std::collections::BTreeMap;

use tl_proto::{
    catalog::nearest_hint,
    ids::JobId,
    spec::{Handed, JobSpec},
};

use super::{
    Refusal, State,
    state::{Artifact, Job, JobStatus, Model, PhaseKind, PhaseStatus},
};

/// The models that a job names, by their places in it.
///
/// # Errors
/// One that is not there, or not yet.
pub(super) fn pin(state: &State, spec: &JobSpec) -> Result<BTreeMap<String, Model>, Refusal> {
    let mut models = BTreeMap::new();
    if spec.job.kind != JobSpec::PIPELINE {
        of_no_step(spec)?;
    }
    for (_, inner, _) in spec.steps() {
        for (key, place) in inner.models() {
            let parsed = Handed::parse(place).map_err(|e| invalid(format!("`{key}`: {e}"), e.hint))?;
            let Some(Handed::Job(id, step)) = parsed else { continue };
            // A job that was only looked at is none.
            let known = state.jobs.get(&id).filter(|j| !j.plan_only);
            let job = known.ok_or_else(|| {
                let hint = "`tlctl ls` lists the jobs of this cluster; of another one, `tlctl fetch` the model and name its folder";
                invalid(format!("`{key}` is `{place}`, and there is no such job"), hint)
            })?;
            models.insert(place.to_owned(), model(&id, job, step, &key)?);
        }
    }
    Ok(models)
}

/// Only a step has earlier ones.
fn of_no_step(spec: &JobSpec) -> Result<(), Refusal> {
    let weights = spec.networks().filter_map(|(key, net)| Some((key, net.weights.as_deref()?)));
    let mut of_steps = weights.filter(|(_, place)| matches!(Handed::parse(place), Ok(Some(Handed::Step(_)))));
    of_steps.next().map_or(Ok(()), |(key, place)| {
        let hint = "make it a `[[step]]` of a job of kind `pipeline`, or name the model of an earlier job: `job:ID`";
        Err(invalid(format!("`{key}.weights` is `{place}`, and the job is no step of a pipeline"), hint))
    })
}

fn model(id: &JobId, job: &Job, step: Option<&str>, key: &str) -> Result<Model, Refusal> {
    let step = step.unwrap_or_else(|| job.spec.main_step());
    let steps: Vec<&str> = job.spec.steps().iter().map(|(id, _, _)| *id).collect();
    if !steps.contains(&step) {
        return Err(invalid(format!("`{key}`: job {id} has no step `{step}`"), nearest_hint(step, &steps)));
    }
    let of_step = format!("`{key}`: step `{step}` of job {id}");
    let trained =
        job.phases.iter().any(|p| p.step == step && p.kind == PhaseKind::Train && p.status == PhaseStatus::Succeeded);
    let left = job.artifacts.iter().find(|a| a.step == step && a.name == Artifact::MODEL);
    match left.filter(|_| trained) {
        Some(artifact) => Ok(Model { job: id.clone(), step: step.to_owned(), blob: artifact.blob.clone() }),
        None if job.status == JobStatus::Active => {
            let hint =
                "wait for it, or make both steps of one pipeline: `[[step]]` with `needs`, and `step:ID` as weights";
            Err(invalid(format!("{of_step} is not done, and its model is not there yet"), hint))
        }
        None => Err(invalid(format!("{of_step} has left no model"), format!("`tlctl why {id}` says why"))),
    }
}

fn invalid(message: String, hint: impl Into<String>) -> Refusal {
    Refusal::Invalid { message, hint: hint.into() }
}
