//! Elastic weight consolidation (Kirkpatrick et al., 2017): `½λ·Σ F·(w − w₀)²` on what came with the weights, F the diagonal
//! of the Fisher information on samples of the source. It is the mean over samples of the square of each sample's gradient,
//! so no batch size is in it.

use tl_proto::catalog::{Entry, choice, entry, integer, number};

use super::{Hold, Importance, Modifier};

fn describe() -> Entry {
    Entry {
        params: vec![
            number("lambda", 1000.0, 0.0, 1e12, "weight of the distance to the pretrained weights"),
            integer("samples", 256, 1, 1_000_000, "samples of `data.source.train` that show what matters, at most"),
            choice(
                "labels",
                &["drawn", "given"],
                "of those samples: drawn by the probabilities that the pretrained network gives them, which is the Fisher \
                 information of the paper, or those that they have",
            ),
        ],
        data: vec!["source".into()],
        begins_with_weights: true,
        ..entry("ewc", "holds weights to those that the network began with, each as far as the source needs it")
    }
}

pub(super) const MODIFIER: Modifier = Modifier {
    hold: Some(|params| {
        let entry = describe();
        let samples = entry.number(params, "samples") as usize;
        let importance = Importance { samples, given: entry.word(params, "labels") == "given" };
        Hold { came: entry.number(params, "lambda"), new: 0.0, importance: Some(importance) }
    }),
    ..Modifier::new(describe)
};
