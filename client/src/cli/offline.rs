//! Commands that need no coordinator.

use clap::CommandFactory;
use serde_json::json;
use tl_proto::{
    catalog::{Catalog, Entry, METHOD, Param, nearest_hint},
    spec,
};

use super::{
    args::{Cli, Completions, Init, JobFile},
    output::Output,
};
use crate::{Error, spec_file};

/// A job file to start from.
pub(super) struct Recipe {
    pub(super) name: &'static str,
    doc: &'static str,
    /// Names and contents; the first one is the job.
    pub(super) files: &'static [(&'static str, &'static str)],
}

pub(super) const RECIPES: &[Recipe] = &[
    Recipe {
        name: "quickstart",
        doc: "pretrain, transfer and compare with training from scratch; needs no data",
        files: &[
            ("quickstart.toml", include_str!("../../recipes/quickstart.toml")),
            ("quickstart-net.toml", include_str!("../../recipes/quickstart-net.toml")),
        ],
    },
    Recipe {
        name: "finetune",
        doc: "fine-tune pretrained weights on a folder of images per class, in two stages",
        files: &[("finetune.toml", include_str!("../../recipes/finetune.toml"))],
    },
    Recipe {
        name: "fine_tune",
        doc: "the same in one line, with the settings of fastai's fine_tune",
        files: &[("fine_tune.toml", include_str!("../../recipes/fine_tune.toml"))],
    },
    Recipe {
        name: "lora",
        doc: "fine-tune a text encoder with LoRA, and leave an adapter that peft loads",
        files: &[("lora.toml", include_str!("../../recipes/lora.toml"))],
    },
    Recipe {
        name: "distill",
        doc: "train a small network on what a large one says",
        files: &[("distill.toml", include_str!("../../recipes/distill.toml"))],
    },
    Recipe {
        name: "adapt",
        doc: "bring a network to another domain, of which there are samples without labels",
        files: &[("adapt.toml", include_str!("../../recipes/adapt.toml"))],
    },
    Recipe {
        name: "multitask",
        doc: "several heads on one network, for other classes of the same photos or for other photos",
        files: &[("multitask.toml", include_str!("../../recipes/multitask.toml"))],
    },
    Recipe {
        name: "contrastive",
        doc: "train two networks so that photos and the texts that go with them find each other",
        files: &[("contrastive.toml", include_str!("../../recipes/contrastive.toml"))],
    },
    Recipe {
        name: "zero_shot",
        doc: "judge photos by sentences that name their classes, with the networks of `contrastive`",
        files: &[("zero_shot.toml", include_str!("../../recipes/zero_shot.toml"))],
    },
    Recipe {
        name: "cross_distill",
        doc: "let a network that knows photos teach one of another kind of sample, without labels",
        files: &[("cross_distill.toml", include_str!("../../recipes/cross_distill.toml"))],
    },
    Recipe {
        name: "fewshot",
        doc: "tell new classes apart from one sample of each: prototypical networks, trained and judged by episodes",
        files: &[("fewshot.toml", include_str!("../../recipes/fewshot.toml"))],
    },
    Recipe {
        name: "audio",
        doc: "tell sounds apart by their spectrograms",
        files: &[("audio.toml", include_str!("../../recipes/audio.toml"))],
    },
    Recipe {
        name: "strokes",
        doc: "tell drawings apart by the strokes of the pen, such as those of Quick, Draw!",
        files: &[("strokes.toml", include_str!("../../recipes/strokes.toml"))],
    },
    Recipe {
        name: "keep",
        doc: "teach a network something new, and say what it has forgotten",
        files: &[("keep.toml", include_str!("../../recipes/keep.toml"))],
    },
    Recipe {
        name: "pipeline",
        doc: "train a teacher, see that it is good enough, teach a student, and compare it with one that had no teacher",
        files: &[
            ("pipeline.toml", include_str!("../../recipes/pipeline.toml")),
            ("pipeline-teacher.toml", include_str!("../../recipes/pipeline-teacher.toml")),
            ("pipeline-student.toml", include_str!("../../recipes/pipeline-student.toml")),
        ],
    },
];

pub(super) fn check(a: &JobFile, catalog: &Catalog, output: &Output) -> Result<u8, Error> {
    let spec = spec_file::load(&a.file, &a.set, catalog)?;
    spec::check(&spec, catalog).map_err(|e| Error::input(format!("{}: {e}", a.file.display()), e.hint))?;
    output.print(&json!({ "event": "checked", "job": spec }), || format!("{} is a good job file", a.file.display()));
    Ok(0)
}

pub(super) fn schema(catalog: &Catalog, output: &Output) -> Result<u8, Error> {
    let schema = spec::schema(catalog);
    output.print(&schema, || serde_json::to_string_pretty(&schema).unwrap_or_default());
    Ok(0)
}

/// What stands above the kinds of jobs, and what the words behind them and their methods mean.
const OBJECTIVES: &str = "objectives (`job.kind`); in brackets, what ranks exchange for the loss beside gradients: nothing \
                          (local), sums over the batch (sum), or what comes out of each of its samples (coupled)";

pub(super) fn catalog(catalog: Catalog, output: &Output) -> Result<u8, Error> {
    let baselines = spec::baselines();
    output.print(&json!({ "event": "catalog", "catalog": catalog, "baselines": baselines }), || {
        let lists = [
            ("backbones (`model.backbone`)", &catalog.backbones),
            (OBJECTIVES, &catalog.objectives),
            ("baselines (`job.baseline`)", &baselines),
            ("modifiers (`[modifiers.NAME]`)", &catalog.modifiers),
            ("data formats (`data.format`)", &catalog.formats),
            ("optimizers (`optimizer.name`)", &catalog.optimizers),
            ("schedules (`stage.schedule`)", &catalog.schedules),
        ];
        lists.map(|(title, entries)| format!("{title}\n{}", entries.iter().map(entry).collect::<String>())).join("\n")
    });
    Ok(0)
}

