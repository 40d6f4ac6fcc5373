//! `[data.episodes]`: few-shot tasks that are drawn from the samples, in the place of single samples.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    DataSection, JobSpec, Sampling,
    check::{Checked, require, within},
};
use crate::catalog::Entry;

/// `[data.episodes]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EpisodesSection {
    /// Classes of an episode.
    pub way: u32,
    /// Samples of each class that an episode shows with their labels.
    pub shot: u32,
    /// Samples of each class whose labels are then to be found.
    pub query: u32,
    /// Classes of an episode that is trained on; `way` if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_way: Option<u32>,
    /// The same for `shot`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_shot: Option<u32>,
    /// The same for `query`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_query: Option<u32>,
    /// Training episodes of an epoch.
    pub per_epoch: u32,
    /// Episodes of the validation samples that are judged after each epoch.
    pub val: u32,
    /// Episodes of the validation samples that are judged at the end: others than after an epoch, and the same for every
    /// method and any number of ranks.
    pub test: u32,
    /// Whether images turned by 90, 180 and 270 degrees are classes of their own: `none`, those of `train`, or `all`.
    pub rotations: Rotations,
}

/// Which classes come in four turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rotations {
    /// None.
    #[default]
    None,
    /// Those that are trained on.
    Train,
    /// All of them.
    All,
}

impl Default for EpisodesSection {
    fn default() -> Self {
        Self {
            way: 5,
            shot: 1,
            query: 15,
            train_way: None,
            train_shot: None,
            train_query: None,
            per_epoch: 100,
            val: 100,
            test: Self::USUAL,
            rotations: Rotations::None,
        }
    }
}

/// Classes of an episode, and samples of each that are shown and asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpisodeShape {
    /// Classes.
    pub way: usize,
    /// Samples of each with their labels.
    pub shot: usize,
    /// Samples of each without.
    pub query: usize,
}

impl EpisodeShape {
    /// Samples that are shown.
    pub fn support(&self) -> usize {
        self.way * self.shot
    }

    /// Samples that are asked for.
    pub fn queries(&self) -> usize {
        self.way * self.query
    }
}

impl EpisodesSection {
    /// Episodes that published figures are means over, at least.
    pub const USUAL: u32 = 600;

    /// Episodes that are judged.
    pub fn judged(&self) -> EpisodeShape {
        EpisodeShape { way: self.way as usize, shot: self.shot as usize, query: self.query as usize }
    }

    /// Episodes that are trained on.
    pub fn trained(&self) -> EpisodeShape {
        let or = |own: Option<u32>, other: u32| own.unwrap_or(other) as usize;
        EpisodeShape {
            way: or(self.train_way, self.way),
            shot: or(self.train_shot, self.shot),
            query: or(self.train_query, self.query),
        }
    }

    fn check(&self) -> Checked {
        let counts = [
            ("way", Some(self.way), 2.0, 1e4),
            ("shot", Some(self.shot), 1.0, 1e4),
            ("query", Some(self.query), 1.0, 1e4),
            ("train_way", self.train_way, 2.0, 1e4),
            ("train_shot", self.train_shot, 1.0, 1e4),
            ("train_query", self.train_query, 1.0, 1e4),
            ("per_epoch", Some(self.per_epoch), 1.0, 1e7),
            ("val", Some(self.val), 1.0, 1e6),
            // An interval needs two.
            ("test", Some(self.test), 2.0, 1e6),
        ];
        let mut given = counts.into_iter().filter_map(|(key, n, min, max)| Some((key, f64::from(n?), min, max)));
        given.try_for_each(|(key, n, min, max)| within(&format!("data.episodes.{key}"), n, min, max))
    }
}

/// Checks the episodes of a job: there if its kind learns from them, and only then.
pub(super) fn check_episodes(spec: &JobSpec, objective: &Entry) -> Checked {
    let Some(data) = &spec.data else { return Ok(()) };
    let wanted = objective.data.iter().any(|role| role == "episodes");
    let Some(episodes) = &data.episodes else {
        return require(!wanted, || {
            let hint = "add `episodes = { way = 5, shot = 1 }` to `[data]`, where `batch` then counts episodes";
            (format!("`{}` needs `[data.episodes]`", spec.job.kind), hint.into())
        });
    };
    require(wanted, || {
        (format!("`{}` has no use for `data.episodes`", spec.job.kind), "`kind = \"fewshot\"` learns from it".into())
    })?;
    episodes.check()?;
    let DataSection { sampling, class_weights, .. } = data;
    require(*sampling == Sampling::Shuffled && class_weights.is_none(), || {
        (
            "all classes are alike in episodes: `data.sampling` and `data.class_weights` change nothing".into(),
            "remove them".into(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::entry, spec::parse};

    fn check(kind: &str, data: &str) -> Result<JobSpec, crate::spec::SpecError> {
        let job = format!(
            "schema = 1\njob = {{ name = \"t\", kind = \"{kind}\" }}\n\
             data = {{ format = \"g\", train = \"s\", val = \"s\", batch = 3{data} }}\n"
        );
        let spec = parse(&job)?;
        let roles = if kind == "fewshot" { vec!["episodes".into()] } else { Vec::new() };
        check_episodes(&spec, &Entry { data: roles, ..entry(kind, "") }).map(|()| spec)
    }

    #[test]
    fn episodes_are_there_where_they_are_learned_from_and_only_there() {
        for (kind, data, part) in [
            ("fewshot", "", "`fewshot` needs `[data.episodes]`"),
            ("finetune", ", episodes = {}", "has no use for `data.episodes`"),
            ("fewshot", ", episodes = { way = 1 }", "data.episodes.way cannot be 1"),
            ("fewshot", ", episodes = { train_shot = 0 }", "data.episodes.train_shot cannot be 0"),
            ("fewshot", ", episodes = { test = 1 }", "data.episodes.test cannot be 1"),
            ("fewshot", ", episodes = { ways = 3 }", "unknown key `ways`"),
            ("fewshot", ", episodes = { rotations = \"some\" }", "unknown variant `some`"),
            ("fewshot", ", episodes = {}, sampling = \"balanced\"", "all classes are alike"),
            ("fewshot", ", episodes = {}, class_weights = \"balanced\"", "all classes are alike"),
        ] {
            let e = check(kind, data).unwrap_err();
            assert!(e.message.contains(part), "{data}: {e}");
        }
        check("finetune", "").unwrap();
    }

    #[test]
    fn training_takes_the_shape_of_tests_unless_it_says_another_one() {
        let section = |text: &str| {
            let spec = check("fewshot", &format!(", episodes = {{ {text} }}")).unwrap();
            (spec.grains(), spec.data.unwrap().episodes.unwrap())
        };
        let (grains, plain) = section("");
        assert_eq!(plain.trained(), EpisodeShape { way: 5, shot: 1, query: 15 });
        assert_eq!((plain.judged().support(), plain.judged().queries(), plain.test), (5, 75, 600));
        assert_eq!(grains, 3, "an episode is enough for a grain");
        let (_, other) = section("way = 20, train_way = 60, train_query = 5");
        assert_eq!(other.trained(), EpisodeShape { way: 60, shot: 1, query: 5 });
        assert_eq!(other.judged(), EpisodeShape { way: 20, shot: 1, query: 15 });
    }
}
