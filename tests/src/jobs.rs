//! Jobs of the tests.

use tl_proto::spec::{JobSpec, parse};

/// Steps of [`thorny`].
pub const STEPS: u64 = 240;

/// A job with everything that could depend on who computes what: an odd batch, grain batch-norm, dropout, mixup,
/// clipping, augmentation, two stages, frequent checkpoints. [`STEPS`] steps, a few seconds on one core.
pub fn thorny(ranks: &str) -> JobSpec {
    parse(&format!(
        r#"
schema = 1
[job]
name = "thorny"
kind = "finetune"
seed = 7
[cluster]
ranks = {ranks}
reduction = "ordered"
[data]
format = "generated"
train = "target"
val = "target"
batch = 27
grains = 6
train_per_class = 36
params = {{ val_samples = 10, noise = 0.1 }}
[data.augment]
flip = true
rotate = 0.1
views = "fresh"
[model]
backbone = "small_cnn"
head = {{ hidden = [32], dropout = 0.3, norm = "batch" }}
[modifiers.mixup]
alpha = 0.2
[optimizer]
name = "adamw"
clip_norm = 1.0
[[stage]]
name = "first"
epochs = 16
train = ["*"]
lr = 2e-3
bn = "train"
schedule = "cosine"
warmup = 5
[[stage]]
name = "second"
epochs = 14
train = ["head", "top:2"]
lr = 1e-3
bn = "affine_only"
[checkpoint]
every = 7
"#
    ))
    .expect("a good job")
}
