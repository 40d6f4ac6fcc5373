//! Gradients of single steps of losses of the whole batch: those of several grains against one that has all samples, how
//! much of a reversed one there is, and whose predictions are taken for labels.

use std::collections::BTreeMap;

use tl_proto::catalog::Entry;

use super::*;
use crate::{link::Gradient, objective::Objective, train::state::file_name};

/// By the name of each tensor: the sum of a step.
type Seen = BTreeMap<String, Vec<f32>>;

/// Takes down the gradients of so many steps, and stops.
struct Taken {
    limit: usize,
    seen: Vec<Seen>,
}

impl Link for Taken {
    fn row(&mut self, _: &Row) {}
    fn activity(&mut self, _: &str, _: u64, _: u64) {}
    fn checkpoint(&mut self, _: u64, _: &Path) {}
    fn artifact(&mut self, _: &str, _: &Path) {}
    fn notice(&mut self, _: Notice, _: &str) {}
    fn compares(&self) -> bool {
        true
    }
    fn gradient(&mut self, gradient: &Gradient<'_>) {
        self.seen.push(gradient.tensors().map(|(name, values)| (name, values.to_vec())).collect());
    }
    fn stop_requested(&self) -> bool {
        self.seen.len() + 1 >= self.limit
    }
}

/// A job in which nothing depends on the grain, of two steps: no dropout, no statistics of batches.
pub(super) fn job(kind: &str, objective: &str, grains: usize) -> String {
    let params = "params = { train_samples = 4, val_samples = 1 }";
    let pairs = "pairs = { format = \"generated\", train = \"shifted\", by = \"label\"";
    let teacher = "nets = { teacher = { backbone = \"resnet20\" } }";
    let (more, nets) = match kind {
        "adapt" => (format!("target = {{ train = \"shifted\", {params} }}"), ""),
        "distill" => ("skip_bad = 0".into(), teacher),
        "cross_distill" => (format!("{pairs}, {params} }}"), teacher),
        "contrastive" => {
            (format!("{pairs}, val = \"shifted\", {params} }}"), "nets = { tower = { backbone = \"small_cnn\" } }")
        }
        _ => panic!("`{kind}` has a loss of the whole batch, and no job here"),
    };
    format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"{kind}\", seed = 3 }}\n\
         data = {{ format = \"generated\", train = \"source\", val = \"source\", batch = 16, grains = {grains}, {params}, \
         {more} }}\nmodel = {{ backbone = \"small_cnn\" }}\n{nets}\nobjective = {{ {objective} }}\n\
         optimizer = {{ name = \"sgd\", momentum = 0.0, weight_decay = 0.0 }}\ncheckpoint = {{ every = 1 }}\n\
         [[stage]]\nname = \"all\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.01\nbn = \"affine_only\"\n"
    )
}

/// The gradients of the first steps of a run, from its beginning or from a checkpoint.
fn gradients(job: &str, dir: &Path, resume: &[PathBuf], limit: usize) -> Vec<Seen> {
    let (config, mut link) = (config(job, dir, "cache", resume.to_vec()), Taken { limit, seen: Vec::new() });
    match crate::num::pool::build(2).install(|| run(&config, &mut Solo, &mut link)) {
        Ok(_) | Err(Error::Stopped) => link.seen,
        Err(e) => panic!("{e}: {job}"),
    }
}

fn norm(values: impl IntoIterator<Item = f32>) -> f64 {
    values.into_iter().map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

/// The norm of all tensors together.
fn whole(seen: &Seen) -> f64 {
    norm(seen.values().flatten().copied())
}

/// How far each tensor is from another one, and its norm.
fn apart<'a>(wanted: &'a Seen, got: &Seen) -> Vec<(&'a str, f64, f64)> {
    assert!(wanted.keys().eq(got.keys()), "other tensors");
    let pairs = wanted.iter().zip(got.values());
    let off = |a: &[f32], b: &[f32]| norm(a.iter().zip(b).map(|(a, b)| a - b));
    pairs.map(|((name, a), b)| (name.as_str(), off(a, b), norm(a.iter().copied()))).collect()
}

/// The same gradient, but for the order in which it was added up.
fn assert_same(what: &str, wanted: &Seen, got: &Seen) {
    let whole = whole(wanted);
    assert!(whole > 1e-3, "{what}: {whole}");
    for (name, off, own) in apart(wanted, got) {
        // What is small may be what large things left when they cancelled.
        assert!(off <= 1e-5 * own.max(0.5 * whole), "{what}, `{name}`: {off:e} of {own:e}, all {whole:e}");
    }
}

