//! `tlctl verify`: does a job give the same on one, two and three ranks? Run here, on a few steps of each stage.

use std::path::PathBuf;

use serde_json::json;
use tl_proto::spec::{self, JobSpec, ModelSection};
use tl_worker::rank::{self, Compared, ROOM, gpu::Place};

use super::{
    FAILED,
    args::Verify,
    local::{Scratch, elsewhere, here, refused},
    output::Output,
};
use crate::{Error, spec_file};

pub(super) fn run(a: &Verify, output: &Output) -> Result<u8, Error> {
    let catalog = rank::catalog();
    let spec = spec_file::load(&a.job.file, &a.job.set, &catalog)?;
    spec::check(&spec, &catalog).map_err(|e| Error::input(format!("{}: {e}", a.job.file.display()), e.hint))?;
    let here = here(&a.on, output)?;
    let folder = std::env::temp_dir().join(format!("tl-verify-{}", ulid::Ulid::new()));
    std::fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
    let scratch = Scratch(Some(folder.clone()));
    let mut holds = true;
    for (step, inner, _) in spec.steps() {
        // Of one job with several seeds, one says it for all.
        if !spec.leads_group(step) {
            continue;
        }
        let compared = verify(inner, &here.place, folder.join(step), u64::from(a.steps))?;
        holds &= compared.iter().all(Compared::holds);
        let several = spec.job.kind == JobSpec::PIPELINE;
        for c in &compared {
            let (holds, device) = (c.holds(), here.device.to_string());
            let event = json!({ "event": "verified", "step": step, "holds": holds, "compared": c, "device": device });
            output.print(&event, || line(if several { Some(step) } else { None }, c));
        }
    }
    drop(scratch);
    Ok(if holds { 0 } else { FAILED })
}

fn verify(spec: &JobSpec, place: &Place, folder: PathBuf, steps: u64) -> Result<Vec<Compared>, Error> {
    let mut spec = spec.clone();
    without_steps(&mut spec);
    if let Some((key, place)) = spec.models().next() {
        return Err(elsewhere(&key, place, "`tlctl verify` runs here, without a cluster"));
    }
    if let Some((key, place)) = spec.places().find(|(_, place)| !JobSpec::is_path(place)) {
        return Err(Error::input(
            format!("`{key}` is `{place}`, which is not on this machine"),
            "`tlctl verify` runs here, without a cluster: name a path (`--set`)",
        ));
    }
    rank::verify(&spec, place, &folder, steps).map_err(|e| refused(&e))
}

/// What an earlier step would leave is not there; any weights do.
fn without_steps(spec: &mut JobSpec) {
    let left = |model: &ModelSection| model.weights.as_deref().is_some_and(|w| w.starts_with("step:"));
    if spec.model.as_ref().is_some_and(left) {
        // Heads of tasks come with the weights of the network.
        spec.tasks.values_mut().for_each(|task| task.head.keep = false);
    }
    for model in spec.model.iter_mut().chain(spec.nets.values_mut()).filter(|m| left(m)) {
        (model.weights, model.head.keep, model.random) = (None, false, false);
    }
}

fn line(step: Option<&str>, c: &Compared) -> String {
    let at = step.map(|s| format!("step `{s}`, ")).unwrap_or_default();
    let head = format!("{at}stage `{}`, {} ranks, {} steps", c.stage, c.ranks, c.steps);
    let ordered = match &c.ordered {
        None => "ordered: the same bits".to_owned(),
        Some(d) => format!("ordered: DIFFERS first at step {} in `{}`", d.step, d.tensor),
    };
    let fast = match &c.apart {
        None => format!("fast: within {:.1e}", c.fast),
        Some(d) => format!(
            "fast: APART by {:.1e}, more than {ROOM:.0e}, first at step {}, most in `{}`",
            c.fast, d.step, d.tensor
        ),
    };
    format!("{head}: {ordered}; {fast}")
}

#[cfg(test)]
mod tests {
    use tl_proto::spec::{PairedBy, TOWER};

    use super::{super::offline::RECIPES, *};

