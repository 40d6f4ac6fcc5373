//! Training steps on tokens: what a step of the loop does for one grain, on random tokens.

use candle_core::Var;
use tl_engine::{
    nn::{self, BufferId, Gradients, Layer, Layout, ParamId, Pass, Tape},
    num::{pool, rng::Philox},
    objective::{Batch, Objective},
    optim::{self, Group},
    train::net::Net,
};
use tl_proto::spec::{ModelSection, OptimizerSection, Params};

use crate::{Options, harness::Harness};

/// Tokens of a sample.
const LENGTH: usize = 128;
/// Words that are drawn.
const WORDS: f32 = 30_000.0;
const CLASSES: usize = 8;

/// Steps of the whole network: forward, cross-entropy, backward, AdamW.
pub fn steps(options: &Options, harness: &mut Harness) -> anyhow::Result<()> {
    let model: ModelSection = toml::from_str(&format!("backbone = \"{}\"", options.backbone))?;
    let classes: Vec<String> = (0..CLASSES).map(|c| c.to_string()).collect();
    let Net { network, .. } = Net::build(&model, &classes, false, 1, &[].into())?;
    let (units, mut store) = (network.units, network.initial);
    let norms: Vec<BufferId> = Vec::new();
    let all: Vec<ParamId> = (0..store.params.len()).map(ParamId).collect();
    let layout = Layout::new(&store, &all, &norms);
    let groups: Vec<Group> = layout
        .trained()
        .map(|(id, gradient)| {
            let entry = &store.params[id.0];
            Group { values: entry.range.clone(), gradient, lr_scale: 1.0, decays: entry.shape.len() > 1 }
        })
        .collect();
    let (objective, section) = (Objective::find("finetune"), OptimizerSection::default());
    let optimizer = optim::find("adamw");
    let mut moments = (optimizer.init)(store.values.len());
    let n = options.batch;
    let mut draw = Philox::new(1, "bench").stream(0, 0);
    let ids: Vec<f32> = (0..n * LENGTH).map(|_| draw.range(1.0, WORDS).floor()).collect();
    let ids = nn::tensor(ids, &[n, LENGTH])?;
    let targets: Vec<f32> =
        (0..n * CLASSES).map(|i| f32::from(u8::from(i % CLASSES == i / CLASSES % CLASSES))).collect();
    let targets = nn::tensor(targets, &[n, CLASSES])?;
    harness.serve(|| {
        pool::run(|| -> anyhow::Result<()> {
            let mut grads = Gradients::new(&layout);
            {
                let pass = Pass { store: &store, layout: Some(&layout), dropout: None };
                let mut tape = Tape::default();
                let logits = units.iter().try_fold(ids.clone(), |x, unit| unit.layer.forward(&x, &pass, &mut tape))?;
                let leaf = Var::from_tensor(&logits)?;
                let batch = Batch { logits: leaf.as_tensor(), targets: &targets, teacher: None };
                let loss = (objective.loss)(&Params::new(), &batch)?;
                anyhow::ensure!(loss.to_scalar::<f32>()?.is_finite(), "the loss is not finite");
                let mut dy = loss.backward()?.get(&leaf).map(|g| g.contiguous()).transpose()?;
                for (i, unit) in units.iter().enumerate().rev() {
                    if let Some(g) = dy.take() {
                        dy = unit.layer.backward(&g, &pass, &mut tape, &mut grads, i > 0)?;
                    }
                }
            }
            let mut mean: Vec<f32> = grads.flat[..layout.params_len()].iter().map(|g| g / n as f32).collect();
            optim::clip(&mut mean, None);
            (optimizer.step)(&section, &mut moments, &mut store.values, &mean, &groups, 1e-4);
            Ok(())
        })
    })
}