/// A method in `[objective]`, with what is not said as it is.
pub(super) fn line(method: &Entry) -> String {
    let has = |name: &str| method.params.iter().any(|p| p.name == name);
    // A discriminator that is as quick as the rest, and labels from the first step on.
    let more = [("hidden", "32"), ("threshold", "0.05")].into_iter().filter(|(name, _)| has(name));
    let more: String = more.map(|(name, value)| format!(", {name} = {value}")).collect();
    format!("method = \"{}\"{more}", method.name)
}

/// Every loss of the whole batch: the kind of job and its method.
fn coupled() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for kind in crate::catalog().objectives {
        let coupled = |method: &&Entry| {
            let params = [("method".to_owned(), method.name.as_str().into())].into();
            (Objective::find(&kind.name).coupled)(&params)
        };
        all.extend(kind.methods.iter().filter(coupled).map(|method| (kind.name.clone(), line(method))));
    }
    all
}

#[test]
fn grains_of_a_loss_of_the_whole_batch_add_up_to_its_gradient() {
    let variants = [
        ("adapt", "method = \"mmd\", estimator = \"quadratic\""),
        ("adapt", "method = \"coral\", variant = \"domainbed\""),
        ("adapt", "method = \"cdan\", hidden = 32, entropy = false"),
    ];
    let all = coupled().into_iter().chain(variants.map(|(kind, line)| (kind.to_owned(), line.to_owned())));
    let mut kinds = BTreeSet::new();
    for (kind, line) in all {
        let what = format!("{kind}, {line}");
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let (one, several) = (job(&kind, &line, 1), job(&kind, &line, 5));
        let wanted = gradients(&one, dirs[0].path(), &[], 2);
        assert_same(&what, &wanted[0], &gradients(&several, dirs[1].path(), &[], 2)[0]);
        // The second step, in which a gradient that is reversed has grown, from one state.
        let after = dirs[0].path().join("work").join(file_name(1));
        assert_same(&what, &wanted[1], &gradients(&several, dirs[2].path(), &[after], 2)[0]);
        kinds.insert(kind);
    }
    assert!(kinds.iter().eq(["adapt", "contrastive", "cross_distill", "distill"]), "{kinds:?}");
}

#[test]
fn a_reversed_gradient_is_nothing_in_the_first_step_and_grows_with_the_run() {
    let of_network = |line: &str| -> Vec<Seen> {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = gradients(&job("adapt", line, 2), dir.path(), &[], 2);
        seen.iter_mut().for_each(|seen| seen.retain(|name, _| !name.starts_with("objective.")));
        seen
    };
    let labels = of_network("method = \"direct\"");
    for line in ["method = \"dann\", hidden = 32", "method = \"cdan\", hidden = 32"] {
        let reversed = of_network(line);
        assert_same(line, &labels[0], &reversed[0]);
        let off: f64 = apart(&labels[1], &reversed[1]).iter().map(|(_, off, _)| off * off).sum();
        assert!(off.sqrt() > 1e-3 * whole(&labels[1]), "{line}: {off:e}");
    }
}

#[test]
fn labels_in_self_training_are_what_the_average_says_and_not_what_the_network_says_now() {
    // Four epochs of four steps. The first step is a small one: at its end nothing is certain yet.
    let run = |threshold: &str, average: &str| {
        let stage = "epochs = 4\nwarmup = 8\n";
        let job = job("adapt", &format!("method = \"self_training\", threshold = {threshold}"), 2)
            .replace("name = \"sgd\", momentum = 0.0", "name = \"adamw\"")
            .replace("batch = 16", "batch = 8")
            .replace("epochs = 1\n", stage)
            .replace("bn = \"affine_only\"", "bn = \"train\"");
        let dir = tempfile::tempdir().unwrap();
        gradients(&format!("{job}{average}"), dir.path(), &[], 16)
    };
    let average = |decay: &str| format!("[modifiers.ema]\ndecay = {decay}\nwarmup = 0\n");
    // No probability is that high: labels of the source alone.
    let labels = run("1.0", "");
    let (first, now) = (run("0.3", &average("0.99999")), run("0.3", &average("0.0")));
    assert!(labels.len() == 16 && labels == first, "where the network began, it was certain of nothing");
    assert!(labels.last() != now.last(), "by now it is certain of something");
}
