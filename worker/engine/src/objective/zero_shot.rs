//! Zero-shot classification (Radford et al., 2021) with two networks that have learned from pairs: each class is named in
//! a few sentences, the mean of their embeddings stands for it, and a sample is of the class whose mean is nearest.

use tl_proto::{
    catalog::{Entry, entry, texts},
    spec::{Params, TOWER},
};

use super::{Objective, PLAIN};

/// What cosines are multiplied by before they become probabilities; CLIP's largest.
pub const SCALE: f32 = 100.0;

/// Where the name of a class goes.
const BLANK: &str = "{}";

fn describe() -> Entry {
    Entry {
        params: vec![texts(
            "templates",
            &["a photo of a {}."],
            "sentences with `{}` where the name of a class goes; one without it has the name at its end",
        )],
        nets: vec![TOWER.into()],
        untrained: true,
        ..entry("zero_shot", "samples are judged by sentences that name their classes; nothing is trained")
    }
}

pub(super) const OBJECTIVE: Objective = Objective { entry: describe, ..PLAIN };

/// The sentences that name a class.
pub fn sentences(params: &Params, class: &str) -> Vec<String> {
    let name = class.replace(['_', '-', '/'], " ");
    let write = |template: String| match template.contains(BLANK) {
        true => template.replace(BLANK, &name),
        false => format!("{template} {name}"),
    };
    describe().names(params, "templates").into_iter().map(write).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_named_in_every_sentence() {
        assert_eq!(sentences(&Params::new(), "polar_bear"), ["a photo of a polar bear."]);
        let params = [("templates".to_owned(), serde_json::json!(["a {} and a {}", "of a"]))].into();
        assert_eq!(sentences(&params, "cat"), ["a cat and a cat", "of a cat"]);
    }
}
