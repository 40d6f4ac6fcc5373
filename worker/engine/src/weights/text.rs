//! Text encoders in the layout of Hugging Face: `model.safetensors` with `config.json` and `tokenizer.json` beside it.

use std::{collections::BTreeMap, path::Path};

use candle_core::Tensor;
use serde::Deserialize;
use tl_proto::spec::ModelSection;

use super::{Contract, contract_of, names};
use crate::{
    Error, Result,
    backbone::{Backbone, DISTILBERT, DenseAct, Shape},
    data::tokens::Text,
};

/// Largest `config.json` and `tokenizer.json`, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// What models with a head of some task put in front of the names of their encoder.
const PREFIXES: [&str; 2] = ["bert.", "distilbert."];

/// A name without what stands before those of the encoder.
pub(super) fn bare_name(name: &str) -> &str {
    PREFIXES.iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name)
}

/// Tensors under the names of the bare encoder; those of TensorFlow's time are mapped too.
pub fn usual_names(file: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let usual = |name: String| {
        let bare = bare_name(&name);
        let bare = bare.strip_suffix(".gamma").map(|b| format!("{b}.weight")).unwrap_or_else(|| bare.to_owned());
        bare.strip_suffix(".beta").map(|b| format!("{b}.bias")).unwrap_or(bare)
    };
    file.into_iter().map(|(name, t)| (usual(name), t)).collect()
}

/// `config.json` of BERT or DistilBERT.
#[derive(Deserialize)]
struct Config {
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "eps")]
    layer_norm_eps: f32,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    #[serde(default = "dropped", alias = "dropout")]
    hidden_dropout_prob: f32,
    #[serde(default = "dropped", alias = "attention_dropout")]
    attention_probs_dropout_prob: f32,
    position_embedding_type: Option<String>,
}

fn eps() -> f32 {
    1e-12
}

/// What transformers takes where the file says nothing.
fn dropped() -> f32 {
    0.1
}

pub(super) fn beside(weights: &Path, name: &str) -> Result<Option<String>> {
    let path = weights.with_file_name(name);
    match std::fs::metadata(&path) {
        Err(_) => Ok(None),
        Ok(meta) if meta.len() > MAX_BYTES => Err(Error::user(format!("`{}` is too large", path.display()), "")),
        Ok(_) => {
            let text = std::fs::read_to_string(&path);
            text.map(Some).map_err(|e| Error::user(format!("`{}` cannot be read: {e}", path.display()), ""))
        }
    }
}

fn shape(text: &str, shown: &str) -> Result<Shape> {
    let bad = |why: String| Error::user(format!("`{shown}` is of no encoder that is known: {why}"), "");
    let config: Config = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    let named = config.hidden_act.as_deref().unwrap_or("gelu");
    let act: DenseAct = serde_json::from_value(named.into()).map_err(|_| {
        Error::user(
            format!("`{shown}` wants the activation `{named}`, which is not known"),
            "known: gelu, gelu_new (gelu_pytorch_tanh), relu, silu (swish)",
        )
    })?;
    if let Some(positions) = config.position_embedding_type.as_deref().filter(|p| *p != "absolute") {
        return Err(bad(format!("its positions are `{positions}`")));
    }
    let shape = Shape {
        layers: config.num_hidden_layers,
        hidden: config.hidden_size,
        heads: config.num_attention_heads,
        wide: config.intermediate_size,
        words: config.vocab_size,
        positions: config.max_position_embeddings,
        eps: config.layer_norm_eps,
        act,
        dropout: config.hidden_dropout_prob,
        attention_dropout: config.attention_probs_dropout_prob,
        pre_classifier: false,
    };
    // A shape is memory that will be taken: a damaged file must not ask for all of it.
    let sane = (1..=96).contains(&shape.layers)
        && (1..=8192).contains(&shape.hidden)
        && (1..=256).contains(&shape.heads)
        && (1..=65_536).contains(&shape.wide)
        && (1..=2_000_000).contains(&shape.words)
        && (1..=32_768).contains(&shape.positions)
        && (0.0..=1.0).contains(&shape.eps)
        && (0.0..=0.95).contains(&shape.dropout)
        && (0.0..=0.95).contains(&shape.attention_dropout)
        && shape.hidden.is_multiple_of(shape.heads);
    if sane { Ok(shape) } else { Err(bad(format!("{shape:?}"))) }
}

