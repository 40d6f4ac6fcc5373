//! Pairs of which a half may be missing and is masked, and what steps without a whole pair do.

use super::{
    pairs::{captions, job},
    *,
};
use crate::train::state::file_name;

#[test]
fn half_a_pair_stays_in_the_batch_where_it_is_masked() {
    let data = tempfile::tempdir().unwrap();
    // A sample a grain: one that lacks a half leaves nothing for one of the networks.
    let job = captions(data.path()).replace("batch = 4", "batch = 4, grains = 4").replace("bn = \"train\"\n", "");
    let masked = job.replace("pairs = { format", "pairs = { missing = \"mask\", format");
    let run = |job: &str, world: usize, dir: &Path| {
        let link = Recorder::default();
        let report = train(job, world, world > 2, dir, &[], &link).unwrap();
        let told = |notice: Notice| link.notices.lock().unwrap().iter().filter(|n| **n == notice).count();
        (model_of(dir), report, [Notice::SamplesSkipped, Notice::HalvesMasked].map(told))
    };
    for method in ["clip", "siglip"] {
        let [out, masked] = [&job, &masked].map(|job| {
            job.replace("dimensions = 8", &format!("dimensions = 8, method = \"{method}\""))
                + "[[stage]]\nname = \"heads\"\nepochs = 2\ntrain = [\"head\", \"tower.head\"]\nlr = 0.001\n"
        });
        let dir = tempfile::tempdir().unwrap();
        let (left_out, report, _) = run(&out, 1, dir.path());
        assert_eq!((report.samples, report.pairing), ([8, 8], None));
        let mut wanted = None;
        for world in [1, 2, 3] {
            let dir = tempfile::tempdir().unwrap();
            let (file, report, told) = run(&masked, world, dir.path());
            // Eight photos have texts, one has none; two texts name a photo that is not there. Judged are whole pairs.
            let pairing = report.pairing.unwrap();
            assert_eq!((pairing.whole, pairing.alone, report.samples, told), (8, [1, 2], [11, 8], [2, 2]));
            assert_eq!(report.evaluation.samples, 8);
            // Eleven to be drawn, four a step.
            assert_eq!(report.steps, 3 * 3);
            assert!(report.to_text().contains("learned from 8 samples with their other half"));
            let losses: Vec<f64> = report.history.iter().map(|h| h.values["train.loss"]).collect();
            let got = (file, losses, report.retrieval);
            assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{method}, {world} ranks");
        }
        assert_ne!(wanted.unwrap().0, left_out, "{method}: what is alone is a negative");
    }
    let counted = |job: &str| {
        let dir = tempfile::tempdir().unwrap();
        let plan = crate::train::probe::probe(&config(job, dir.path(), "cache", Vec::new())).unwrap();
        (plan.samples, plan.warnings.iter().filter(|w| w.contains("what they lack is masked")).count())
    };
    assert_eq!((counted(&job), counted(&masked)), (([8, 8], 0), ([11, 8], 2)));
}

/// Three photos that have texts, among sixteen of which two make a step: in at least five steps of eight no pair is
/// whole.
fn mostly_alone(dir: &Path) -> String {
    let job = captions(dir);
    // The third has no text.
    (4..9).for_each(|i| std::fs::remove_file(dir.join(format!("train/{i}.png"))).unwrap());
    job.replace("batch = 4", "batch = 2, grains = 2")
        .replace("pairs = { format", "pairs = { missing = \"mask\", format")
        .replace("dimensions = 8", "dimensions = 8, method = \"siglip\"")
        .replace("bn = \"train\"\n", "")
}

/// The networks of a job, and what checkpoints after each of its steps have kept.
fn states(job: &str, dir: &Path, steps: u64) -> (Net, Vec<RunState>) {
    let config = config(job, dir, "cache", Vec::new());
    let (spec, inputs) = (&config.spec, &config.inputs);
    let objective = crate::objective::Objective::find(&spec.job.kind);
    let opened = crate::train::opened::Opened::new(spec, spec.data.as_ref().unwrap(), objective).unwrap();
    let (model, samples) = (spec.model.as_ref().unwrap(), &*opened.train.dataset);
    let net = Net::build_for(model, &opened.outputs, spec, inputs, samples).unwrap();
    let net = opened.with_tower(net, spec, inputs).unwrap().with_own(spec, &[]).unwrap();
    let after = |step: u64| {
        let bytes = std::fs::read(dir.join("work").join(file_name(step))).unwrap();
        RunState::from_bytes(bytes, &net.network.initial).unwrap()
    };
    let all = (1..=steps).map(after).collect();
    (net, all)
}

