//! Gates of steps: whether what a training came to is enough for the steps that need it.

use tl_proto::{
    failure::{Failure, FailureClass},
    ids::JobId,
    spec::{Gate, Metric},
};

use super::{
    Event, Refusal,
    state::{Job, Millis, Phase, PhaseKind, PhaseStatus},
};

/// What to do about a gate that does not hold.
const HINT: &str =
    "`tlctl fetch` has the models of the steps that are done; change the step or its gate, and submit anew";

/// Judges every gate whose step is trained.
pub(super) fn judge(id: &JobId, job: &Job, at: Millis) -> Vec<Event> {
    let ready = |p: &&Phase| p.kind == PhaseKind::Gate && p.status == PhaseStatus::Waiting && job.is_unblocked(p);
    let ready: Vec<&Phase> = job.phases.iter().filter(ready).collect();
    // At most plans nothing is, and figures are those of every step.
    if ready.is_empty() {
        return Vec::new();
    }
    let figures = job.figures();
    let judged = ready.into_iter().map(|phase| {
        let value = |gate: &Gate| Metric::value(&gate.metric, figures.get(&phase.step)?);
        let gates = job.spec.gates(&phase.step);
        let closed: Vec<&Gate> = gates.iter().filter(|g| !value(g).is_some_and(|v| g.holds(v))).collect();
        let say = |gates: &[&Gate], must: &str| {
            let one = |g: &&Gate| match value(g) {
                Some(v) => format!("{} is {}{must} {} {}", g.metric, shown(v, g.bound), g.side, g.bound),
                None => format!("the report has no number for {}{must} {} {}", g.metric, g.side, g.bound),
            };
            gates.iter().map(one).collect::<Vec<_>>().join("; ")
        };
        let failure = (!closed.is_empty()).then(|| {
            let why = say(&closed, ", and must be");
            Failure::new(FailureClass::Gate, format!("the gate of step `{}` does not hold: {why}", phase.step), HINT)
        });
        let said = format!("holds: {}", say(&gates.iter().collect::<Vec<_>>(), ","));
        Event::GateJudged { job: id.clone(), phase: phase.id.clone(), said, failure, at }
    });
    judged.collect()
}

/// A figure with four digits, or all of them where these would hide on which side of the bound it is.
fn shown(value: f64, bound: f64) -> String {
    let short = format!("{value:.4}");
    if value != bound && short.parse::<f64>() == Ok(bound) { value.to_string() } else { short }
}

/// Whether trying a job again can come to anything else.
///
/// # Errors
/// Nothing has failed but gates: the same training comes to the same.
pub(super) fn may_retry(job: &Job) -> Result<(), Refusal> {
    let mut failed = job.phases.iter().filter(|p| p.status == PhaseStatus::Failed).peekable();
    let Some(first) = failed.peek().map(|p| p.step.clone()) else { return Ok(()) };
    // A gate that was cancelled before it was judged says nothing.
    if failed.any(|p| p.last_failure.as_ref().is_none_or(|f| f.class != FailureClass::Gate)) {
        return Ok(());
    }
    Err(Refusal::Precondition(format!(
        "the gate of step `{first}` does not hold, and the same training would come to the same; \
         change the step or its gate, and submit the job anew"
    )))
}
