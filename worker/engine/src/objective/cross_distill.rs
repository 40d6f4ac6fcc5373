//! Cross-modal distillation (Gupta et al., 2016; Aytar et al., 2016): a teacher of one kind of sample teaches a student of
//! another on pairs, without labels. `T²·KL(softmax(z_t/T) ‖ softmax(z_s/T))`, and what a method of `distill` compares of
//! their features; the teacher sees one half of a pair, the student the other.

use tl_proto::catalog::{Entry, entry, number};

use super::{Objective, PLAIN, distill};

/// Those of `distill`. What labels count there says nothing here.
fn methods() -> Vec<Entry> {
    let mut methods = distill::methods();
    methods.iter_mut().for_each(|m| m.params.retain(|p| p.name != distill::HARD));
    methods
}

fn describe() -> Entry {
    Entry {
        params: vec![
            number("temperature", 2.0, 0.1, 100.0, "softens both distributions"),
            number("soft_weight", 1.0, 0.0, 100.0, "weight of the teacher's logits"),
        ]
        .into_iter()
        .chain(distill::teaching())
        .collect(),
        methods: methods(),
        nets: vec!["teacher".into()],
        several: vec!["teacher".into()],
        data: vec!["pairs".into()],
        ..entry("cross_distill", "a teacher of one kind of sample teaches a student of another on pairs without labels")
    }
}

pub(super) const OBJECTIVE: Objective = Objective {
    entry: describe,
    coupled: distill::OBJECTIVE.coupled,
    features: distill::OBJECTIVE.features,
    looks_inside: distill::OBJECTIVE.looks_inside,
    packed: |params| distill::packed(params, describe().number(params, "temperature")),
    taps: distill::OBJECTIVE.taps,
    look: distill::OBJECTIVE.look,
    own: distill::OBJECTIVE.own,
    loss: |params, batch| {
        let number = |name: &str| describe().number(params, name);
        distill::taught(params, batch, [number("temperature"), number("soft_weight")])
    },
    ..PLAIN
};