fn entry(e: &Entry) -> String {
    let params = |e: &Entry, indent: &str| {
        let one = |p: &Param| format!("{indent}{} = {}: {}\n", p.name, p.default, p.doc);
        e.params.iter().map(one).collect::<String>()
    };
    let word = |e: &Entry| e.exchange.map(|word| format!(" ({word})")).unwrap_or_default();
    let method = |m: &Entry| format!("    {METHOD} = \"{}\"{}: {}\n{}", m.name, word(m), m.doc, params(m, "      "));
    let methods: String = e.methods.iter().map(method).collect();
    format!("  {}{}: {}\n{}{methods}", e.name, word(e), e.doc, params(e, "    "))
}

pub(super) fn init(a: &Init, output: &Output) -> Result<u8, Error> {
    let names: Vec<&str> = RECIPES.iter().map(|r| r.name).collect();
    let Some(wanted) = &a.recipe else {
        let list = RECIPES.iter().map(|r| json!({ "name": r.name, "doc": r.doc })).collect::<Vec<_>>();
        output.print(&json!({ "event": "recipes", "recipes": list }), || {
            RECIPES.iter().map(|r| format!("{}: {}\n", r.name, r.doc)).collect()
        });
        return Ok(0);
    };
    let Recipe { files, .. } = RECIPES
        .iter()
        .find(|r| r.name == wanted)
        .ok_or_else(|| Error::input(format!("there is no recipe `{wanted}`"), nearest_hint(wanted, &names)))?;
    std::fs::create_dir_all(&a.dir).map_err(Error::file(&a.dir))?;
    // All or nothing: nothing that is there is overwritten.
    if let Some((name, _)) = files.iter().find(|(name, _)| a.dir.join(name).exists()) {
        return Err(Error::input(
            format!("`{}` is there already", a.dir.join(name).display()),
            "remove it, or use `--dir`",
        ));
    }
    let mut written = Vec::new();
    for (name, text) in *files {
        let path = a.dir.join(name);
        std::fs::write(&path, text).map_err(Error::file(&path))?;
        written.push(path.display().to_string());
    }
    output.print(&json!({ "event": "written", "files": written }), || written.join("\n"));
    Ok(0)
}

pub(super) fn completions(a: &Completions) -> u8 {
    clap_complete::generate(a.shell, &mut Cli::command(), "tlctl", &mut std::io::stdout());
    0
}

#[cfg(test)]
mod tests {
    use tl_proto::catalog::{self, Exchange};

    use super::*;

    #[test]
    fn a_loss_is_listed_with_what_ranks_exchange_for_it() {
        let coral = Entry { exchange: Some(Exchange::Coupled), ..catalog::entry("coral", "covariances") };
        let kind = Entry { methods: vec![coral], ..catalog::entry("adapt", "another domain") };
        let listed = "  adapt: another domain\n    method = \"coral\" (coupled): covariances\n";
        assert_eq!(entry(&kind), listed);
        let alone = Entry { exchange: Some(Exchange::Local), ..catalog::entry("finetune", "labels") };
        assert_eq!(entry(&alone), "  finetune (local): labels\n");
        assert_eq!(entry(&catalog::entry("adamw", "steps")), "  adamw: steps\n");
    }

    #[test]
    #[cfg(feature = "local")]
    fn every_recipe_with_every_baseline_of_its_kind_is_a_good_job_file() {
        let (dir, catalog) = (tempfile::tempdir().unwrap(), tl_worker::rank::catalog());
        let mut made = std::collections::BTreeSet::new();
        // Held to weights that are learned about from samples of their own task, too.
        let kept = ["modifiers={ ewc = {} }".to_owned(), "data.source={ train = \"a\", val = \"b\" }".to_owned()];
        for Recipe { name, files, .. } in RECIPES {
            files.iter().for_each(|(file, text)| std::fs::write(dir.path().join(file), text).unwrap());
            for baseline in spec::baselines() {
                for more in [&kept[..0], &kept[..if *name == "keep" { 2 } else { 0 }]] {
                    let mut set = vec![format!("job.baseline=[\"{}\"]", baseline.name)];
                    set.extend_from_slice(more);
                    let spec = match spec_file::load(&dir.path().join(files[0].0), &set, &catalog) {
                        Ok(spec) => spec,
                        Err(e) => {
                            assert!(e.to_string().contains("is no baseline of a job"), "{name}, {set:?}: {e}");
                            continue;
                        }
                    };
                    let checked = spec::check(&spec, &catalog);
                    checked.unwrap_or_else(|e| panic!("{name}, {set:?}: {e} ({})", e.hint));
                    made.insert(baseline.name.clone());
                }
            }
        }
        assert_eq!(made.len(), spec::baselines().len(), "{made:?}");
    }

    #[test]
    #[cfg(feature = "local")]
    fn every_recipe_is_a_good_job_file() {
        for Recipe { name, files, .. } in RECIPES {
            let dir = tempfile::tempdir().unwrap();
            let args = Init { recipe: Some((*name).into()), dir: dir.path().into() };
            init(&args, &Output::new(super::super::args::Format::Json)).unwrap();
            let catalog = tl_worker::rank::catalog();
            let spec = spec_file::load(&dir.path().join(files[0].0), &[], &catalog).unwrap();
            spec::check(&spec, &catalog).unwrap();
            assert!(init(&args, &Output::new(super::super::args::Format::Json)).is_err(), "nothing is overwritten");
        }
    }
}
