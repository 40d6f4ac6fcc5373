//! LoRA (Hu et al., 2021): each chosen layer learns a change of low rank, and its weights stay. Defaults are peft's.

use tl_proto::{
    catalog::{Entry, entry, flag, integer, names, number},
    spec::Params,
};

use super::Modifier;
use crate::nn::{Kind, Plan, Target};

/// Query and value of BERT's and DistilBERT's attention; the one layer of both in timm's ViT.
const TARGETS: &[&str] = &["query", "value", "q_lin", "v_lin", "qkv"];

fn describe() -> Entry {
    Entry {
        params: vec![
            integer("rank", 8, 1, 4096, "rank of the changes"),
            number("alpha", 8.0, 1e-3, 1e5, "changes are multiplied by alpha/rank"),
            number("dropout", 0.0, 0.0, 0.95, "probability to drop an input of a change"),
            names(
                "targets",
                TARGETS,
                "dense layers and convolutions of the backbone: ends of names, as in peft, or re:PATTERN",
            ),
            flag("rslora", false, "multiply by alpha/sqrt(rank) (Kalajdzievski, 2023)"),
        ],
        freezes: true,
        ..entry("lora", "trains low-rank changes of some layers and the head; leaves an adapter that peft loads")
    }
}

fn adapt(params: &Params) -> Plan {
    let entry = describe();
    Plan {
        kind: Kind::Lora {
            rank: entry.number(params, "rank") as usize,
            alpha: entry.number(params, "alpha"),
            rslora: entry.flag(params, "rslora"),
            dropout: entry.number(params, "dropout") as f32,
            own: Default::default(),
        },
        targets: Target::list(entry.names(params, "targets")),
        strict: params.contains_key("targets"),
    }
}

pub(super) const MODIFIER: Modifier = Modifier { adapt: Some(adapt), ..Modifier::new(describe) };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_pefts_default() {
        let plan = adapt(&Params::new());
        assert_eq!(plan.kind, Kind::Lora { rank: 8, alpha: 8.0, rslora: false, dropout: 0.0, own: [].into() });
        assert!(!plan.strict && plan.targets.iter().any(|t| t.names("encoder.layer.3.attention.self.query")));
        let said = adapt(&[("targets".to_owned(), ["dense"].into()), ("rank".to_owned(), 2.into())].into());
        assert!(said.strict && said.targets.len() == 1 && said.kind.scale() == 4.0);
    }
}
