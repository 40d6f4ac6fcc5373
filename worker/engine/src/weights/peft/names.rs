//! What a tensor is called in the network, and in the model that peft wraps.

use crate::{
    backbone::{Backbone, Network},
    nn::Store,
    weights::text,
};

/// What stands before the names of the network that peft wraps.
pub(super) const WRAPPER: &str = "base_model.model.";

/// What stands before the names of a head that no base has, so that peft leaves it alone.
const OWN_HEAD: &str = "own_head.";

/// The layer in front of DistilBERT's classifier, in a head of one hidden layer.
const PRE_CLASSIFIER: (&str, &str) = ("head.0.", "pre_classifier.");

/// Whether a tensor belongs to the head.
pub(super) fn is_head(backbone: &Backbone, name: &str) -> bool {
    name.starts_with("head.") || name.strip_prefix(backbone.classifier).is_some_and(|rest| rest.starts_with('.'))
}

/// The module that a tensor belongs to; nothing for one that the network itself holds, as ViT's `cls_token`.
pub fn module(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(module, _)| module)
}

/// A tensor's name in a file, without what stands before those of the encoder or the head.
pub(super) fn own_name(backbone: &Backbone, name: &str) -> String {
    let name = name.strip_prefix(OWN_HEAD).unwrap_or(name);
    if backbone.reads_text() { text::bare_name(name).to_owned() } else { name.to_owned() }
}

/// Where a network has a tensor of an adapter: DistilBERT's dense layer came with the weights or is the job's head.
pub(super) fn place(backbone: &Backbone, network: &Store, name: &str) -> String {
    match name.strip_prefix(PRE_CLASSIFIER.1) {
        Some(rest) if backbone.name == "distilbert" && !network.params.iter().any(|e| e.name == name) => {
            format!("{}{rest}", PRE_CLASSIFIER.0)
        }
        _ => name.to_owned(),
    }
}

/// Whether the head is that of the model which peft wraps: one layer, or DistilBERT's two; a sentence encoder has none.
pub fn has_their_head(network: &Network, backbone: &Backbone) -> bool {
    let head = &network.units[network.head..];
    let find = |name: &str| network.initial.params.iter().find(|e| e.name == name);
    match backbone.name {
        "minilm" => false,
        "distilbert" => match head {
            [_] => find("pre_classifier.weight").is_some(),
            [dense, _] => {
                let mut said = String::new();
                crate::nn::Layer::describe(&dense.layer, &mut said);
                let square = find("head.0.weight").is_some_and(|e| e.shape[0] == e.shape[1]);
                square && said.contains("relu") && find("head.0.norm.weight").is_none()
            }
            _ => false,
        },
        _ => head.len() == 1,
    }
}

/// Names as the model has them that peft wraps: `AutoModelForSequenceClassification` where its head is ours, else
/// `AutoModel`; networks for images are wrapped as they are.
pub(super) struct Theirs<'a> {
    backbone: &'a Backbone,
    /// Whether it has our head.
    pub(super) head: bool,
}

impl<'a> Theirs<'a> {
    pub(super) fn of(network: &Network, backbone: &'a Backbone) -> Self {
        Self { backbone, head: has_their_head(network, backbone) }
    }

    /// What peft calls the task.
    pub(super) fn task(&self) -> Option<&'static str> {
        match (self.backbone.name, self.head) {
            ("bert" | "distilbert", true) => Some("SEQ_CLS"),
            ("bert" | "distilbert" | "minilm", _) => Some("FEATURE_EXTRACTION"),
            _ => None,
        }
    }

    /// The name of a tensor, or of a layer.
    pub(super) fn name(&self, name: &str) -> String {
        let (own, is_head) = (self.backbone.name, is_head(self.backbone, &format!("{name}.")));
        if is_head && !self.head {
            return format!("{OWN_HEAD}{name}");
        }
        if !matches!(own, "bert" | "distilbert") || !self.head {
            return name.to_owned();
        }
        match name.strip_prefix("head.0") {
            Some(rest) if own == "distilbert" => format!("pre_classifier{rest}"),
            _ if is_head || name.split('.').next() == Some("pre_classifier") => name.to_owned(),
            _ => format!("{own}.{name}"),
        }
    }
}
