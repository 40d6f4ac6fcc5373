//! `job.baseline` and `job.seeds` written out: a job that is to be compared, or run again with other seeds, is a pipeline
//! whose steps are its runs. Everything behind sees an ordinary pipeline.

use std::collections::BTreeSet;

use super::{
    CompareSection, JobSpec, SpecError, StepSection,
    check_pipeline::{MAX_ID, MAX_STEPS},
};
use crate::catalog::Catalog;

/// What is compared where nothing is said: the target's accuracy where there is one; of several tasks, the mean.
fn usual_metric(spec: &JobSpec) -> &'static str {
    let labelled = spec.data.as_ref().and_then(|d| d.target.as_ref()).is_some_and(|t| t.val.is_some());
    if labelled { "target.accuracy" } else { "val.accuracy" }
}

impl JobSpec {
    /// Writes baselines and seeds out as steps. The files of a pipeline's steps are in it already. The catalog says which
    /// modifiers a baseline goes without.
    ///
    /// # Errors
    /// A baseline that makes no sense for the job; a seed that is there twice; more runs than a pipeline has steps.
    pub fn write_out_runs(&mut self, catalog: &Catalog) -> Result<(), SpecError> {
        let (baselines, seeds) = (std::mem::take(&mut self.job.baseline), std::mem::take(&mut self.job.seeds));
        if baselines.is_empty() && seeds.is_empty() {
            return Ok(());
        }
        let runs = self.step.len().max(1 + baselines.len()).saturating_mul(seeds.len().max(1));
        if runs > MAX_STEPS {
            let message =
                format!("`job.baseline` and `job.seeds` come to {runs} runs, and a job has at most {MAX_STEPS}");
            return Err(SpecError::new(
                message,
                "name fewer, or submit the job several times, each with some of the seeds",
            ));
        }
        if seeds.iter().collect::<BTreeSet<_>>().len() < seeds.len() {
            return Err(SpecError::new("`job.seeds` has a seed twice", "a seed that is there twice shows nothing new"));
        }
        let named = |c: &CompareSection| !c.candidate.is_empty() || !c.baselines.is_empty();
        if self.job.kind != Self::PIPELINE && self.compare.as_ref().is_some_and(named) {
            let hint = "remove `candidate` and `baselines`: the job itself is measured against those in `job.baseline`";
            return Err(SpecError::new("`[compare]` of a job that is no pipeline takes `metric` alone", hint));
        }
        if !seeds.is_empty() {
            // They come in its place.
            self.job.seed = 0;
        }
        if self.job.kind == Self::PIPELINE {
            baselines.iter().try_for_each(|b| b.job(self, catalog).map(drop))?;
        } else {
            let mut steps = vec![(Self::MAIN.to_owned(), self.clone())];
            for baseline in &baselines {
                steps.push((baseline.id().to_owned(), baseline.job(self, catalog)?));
            }
            self.make_pipeline(steps);
        }
        if !seeds.is_empty() {
            self.repeat(&seeds)?;
        }
        Ok(())
    }

    /// Steps that wait for nothing, of which the first one is to beat the others.
    fn make_pipeline(&mut self, steps: Vec<(String, Self)>) {
        let asked = self.compare.take();
        // What has fewer tasks has another mean.
        let alone = steps.iter().any(|(_, s)| s.tasks.len() < self.tasks.len());
        let usual = if alone { "tasks.main.accuracy" } else { usual_metric(self) };
        let metric = asked.map_or_else(|| usual.to_owned(), |c| c.metric);
        let baselines = steps[1..].iter().map(|(id, _)| id.clone()).collect();
        let step = |(id, mut spec): (String, Self)| {
            spec.compare = None;
            StepSection { id, spec: Some(Box::new(spec)), ..StepSection::default() }
        };
        let mut job = self.job.clone();
        // The seeds are those of the steps.
        (job.kind, job.seed) = (Self::PIPELINE.into(), 0);
        *self = Self {
            schema: self.schema,
            recipe: None,
            job,
            cluster: Default::default(),
            data: None,
            model: None,
            nets: Default::default(),
            tasks: Default::default(),
            objective: Default::default(),
            modifiers: Default::default(),
            optimizer: Default::default(),
            stage: Vec::new(),
            stop: None,
            checkpoint: Default::default(),
            step: steps.into_iter().map(step).collect(),
            compare: Some(CompareSection { metric, candidate: Self::MAIN.into(), baselines }),
        };
    }

