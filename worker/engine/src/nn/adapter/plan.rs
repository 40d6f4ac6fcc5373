//! What is put on which layers.

use std::collections::BTreeMap;

use tl_proto::spec::name_pattern;

/// What a job, or a folder of peft's, asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Which parts.
    pub kind: Kind,
    /// Names of the layers that carry them. Bottlenecks know their places themselves.
    pub targets: Vec<Target>,
    /// Whether each target must be the name of a layer; else one of them must.
    pub strict: bool,
}

/// A kind of parts.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Low-rank changes of the weights (Hu et al., 2021).
    Lora {
        /// Rows of A.
        rank: usize,
        /// The change is multiplied by `α/r`.
        alpha: f64,
        /// By `α/√r` instead (Kalajdzievski, 2023).
        rslora: bool,
        /// Probability to drop an input of A.
        dropout: f32,
        /// Rank and alpha of layers that have others, by whole names.
        own: BTreeMap<String, (usize, f64)>,
    },
    /// Factors of activations (Liu et al., 2022).
    Ia3 {
        /// Layers whose inputs they are factors of; of others, the outputs.
        feedforward: Vec<Target>,
        /// Whether each of these must be the name of a layer with factors.
        strict: bool,
    },
    /// Two small dense layers with a shortcut around them.
    Bottleneck {
        /// After the attention and the dense layers (Houlsby et al., 2019), not after the latter only (Pfeiffer et al.,
        /// 2020).
        twice: bool,
        /// Times narrower than a row.
        reduction: usize,
    },
}

impl Kind {
    /// Its settings, in words that stay the same from release to release.
    pub fn describe(&self) -> String {
        match self {
            Self::Lora { rank, alpha, rslora, dropout, own } => {
                let own = own.iter().map(|(layer, (rank, alpha))| format!("{layer}:{rank}:{alpha};"));
                format!("lora:{rank}:{alpha}:{rslora}:{dropout};{}", own.collect::<String>())
            }
            Self::Ia3 { .. } => "ia3;".into(),
            Self::Bottleneck { twice, reduction } => format!("bottleneck:{twice}:{reduction};"),
        }
    }

    /// The same for one layer.
    pub fn on(&self, layer: &str) -> Self {
        match self {
            Self::Lora { rank, alpha, rslora, dropout, own } => {
                let (rank, alpha) = own.get(layer).copied().unwrap_or((*rank, *alpha));
                Self::Lora { rank, alpha, rslora: *rslora, dropout: *dropout, own: BTreeMap::new() }
            }
            other => other.clone(),
        }
    }

    /// What LoRA's change is multiplied by, but in layers that have a rank and an alpha of their own.
    pub fn scale(&self) -> f32 {
        match self {
            Self::Lora { rank, alpha, rslora: true, .. } => (alpha / (*rank as f64).sqrt()) as f32,
            Self::Lora { rank, alpha, .. } => (alpha / *rank as f64) as f32,
            _ => 1.0,
        }
    }
}

/// Names layers.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// As peft's `target_modules` do: a whole name or its end from a dot on; or `re:PATTERN`, which is looked for in it.
    Like(String),
    /// One, by its whole name.
    Exact(String),
}

impl Target {
    /// A list of what people say.
    pub fn list(names: impl IntoIterator<Item = impl Into<String>>) -> Vec<Self> {
        names.into_iter().map(|n| Self::Like(n.into())).collect()
    }

    /// A list of whole names.
    pub fn exact(names: impl IntoIterator<Item = impl Into<String>>) -> Vec<Self> {
        names.into_iter().map(|n| Self::Exact(n.into())).collect()
    }

    /// Its text.
    pub fn text(&self) -> &str {
        let (Self::Like(text) | Self::Exact(text)) = self;
        text
    }

    /// Whether it names a layer. A pattern that cannot be read names none: the job's check has refused it.
    pub fn names(&self, layer: &str) -> bool {
        let text = match self {
            Self::Exact(name) => return name == layer,
            Self::Like(text) => text.as_str(),
        };
        match name_pattern(text) {
            Ok(Some(pattern)) => pattern.is_match(layer.as_bytes()),
            Ok(None) => layer.strip_suffix(text).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_ends_of_names_and_patterns() {
        let names = |target: &str, layer: &str| Target::Like(target.into()).names(layer);
        assert!(names("query", "layer.0.query") && names("query", "query") && names("output.dense", "a.output.dense"));
        assert!(!names("uery", "layer.0.query") && !names("layer.0", "layer.0.query") && !names("dense", "dense.x"));
        assert!(names("re:[01]\\.query$", "layer.0.query") && !names("re:[01]\\.query$", "layer.2.query"));
        let exact = &Target::exact(["query"])[0];
        assert!(exact.names("query") && !exact.names("layer.0.query"));
    }

    #[test]
    fn scales_are_those_of_both_conventions() {
        let own = || BTreeMap::from([("a.b".to_owned(), (4, 2.0))]);
        let kind = |rslora| Kind::Lora { rank: 16, alpha: 8.0, rslora, dropout: 0.0, own: own() };
        assert_eq!((kind(false).scale(), kind(true).scale()), (0.5, 2.0));
        let of = |layer: &str| [false, true].map(|rslora| kind(rslora).on(layer).scale());
        assert_eq!((of("a.b"), of("b")), ([0.5, 1.0], [0.5, 2.0]));
        // Ranks agree on a run by these words, and runs of earlier releases go on by them.
        assert_eq!(kind(true).describe(), "lora:16:8:true:0;a.b:4:2;");
        assert_eq!(kind(true).on("b").describe(), "lora:16:8:true:0;");
    }
}
