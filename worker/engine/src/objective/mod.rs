//! What a run minimises. A new objective is a file here and a line in [`ALL`].
//!
//! An objective sees features and logits as candle variables and returns the *sum* of its loss over the samples; candle
//! differentiates it. It sees one grain, or, if its loss couples samples, the whole batch of the step, whoever computed
//! it: every rank works out the same loss from the same numbers, so no gradient has to be corrected for the number of
//! ranks. Targets are probabilities, so that smoothing and mixing need nothing special.

mod adapt;
mod contrastive;
mod cross_distill;
mod distill;
pub mod fewshot;
mod finetune;
mod multitask;
mod ops;
mod zero_shot;

use std::collections::BTreeMap;

use candle_core::Tensor;
use tl_proto::{
    catalog::{Entry, Exchange, METHOD},
    spec::Params,
};

pub use multitask::{Balance, LOG_VARIANCES, Several, Task, Tasks, weights_of};
pub use ops::{exp, log_softmax, unit};
pub use zero_shot::{SCALE, sentences};

use crate::{Error, Result, cache::Packed, nn::Own};

/// What an objective sees of one grain, or of all grains of a step. Samples with labels come first, then those of
/// another domain, which have none.
pub struct Batch<'a> {
    /// `[n + m, d]`: what the last layer of the network takes; a variable.
    pub features: &'a Tensor,
    /// `[n + m, classes]`: of the network that is trained; a variable.
    pub logits: &'a Tensor,
    /// `[n, classes]`: target probabilities, not smoothed: blends where samples are mixed, and a row of zeros for a sample
    /// without a label, as are all in a job that learns from pairs.
    pub targets: &'a Tensor,
    /// What the teacher makes of the samples, where the objective has one.
    pub teacher: Option<Taught<'a>>,
    /// `[n, …]`: what came out of units inside the network, which are variables, and of the teacher's that they are
    /// compared with; of the latter what the objective looks at.
    pub taps: &'a [(Tensor, Tensor)],
    /// `[m, classes]`: logits by the average of the weights on the samples without labels, where the job keeps one.
    pub averaged: Option<&'a Tensor>,
    /// `[n, dimensions]`: what a second network makes of the other halves; a variable.
    pub paired: Option<&'a Tensor>,
    /// `[n, 2]`: 1 for a sample that is there, and for its other half, and 0 for what is missing, whose row says nothing;
    /// none where every pair is whole.
    pub present: Option<&'a Tensor>,
    /// `[classes]`: what a class counts, where they do not all count the same.
    pub weights: Option<&'a Tensor>,
    /// The objective's own tensors, by name; variables.
    pub own: &'a BTreeMap<String, Tensor>,
    /// Steps done, as a part of all steps of the run.
    pub progress: f64,
}

/// What a teacher says; nothing is learned through it.
#[derive(Clone, Copy)]
pub struct Taught<'a> {
    /// `[n, teachers · classes]`: of one teacher after the other, where there are several.
    pub logits: &'a Tensor,
    /// `[n, d]`: what the first one's last layer takes, if the objective looks at it.
    pub features: Option<&'a Tensor>,
}

#[cfg(test)]
impl<'a> Batch<'a> {
    /// Samples with labels, of which nothing else is said: `Batch { teacher, ..Batch::plain(…) }`. Features are the logits.
    fn plain(logits: &'a Tensor, targets: &'a Tensor, own: &'a BTreeMap<String, Tensor>) -> Self {
        let (teacher, averaged, paired, present, weights) = (None, None, None, None, None);
        let (features, taps, progress) = (logits, &[], 0.0);
        Self { features, logits, targets, teacher, taps, averaged, paired, present, weights, own, progress }
    }
}

impl Batch<'_> {
    /// Samples with labels.
    pub fn samples(&self) -> Result<usize> {
        Ok(self.targets.dim(0)?)
    }

    /// The rows of samples with labels, and those of the others.
    ///
    /// # Errors
    /// A tensor with other rows.
    pub fn split(&self, rows: &Tensor) -> Result<(Tensor, Tensor)> {
        let (n, all) = (self.samples()?, rows.dim(0)?);
        Ok((rows.narrow(0, 0, n)?, rows.narrow(0, n, all - n)?))
    }

    /// What the teacher says.
    ///
    /// # Errors
    /// There is none.
    pub fn taught(&self) -> Result<Taught<'_>> {
        self.teacher.ok_or_else(|| Error::Internal("distillation without a teacher".into()))
    }

    /// What a second network makes of the other halves.
    ///
    /// # Errors
    /// There is none.
    pub fn paired(&self) -> Result<&Tensor> {
        self.paired.ok_or_else(|| Error::Internal("pairs without a second network".into()))
    }

    /// A tensor of the objective's own.
    ///
    /// # Errors
    /// One that it has not declared.
    pub fn own(&self, name: &str) -> Result<&Tensor> {
        self.own.get(name).ok_or_else(|| Error::Internal(format!("the objective has no tensor `{name}`")))
    }
}

