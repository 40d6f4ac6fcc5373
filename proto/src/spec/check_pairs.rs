//! Checks of pairs: `[data.pairs]` is there if the kind of job learns from them, and only then. Such a job looks at no
//! labels.

use super::{
    BnScope, JobSpec, Missing, Sampling,
    check::{Checked, found, require},
    check_augment::check_augment,
    check_params::check_params,
};
use crate::catalog::{Catalog, Entry};

/// The role of a second network that is trained with the first.
pub const TOWER: &str = "tower";

pub(super) fn check_pairs(spec: &JobSpec, objective: &Entry, catalog: &Catalog) -> Checked {
    let data = spec.data.as_ref();
    let pairs = data.and_then(|d| d.pairs.as_ref());
    let (kind, wanted) = (&spec.job.kind, objective.data.iter().any(|role| role == "pairs"));
    require(wanted || pairs.is_none(), || {
        let kinds: Vec<String> = catalog
            .objectives
            .iter()
            .filter(|o| o.data.iter().any(|role| role == "pairs"))
            .map(|o| format!("`{}`", o.name))
            .collect();
        (format!("`{kind}` has no use for `data.pairs`"), format!("kinds that learn from pairs: {}", kinds.join(", ")))
    })?;
    let (Some(data), true) = (data, wanted) else { return Ok(()) };
    let Some(pairs) = pairs else {
        let hint = "add `[data.pairs]` with `format` and `train`: what goes with the samples of `[data]`";
        return require(false, || (format!("`{kind}` needs `[data.pairs]`"), hint.into()));
    };
    let format = found(Catalog::find(&catalog.formats, "data format", &pairs.format))?;
    check_params("data.pairs.params", format, &pairs.params)?;
    check_augment("data.pairs.augment", &pairs.augment)?;
    require(pairs.val.is_some() || !objective.nets.iter().any(|role| role == TOWER), || {
        let hint = "set `data.pairs.val`: what goes with the samples of `data.val`";
        (format!("`{kind}` is judged by pairs, and `[data.pairs]` has no `val`"), hint.into())
    })?;
    let method = objective.method(&spec.objective);
    require(!method.labels, || {
        let others = objective.methods.iter().filter(|m| !m.labels).map(|m| format!("`{}`", m.name));
        let hint = format!("methods of it that look at none: {}", others.collect::<Vec<_>>().join(", "));
        (format!("the method `{}` looks at labels, and `{kind}` has none", method.name), hint)
    })?;
    for (set, key) in [
        (data.class_weights.is_some(), "data.class_weights"),
        (data.sampling == Sampling::Balanced, "data.sampling"),
        (data.train_per_class.is_some(), "data.train_per_class"),
    ] {
        require(!set, || {
            (format!("`{kind}` learns from pairs, and `{key}` goes by labels"), format!("remove `{key}`"))
        })?;
    }
    let used: Vec<&Entry> = catalog.modifiers.iter().filter(|e| spec.modifiers.contains_key(&e.name)).collect();
    if let Some(Entry { name, .. }) = used.iter().find(|e| e.mixes) {
        return require(false, || {
            (format!("`modifiers.{name}` mixes samples, and a pair goes with no other"), "remove it".into())
        });
    }
    if pairs.missing == Missing::Mask {
        check_masked(spec, objective, used.iter().copied().find(|e| e.one_head))?;
    }
    let Some(tower) = spec.nets.get(TOWER) else { return Ok(()) };
    require(tower.adapter.is_none(), || {
        (
            format!("`nets.{TOWER}.adapter` cannot be: the second network carries no adapter"),
            format!(
                "work it into the weights by a job of its own, or make that network `[model]` and the other `nets.{TOWER}`"
            ),
        )
    })?;
    require(data.batch >= 2 || objective.untrained, || {
        ("a batch of one pair has nothing to tell it from".into(), "raise `data.batch`".into())
    })
}

