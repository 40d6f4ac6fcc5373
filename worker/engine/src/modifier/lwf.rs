//! Learning without forgetting (Li and Hoiem, 2016): the head that came with the weights stays beside the new one and goes on
//! saying of the new samples what the network said of them as it came, both softened by a temperature. The formula is
//! `λ·Σ KL(softmax(z₀/T) ‖ softmax(z/T))` over the samples, without a factor of T², as in the paper.

use tl_proto::catalog::{Entry, entry, number};

use super::{Modifier, Remember};

fn describe() -> Entry {
    Entry {
        params: vec![
            number("lambda", 1.0, 1e-6, 1e6, "weight of what the old head says"),
            number("temperature", 2.0, 0.1, 100.0, "softens both distributions"),
        ],
        begins_with_weights: true,
        ..entry("lwf", "keeps the old head, and has it say of the new samples what it said before")
    }
}

pub(super) const MODIFIER: Modifier = Modifier {
    remember: Some(|params| {
        let entry = describe();
        Remember { weight: entry.number(params, "lambda"), temperature: entry.number(params, "temperature") }
    }),
    ..Modifier::new(describe)
};