/// What an objective looks at of what comes out of a teacher's unit, where that is not all: no more is kept.
#[derive(Clone, Copy)]
pub struct Look {
    /// What it is called. Kept outputs have it in their name: another function is another name.
    pub name: &'static str,
    /// That of outputs `[n, …]`: `[n, …]` too, and of each sample the same whatever the others are.
    pub of: fn(&Tensor) -> Result<Tensor>,
}

/// Two units that are compared: one of the network that is trained, and one of the teacher.
#[derive(Clone, Debug)]
pub struct Tap {
    /// Their names.
    pub names: [String; 2],
    /// Shapes of what comes out of them, of one sample.
    pub shapes: [Vec<usize>; 2],
}

/// How wide the tensors are that an objective sees.
#[derive(Clone, Debug, Default)]
pub struct Widths {
    /// Of features.
    pub features: usize,
    /// Of logits.
    pub classes: usize,
    /// Of the first teacher's features; 0 without a teacher.
    pub teacher: usize,
    /// How many teachers there are.
    pub teachers: usize,
    /// Where it looks inside the networks.
    pub taps: Vec<Tap>,
    /// How many tasks there are.
    pub tasks: usize,
}

/// One objective.
pub struct Objective {
    /// What the catalog says.
    pub entry: fn() -> Entry,
    /// Whether the loss is one of the whole batch, and no sum over grains.
    pub coupled: fn(&Params) -> bool,
    /// Whether it works through the features: then it is of little use where what makes them is frozen.
    pub features: fn(&Params) -> bool,
    /// Whether it lets the average of the weights speak, where the job keeps one.
    pub averages: fn(&Params) -> bool,
    /// Whether it looks at the teacher's features.
    pub looks_inside: fn(&Params) -> bool,
    /// How a teacher's logits are kept.
    pub packed: fn(&Params) -> Packed,
    /// Units whose outputs it compares with the teacher's, by name; an empty list stands for the last of each size
    /// of maps that both have.
    pub taps: fn(&Params) -> Option<Vec<String>>,
    /// What it looks at of the teacher's outputs there; at all of them, if nothing is said.
    pub look: fn(&Params) -> Option<Look>,
    /// Whether a step looks at samples of another domain.
    pub looks: fn(&Params) -> bool,
    /// Whether that changes batch-norms and nothing else: then it is of no use where none learns.
    pub norms_alone: fn(&Params) -> bool,
    /// Where networks end in an embedding and not in classes: of how many numbers.
    pub dimensions: fn(&Params) -> Option<usize>,
    /// Tensors of its own that it trains with the network; the finished model goes without them.
    pub own: fn(&Params, Widths) -> Result<Vec<Own>>,
    /// How it learns several tasks at once, where it does; its loss is in there then.
    pub several: Option<Several>,
    /// The sum of the loss over the samples.
    pub loss: fn(&Params, &Batch<'_>) -> Result<Tensor>,
}

/// Every objective.
pub const ALL: &[Objective] = &[
    finetune::OBJECTIVE,
    distill::OBJECTIVE,
    cross_distill::OBJECTIVE,
    contrastive::OBJECTIVE,
    adapt::OBJECTIVE,
    fewshot::OBJECTIVE,
    multitask::OBJECTIVE,
    zero_shot::OBJECTIVE,
];

/// For objectives without tensors of their own.
fn nothing_own(_: &Params, _: Widths) -> Result<Vec<Own>> {
    Ok(Vec::new())
}

/// What most objectives are: a sum over grains, of samples with labels alone.
const PLAIN: Objective = Objective {
    entry: Entry::default,
    coupled: |_| false,
    looks: |_| false,
    norms_alone: |_| false,
    dimensions: |_| None,
    features: |_| false,
    averages: |_| false,
    looks_inside: |_| false,
    packed: |_| Packed::default(),
    taps: |_| None,
    look: |_| None,
    own: nothing_own,
    several: None,
    loss: |_, batch| cross_entropy(batch.logits, batch.targets, batch.weights),
};

impl Objective {
    /// The objective of a name that the check has let through; the first one otherwise.
    pub fn find(name: &str) -> &'static Self {
        ALL.iter().find(|o| (o.entry)().name == name).unwrap_or(&ALL[0])
    }

    /// Whether it learns from samples of another domain that have no labels.
    pub fn has_target(&self) -> bool {
        (self.entry)().data.iter().any(|role| role == "target")
    }