/// Half a pair stays in the batch where the loss is one of the whole batch, and where that is all that counts samples;
/// `counting` is a modifier that does too.
fn check_masked(spec: &JobSpec, objective: &Entry, counting: Option<&Entry>) -> Checked {
    let kind = &spec.job.kind;
    let hint = || "remove `data.pairs.missing`: what has no other half is then left out".to_owned();
    require(objective.nets.iter().any(|role| role == TOWER), || {
        (format!("half a pair teaches nothing in `{kind}`, and `data.pairs.missing = \"mask\"` keeps it"), hint())
    })?;
    if let Some(Entry { name, .. }) = counting {
        return require(false, || {
            let message =
                format!("`modifiers.{name}` counts samples, and `data.pairs.missing = \"mask\"` pairs that are whole");
            (message, hint())
        });
    }
    require(spec.stage.iter().all(|s| s.bn_scope == BnScope::Grain), || {
        (
            "`bn_scope = \"batch\"` wants every grain in every layer, and with `data.pairs.missing = \"mask\"` one may have \
             nothing for a network"
                .into(),
            hint(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::entry, spec::parse};

    fn check(data: &str, more: &str) -> Result<(), String> {
        let text = format!(
            "schema = 1\njob = {{ name = \"t\", kind = \"contrastive\" }}\n\
             data = {{ format = \"generated\", train = \"a\", val = \"a\", batch = 8 {data} }}\n{more}"
        );
        let pairs = |name: &str, nets: &[&str]| Entry {
            data: vec!["pairs".into()],
            nets: nets.iter().map(|n| (*n).into()).collect(),
            ..entry(name, "")
        };
        let objectives = vec![entry("finetune", ""), pairs("contrastive", &[TOWER]), pairs("cross_distill", &[])];
        // What they are called does not matter.
        let modifiers = vec![
            Entry { mixes: true, ..entry("blend", "") },
            Entry { one_head: true, ..entry("recall", "") },
            entry("average", ""),
        ];
        let catalog = Catalog { objectives, modifiers, formats: vec![entry("generated", "")], ..Catalog::default() };
        let spec = parse(&text).map_err(|e| e.message)?;
        let objective = catalog.objectives.iter().find(|o| o.name == spec.job.kind).unwrap();
        check_pairs(&spec, objective, &catalog).map_err(|e| format!("{}; {}", e.message, e.hint))
    }

    #[test]
    fn pairs_are_there_for_the_kinds_that_learn_from_them() {
        const PAIRS: &str = ", pairs = { format = \"generated\", train = \"b\", val = \"b\" }";
        assert_eq!(check(PAIRS, ""), Ok(()));
        assert!(check("", "").unwrap_err().contains("`contrastive` needs `[data.pairs]`"));
        let own = |kind: &str| {
            let text = format!(
                "schema = 1\njob = {{ name = \"t\", kind = \"{kind}\" }}\n\
                 data = {{ format = \"generated\", train = \"a\", val = \"a\", batch = 8 {PAIRS} }}"
            );
            let spec = parse(&text).unwrap();
            let catalog = Catalog { formats: vec![entry("generated", "")], ..Catalog::default() };
            check_pairs(&spec, &entry(kind, ""), &catalog).map_err(|e| e.message)
        };
        assert!(own("finetune").unwrap_err().contains("`finetune` has no use for `data.pairs`"));
        assert!(check(&PAIRS.replace(", val = \"b\"", ""), "").unwrap_err().contains("has no `val`"));
        assert!(check(&PAIRS.replace("generated", "generate"), "").unwrap_err().contains("no data format `generate`"));
    }

    #[test]
    fn what_goes_by_labels_or_mixes_samples_is_refused() {
        const PAIRS: &str = ", pairs = { format = \"generated\", train = \"b\", val = \"b\", by = \"label\" }";
        for more in ["class_weights = \"balanced\"", "sampling = \"balanced\"", "train_per_class = 3"] {
            let error = check(&format!("{PAIRS}, {more}"), "").unwrap_err();
            assert!(error.contains("goes by labels"), "{more}: {error}");
        }
        let error = check(PAIRS, "[modifiers.blend]\n").unwrap_err();
        assert!(error.contains("`modifiers.blend` mixes samples, and a pair goes with no other"), "{error}");
        assert_eq!(check(PAIRS, "[modifiers.average]\n"), Ok(()));
    }

    #[test]
    fn a_method_that_looks_at_labels_is_none_where_there_are_none() {
        let job = |method: &str| {
            let text = format!(
                "schema = 1\njob = {{ name = \"t\", kind = \"cross_distill\" }}\nobjective = {{ method = \"{method}\" }}\n\
                 data = {{ format = \"generated\", train = \"a\", val = \"a\", batch = 8, \
                 pairs = {{ format = \"generated\", train = \"b\" }} }}"
            );
            let methods = vec![entry("logits", ""), Entry { labels: true, ..entry("dkd", "") }, entry("hint", "")];
            let kind = Entry { methods, data: vec!["pairs".into()], ..entry("cross_distill", "") };
            let catalog = Catalog { formats: vec![entry("generated", "")], ..Catalog::default() };
            check_pairs(&parse(&text).unwrap(), &kind, &catalog).map_err(|e| format!("{}; {}", e.message, e.hint))
        };
        assert_eq!(job("hint"), Ok(()));
        let error = job("dkd").unwrap_err();
        let said = "the method `dkd` looks at labels, and `cross_distill` has none; methods of it that look at none: \
                    `logits`, `hint`";
        assert_eq!(error, said);
    }

    #[test]
    fn half_a_pair_is_kept_where_the_loss_can_do_without_the_other() {
        const STAGE: &str = "[[stage]]\nname = \"s\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.1\nbn = \"train\"\n";
        let pairs = |missing: &str| {
            format!(", pairs = {{ format = \"generated\", train = \"b\", val = \"b\", missing = \"{missing}\" }}")
        };
        let (out, mask) = (pairs("leave_out"), pairs("mask"));
        let scope = format!("{STAGE}bn_scope = \"batch\"\n");
        let recall = "[modifiers.recall]\n";
        for more in [STAGE, scope.as_str(), recall] {
            assert_eq!(check(&out, more), Ok(()));
        }
        assert_eq!(check(&mask, STAGE), Ok(()));
        assert!(check(&mask, &scope).unwrap_err().contains("`bn_scope = \"batch\"`"));
        assert!(check(&mask, recall).unwrap_err().contains("`modifiers.recall` counts samples"));
        assert!(check(&pairs("drop"), "").unwrap_err().contains("unknown variant `drop`"));
        let text = format!(
            "schema = 1\njob = {{ name = \"t\", kind = \"cross_distill\" }}\n\
             data = {{ format = \"generated\", train = \"a\", val = \"a\", batch = 8 {mask} }}"
        );
        let taught = Entry { data: vec!["pairs".into()], ..entry("cross_distill", "") };
        let catalog = Catalog { formats: vec![entry("generated", "")], ..Catalog::default() };
        let error = check_pairs(&parse(&text).unwrap(), &taught, &catalog).unwrap_err();
        assert!(error.message.contains("half a pair teaches nothing in `cross_distill`"), "{}", error.message);
        // What is usual is not written out: earlier releases read it too.
        let written = |data: &str| serde_json::to_string(&parse(&text.replace(&mask, data)).unwrap()).unwrap();
        assert!(written(&mask).contains("\"missing\":\"mask\"") && !written(&out).contains("missing"));
    }
}