#[test]
fn a_scale_that_is_carried_beyond_its_limits_is_brought_back() {
    for method in ["clip", "siglip"] {
        let job = job(&format!("method = \"{method}\""));
        let more = "checkpoint = { every = 1 }\noptimizer = { name = \"sgd\", momentum = 0.0 }\nobjective =";
        let head = job.split("[[stage]]").next().unwrap().replace("objective =", more);
        // What is trained beside the networks has the highest rate, and those nearly stay where they are.
        let rates = "{ \"*\" = 1e-6, \"fc.bias\" = 1000.0 }";
        let job =
            format!("{head}[[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = {rates}\nbn = \"train\"\n");
        let dir = tempfile::tempdir().unwrap();
        let report = train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
        let (net, states) = states(&job, dir.path(), report.steps);
        let scale = net.network.initial.params.iter().find(|e| e.name == "objective.scale").unwrap();
        let limits = [0.0, 100f64.ln() as f32];
        let at: Vec<f32> = states.iter().map(|state| state.store.values[scale.range.start]).collect();
        assert!(at.iter().all(|v| (limits[0]..=limits[1]).contains(v)), "{method}: {at:?}");
        // What was never told apart is to be told apart by less.
        let first = if method == "clip" { &limits[..1] } else { &limits[..] };
        assert!(first.contains(&at[0]), "{method}: {at:?}");
    }
}

#[test]
fn a_step_without_a_whole_pair_changes_nothing_but_counts() {
    let data = tempfile::tempdir().unwrap();
    let more = "checkpoint = { every = 1 }\noptimizer = { name = \"adamw\", weight_decay = 0.5 }\nobjective =";
    let job = mostly_alone(data.path()).replace("objective =", more).replace("epochs = 1", "epochs = 3");
    let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
    let report = train(&job, 1, false, dir.path(), &[], &link).unwrap();
    let pairing = report.pairing.unwrap();
    assert_eq!((pairing.whole, pairing.alone, report.steps), (3, [1, 12], 3 * 8));

    let (_, states) = states(&job, dir.path(), report.steps);
    let rows = link.rows.lock().unwrap().clone();
    let steps: Vec<&Row> = rows.iter().filter(|row| row.values.contains_key("lr")).collect();
    let learns: Vec<bool> = steps.iter().map(|row| row.values.contains_key("train.loss")).collect();
    let count = learns.iter().filter(|learns| **learns).count();
    assert!(learns.len() == 24 && (3..=9).contains(&count), "{learns:?}");
    assert!(steps.iter().all(|row| row.values["samples_per_s"] > 0.0));
    for (k, learns) in learns.iter().enumerate().skip(1) {
        let (before, after) = (&states[k - 1], &states[k]);
        assert_eq!(before.store.values != after.store.values, *learns, "step {}", k + 1);
        assert_eq!(before.moments.first != after.moments.first, *learns, "step {}", k + 1);
        assert_eq!(before.moments.updates != after.moments.updates, *learns, "step {}", k + 1);
    }
    assert_eq!(states[23].progress.watched as usize, count, "what the gate has looked at");
    gone_on(&job, 5, [2, 1]);
}

#[test]
fn a_search_for_a_rate_takes_a_step_more_where_there_is_no_loss() {
    let data = tempfile::tempdir().unwrap();
    let stage = "epochs = 1\nlr_find = { steps = 10, end = 1e-4, stop_factor = 1000.0 }\n";
    let job = mostly_alone(data.path()).replace("epochs = 1\n", stage);
    let mut wanted = None;
    for world in [1, 2] {
        let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
        let report = train(&job, world, false, dir.path(), &[], &link).unwrap();
        let rows = link.rows.lock().unwrap();
        let swept: Vec<&Row> = rows.iter().filter(|row| row.values.contains_key("lr_find.loss")).collect();
        let rates: Vec<f64> = swept.iter().map(|row| row.values["lr_find.rate"]).collect();
        assert!(rates.len() == 10 && rates.is_sorted_by(|a, b| a < b), "{rates:?}");
        // Ten steps with a whole pair lie in at least four epochs of eight.
        assert!(swept[9].step > 3 * 8, "{}", swept[9].step);
        assert_eq!(*wanted.get_or_insert(report.lr_find.clone()), report.lr_find, "{world} ranks");
    }
}

#[test]
fn a_mask_changes_nothing_where_every_pair_is_whole() {
    for method in ["method = \"clip\"", "method = \"siglip\""] {
        let file = |job: &str| {
            let dir = tempfile::tempdir().unwrap();
            train(job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
            model_of(dir.path())
        };
        let job = job(method).replace("batch = 23", "batch = 40");
        let masked = job.replace("by = \"label\"", "by = \"label\", missing = \"mask\"");
        assert_eq!(file(&job), file(&masked), "{method}");
    }
}