    /// Whether it learns from pairs, and looks at no labels.
    pub fn has_pairs(&self) -> bool {
        (self.entry)().data.iter().any(|role| role == "pairs")
    }

    /// Whether a job of this kind trains nothing.
    pub fn untrained(&self) -> bool {
        (self.entry)().untrained
    }

    /// Whether it learns from few-shot episodes, and what it minimises is said by [`fewshot`].
    pub fn has_episodes(&self) -> bool {
        (self.entry)().data.iter().any(|role| role == "episodes")
    }

    /// Whether it looks at a teacher.
    pub fn has_teacher(&self) -> bool {
        (self.entry)().nets.iter().any(|n| n == "teacher")
    }

    /// What it says of itself, and what its functions say of the loss of each of its methods.
    fn listed(&self) -> Entry {
        let mut listed = (self.entry)();
        for method in &mut listed.methods {
            method.exchange = self.exchange(&Params::from([(METHOD.to_owned(), method.name.clone().into())]));
        }
        if listed.methods.is_empty() {
            listed.exchange = self.exchange(&Params::new());
        }
        listed
    }

    /// What ranks exchange for its loss, if it trains anything.
    fn exchange(&self, params: &Params) -> Option<Exchange> {
        let judges = self.untrained() || (self.has_episodes() && !fewshot::method(params).trains(params));
        // Weights of tasks follow the gradients of each.
        let follows = self.several.as_ref().is_some_and(|several| (several.balance)(params).is_some());
        match (self.coupled)(params) {
            _ if judges => None,
            true => Some(Exchange::Coupled),
            false if follows => Some(Exchange::Sum),
            false => Some(Exchange::Local),
        }
    }
}

