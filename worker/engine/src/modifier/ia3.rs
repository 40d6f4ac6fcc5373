//! IA3 (Liu et al., 2022): factors of keys, values and the inside of the dense layers, and the weights stay. Defaults are
//! peft's.

use tl_proto::{
    catalog::{Entry, entry, names},
    spec::Params,
};

use super::Modifier;
use crate::nn::{Kind, Plan, Target};

/// Of BERT as in peft, and their likes in DistilBERT. `output.dense` is the end of two names in a block.
const TARGETS: &[&str] = &["key", "value", "output.dense", "k_lin", "v_lin", "ffn.lin2"];
const FEEDFORWARD: &[&str] = &["output.dense", "ffn.lin2"];

fn describe() -> Entry {
    Entry {
        params: vec![
            names(
                "targets",
                TARGETS,
                "dense layers and convolutions of the backbone: ends of names, as in peft, or re:PATTERN",
            ),
            names(
                "feedforward",
                FEEDFORWARD,
                "those of them whose inputs are multiplied; of the others, the outputs are",
            ),
        ],
        freezes: true,
        ..entry(
            "ia3",
            "trains factors of the activations of some layers and the head; leaves an adapter that peft loads",
        )
    }
}

fn adapt(params: &Params) -> Plan {
    let entry = describe();
    Plan {
        kind: Kind::Ia3 {
            feedforward: Target::list(entry.names(params, "feedforward")),
            strict: params.contains_key("feedforward"),
        },
        targets: Target::list(entry.names(params, "targets")),
        strict: params.contains_key("targets"),
    }
}

pub(super) const MODIFIER: Modifier = Modifier { adapt: Some(adapt), ..Modifier::new(describe) };
