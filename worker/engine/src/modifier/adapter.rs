//! Bottleneck adapters, with AdapterHub's defaults: Pfeiffer et al. (2020, `seq_bn`) or Houlsby et al. (2019,
//! `double_seq_bn`).

use tl_proto::{
    catalog::{Entry, choice, entry, integer},
    spec::Params,
};

use super::Modifier;
use crate::nn::{Kind, Plan};

fn describe() -> Entry {
    Entry {
        params: vec![
            choice(
                "kind",
                &["pfeiffer", "houlsby"],
                "after the dense layers of a block, with relu; or after its attention too, with swish",
            ),
            integer("reduction", 16, 1, 4096, "times narrower than a row"),
        ],
        freezes: true,
        ..entry("adapter", "trains bottlenecks in the blocks of a text encoder and the head; the model keeps them")
    }
}

fn adapt(params: &Params) -> Plan {
    let entry = describe();
    let twice = entry.word(params, "kind") == "houlsby";
    let reduction = entry.number(params, "reduction") as usize;
    Plan { kind: Kind::Bottleneck { twice, reduction }, targets: Vec::new(), strict: false }
}

pub(super) const MODIFIER: Modifier = Modifier { adapt: Some(adapt), ..Modifier::new(describe) };