/// Of an objective's methods, that of a job that the check has let through; the first one otherwise.
fn chosen<M>(params: &Params, describe: fn() -> Entry, methods: &'static [M], entry: fn(&M) -> Entry) -> &'static M {
    let name = describe().method(params).name.clone();
    methods.iter().find(|m| entry(m).name == name).unwrap_or(&methods[0])
}

/// −Σ over samples and classes of w_c·t_c·log p_c. A step divides it by its samples, as PyTorch's `CrossEntropyLoss`
/// with class weights does for targets that are probabilities, and Keras for class weights.
fn cross_entropy(logits: &Tensor, targets: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    let log_p = log_softmax(logits)?;
    let counted = match weights {
        Some(weights) => log_p.mul(&targets.broadcast_mul(weights)?)?,
        None => log_p.mul(targets)?,
    };
    Ok(counted.sum_all()?.neg()?)
}

/// Targets with a part of them spread evenly over all classes.
fn smoothed(targets: &Tensor, smoothing: f64) -> Result<Tensor> {
    if smoothing == 0.0 {
        return Ok(targets.clone());
    }
    Ok(targets.affine(1.0 - smoothing, smoothing / targets.dim(1)? as f64)?)
}

/// What the catalog says.
pub fn catalog() -> Vec<Entry> {
    ALL.iter().map(Objective::listed).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Var};
    use tl_proto::spec::Params;

    use super::*;
    use crate::nn::{host, tensor, testing};

    /// Its bounds are the kind's: what means something else has a name of its own.
    #[test]
    fn a_method_has_a_parameter_of_its_kind_only_for_another_default() {
        for kind in catalog() {
            for method in &kind.methods {
                for param in &method.params {
                    let same = kind.params.iter().find(|known| known.name == param.name);
                    let holds = same.is_none_or(|known| known.kind == param.kind && known.default != param.default);
                    assert!(holds, "`{}` of `{}` is a parameter of `{}`", param.name, method.name, kind.name);
                }
            }
        }
    }

    #[test]
    fn the_catalog_says_what_ranks_exchange_for_each_loss() {
        let mut by: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for kind in catalog() {
            assert!(kind.methods.is_empty() || kind.exchange.is_none(), "{}", kind.name);
            let alone = kind.methods.is_empty().then(|| (kind.name.clone(), kind.exchange));
            let each = kind.methods.iter().map(|m| (format!("{}.{}", kind.name, m.name), m.exchange));
            for (name, exchange) in alone.into_iter().chain(each) {
                by.entry(exchange.map_or("nothing".into(), |e| e.to_string())).or_default().push(name);
            }
        }
        assert_eq!(by["nothing"], ["fewshot.linear", "fewshot.fine_tune", "zero_shot"], "they train nothing");
        assert_eq!(by["sum"], ["multitask.gradnorm"]);
        let local = ["finetune", "distill.hint", "cross_distill.logits", "adapt.statistics", "adapt.direct"];
        let local = local.into_iter().chain(["fewshot.prototype", "fewshot.maml", "multitask.uncertainty"]);
        assert!(local.into_iter().all(|name| by["local"].iter().any(|known| known == name)), "{by:?}");
        let coupled = ["distill.relational", "cross_distill.relational", "contrastive.clip", "contrastive.siglip"];
        let coupled = coupled.into_iter().chain(["adapt.dann", "adapt.cdan", "adapt.mmd", "adapt.coral", "adapt.mcc"]);
        assert!(coupled.into_iter().all(|name| by["coupled"].iter().any(|known| known == name)), "{by:?}");
    }

    /// The gradient by candle and by the formula (softmax − target), and for distillation T·(p_s − p_t).
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a second opinion")]
    fn gradients_of_the_losses_are_the_textbook_ones() {
        let logits = Var::from_tensor(&testing::input(&[3, 4])).unwrap();
        let teacher = (testing::input(&[3, 4]) * 2.0).unwrap();
        let targets = crate::nn::tensor(vec![1., 0., 0., 0., 0., 0.5, 0.5, 0., 0.1, 0.2, 0.3, 0.4], &[3, 4]).unwrap();
        let own = BTreeMap::new();
        let teacher_says = Some(Taught { logits: &teacher, features: None });
        let batch = Batch { teacher: teacher_says, ..Batch::plain(logits.as_tensor(), &targets, &own) };
        // By candle's own functions, as a second opinion.
        let softmax =
            |t: &Tensor, temperature: f64| candle_nn::ops::softmax(&(t / temperature).unwrap(), D::Minus1).unwrap();
        let grad = |kind: &str, params: &Params| {
            let loss = (Objective::find(kind).loss)(params, &batch).unwrap();
            loss.backward().unwrap().get(&logits).unwrap().clone()
        };
        let hard = (softmax(logits.as_tensor(), 1.0) - &targets).unwrap();
        testing::assert_close(&grad("finetune", &Params::new()), &hard, 1e-5);
        let smoothing = [("label_smoothing".to_owned(), 0.2.into())].into();
        let smoothed = (softmax(logits.as_tensor(), 1.0) - targets.affine(0.8, 0.05).unwrap()).unwrap();
        testing::assert_close(&grad("finetune", &smoothing), &smoothed, 1e-5);
        let params: Params = [("temperature", 3.0), ("soft_weight", 0.7), ("hard_weight", 0.3)]
            .map(|(k, v)| (k.to_owned(), v.into()))
            .into();
        let soft = ((softmax(logits.as_tensor(), 3.0) - softmax(&teacher, 3.0)).unwrap() * (0.7 * 3.0)).unwrap();
        testing::assert_close(&grad("distill", &params), &(soft + (hard * 0.3).unwrap()).unwrap(), 1e-5);
    }

    /// torch.nn.functional.cross_entropy(z, t, weight=w, label_smoothing=0.1, reduction="sum") with the targets as
    /// probabilities, written out in f64.
    #[test]
    fn classes_are_weighed_after_smoothing() {
        let z = [[0.5f32, -1.0, 2.0], [0.0, 0.3, -0.7]];
        let (labels, w) = ([0usize, 2], [0.5f32, 1.0, 3.0]);
        let mut want = 0.0;
        for (z, label) in z.iter().zip(labels) {
            let total: f64 = z.iter().map(|v| f64::from(*v).exp()).sum();
            for c in 0..3 {
                let target = 0.1 / 3.0 + if c == label { 0.9 } else { 0.0 };
                want -= f64::from(w[c]) * target * (f64::from(z[c]).exp() / total).ln();
            }
        }
        let logits = tensor(z.concat(), &[2, 3]).unwrap();
        let targets = tensor(vec![1.0, 0.0, 0.0, 0.0, 0.0, 1.0], &[2, 3]).unwrap();
        let weights = tensor(w.to_vec(), &[3]).unwrap();
        let own = BTreeMap::new();
        let batch = Batch { weights: Some(&weights), ..Batch::plain(&logits, &targets, &own) };
        let params = [("label_smoothing".to_owned(), 0.1.into())].into();
        let got = (Objective::find("finetune").loss)(&params, &batch).unwrap();
        assert!((f64::from(host(&got).unwrap()[0]) - want).abs() < 1e-5, "{want}");
    }

    #[test]
    fn huge_logits_give_a_finite_loss() {
        let logits = crate::nn::tensor(vec![1e4, -1e4], &[1, 2]).unwrap();
        let targets = crate::nn::tensor(vec![1.0, 0.0], &[1, 2]).unwrap();
        let loss = cross_entropy(&logits, &targets, None).unwrap();
        assert_eq!(host(&loss).unwrap()[0], 0.0);
    }
}
