//! Checks of a network: its name, its head, and what it makes of its own parameters.

use super::{
    HeadSection, ModelSection,
    check::{Checked, found, require, within},
};
use crate::catalog::Catalog;

/// Checks `[model]` or `[nets.ROLE]`.
pub(super) fn check_model(net: &ModelSection, catalog: &Catalog) -> Checked {
    let entry = found(Catalog::find(&catalog.backbones, "backbone", &net.backbone))?;
    check_head("head", &net.head)?;
    require(!net.random || (net.weights.is_some() && net.adapter.is_none() && !net.head.keep), || {
        (
            "`model.random` begins with random values, and takes only the shape from `model.weights`".into(),
            "name weights without an adapter, do not keep their head, or leave `random` out".into(),
        )
    })?;
    if let Some(side) = net.input {
        within("model.input", f64::from(side), 8.0, 1024.0)?;
    }
    for (key, value) in [("dropout", net.dropout), ("attention_dropout", net.attention_dropout)] {
        let Some(p) = value else { continue };
        require(entry.params.iter().any(|param| param.name == key), || {
            (
                format!(
                    "`{}` has no blocks of a transformer, and `model.{key}` is for what is inside them",
                    entry.name
                ),
                "remove it; `head.dropout` is that of the classifier".into(),
            )
        })?;
        within(&format!("model.{key}"), p, 0.0, 0.95)?;
    }
    Ok(())
}

/// Checks a classifier, which the job calls `at`.
pub(super) fn check_head(at: &str, head: &HeadSection) -> Checked {
    within(&format!("{at}.dropout"), head.dropout.unwrap_or_default(), 0.0, 0.95)?;
    require(head.hidden.iter().all(|w| (1..=65_536).contains(w)), || {
        (format!("widths in `{at}.hidden` must be between 1 and 65536"), String::new())
    })
}

/// Checks what is said of `[nets.ROLE]`, a network that runs but is not trained: what only training would do is an error.
pub(super) fn check_untrained(role: &str, net: &ModelSection) -> Checked {
    for (key, value) in [("dropout", net.dropout), ("attention_dropout", net.attention_dropout)] {
        require(value.is_none(), || {
            (
                format!("`nets.{role}` is not trained, and `nets.{role}.{key}` would do nothing"),
                format!("remove it; `model.{key}` is for the network that learns"),
            )
        })?;
    }
    require(!net.random, || {
        (format!("`nets.{role}` is not trained, and random values say nothing"), format!("remove `nets.{role}.random`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{entry, number},
        spec::{Precision, parse},
    };

    #[test]
    fn a_teacher_has_no_dropout() {
        let teacher = |dropout, attention_dropout| {
            let net = ModelSection { dropout, attention_dropout, ..ModelSection::default() };
            check_untrained("teacher", &net).map_err(|e| e.message)
        };
        assert!(teacher(None, None).is_ok());
        assert!(teacher(Some(0.1), None).unwrap_err().contains("`nets.teacher.dropout` would do nothing"));
        assert!(teacher(None, Some(0.0)).unwrap_err().contains("`nets.teacher.attention_dropout`"));
    }

    #[test]
    fn random_values_need_weights_to_be_shaped_by() {
        let catalog = Catalog { backbones: vec![entry("b", "")], ..Catalog::default() };
        let mut net = ModelSection { backbone: "b".into(), random: true, ..ModelSection::default() };
        assert!(check_model(&net, &catalog).unwrap_err().message.contains("`model.random`"));
        net.weights = Some("w".into());
        assert_eq!(check_model(&net, &catalog), Ok(()));
        assert!(check_untrained("teacher", &net).unwrap_err().message.contains("random values say nothing"));
        net.head.keep = true;
        assert!(check_model(&net, &catalog).is_err());
    }

    #[test]
    fn dropout_inside_blocks_is_for_networks_that_have_blocks() {
        let mut vit = entry("vit_s16", "");
        vit.params.push(number("dropout", 0.0, 0.0, 0.95, ""));
        let catalog = Catalog { backbones: vec![entry("resnet18", ""), vit], ..Catalog::default() };
        let check = |backbone: &str, dropout| {
            let net = ModelSection { backbone: backbone.into(), dropout: Some(dropout), ..ModelSection::default() };
            check_model(&net, &catalog).map_err(|e| e.message)
        };
        assert_eq!(check("vit_s16", 0.1), Ok(()));
        assert!(check("vit_s16", 1.0).unwrap_err().contains("model.dropout"));
        assert!(check("resnet18", 0.1).unwrap_err().contains("no blocks of a transformer"));
    }

    #[test]
    fn a_precision_is_one_of_three_and_only_written_out_where_it_is_not_the_usual_one() {
        let job =
            |model: &str| parse(&format!("schema = 1\njob = {{ name = \"t\", kind = \"f\" }}\nmodel = {{ {model} }}"));
        let e = job("backbone = \"b\", precision = \"fp16\"").unwrap_err();
        assert_eq!(e.to_string(), "line 3, column 39: unknown variant `fp16`, expected one of `f32`, `tf32`, `bf16`");
        assert_eq!(e.hint, "did you mean `bf16`?");
        assert_eq!(job("backbone = \"b\", precision = \"double\"").unwrap_err().hint, "known: f32, tf32, bf16");
        let model = |text: &str| job(text).unwrap().model.unwrap();
        for precision in [Precision::Tf32, Precision::Bf16] {
            let said = model(&format!("backbone = \"b\", precision = \"{precision}\""));
            assert_eq!(said.precision, precision);
            assert_eq!(serde_json::to_value(&said).unwrap()["precision"], precision.to_string());
        }
        let usual = model("backbone = \"b\"");
        assert_eq!(usual.precision, Precision::F32);
        assert!(!serde_json::to_string(&usual).unwrap().contains("precision"));
    }
}
