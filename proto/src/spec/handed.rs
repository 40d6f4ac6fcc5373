//! Weights that other training leaves, and the coordinator hands over: `step:ID` of the same pipeline, `job:ID` of an
//! earlier job.

use super::{JobSpec, ModelSection, SpecError};
use crate::ids::JobId;

const STEP: &str = "step:";
const JOB: &str = "job:";

/// Whose model it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handed<'a> {
    /// That of an earlier step of the same pipeline.
    Step(&'a str),
    /// That of a job of the same cluster, and of which of its steps, where it is a pipeline.
    Job(JobId, Option<&'a str>),
}

impl<'a> Handed<'a> {
    /// Reads `step:ID`, `job:ID` or `job:ID/STEP`; `None` for any other place.
    ///
    /// # Errors
    /// What begins like the name of a job and is none.
    pub fn parse(place: &'a str) -> Result<Option<Self>, SpecError> {
        if let Some(step) = place.strip_prefix(STEP) {
            return Ok(Some(Self::Step(step)));
        }
        let Some(rest) = place.strip_prefix(JOB) else { return Ok(None) };
        let (id, step) = rest.split_once('/').map_or((rest, None), |(id, step)| (id, Some(step)));
        let job = id.parse::<JobId>().map_err(|_| {
            let hint = "write `job:ID`, or `job:ID/STEP` for a step of a pipeline; `tlctl ls` has the ids";
            SpecError::new(format!("`{place}` is not the model of a job"), hint)
        })?;
        Ok(Some(Self::Job(job, step.filter(|s| !s.is_empty()))))
    }

    /// Whether a place is the model of a step or a job.
    pub fn is(place: &str) -> bool {
        place.starts_with(STEP) || place.starts_with(JOB)
    }

    /// The name under which a place is handed to ranks: that of the step, or the whole of what names a job.
    pub fn key(place: &str) -> Option<&str> {
        place.strip_prefix(STEP).or_else(|| Some(place).filter(|p| p.starts_with(JOB)))
    }

    /// The place of the model of a job's step.
    pub fn of_job(job: &JobId, step: &str) -> String {
        format!("{JOB}{job}/{step}")
    }
}

impl JobSpec {
    /// Networks of this job (not of its steps), with their keys.
    pub fn networks(&self) -> impl Iterator<Item = (String, &ModelSection)> {
        let own = self.model.iter().map(|m| ("model".to_owned(), m));
        own.chain(self.nets.iter().map(|(role, m)| (format!("nets.{role}"), m)))
    }

    /// Weights of this job (not of its steps) that jobs have left, with their keys.
    pub fn models(&self) -> impl Iterator<Item = (String, &str)> {
        let weights = self.networks().filter_map(|(key, m)| Some((key + ".weights", m.weights.as_deref()?)));
        weights.filter(|(_, place)| place.starts_with(JOB))
    }

    /// The same, to be changed.
    pub fn models_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let nets = self.model.iter_mut().chain(self.nets.values_mut());
        nets.filter_map(|m| m.weights.as_mut()).filter(|place| place.starts_with(JOB))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_that_of_a_step_or_of_a_job() {
        let job = JobId::from_bits(7);
        let (whole, step) = (format!("job:{job}"), format!("job:{job}/teacher"));
        assert_eq!(Handed::parse("step:a"), Ok(Some(Handed::Step("a"))));
        assert_eq!(Handed::parse(&whole), Ok(Some(Handed::Job(job.clone(), None))));
        assert_eq!(Handed::parse(&step), Ok(Some(Handed::Job(job.clone(), Some("teacher")))));
        assert_eq!(Handed::of_job(&job, "teacher"), step);
        for other in ["/srv/job:x", "hf://a/b", "weights.safetensors"] {
            assert_eq!((Handed::parse(other), Handed::is(other)), (Ok(None), false), "{other}");
        }
        for bad in ["job:", "job:mine", "job:../../etc/passwd"] {
            assert!(Handed::parse(bad).unwrap_err().hint.contains("`tlctl ls`"), "{bad}");
        }
        assert_eq!([Handed::key("step:a"), Handed::key(&step), Handed::key("a")], [Some("a"), Some(&*step), None]);
    }
}
