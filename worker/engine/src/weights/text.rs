//! Text encoders in the layout of Hugging Face: `model.safetensors` with `config.json` and `tokenizer.json` beside it.

use std::{collections::BTreeMap, path::Path};

use candle_core::Tensor;
use serde::Deserialize;
use tl_proto::spec::ModelSection;

use super::{Contract, Which, contract_of, names, prefix};
use crate::{
    Error, Result,
    backbone::{Backbone, DISTILBERT, DenseAct, Shape, usual_kinds},
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

/// `model_type` of the networks that are read here. Others may have BERT's tensors under BERT's names and compute something
/// else: RoBERTa's positions begin with the table's third row.
const TYPES: [&str; 2] = ["bert", "distilbert"];

/// What there is to do about weights that lack nothing but a pooler, as those of a masked language model do.
pub(super) const NO_POOLER: &str = "they have lost the pooler: `backbone = \"minilm\"` is the same network with the mean over \
                                    tokens in its place";

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
    #[serde(default = "usual_kinds")]
    type_vocab_size: usize,
    #[serde(default = "eps")]
    layer_norm_eps: f32,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    #[serde(default = "dropped", alias = "dropout")]
    hidden_dropout_prob: f32,
    #[serde(default = "dropped", alias = "attention_dropout")]
    attention_probs_dropout_prob: f32,
    classifier_dropout: Option<f32>,
    seq_classif_dropout: Option<f32>,
    position_embedding_type: Option<String>,
    is_decoder: Option<bool>,
}

/// What kind of network a `config.json` is of.
#[derive(Deserialize)]
struct Typed {
    model_type: Option<String>,
}

fn eps() -> f32 {
    1e-12
}

/// What transformers takes where the file says nothing.
fn dropped() -> f32 {
    0.1
}

/// The most that may be dropped; more would leave nothing to learn from.
const MOST_DROPPED: f32 = 0.95;