    /// The same job on drawn samples or a few words, with a small network without weights.
    fn small(mut spec: JobSpec, words: &std::path::Path) -> JobSpec {
        let data = spec.data.as_mut().unwrap();
        let text = data.format == "text";
        if text {
            (data.train, data.val) = (words.display().to_string(), words.display().to_string());
        } else {
            data.format = "generated".into();
            (data.train, data.val) = ("source".into(), "source".into());
            data.params = [("train_samples", 8), ("val_samples", 2)].map(|(k, v)| (k.to_owned(), v.into())).into();
            data.train_per_class = None;
            if let Some(episodes) = &mut data.episodes {
                (episodes.way, episodes.query, episodes.train_way) = (2, 1, Some(4));
            }
            data.source = None;
            if let Some(target) = &mut data.target {
                (target.train, target.val) = ("shifted".into(), None);
            }
        }
        // Eight classes in two groups, and the other domain as a task of its own.
        for task in spec.tasks.values_mut() {
            (task.format, task.params) = (None, spec::Params::new());
            match &mut task.train {
                Some(train) => (*train, task.val) = ("shifted".into(), Some("shifted".into())),
                None => task.classes = grouped(),
            }
        }
        // Texts that go with pictures line by line, or pictures of another domain.
        let texts = data.pairs.as_ref().is_some_and(|p| p.format == "text");
        if let Some(pairs) = &mut data.pairs {
            let place = if texts { words.display().to_string() } else { "shifted".into() };
            let (format, by) = if texts { ("text", PairedBy::Order) } else { ("generated", PairedBy::Label) };
            (pairs.format, pairs.by) = (format.into(), by);
            (pairs.train, pairs.val) = (place.clone(), Some(place));
        }
        let nets = spec.nets.iter_mut().map(|(role, net)| (net, texts && role == TOWER));
        for (model, reads) in spec.model.iter_mut().map(|m| (m, false)).chain(nets) {
            let backbone = if text || reads { "minilm" } else { "small_cnn" };
            *model = ModelSection { backbone: backbone.into(), head: model.head.clone(), ..ModelSection::default() };
        }
        spec
    }

    /// The classes of the drawn samples in two groups.
    fn grouped() -> std::collections::BTreeMap<String, Vec<String>> {
        let (plain, outlined) =
            (["circle", "square", "triangle", "star-4"], ["ring", "square-outline", "triangle-outline", "star-6"]);
        [("plain", plain), ("outlined", outlined)].map(|(k, of)| (k.to_owned(), of.map(str::to_owned).into())).into()
    }

    #[test]
    fn heads_that_an_earlier_step_would_leave_are_new_ones() {
        let job = |weights: &str| {
            let text = format!(
                "schema = 1\njob = {{ name = \"t\", kind = \"multitask\" }}\n\
                 model = {{ backbone = \"small_cnn\", weights = \"{weights}\", head = {{ keep = true }} }}\n\
                 tasks.a = {{ classes = {{ x = [\"0\"], y = [\"1\"] }}, head = {{ keep = true }} }}\n"
            );
            let mut spec = spec::parse(&text).unwrap();
            without_steps(&mut spec);
            let model = spec.model.unwrap();
            (model.weights, model.head.keep, spec.tasks["a"].head.keep)
        };
        assert_eq!(job("step:first"), (None, false, false));
        assert_eq!(job("w"), (Some("w".to_owned()), true, true));
    }

    #[test]
    fn every_recipe_gives_the_same_on_more_ranks() {
        let dir = tempfile::tempdir().unwrap();
        let words = dir.path().join("words.tsv");
        let text =
            |i: usize| format!("{}\t{} a lot of word{i}\n", i % 2, if i.is_multiple_of(2) { "good" } else { "bad" });
        std::fs::write(&words, (0..40).map(text).collect::<String>()).unwrap();
        let mut kinds = std::collections::BTreeSet::new();
        for (name, files) in RECIPES.iter().map(|r| (r.name, r.files)) {
            files.iter().for_each(|(file, text)| std::fs::write(dir.path().join(file), text).unwrap());
            let spec = spec_file::load(&dir.path().join(files[0].0), &[], &rank::catalog()).unwrap();
            for (step, inner, _) in spec.steps() {
                kinds.insert(inner.job.kind.clone());
                if inner.stage.is_empty() {
                    // What trains nothing has no gradients.
                    continue;
                }
                let inner = small(inner.clone(), &words);
                let compared = verify(&inner, &Place::Host, dir.path().join(name).join(step), 2).unwrap();
                assert!(!compared.is_empty(), "{name}");
                for c in compared {
                    assert!(c.holds(), "{name}: {}", line(None, &c));
                }
            }
        }
        let all: Vec<String> = rank::catalog().objectives.into_iter().map(|e| e.name).collect();
        assert!(all.iter().all(|kind| kinds.contains(kind)), "a kind of job without a recipe: {all:?}, {kinds:?}");
    }

    #[test]
    fn a_difference_is_named() {
        let difference = || rank::Difference { step: 3, tensor: "head.weight".into() };
        let c = Compared {
            stage: "all".into(),
            ranks: 2,
            steps: 3,
            ordered: Some(difference()),
            fast: 2e-5,
            apart: Some(difference()),
        };
        assert_eq!(
            line(None, &c),
            "stage `all`, 2 ranks, 3 steps: ordered: DIFFERS first at step 3 in `head.weight`; \
             fast: APART by 2.0e-5, more than 1e-6, first at step 3, most in `head.weight`"
        );
        assert!(!c.holds());
    }
}
