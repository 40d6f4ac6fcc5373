//! A few steps of gradient descent on what an episode shows, on a copy of the network.

#[cfg(feature = "cuda")]
mod placed;

#[cfg(feature = "cuda")]
use std::sync::OnceLock;

use candle_core::Tensor;
use tl_proto::spec::{JobSpec, StageSection};

use super::{
    super::{
        chain::{self, Wanted},
        net::Net,
        rules,
        stage::Stage,
    },
    Few,
};
#[cfg(feature = "cuda")]
use crate::gpu::Placed;
use crate::{
    Error, Result,
    nn::{Array, DropoutDraw, Gradients, Layout, Packs, ParamId, Pass, Store, Tape},
    objective::fewshot::{Learns, Steps, graded},
};

/// What moves on an episode, and how.
pub(crate) struct Tuner<'a> {
    net: &'a Net,
    store: &'a Store,
    steps: Steps,
    layout: Layout,
    moves: Vec<ParamId>,
    /// Units before this one stay as they are.
    pub cut: usize,
    /// What episodes begin with, once it was sent to a GPU.
    #[cfg(feature = "cuda")]
    first: OnceLock<Placed>,
}

/// A network that has moved.
pub(crate) enum Adapted {
    /// All of it, in the host's memory.
    Here(Store),
    /// On a GPU: what is trained, in the order of the flat gradient. The rest is as it was.
    #[cfg(feature = "cuda")]
    There(Placed),
}

impl<'a> Tuner<'a> {
    /// As the method of a job adapts in one of its stages; nothing for a method that does not. Batch-norms are those of the
    /// stage: with `bn = "train"` their statistics are of what passes together.
    ///
    /// # Errors
    /// Rules that name nothing that is trained.
    pub fn in_stage(few: &Few, net: &'a Net, store: &'a Store, stage: &Stage) -> Result<Option<Self>> {
        let Learns::Adapts(steps) = few.method.learns else { return Ok(None) };
        Self::new(steps(&few.params), net, store, (stage.layout.clone(), stage.cut)).map(Some)
    }

    /// The same for a network as it is, whose batch-norms are frozen, or as the last stage that has begun left it.
    ///
    /// # Errors
    /// As [`Tuner::in_stage`].
    pub fn judged(few: &Few, net: &'a Net, store: &'a Store, spec: &JobSpec, stage: usize) -> Result<Option<Self>> {
        if !few.method.classifies() {
            return Ok(None);
        }
        match spec.stage.get(stage).or(spec.stage.last()) {
            Some(section) => Self::in_stage(few, net, store, &Stage::resolve(net, store, section)?),
            None => Self::untrained(few, net, store),
        }
    }

    /// The same for a network as it is.
    ///
    /// # Errors
    /// As [`Tuner::in_stage`].
    pub fn untrained(few: &Few, net: &'a Net, store: &'a Store) -> Result<Option<Self>> {
        let Learns::Adapts(steps) = few.method.learns else { return Ok(None) };
        let steps = steps(&few.params);
        let moves: Vec<&str> = steps.moves.iter().map(String::as_str).collect();
        let stage = Stage::resolve(net, store, &StageSection::new(&few.method.name(), 1, &moves, steps.rate))?;
        let ids: Vec<ParamId> = stage.layout.trained().map(|(id, _)| id).collect();
        Self::new(steps, net, store, (Layout::new(store, &ids, &[]), stage.cut)).map(Some)
    }

    fn new(steps: Steps, net: &'a Net, store: &'a Store, (layout, cut): (Layout, usize)) -> Result<Self> {
        let mut moves = Vec::new();
        for rule in &steps.moves {
            moves.extend(rules::named(net, store, "objective", rule)?);
        }
        moves.sort_unstable();
        moves.dedup();
        moves.retain(|id| layout.slot(*id).is_some());
        if moves.is_empty() {
            return Err(Error::user(
                "nothing moves in the steps on an episode",
                "let the method move something that the stage trains",
            ));
        }
        Ok(Self {
            net,
            store,
            steps,
            layout,
            moves,
            cut,
            #[cfg(feature = "cuda")]
            first: OnceLock::new(),
        })
    }

    /// Steps in an episode that is judged.
    pub fn judged_steps(&self) -> usize {
        self.steps.judged
    }

    /// Steps in an episode that is trained on.
    pub fn trained_steps(&self) -> usize {
        self.steps.trained
    }

