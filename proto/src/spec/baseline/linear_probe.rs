//! How far the weights go as they are: one dense layer for each task on features that stay as they were, which learns the
//! labels for as many steps.

use super::{
    super::{HeadSection, JobSpec, Params, check_tasks::FIXED},
    Baseline, BnMode, METHOD, one_stage, transferred, untaught,
};

/// The one setting of several tasks that is about each of them alone.
const SMOOTHING: &str = "label_smoothing";

pub(super) const BASELINE: Baseline = Baseline {
    name: "linear_probe",
    doc: "one dense layer on the features as the weights give them, taught by the labels, for as many epochs",
    kinds: &["finetune", "distill", "adapt", "multitask"],
    has_stage: true,
    make: |given, job| {
        let kind = job.job.kind.clone();
        match kind.as_str() {
            "distill" => untaught(job),
            // Still judged in the other domain, at which nothing looks.
            "adapt" => job.objective = Params::from([(METHOD.to_owned(), "direct".into())]),
            "multitask" => apart(job),
            _ => {}
        }
        transferred(&given.name, job)?.into_iter().for_each(|net| net.head = dense());
        one_stage(given, job, "head", BnMode::Frozen)
    },
};

/// Nothing but an output for each class. That it drops nothing is said, because heads on some text encoders drop what their
/// `config.json` says.
fn dense() -> HeadSection {
    HeadSection { dropout: Some(0.0), ..HeadSection::default() }
}

/// Each task by itself: where nothing below the heads is trained, none helps another.
fn apart(job: &mut JobSpec) {
    job.objective.retain(|key, _| key == SMOOTHING);
    job.objective.insert(METHOD.to_owned(), FIXED.into());
    job.tasks.values_mut().for_each(|task| (task.head, task.weight) = (dense(), 1.0));
}