    /// Every step once for each seed. Those of the first seed keep their names, so that what names a step means theirs;
    /// those of the others take models of their own seed.
    fn repeat(&mut self, seeds: &[u32]) -> Result<(), SpecError> {
        let once = std::mem::take(&mut self.step);
        if self.compare.is_none() {
            let main = once.last();
            let metric = main.and_then(|s| s.spec.as_deref()).map_or("val.accuracy", usual_metric).to_owned();
            let candidate = main.map(|s| s.group.clone().unwrap_or_else(|| s.id.clone())).unwrap_or_default();
            self.compare = Some(CompareSection { metric, candidate, baselines: Vec::new() });
        }
        for (n, seed) in seeds.iter().enumerate() {
            let named = |id: &str| if n == 0 { id.to_owned() } else { format!("{id}-seed{seed}") };
            for step in &once {
                let mut step = step.clone();
                if n > 0 && named(&step.id).len() > MAX_ID {
                    let message = format!("step `{}` is too long for the seed {seed} behind it", step.id);
                    return Err(SpecError::new(
                        message,
                        format!("`{}` must have at most {MAX_ID} characters", named("ID")),
                    ));
                }
                if seeds.len() > 1 {
                    step.group.get_or_insert_with(|| step.id.clone());
                }
                step.id = named(&step.id);
                step.needs.iter_mut().for_each(|need| *need = named(need));
                if let Some(spec) = &mut step.spec {
                    spec.job.seed = spec.job.seed.wrapping_add(*seed);
                    let nets = spec.model.iter_mut().chain(spec.nets.values_mut());
                    for weights in nets.filter_map(|m| m.weights.as_mut()) {
                        if let Some(step) = weights.strip_prefix("step:") {
                            *weights = format!("step:{}", named(step));
                        }
                    }
                }
                self.step.push(step);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{check_shape, parse};

    const JOB: &str = r#"
schema = 1
job = { name = "t", kind = "finetune", seed = 7, priority = 3, JOB }
data = { format = "image_folder", train = "a", val = "b", batch = 64 }
model = { backbone = "resnet18", weights = "w" }
stage = [{ name = "a", epochs = 3, train = ["head"], lr = 1e-3 }]
"#;

    fn runs(job: &str) -> Result<JobSpec, SpecError> {
        let mut spec = parse(&JOB.replace("JOB", job)).unwrap();
        spec.write_out_runs(&Catalog::default())?;
        check_shape(&spec)?;
        Ok(spec)
    }

    fn ids(spec: &JobSpec) -> Vec<&str> {
        spec.step.iter().map(|s| s.id.as_str()).collect()
    }

    fn seeds(spec: &JobSpec) -> Vec<u32> {
        spec.steps().iter().map(|(_, s, _)| s.job.seed).collect()
    }

    #[test]
    fn a_job_with_baselines_is_a_pipeline_of_itself_and_them() {
        let spec = runs("baseline = [\"scratch\", { name = \"scratch\", id = \"fast\", lr = 4e-3 }]").unwrap();
        assert_eq!((ids(&spec), seeds(&spec)), (vec!["main", "scratch", "fast"], vec![7, 7, 7]));
        assert_eq!((spec.job.kind.as_str(), spec.job.seed, spec.job.priority), ("pipeline", 0, 3));
        let compare = spec.compare.as_ref().unwrap();
        assert_eq!((compare.metric.as_str(), compare.candidate.as_str()), ("val.accuracy", "main"));
        assert_eq!(compare.baselines, ["scratch", "fast"]);
        let main = spec.steps()[0].1.clone();
        let plain = parse(&JOB.replace(", JOB", "")).unwrap();
        assert_eq!(main, plain, "the job itself is what it would be alone");
        assert_eq!(parse(&spec.to_toml()).unwrap(), spec, "written out, it reads back as the same job");
        let mut same = plain.clone();
        same.write_out_runs(&Catalog::default()).unwrap();
        assert_eq!(same, plain);
    }

    #[test]
    fn two_baselines_of_one_name_are_refused_and_so_is_one_that_is_not_written_out() {
        let twice = runs("baseline = [\"scratch\", \"scratch\"]").unwrap_err();
        assert!(twice.message.contains("two steps are called `scratch`"), "{twice}");
        let raw = parse(&JOB.replace("JOB", "baseline = [\"scratch\"]")).unwrap();
        assert!(check_shape(&raw).unwrap_err().message.contains("written out"));
        assert!(runs("seeds = [1, 2, 1]").unwrap_err().message.contains("twice"));
        let many: Vec<u32> = (0..33).collect();
        let e = runs(&format!("baseline = [\"scratch\"], seeds = {many:?}")).unwrap_err();
        assert!(e.message.contains("come to 66 runs"), "{e}");
        let mut compared = parse(&JOB.replace("JOB", "seeds = [1, 2]")).unwrap();
        let (metric, candidate) = ("val.loss".to_owned(), String::new());
        compared.compare = Some(CompareSection { metric, candidate, baselines: vec!["scratch".into()] });
        assert!(compared.clone().write_out_runs(&Catalog::default()).unwrap_err().message.contains("`metric` alone"));
        compared.compare.as_mut().unwrap().baselines.clear();
        compared.write_out_runs(&Catalog::default()).unwrap();
        assert_eq!(compared.compare.unwrap().metric, "val.loss");
    }

    #[test]
    fn every_seed_is_a_step_and_the_first_one_keeps_the_name() {
        let spec = runs("baseline = [\"scratch\"], seeds = [3, 9]").unwrap();
        assert_eq!(ids(&spec), ["main", "scratch", "main-seed9", "scratch-seed9"]);
        assert_eq!(seeds(&spec), [3, 3, 9, 9], "in place of `seed`");
        assert_eq!((spec.members("main"), spec.main_step()), (vec!["main", "main-seed9"], "main"));
        let id = "i".repeat(36);
        let long = runs(&format!("baseline = [{{ name = \"scratch\", id = \"{id}\" }}], seeds = [1, 2]")).unwrap_err();
        assert!(long.message.contains(&format!("step `{id}` is too long")), "{long}");
        runs(&format!("baseline = [{{ name = \"scratch\", id = \"{id}\" }}]")).unwrap();
        let alone = runs("seeds = [1, 2]").unwrap();
        assert_eq!((ids(&alone), seeds(&alone)), (vec!["main", "main-seed2"], vec![1, 2]));
        assert_eq!(alone.compare.unwrap().baselines, Vec::<String>::new());
    }

    #[test]
    fn one_task_alone_is_measured_by_that_task() {
        let job = JOB.replace("finetune", "multitask") + "[tasks.t]\nclasses = { x = [\"0\"], y = [\"1\"] }\n";
        let metric = |baselines: &str| {
            let mut spec = parse(&job.replace("JOB", &format!("baseline = [{baselines}]"))).unwrap();
            spec.write_out_runs(&Catalog::default()).unwrap();
            check_shape(&spec).unwrap();
            spec.compare.unwrap().metric
        };
        assert_eq!(metric("\"scratch\""), "val.accuracy");
        assert_eq!(metric("\"scratch\", \"single\""), "tasks.main.accuracy");
    }

    #[test]
    fn a_pipeline_is_repeated_with_what_its_steps_need_of_each_other() {
        let inner = parse(&JOB.replace(", JOB", "")).unwrap();
        let mut outer = inner.clone();
        (outer.job.kind, outer.job.seeds) = (JobSpec::PIPELINE.into(), vec![1, 2]);
        let mut second = inner.clone();
        second.model.as_mut().unwrap().weights = Some("step:a".into());
        let step = |id: &str, needs: &[&str], spec: &JobSpec| StepSection {
            id: id.into(),
            needs: needs.iter().map(|n| (*n).into()).collect(),
            gate: crate::spec::Gates(vec!["val.accuracy > 0.5".parse().unwrap()]),
            spec: Some(Box::new(spec.clone())),
            ..StepSection::default()
        };
        outer.step = vec![step("a", &[], &inner), step("b", &["a"], &second)];
        outer.write_out_runs(&Catalog::default()).unwrap();
        check_shape(&outer).unwrap();
        assert_eq!((ids(&outer), seeds(&outer)), (vec!["a", "b", "a-seed2", "b-seed2"], vec![8, 8, 9, 9]));
        assert_eq!((&outer.step[3].needs, outer.step[3].gate.0.len()), (&vec!["a-seed2".to_owned()], 1));
        let weights = |n: usize| outer.step[n].spec.as_ref().unwrap().model.as_ref().unwrap().weights.clone().unwrap();
        assert_eq!([weights(1), weights(3)], ["step:a", "step:a-seed2"]);
        assert_eq!(outer.compare.as_ref().unwrap().candidate, "b");
    }
}
