//! What `tlctl verify` asks, of methods and of what holds a network.

use super::{coupled, forget, *};
use crate::train::verify::{Verified, verified, verify};

/// Compares two steps of each stage of a job on one, two and three ranks.
fn assert_verified(what: &str, job: &str) {
    let dir = tempfile::tempdir().unwrap();
    let config = config(job, dir.path(), "cache", Vec::new());
    let compared = verify(&config, 2).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(compared.len(), 2 * config.spec.stage.len(), "{what}");
    compared.iter().for_each(|c| assert!(c.holds() && c.steps == 2, "{what}: {c:?}"));
    assert!(compared.iter().any(|c| c.fast > 0.0), "{what}: the fast reduction adds in another order");
}

#[test]
fn every_method_gives_the_same_in_both_reductions() {
    let small = ["adapt", "contrastive", "distill", "cross_distill"];
    for kind in crate::catalog().objectives.iter().filter(|kind| small.contains(&kind.name.as_str())) {
        for line in kind.methods.iter().map(coupled::line) {
            // Two samples a grain, and so many of these that two ranks add them up otherwise than one.
            let job = coupled::job(&kind.name, &line, 6).replace("batch = 16", "batch = 12");
            let job = job.replace("train_samples = 4", "train_samples = 3").replace("affine_only", "train");
            assert_verified(&format!("{}, {line}", kind.name), &job);
        }
    }
}

#[test]
fn what_holds_a_network_gives_the_same_in_both_reductions() {
    let ewc = "[modifiers.ewc]\nlambda = 30\nsamples = 9";
    for (modifier, source) in [(ewc, &*forget::train_on()), ("[modifiers.l2_sp]", ""), ("[modifiers.lwf]", "")] {
        let job = forget::job(modifier, 0.01, source, "\"*\"");
        assert_verified(modifier, &job.replace("batch = 20, grains = 2", "batch = 12, grains = 6"));
    }
}

#[test]
fn a_stage_that_only_looks_for_a_rate_is_compared_by_its_steps() {
    let job = forget::job("", 0.01, "", "\"*\"").replace("batch = 20, grains = 2", "batch = 12, grains = 6");
    let dir = tempfile::tempdir().unwrap();
    let config = config(&job.replace("epochs = 6", "epochs = 0\nlr_find = {}"), dir.path(), "cache", Vec::new());
    let found = verified(&config, 2).unwrap();
    let Verified::Trains(all) = found else { panic!("it takes steps: {found:?}") };
    assert!(all.len() == 2 && all.iter().all(|c| c.holds() && c.steps == 2), "{all:?}");
}
