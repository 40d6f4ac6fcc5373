//! Runs on few-shot episodes. An episode takes the place of a sample: steps have so many, a grain holds whole ones, and
//! those that are judged are divided over the ranks and are the same for any number of them.

pub(crate) mod adapt;
mod baseline;
mod grain;
pub(crate) mod judge;

use tl_proto::spec::{BnScope, EpisodeShape, EpisodesSection, JobSpec, Params};

use super::samples::Samples;
use crate::{
    Error, Result,
    data::episodes::{Episode, Episodes},
    eval, modifier,
    objective::{
        Objective,
        fewshot::{self, Learns, Method},
    },
};

/// Classes that an error or a report names.
const SHOWN: usize = 5;

/// The episodes of a job, and what is done with them.
pub(crate) struct Few {
    /// How a task is learned.
    pub method: &'static Method,
    /// Parameters of the method.
    pub params: Params,
    /// What the job says of episodes.
    pub section: EpisodesSection,
    /// What is trained on, where there are stages.
    train: Option<Episodes>,
    /// What is judged after an epoch, and at the end.
    judged: [Episodes; 2],
    /// Classes that are judged and were trained on.
    pub overlap: Vec<String>,
}

impl Few {
    /// The episodes of a job, if its kind learns from them.
    ///
    /// # Errors
    /// Too few classes or samples, by name; a method that the stages, or that there are none, say nothing to.
    pub fn open(spec: &JobSpec, train: &Samples, val: &Samples) -> Result<Option<Self>> {
        let section = spec.data.as_ref().and_then(|data| data.episodes.clone());
        let Some(section) = section.filter(|_| Objective::find(&spec.job.kind).has_episodes()) else { return Ok(None) };
        let (method, seed) = (fewshot::method(&spec.objective), spec.job.seed);
        fits(spec, method, &section)?;
        let trained = section.trained();
        let mut few = Self::judging((method, spec.objective.clone()), section, val, seed)?;
        if !spec.stage.is_empty() {
            let known = train.dataset.classes();
            few.overlap = val.dataset.classes().iter().filter(|class| known.contains(class)).cloned().collect();
            few.train = Some(Episodes::new(&*train.dataset, "train", trained, seed, "episodes")?);
        }
        Ok(Some(few))
    }