/// How a text network's input is made: from inside its weights, from beside them, or still to be learned.
///
/// # Errors
/// Weights without a tokenizer, files that are damaged, a job that asks for preprocessing of images.
pub fn contract(backbone: &Backbone, model: &ModelSection, path: Option<&Path>) -> Result<Contract> {
    if model.preprocess.is_some() || model.padding.is_some() {
        return Err(Error::user(
            format!("{} reads text, which has neither `preprocess` nor `padding`", backbone.name),
            "remove them from `[model]`; `input` is the most tokens of a text",
        ));
    }
    let blank = |text| Ok::<_, Error>(Contract { text: Some(text), ..Contract::named("unit", 32, None)? });
    let limit = model.input.map(|n| n as usize);
    let usual = limit.unwrap_or(backbone.input as usize);
    let Some(path) = path else { return blank(Text::new(usual, None, String::new())) };
    let shown = path.display().to_string();
    if let Some(found) = contract_of(path)? {
        let Some(text) = found.text.clone() else {
            return Err(Error::user(
                format!("weights `{shown}` are of a network for images, and {} reads text", backbone.name),
                "`model.backbone` must be the network that the weights were trained with",
            ));
        };
        let text = match limit {
            Some(limit) => text.limited_to(limit),
            None => text,
        };
        return Ok(Contract { text: Some(text), ..found });
    }
    let Some(tokenizer) = beside(path, "tokenizer.json")? else {
        return Err(Error::user(
            format!("weights `{shown}` come without a tokenizer"),
            "put the `tokenizer.json` that belongs to them beside them",
        ));
    };
    let config = path.with_file_name("config.json").display().to_string();
    let mut shape = beside(path, "config.json")?.map(|text| shape(&text, &config)).transpose()?;
    // A classifier of DistilBERT's is two layers: without the first one the other means nothing.
    if backbone.name == "distilbert" && names(path)?.iter().any(|name| name == "pre_classifier.weight") {
        shape.get_or_insert(DISTILBERT).pre_classifier = true;
    }
    let text = Text::new(usual, shape, tokenizer);
    text.check(&path.with_file_name("tokenizer.json").display().to_string())?;
    blank(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_says_the_shape_in_both_dialects_and_a_strange_one_is_refused() {
        let bert = r#"{"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16,
            "vocab_size": 9, "max_position_embeddings": 12, "layer_norm_eps": 1e-5, "hidden_act": "gelu", "other": 1}"#;
        let distil = r#"{"n_layers": 2, "dim": 8, "n_heads": 2, "hidden_dim": 16, "vocab_size": 9,
            "max_position_embeddings": 12, "activation": "gelu"}"#;
        let read = shape(bert, "c").unwrap();
        assert_eq!(Shape { eps: 1e-5, ..shape(distil, "c").unwrap() }, read);
        assert_eq!((read.dropout, read.attention_dropout, read.act), (0.1, 0.1, DenseAct::Gelu));
        let said = |text: &str, from: &str, to: &str| shape(&text.replacen(from, to, 1), "c").unwrap();
        let bert_says = r#""hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.0, "other""#;
        let distil_says = r#"12, "dropout": 0.2, "attention_dropout": 0.0"#;
        for read in [said(bert, "\"other\"", bert_says), said(distil, "12", distil_says)] {
            assert_eq!((read.dropout, read.attention_dropout), (0.2, 0.0));
        }
        for (name, act) in [
            ("gelu_new", DenseAct::GeluTanh),
            ("gelu_pytorch_tanh", DenseAct::GeluTanh),
            ("relu", DenseAct::Relu),
            ("silu", DenseAct::Silu),
        ] {
            assert_eq!(said(bert, "\"gelu\"", &format!("{name:?}")).act, act);
            assert_eq!(said(distil, "\"gelu\"", &format!("{name:?}")).act, act);
        }
        let error = shape(&bert.replacen("gelu", "mish", 1), "c").unwrap_err().to_string();
        assert!(error.contains("the activation `mish`"), "{error}");
        for (from, to) in [
            ("12", "12, \"hidden_dropout_prob\": 1.0"),
            ("\"hidden_size\": 8", "\"hidden_size\": 9"),
            ("12", "0"),
            ("{", ""),
        ] {
            assert!(shape(&bert.replacen(from, to, 1), "c").is_err(), "{from}");
        }
    }

    #[test]
    fn names_of_models_with_heads_and_of_old_files_are_mapped() {
        let t = Tensor::zeros(1, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let names = ["bert.a.LayerNorm.gamma", "distilbert.b.LayerNorm.beta", "c.weight"];
        let file = names.map(|n| (n.to_owned(), t.clone())).into();
        let usual: Vec<String> = usual_names(file).into_keys().collect();
        assert_eq!(usual, ["a.LayerNorm.weight", "b.LayerNorm.bias", "c.weight"]);
    }
}
