//! The finished model: weights under their usual names, labels, preprocessing, report, the job as it ran.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, tensor::TensorView};
use serde::{Deserialize, Serialize};
use tl_proto::spec::{JobSpec, Source};

use super::{lr_find::Found, net::Net, saving::Saving, state::EpochFigures};
use crate::{Error, Result, collective::to_bytes, eval::Evaluation, files, nn::Store};

/// What `report.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the job.
    pub job: String,
    /// Kind of the job.
    pub kind: String,
    /// Optimizer steps.
    pub steps: u64,
    /// Training samples and validation samples.
    pub samples: [usize; 2],
    /// Where weights of the hub came from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// What the frozen prefix was run on.
    pub prefix: PrefixFigures,
    /// Stages, in order.
    pub stages: Vec<StageFigures>,
    /// What searches for a learning rate came to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lr_find: Vec<Found>,
    /// By epoch.
    pub history: Vec<EpochFigures>,
    /// On the validation samples.
    pub evaluation: Evaluation,
}

impl Report {
    /// For people: the figures of the model, and what searches for a learning rate came to.
    pub fn to_text(&self) -> String {
        let found: String = self.lr_find.iter().map(|f| format!("{}\n", f.sentence())).collect();
        let text = self.evaluation.to_text();
        if found.is_empty() { text } else { format!("{text}\n{found}") }
    }
}

/// How often a frozen prefix ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PrefixFigures {
    /// Samples times views that ran through a frozen prefix, over all ranks of the attempt that finished.
    pub computed: u64,
    /// Samples times views whose outputs the run needed.
    pub needed: u64,
}

/// What a stage trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageFigures {
    /// Its name.
    pub name: String,
    /// Trained parameters.
    pub trained: usize,
    /// Parameters of the network.
    pub parameters: usize,
    /// Lowest and highest learning rate, as the job says them.
    #[serde(default)]
    pub lr: [f64; 2],
    /// The first unit that is not frozen.
    pub first_unit: String,
    /// What the feature cache is worth; only a look at a job works it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving: Option<Saving>,
}

/// Bytes of a `.safetensors` file with everything needed to run the model.
///
/// # Errors
/// None that can be caused from outside.
pub fn safetensors(net: &Net, store: &Store, classes: &[String], spec: &JobSpec) -> Result<Vec<u8>> {
    let internal = |e: &dyn std::fmt::Display| Error::Internal(e.to_string());
    let mut data: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (list, values) in [(&store.params, &store.values), (&store.buffers, &store.buffer_values)] {
        data.extend(list.iter().map(|e| (e.name.clone(), e.shape.clone(), to_bytes(&values[e.range.clone()]))));
    }
    let views = data
        .iter()
        .map(|(name, shape, bytes)| {
            Ok((name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|e| internal(&e))?))
        })
        .collect::<Result<Vec<_>>>()?;
    // One key only: the library keeps metadata in a hash map, whose order would change the file's digest.
    let about = About {
        backbone: net.backbone.name.into(),
        classes: classes.to_vec(),
        model: spec.model.clone(),
        contract: net.contract.clone(),
    };
    let text = serde_json::to_string(&about).map_err(|e| internal(&e))?;
    let metadata: HashMap<String, String> = [("tl".to_owned(), text)].into();
    safetensors::serialize(views, Some(metadata)).map_err(|e| internal(&e))
}

/// What a model file says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// Name of its backbone.
    pub backbone: String,
    /// Names of its classes.
    pub classes: Vec<String>,
    /// The job's `[model]`.
    pub model: Option<tl_proto::spec::ModelSection>,
    /// Its preprocessing.
    pub contract: crate::weights::Contract,
}

/// Writes the package into `dir`; the files in the order in which they should be handed over, the report last.
///
/// # Errors
/// The disk refuses.
pub fn write(
    dir: &Path,
    net: &Net,
    store: &Store,
    classes: &[String],
    spec: &JobSpec,
    report: &Report,
) -> Result<Vec<(&'static str, PathBuf)>> {
    let internal = |e: serde_json::Error| Error::Internal(e.to_string());
    let labels = classes.join("\n") + "\n";
    let mut files = vec![
        ("model.safetensors", safetensors(net, store, classes, spec)?),
        ("labels.txt", labels.into_bytes()),
        ("preprocess.json", serde_json::to_vec_pretty(&net.contract).map_err(internal)?),
        ("job.toml", spec.to_toml().into_bytes()),
        ("report.txt", report.to_text().into_bytes()),
        ("report.json", serde_json::to_vec_pretty(report).map_err(internal)?),
    ];
    if let Some(text) = &net.contract.text {
        files.insert(3, ("tokenizer.json", text.tokenizer.clone().into_bytes()));
    }
    files
        .into_iter()
        .map(|(name, bytes)| {
            let path = dir.join(name);
            files::write_whole(&path, &bytes)?;
            Ok((name, path))
        })
        .collect()
}
