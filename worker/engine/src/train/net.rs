//! A network ready to run: layers, tensors, and the preprocessing that goes with them.

use std::{collections::BTreeMap, path::PathBuf};

use candle_core::Tensor;
use tl_proto::spec::ModelSection;

use crate::{
    Error, Result,
    backbone::{ALL, Backbone, Network, Same},
    data::pixels,
    nn::{Layer, Pass, Store, Tape, host},
    weights::{self, Contract},
};

/// A network, where it came from and what it wants to see.
pub struct Net {
    /// Its entry.
    pub backbone: &'static Backbone,
    /// Its layers and initial tensors.
    pub network: Network,
    /// Its preprocessing.
    pub contract: Contract,
}

/// Resolves `step:ID` to the file that the step has left.
///
/// # Errors
/// A step whose file was not handed over.
pub fn weights_path(model: &ModelSection, inputs: &BTreeMap<String, PathBuf>) -> Result<Option<PathBuf>> {
    let Some(weights) = &model.weights else { return Ok(None) };
    let Some(step) = weights.strip_prefix("step:") else {
        let path = PathBuf::from(weights);
        // A folder of ours, or of anyone who keeps the usual name.
        return Ok(Some(if path.is_dir() { path.join("model.safetensors") } else { path }));
    };
    let found = inputs.get(step).cloned();
    found.map(Some).ok_or_else(|| Error::Internal(format!("the model of step `{step}` was not handed over")))
}

impl Net {
    /// Builds and fills the network of a job.
    ///
    /// # Errors
    /// Weights of another architecture, or without a preprocessing contract.
    pub fn build(
        model: &ModelSection,
        classes: usize,
        keep_head: bool,
        seed: u32,
        inputs: &BTreeMap<String, PathBuf>,
    ) -> Result<Self> {
        let backbone = ALL
            .iter()
            .find(|b| b.name == model.backbone)
            .ok_or_else(|| Error::user(format!("there is no backbone `{}`", model.backbone), "see `tlctl catalog`"))?;
        let path = weights_path(model, inputs)?;
        let side = model.input.unwrap_or(backbone.input);
        let named =
            model.preprocess.as_deref().map(|p| Contract::named(p, side, model.padding.as_deref())).transpose()?;
        let contract = match &path {
            None => named.map_or_else(|| Contract::named("tf", side, model.padding.as_deref()), Ok)?,
            Some(path) => {
                let found = Contract::beside(path)?.map_or_else(|| weights::embedded(path), |c| Ok(Some(c)))?;
                agree(found, named, model, &path.display().to_string())?
            }
        };
        let mut network = Network::build(backbone, Same(contract.same()), &model.head, classes, seed);
        if let Some(path) = &path {
            weights::load(&mut network, backbone, path, keep_head || model.head.keep)?;
        }
        Ok(Self { backbone, network, contract })
    }

    /// Runs units `from..to` on a batch without keeping anything for a backward.
    ///
    /// # Errors
    /// A batch of another shape.
    pub fn forward(&self, store: &Store, x: Tensor, from: usize, to: usize) -> Result<Tensor> {
        let (pass, mut tape) = (Pass::eval(store), Tape::default());
        self.network.units[from..to].iter().try_fold(x, |x, unit| unit.layer.forward(&x, &pass, &mut tape))
    }

    /// The shape of one sample in front of unit `cut`.
    ///
    /// # Errors
    /// An input that is too small for the network.
    pub fn shape_at(&self, store: &Store, cut: usize) -> Result<Vec<usize>> {
        let side = self.contract.side();
        let blank = pixels::batch(vec![0.0; 3 * side * side], 1, side)?;
        Ok(self.forward(store, blank, 0, cut)?.dims()[1..].to_vec())
    }

    /// Everything that determines what comes out of units `0..cut`: a digest of preprocessing, layers and tensors.
    pub fn prefix_digest(&self, store: &Store, cut: usize) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut text = format!("features/1;f32;{};", self.contract.describe());
        self.network.units[..cut].iter().for_each(|u| u.layer.describe(&mut text));
        hasher.update(text.as_bytes());
        let (mut params, mut norms) = (Vec::new(), Vec::new());
        self.network.units[..cut].iter().for_each(|u| {
            u.layer.params(&mut params);
            u.layer.norms(&mut norms);
        });
        let mut add = |values: &[f32]| {
            hasher.update(&crate::collective::to_bytes(values));
        };
        params.iter().for_each(|p| add(store.param(*p)));
        norms.iter().for_each(|(m, v)| {
            add(store.buffer(*m));
            add(store.buffer(*v));
        });
        hasher.finalize().to_hex().to_string()
    }
}

/// The contract of weights, from beside them, from the job, or from both if they say the same.
fn agree(found: Option<Contract>, named: Option<Contract>, model: &ModelSection, shown: &str) -> Result<Contract> {
    match (found, named) {
        (None, None) => Err(Error::user(
            format!("weights `{shown}` come without a preprocessing contract"),
            "put `preprocess.json` beside them, or write `preprocess = \"torch\"` (or tf, unit) and `padding = \"symmetric\"` (or same) in `[model]`",
        )),
        (None, Some(named)) => Ok(named),
        (Some(mut found), None) => {
            if let Some(side) = model.input {
                found.input_size = [3, side, side];
                found.resize_short_side = found.resize_short_side.max(side);
            }
            Ok(found)
        }
        (Some(found), Some(named)) => {
            let pixels = |c: &Contract| (c.scale, c.mean, c.std);
            let padding = model.padding.is_none() || found.padding == named.padding;
            if pixels(&found) == pixels(&named) && padding {
                return agree(Some(found), None, model, shown);
            }
            Err(Error::user(
                format!("`[model]` and the contract of `{shown}` ask for different preprocessing"),
                "remove `preprocess` and `padding` from `[model]`: what lies beside the weights is what they were trained with",
            ))
        }
    }
}

/// The rows of a `[n, classes]` tensor.
///
/// # Errors
/// A tensor that is not on the CPU.
pub fn rows(t: &Tensor) -> Result<Vec<Vec<f32>>> {
    let width = t.elem_count() / t.dim(0)?.max(1);
    Ok(host(t)?.chunks_exact(width.max(1)).map(<[f32]>::to_vec).collect())
}