    /// Episodes of samples that a finished model is judged by.
    ///
    /// # Errors
    /// Too few classes or samples, by name.
    pub fn judging(
        (method, params): (&'static Method, Params),
        section: EpisodesSection,
        val: &Samples,
        seed: u32,
    ) -> Result<Self> {
        let judged = |purpose| Episodes::new(&*val.dataset, "val", section.judged(), seed, purpose);
        let judged = [judged("val-episodes")?, judged("test-episodes")?];
        Ok(Self { method, params, section, train: None, judged, overlap: Vec::new() })
    }

    /// Names of the outputs that the network needs: the places of an episode's classes, or none.
    pub fn outputs(&self) -> Vec<String> {
        let way = if self.method.classifies() { self.section.way } else { 0 };
        (0..way).map(|place| place.to_string()).collect()
    }

    /// The shape of the episodes that are trained on.
    pub fn trained(&self) -> EpisodeShape {
        self.section.trained()
    }

    /// Episode `number` of those that are trained on.
    fn drawn(&self, number: u64) -> Result<Episode> {
        let train = self.train.as_ref().ok_or_else(|| Error::Internal("nothing is trained on episodes".into()))?;
        Ok(train.draw(number))
    }

    /// What there is to say of classes that are judged and were trained on.
    pub fn warning(&self) -> Option<String> {
        let first = self.overlap.first()?;
        let (all, n) = (self.section.way, self.overlap.len());
        let some = self.overlap.iter().take(SHOWN).map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ");
        let named = if n == 1 { format!("class `{first}` is") } else { format!("{n} classes are") };
        let list = if n == 1 { String::new() } else { format!(" ({some}{})", if n > SHOWN { ", …" } else { "" }) };
        Some(format!(
            "{named} in `data.train` and in `data.val`{list}: what is measured by {all}-way episodes is not how well new \
             classes are learned; set `data.train_classes` and `data.val_classes`"
        ))
    }

    /// What there is to say of figures that are means over few episodes.
    pub fn scarce(&self) -> Option<String> {
        let said = eval::Episodes::scarce(self.section.test as usize)?;
        Some(format!("{said}: set `data.episodes.test = {}`", EpisodesSection::USUAL))
    }
}

/// Whether method, stages and episodes go together.
fn fits(spec: &JobSpec, method: &Method, section: &EpisodesSection) -> Result<()> {
    let (name, params) = (method.name(), &spec.objective);
    if spec.stage.is_empty() && !method.stands_alone(params) {
        return Err(Error::user(
            format!("`{name}` is nothing without training, and the job has no `[[stage]]`"),
            "add one, or take `method = \"fine_tune\"`, which begins each episode with the weights as they are",
        ));
    }
    if !spec.stage.is_empty() && !method.trains(params) {
        return Err(Error::user(
            format!("`{name}` learns within an episode only, and the job has stages"),
            "remove `[[stage]]`: train with `kind = \"finetune\"` or another method first, and take its model as \
             `model.weights`",
        ));
    }
    if modifier::mixes(&spec.modifiers) {
        return Err(Error::user("an episode has whole samples, and modifiers that mix them do not", "remove them"));
    }
    if let Learns::Adapts(_) = method.learns {
        let (trained, judged) = (section.trained().way, section.judged().way);
        if trained != judged && !spec.stage.is_empty() {
            return Err(Error::user(
                format!("`{name}` trains a network for {trained} classes at a time, and is to be judged with {judged}"),
                "leave `train_way` out of `[data.episodes]`, or make it the same as `way`",
            ));
        }
        if spec.stage.iter().any(|s| s.bn_scope == BnScope::Batch) {
            return Err(Error::user(
                format!("`{name}` makes a network of its own for each episode, and `bn_scope = \"batch\"` wants one"),
                "leave `bn_scope` out: the statistics are those of an episode's samples",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(objective: &str, episodes: &str, more: &str) -> Result<Few> {
        let job = format!(
            "schema = 1\njob = {{ name = \"t\", kind = \"fewshot\", seed = 3 }}\n\
             model = {{ backbone = \"small_cnn\" }}\nobjective = {{ {objective} }}\n\
             data = {{ format = \"generated\", train = \"source\", val = \"source\", batch = 2, \
             episodes = {{ {episodes} }}, params = {{ train_samples = 8, val_samples = 6 }} }}\n{more}"
        );
        let spec = JobSpec::from_toml(&job, &[]).unwrap();
        tl_proto::spec::check(&spec, &crate::catalog()).unwrap();
        let data = spec.data.as_ref().unwrap();
        let (train, val) = (Samples::open(data, "train", 3)?, Samples::open(data, "val", 3)?);
        Ok(Few::open(&spec, &train, &val)?.expect("a job of episodes"))
    }

    const STAGE: &str = "[[stage]]\nname = \"s\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.1\n";

    #[test]
    fn what_does_not_go_together_is_refused() {
        let small = "way = 2, query = 4";
        for (objective, episodes, more, part) in [
            ("method = \"maml\"", small, "", "`maml` is nothing without training"),
            ("method = \"linear\"", small, STAGE, "`linear` learns within an episode only"),
            ("method = \"fine_tune\"", small, STAGE, "`fine_tune` learns within an episode only"),
            ("method = \"maml\"", "way = 2, train_way = 3, query = 4", STAGE, "for 3 classes at a time"),
            ("", "way = 200, query = 4", "", "an episode wants 200"),
            ("", "way = 2, query = 40", "", "of `data.val` has 6 samples, and an episode wants 1 to show and 40"),
            ("", "way = 2, query = 5, train_query = 9", STAGE, "of `data.train` has 8 samples"),
        ] {
            let error = open(objective, episodes, more).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(part), "{objective} {episodes}: {error}");
        }
        let scope = format!("{STAGE}bn = \"train\"\nbn_scope = \"batch\"\n");
        assert!(open("method = \"maml\"", small, &scope).err().unwrap().to_string().contains("bn_scope"));
        let mixed = format!("{STAGE}[modifiers.mixup]\n");
        assert!(open("", small, &mixed).err().unwrap().to_string().contains("whole samples"));
    }

    #[test]
    fn classes_that_are_trained_on_and_judged_are_named_where_there_is_training() {
        let few = open("", "way = 2, query = 4", STAGE).unwrap();
        let warning = few.warning().unwrap();
        assert!(warning.contains(" classes are in `data.train` and in `data.val` (`"), "{warning}");
        assert_eq!(open("", "way = 2, query = 4", "").unwrap().warning(), None);
    }
}