/// A key as the file has it: DistilBERT has its own words.
fn written(key: &'static str, text: &str) -> &'static str {
    let other = match key {
        "num_hidden_layers" => "n_layers",
        "hidden_size" => "dim",
        "num_attention_heads" => "n_heads",
        "intermediate_size" => "hidden_dim",
        "hidden_dropout_prob" => "dropout",
        "attention_probs_dropout_prob" => "attention_dropout",
        _ => key,
    };
    if text.contains(&format!("\"{key}\"")) { key } else { other }
}

impl Config {
    /// What is dropped in front of a classifier's output, under which key it is said. As in transformers'
    /// `BertForSequenceClassification` and `DistilBertForSequenceClassification`; on the mean of all rows it has no
    /// classifier, so that there nothing is dropped that is not written.
    fn head_dropout(&self, backbone: &str) -> (&'static str, f32) {
        match backbone {
            "distilbert" => ("seq_classif_dropout", self.seq_classif_dropout.unwrap_or(0.2)),
            "bert" => ("classifier_dropout", self.classifier_dropout.unwrap_or(self.hidden_dropout_prob)),
            _ => ("classifier_dropout", self.classifier_dropout.unwrap_or(0.0)),
        }
    }
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

fn shape(text: &str, shown: &str, backbone: &str) -> Result<Shape> {
    let bad = |why: String| {
        Error::user(
            format!("`{shown}` is of no encoder that is known: {why}"),
            "known: BERT, DistilBERT and what has their layout, such as MiniLM",
        )
    };
    // Before its other keys, which another network may not have.
    let named = serde_json::from_str::<Typed>(text).ok().and_then(|typed| typed.model_type);
    if let Some(other) = named.filter(|named| !TYPES.contains(&named.as_str())) {
        return Err(bad(format!("`model_type` is `{other}`")));
    }
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
    if config.is_decoder == Some(true) {
        return Err(bad("`is_decoder` is true: its tokens see only those before them".into()));
    }
    let (head_key, head_dropout) = config.head_dropout(backbone);
    let shape = Shape {
        layers: config.num_hidden_layers,
        hidden: config.hidden_size,
        heads: config.num_attention_heads,
        wide: config.intermediate_size,
        words: config.vocab_size,
        positions: config.max_position_embeddings,
        kinds: config.type_vocab_size,
        eps: config.layer_norm_eps,
        act,
        dropout: config.hidden_dropout_prob,
        attention_dropout: config.attention_probs_dropout_prob,
        head_dropout,
        pre_classifier: false,
    };
    // A shape is memory that will be taken: a damaged file must not ask for all of it.
    let sizes = [
        ("num_hidden_layers", shape.layers, 96),
        ("hidden_size", shape.hidden, 8192),
        ("num_attention_heads", shape.heads, 256),
        ("intermediate_size", shape.wide, 65_536),
        ("vocab_size", shape.words, 2_000_000),
        ("max_position_embeddings", shape.positions, 32_768),
        ("type_vocab_size", shape.kinds, 64),
    ];
    let parts = [
        ("layer_norm_eps", shape.eps, 1.0),
        ("hidden_dropout_prob", shape.dropout, MOST_DROPPED),
        ("attention_probs_dropout_prob", shape.attention_dropout, MOST_DROPPED),
        (head_key, shape.head_dropout, MOST_DROPPED),
    ];
    let outside = |key: &'static str, value: String, range: String| {
        let key = written(key, text);
        Error::user(
            format!("`{shown}` says `{key}` = {value}, which must be between {range}"),
            "the file is damaged or of another network: put the `config.json` that belongs to the weights beside them",
        )
    };
    if let Some((key, value, most)) = sizes.into_iter().find(|(_, value, most)| !(1..=*most).contains(value)) {
        return Err(outside(key, value.to_string(), format!("1 and {most}")));
    }
    if let Some((key, value, most)) = parts.into_iter().find(|(_, value, most)| !(0.0..=*most).contains(value)) {
        return Err(outside(key, value.to_string(), format!("0 and {most}")));
    }
    if !shape.hidden.is_multiple_of(shape.heads) {
        return Err(bad(format!("{} columns cannot be shared by {} heads", shape.hidden, shape.heads)));
    }
    Ok(shape)
}

/// How a text network's input is made: from inside its weights, from beside them, or still to be learned.
///
/// # Errors
/// Weights without a tokenizer, files that are damaged, a job that asks for preprocessing of images.
pub fn contract(
    backbone: &Backbone,
    (section, model): (&str, &ModelSection),
    path: Option<&Path>,
    which: Which,
) -> Result<Contract> {
    if model.preprocess.is_some() || model.padding.is_some() {
        return Err(Error::user(
            format!("{} reads text, which has neither `preprocess` nor `padding`", backbone.name),
            format!("remove them from `[{section}]`; `input` is the most tokens of a text"),
        ));
    }
    let blank = |text| Ok::<_, Error>(Contract { text: Some(text), ..Contract::named("unit", 32, None)? });
    let limit = model.input.map(|n| n as usize);
    let usual = limit.unwrap_or(backbone.input as usize);
    let Some(path) = path else { return blank(Text::new(usual, None, String::new())) };
    let shown = path.display().to_string();
    if let Some(found) = contract_of(path, which)? {
        let Some(text) = found.text.clone() else {
            return Err(Error::user(
                format!("weights `{shown}` are of a network for images, and {} reads text", backbone.name),
                format!("`{section}.backbone` must be the network that the weights were trained with"),
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
    let mut shape = beside(path, "config.json")?.map(|text| shape(&text, &config, backbone.name)).transpose()?;
    // A classifier of DistilBERT's is two layers: without the first one the other means nothing.
    let is_dense = |name: &String| {
        let before = name.strip_suffix("pre_classifier.weight");
        before.is_some_and(|before| before.is_empty() || prefix::is_known(before))
    };
    if backbone.name == "distilbert" && names(path)?.iter().any(is_dense) {
        shape.get_or_insert(DISTILBERT).pre_classifier = true;
    }
    // The job has not asked for the usual length: a network may take less.
    let most = shape.as_ref().map_or(usual, |shape| shape.positions);
    let text = Text::new(limit.unwrap_or(usual.min(most)), shape, tokenizer);
    text.check(&path.with_file_name("tokenizer.json").display().to_string())?;
    blank(text)
}

#[cfg(test)]
mod tests {
    use tl_proto::spec::HeadSection;

    use super::*;
    use crate::{
        backbone::{Network, find},
        nn::Layer,
    };

    fn shape(text: &str, shown: &str) -> Result<Shape> {
        super::shape(text, shown, "minilm")
    }

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
        assert_eq!(said(bert, "\"other\": 1", "\"model_type\": \"bert\""), read);
        assert_eq!(said(distil, "{", "{\"model_type\": \"distilbert\", ").layers, read.layers);
        assert_eq!((read.kinds, said(bert, "12", "12, \"type_vocab_size\": 1").kinds), (2, 1));
        assert_eq!(said(bert, "12", "12, \"is_decoder\": false"), read);
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
    }

    #[test]
    fn a_head_drops_what_transformers_drops_unless_the_job_says_otherwise() {
        let bert = r#"{"num_hidden_layers": 1, "hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4,
            "vocab_size": 9, "max_position_embeddings": 12, "hidden_dropout_prob": 0.3"#;
        let distil = r#"{"n_layers": 1, "dim": 4, "n_heads": 1, "hidden_dim": 4, "vocab_size": 9,
            "max_position_embeddings": 12, "dropout": 0.3"#;
        for (text, backbone, more, p) in [
            (bert, "bert", "}", 0.3),
            (bert, "bert", ", \"classifier_dropout\": null}", 0.3),
            (bert, "bert", ", \"classifier_dropout\": 0.0}", 0.0),
            (bert, "minilm", "}", 0.0),
            (bert, "minilm", ", \"classifier_dropout\": 0.4}", 0.4),
            (distil, "distilbert", "}", 0.2),
            (distil, "distilbert", ", \"seq_classif_dropout\": 0.4}", 0.4),
        ] {
            let shape = super::shape(&format!("{text}{more}"), "c", backbone).unwrap();
            assert_eq!(shape.head_dropout, p, "{backbone}{more}");
            let text = Some(Text::new(8, Some(shape), String::new()));
            let contract = Contract { text, ..Contract::named("unit", 32, None).unwrap() };
            let drops = |dropout| {
                let head = HeadSection { dropout, ..HeadSection::default() };
                let network = Network::build(find(backbone).unwrap(), &contract, &head, 2, 1);
                let mut said = String::new();
                network.units[network.head].layer.describe(&mut said);
                said.contains("dropout")
            };
            assert_eq!((drops(None), drops(Some(0.0)), drops(Some(0.5))), (p > 0.0, false, true), "{backbone}{more}");
        }
        let error = super::shape(&format!("{distil}, \"seq_classif_dropout\": 1}}"), "c", "distilbert").unwrap_err();
        assert!(error.to_string().contains("`seq_classif_dropout` = 1, which"), "{error}");
    }

    #[test]
    fn a_value_out_of_range_is_refused_by_its_key_with_a_hint() {
        let bert = r#"{"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16,
            "vocab_size": 9, "max_position_embeddings": 12}"#;
        let distil = r#"{"n_layers": 2, "dim": 8, "n_heads": 2, "hidden_dim": 16, "vocab_size": 9,
            "max_position_embeddings": 12}"#;
        for (text, from, to, said) in [
            (
                bert,
                "12",
                "12, \"hidden_dropout_prob\": 1.0",
                "`hidden_dropout_prob` = 1, which must be between 0 and 0.95",
            ),
            (distil, "12", "12, \"dropout\": -0.1", "`dropout` = -0.1, which must be between 0 and 0.95"),
            (distil, "2", "200", "`n_layers` = 200, which must be between 1 and 96"),
            (bert, "12", "12, \"type_vocab_size\": 0", "`type_vocab_size` = 0, which must be between 1 and 64"),
            (bert, "12", "12, \"is_decoder\": true", "`is_decoder` is true"),
            (bert, "12", "0", "`max_position_embeddings` = 0, which must be between 1 and 32768"),
            (bert, "8", "9", "9 columns cannot be shared by 2 heads"),
            (bert, "{", "{\"model_type\": \"roberta\", ", "`c` is of no encoder that is known: `model_type` is `rob"),
            (bert, bert, "{\"model_type\": \"t5\", \"d_model\": 8}", "`model_type` is `t5`"),
            (bert, "12", "12, \"layer_norm_eps\": 1e400", "`c` is of no encoder that is known"),
            (bert, "{", "", "`c` is of no encoder that is known"),
        ] {
            let error = shape(&text.replacen(from, to, 1), "c").unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
            assert!(!error.to_string().contains("Shape {") && !error.to_failure().hint.is_empty(), "{error}");
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
