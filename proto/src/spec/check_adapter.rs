//! Checks of what is trained in place of a network's weights: LoRA, IA3, adapters.

use super::{
    Handed, JobSpec,
    check::{Checked, require},
};
use crate::catalog::Catalog;

/// The modifiers that freeze the network: at most one, and no stage that wants all weights none the less. An adapter needs
/// weights to change.
pub(super) fn check_adapters(spec: &JobSpec, catalog: &Catalog) -> Checked {
    for (key, net) in spec.model.iter().map(|m| ("model", m)).chain(spec.nets.values().map(|m| ("nets.*", m))) {
        let Some(adapter) = &net.adapter else { continue };
        require(net.weights.is_some(), || {
            (
                format!("`{key}.adapter` changes weights, and there are none"),
                format!("set `{key}.weights` to those that the adapter was trained on"),
            )
        })?;
        require(!Handed::is(adapter), || {
            (
                format!("`{key}.adapter` cannot be `{adapter}`"),
                format!(
                    "write `{key}.weights = \"{adapter}\"`: what a step or job leaves has its adapter in its weights"
                ),
            )
        })?;
    }
    let freezes = |name: &str| catalog.modifiers.iter().any(|e| e.name == name && e.freezes);
    let freezing: Vec<&String> = spec.modifiers.keys().filter(|name| freezes(name)).collect();
    let [name, others @ ..] = &freezing[..] else { return Ok(()) };
    require(others.is_empty(), || {
        let all: Vec<String> = freezing.iter().map(|n| format!("`modifiers.{n}`")).collect();
        (format!("{} are different answers to one question", all.join(" and ")), "keep one of them".into())
    })?;
    for stage in &spec.stage {
        require(stage.train.iter().all(|rule| rule != "*"), || {
            (
                format!("stage `{}` trains `*`, all weights, and `modifiers.{name}` is there to keep them", stage.name),
                format!(
                    "write `train = [\"head\"]`: the parts of `{name}` are always trained; or remove `modifiers.{name}`"
                ),
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{Entry, entry},
        spec::parse,
    };

    fn check(lines: &str, train: &str) -> Result<(), String> {
        let text = format!(
            "schema = 1\njob = {{ name = \"t\", kind = \"finetune\" }}\n{lines}\n[[stage]]\nname = \"s\"\n\
             epochs = 1\nlr = 1\ntrain = [\"{train}\"]\n"
        );
        let frozen = |name: &str| Entry { freezes: true, ..entry(name, "") };
        let catalog =
            Catalog { modifiers: vec![frozen("ia3"), frozen("lora"), entry("mixup", "")], ..Catalog::default() };
        check_adapters(&parse(&text).unwrap(), &catalog).map_err(|e| format!("{}; {}", e.message, e.hint))
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let model = |more: &str| format!("model = {{ backbone = \"bert\", {more} }}");
        for (lines, train, part) in [
            (model("adapter = \"a\""), "head", "there are none; set `model.weights`"),
            (model("weights = \"w\", adapter = \"step:a\""), "head", "write `model.weights = \"step:a\"`"),
            ("[modifiers.lora]\n[modifiers.ia3]".into(), "head", "`modifiers.ia3` and `modifiers.lora` are different"),
            ("[modifiers.lora]\n[modifiers.mixup]".into(), "*", "stage `s` trains `*`"),
        ] {
            let error = check(&lines, train).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        check(&model("weights = \"w\", adapter = \"a\""), "*").unwrap();
        check("[modifiers.lora]\n[modifiers.mixup]", "head").unwrap();
        check("[modifiers.mixup]", "*").unwrap();
    }
}