    /// The network after so many steps on shown samples, in front of unit `cut`, as many of each class. `packs` keep what
    /// no episode moves; `dropout` names the random numbers of a step.
    ///
    /// # Errors
    /// Outputs that are not finite any more.
    pub fn adapt<'d>(
        &self,
        packs: &Packs,
        shown: &Tensor,
        steps: usize,
        dropout: impl Fn(usize) -> Option<DropoutDraw<'d>>,
    ) -> Result<Adapted> {
        let shown = Array::at(shown.clone(), &self.store.place)?;
        #[cfg(feature = "cuda")]
        if let Array::Device(shown) = &shown {
            return self.adapt_placed(packs, shown, steps, dropout);
        }
        let mut own = self.store.clone();
        let mut velocity = vec![0.0f32; self.layout.params_len()];
        let (rate, momentum) = (self.steps.rate as f32, self.steps.momentum as f32);
        for step in 0..steps {
            let mut grads = Gradients::new(&self.layout);
            packs.begin(&self.layout, 1);
            self.slopes(&self.pass(&own, packs, dropout(step)), shown.clone(), &mut grads)?;
            for id in &self.moves {
                let (Some(slot), at) = (self.layout.slot(*id), own.params[id.0].range.clone()) else { continue };
                let moved = own.values[at].iter_mut().zip(&mut velocity[slot.clone()]).zip(&grads.flat[slot]);
                moved.for_each(|((value, velocity), g)| {
                    *velocity = momentum * *velocity + g;
                    *value -= rate * *velocity;
                });
            }
        }
        Ok(Adapted::Here(own))
    }

    /// Forward and backward on samples, as many of each class: the mean loss, and scores. Gradients are added to `grads`.
    ///
    /// # Errors
    /// Samples of another shape.
    pub fn learn(
        &self,
        own: &Adapted,
        packs: &Packs,
        x: &Tensor,
        dropout: Option<DropoutDraw<'_>>,
        grads: &mut Gradients<'_>,
    ) -> Result<(f64, Tensor)> {
        let x = Array::at(x.clone(), &self.store.place)?;
        self.over(own, packs, dropout, |pass| self.slopes(pass, x, grads))
    }

    /// Scores of samples by an adapted network. What learns in the batch-norms takes the statistics of the samples: nobody
    /// keeps a mean of what other weights would make.
    ///
    /// # Errors
    /// Samples of another shape.
    pub fn scores(&self, own: &Adapted, packs: &Packs, x: &Tensor) -> Result<Tensor> {
        let (x, units) = (Array::at(x.clone(), &self.store.place)?, &self.net.network.units[self.cut..]);
        let seen = |pass: &Pass<'_>| chain::along(units, x, pass, &mut Tape::default());
        match own {
            // Without a batch-norm that learns, nothing has to be kept.
            Adapted::Here(store) if self.layout.norms().next().is_none() => seen(&Pass::eval(store)),
            own => self.over(own, packs, None, seen),
        }
    }

    fn slopes(&self, pass: &Pass<'_>, x: Array, grads: &mut Gradients<'_>) -> Result<(f64, Tensor)> {
        let (mut tape, units) = (Tape::default(), &self.net.network.units[self.cut..]);
        let logits = chain::along(units, x, pass, &mut tape)?;
        let (loss, dy, scores) = graded(&logits, |z| Ok(z.clone()))?;
        chain::backward(units, Wanted::of(&dy), pass, &mut tape, grads, false)?;
        Ok((loss, scores))
    }

    fn pass<'p>(&'p self, store: &'p Store, packs: &'p Packs, dropout: Option<DropoutDraw<'p>>) -> Pass<'p> {
        Pass { store, layout: Some(&self.layout), dropout, grains: None, packs: Some(packs) }
    }

    /// Has `work` pass over a network that has moved.
    fn over<T>(
        &self,
        own: &Adapted,
        packs: &Packs,
        dropout: Option<DropoutDraw<'_>>,
        work: impl FnOnce(&Pass<'_>) -> Result<T>,
    ) -> Result<T> {
        match own {
            Adapted::Here(store) => {
                // Nothing is kept of what moves.
                packs.begin(&self.layout, 1);
                work(&self.pass(store, packs, dropout))
            }
            #[cfg(feature = "cuda")]
            Adapted::There(values) => packs.lend(&self.layout, values, || work(&self.pass(self.store, packs, dropout))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tl_proto::spec::ModelSection;

    use super::*;
    use crate::nn::{host, testing};

    const WAY: usize = 3;
    const D: usize = 128;

    /// A linear classifier in f64: the mean of −log p, and its gradient by weights `[classes, features]` and biases.
    fn linear(w: &[f64], x: &[f64], each: usize) -> (f64, Vec<f64>) {
        let n = x.len() / D;
        let (mut loss, mut grad) = (0.0, vec![0.0; w.len()]);
        for i in 0..n {
            let row = &x[i * D..(i + 1) * D];
            let z: Vec<f64> =
                (0..WAY).map(|c| w[WAY * D + c] + (0..D).map(|k| w[c * D + k] * row[k]).sum::<f64>()).collect();
            let total: f64 = z.iter().map(|z| z.exp()).sum();
            loss -= (z[i / each].exp() / total).ln() / n as f64;
            for c in 0..WAY {
                let error = (z[c].exp() / total - f64::from(u8::from(c == i / each))) / n as f64;
                (0..D).for_each(|k| grad[c * D + k] += error * row[k]);
                grad[WAY * D + c] += error;
            }
        }
        (loss, grad)
    }

    /// The gradient that first-order MAML takes is that of the queries' loss where the inner steps lead.
    #[test]
    fn steps_and_gradients_of_a_linear_classifier_are_those_of_an_f64_version() {
        let model = ModelSection { backbone: "small_cnn".into(), ..ModelSection::default() };
        let classes: Vec<String> = (0..WAY).map(|c| c.to_string()).collect();
        let net = Net::build(&model, &classes, false, 3, &BTreeMap::new()).unwrap();
        let store = &net.network.initial;
        let stage = Stage::resolve(&net, store, &StageSection::new("s", 1, &["head"], 0.1)).unwrap();
        let (support, query) = (testing::input(&[6, D]), (testing::input(&[9, D]) * -0.5).unwrap());
        let wide = |t: &Tensor| host(t).unwrap().iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        let first: Vec<f64> =
            stage.layout.trained().flat_map(|(id, _)| store.param(id).to_vec()).map(f64::from).collect();
        for (momentum, moves) in [(0.0, "*"), (0.9, "*"), (0.0, "fc.weight")] {
            let steps = Steps { trained: 3, judged: 5, rate: 0.4, momentum, moves: vec![moves.into()] };
            let tuner = Tuner::new(steps, &net, store, (stage.layout.clone(), stage.cut)).unwrap();
            let own = tuner.adapt(&stage.packs, &support, 3, |_| None).unwrap();
            let mut grads = Gradients::new(&stage.layout);
            let (loss, _) = tuner.learn(&own, &stage.packs, &query, None, &mut grads).unwrap();
            let (mut w, mut velocity) = (first.clone(), vec![0.0; first.len()]);
            for _ in 0..3 {
                let (_, g) = linear(&w, &wide(&support), 2);
                let moving = if moves == "*" { w.len() } else { WAY * D };
                for i in 0..moving {
                    velocity[i] = momentum * velocity[i] + g[i];
                    w[i] -= 0.4 * velocity[i];
                }
            }
            let (want, wanted) = linear(&w, &wide(&query), 3);
            assert!((loss - want).abs() < 1e-5, "{loss} for {want}");
            for (got, want) in grads.flat.iter().zip(&wanted) {
                assert!((f64::from(*got) - want).abs() < 2e-5 * (1.0 + want.abs()), "{got} for {want}");
            }
            assert_eq!(store.values, net.network.initial.values, "the first weights stay");
        }
    }

    #[test]
    fn steps_that_move_nothing_are_refused() {
        let model = ModelSection { backbone: "small_cnn".into(), ..ModelSection::default() };
        let net = Net::build(&model, &["0".into(), "1".into()], false, 3, &BTreeMap::new()).unwrap();
        let store = &net.network.initial;
        let stage = Stage::resolve(&net, store, &StageSection::new("s", 1, &["head"], 0.1)).unwrap();
        let steps = |rule: &str| Steps { trained: 1, judged: 1, rate: 1.0, momentum: 0.0, moves: vec![rule.into()] };
        let refused = |rule: &str| {
            let tuner = Tuner::new(steps(rule), &net, store, (stage.layout.clone(), stage.cut));
            tuner.err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(refused("block1").contains("nothing moves"));
        assert!(refused("blok").contains("names no parameters"));
        assert_eq!(refused("head"), "");
    }
}
