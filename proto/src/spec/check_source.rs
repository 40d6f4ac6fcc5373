//! Checks of what a job says of the task that its weights were trained on.

use super::{
    JobSpec,
    check::{Checked, found, require},
    check_params::check_params,
};
use crate::catalog::{Catalog, Entry};

/// The source's data is there where a modifier learns from it, and has a format; what is about weights has some.
pub(super) fn check_source(spec: &JobSpec, objective: &Entry, catalog: &Catalog) -> Checked {
    let used = catalog.modifiers.iter().filter(|e| spec.modifiers.contains_key(&e.name));
    let learns_from_source = |entry: &Entry| entry.data.iter().any(|role| role == "source");
    // With `random`, they give the shape alone.
    let weights = spec.model.as_ref().is_some_and(|m| m.weights.is_some() && !m.random);
    let source = spec.data.as_ref().and_then(|d| d.source.as_ref());
    let trains = source.is_some_and(|s| s.train.is_some());
    let mut learns = false;
    for entry in used {
        let name = &entry.name;
        require(weights || !entry.begins_with_weights, || {
            let what =
                format!("`modifiers.{name}` is about the weights that the network begins with, and there are none");
            (what, "set `model.weights`, without `model.random`, or remove it".into())
        })?;
        let wants = learns_from_source(entry);
        require(trains || !wants, || {
            let hint =
                "add `[data.source]` with `train` and `val`: samples, with labels, of what the weights were trained on";
            (format!("`modifiers.{name}` needs `data.source.train`"), hint.into())
        })?;
        let single = spec.tasks.is_empty() && spec.data.as_ref().is_none_or(|d| d.episodes.is_none());
        require(!entry.one_head || single, || {
            let message = "is for one head that learns from single samples, not for episodes or tasks";
            let message = format!("`modifiers.{name}` {message}");
            (message, format!("hold the network by {}", listed(catalog, |e| e.begins_with_weights && !e.one_head)))
        })?;
        learns |= wants;
    }
    let Some(data) = spec.data.as_ref().and_then(|d| d.of_source()) else { return Ok(()) };
    require(weights, || {
        (
            "`data.source` tells what is forgotten of the weights, and there are none".into(),
            "set `model.weights`, without `model.random`, or remove `[data.source]`".into(),
        )
    })?;
    require(!objective.untrained, || {
        (format!("`{}` trains nothing, and forgets nothing", spec.job.kind), "remove `[data.source]`".into())
    })?;
    require(learns || !trains, || {
        let hint = format!("add {}, or remove it", listed(catalog, learns_from_source));
        ("nothing looks at `data.source.train`".into(), hint)
    })?;
    let format = found(Catalog::find(&catalog.formats, "data format", &data.format))?;
    check_params("data.source.params", format, &data.params)
}

/// Modifiers of which something holds, as sections of a job.
fn listed(catalog: &Catalog, holds: impl Fn(&Entry) -> bool) -> String {
    let names = catalog.modifiers.iter().filter(|e| holds(e)).map(|e| format!("`[modifiers.{}]`", e.name));
    names.collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::entry, spec::parse};

    fn check(model: &str, lines: &str) -> Result<(), String> {
        let text = format!(
            "schema = 1\njob = {{ name = \"t\", kind = \"finetune\" }}\nmodel = {{ backbone = \"b\", {model} }}\n\
             {lines}\n[data]\nformat = \"f\"\ntrain = \"t\"\nval = \"v\"\nbatch = 2\n"
        );
        let own = |name: &str, data: &[&str]| Entry {
            begins_with_weights: true,
            data: data.iter().map(|d| (*d).to_owned()).collect(),
            ..entry(name, "")
        };
        let lwf = Entry { one_head: true, ..own("lwf", &[]) };
        let catalog = Catalog {
            modifiers: vec![own("ewc", &["source"]), own("l2_sp", &[]), lwf, entry("mixup", "")],
            formats: vec![entry("f", "")],
            ..Catalog::default()
        };
        check_source(&parse(&text).unwrap(), &entry("finetune", ""), &catalog)
            .map_err(|e| format!("{}; {}", e.message, e.hint))
    }

    #[test]
    fn what_is_not_there_or_of_no_use_is_refused() {
        let with = "weights = \"w\"";
        for (model, lines, part) in [
            ("", "[modifiers.l2_sp]", "`modifiers.l2_sp` is about the weights"),
            ("", "[data.source]\nval = \"s\"", "there are none; set `model.weights`"),
            (
                "weights = \"w\", random = true",
                "[modifiers.l2_sp]",
                "there are none; set `model.weights`, without `model.random`",
            ),
            (
                "weights = \"w\", random = true",
                "[data.source]\nval = \"s\"",
                "tells what is forgotten of the weights, and there are none",
            ),
            (with, "[modifiers.ewc]", "`modifiers.ewc` needs `data.source.train`"),
            (with, "[modifiers.ewc]\n[data.source]\nval = \"s\"", "needs `data.source.train`"),
            (
                with,
                "[modifiers.l2_sp]\n[data.source]\ntrain = \"s\"\nval = \"s\"",
                "nothing looks at `data.source.train`; add `[modifiers.ewc]`, or remove it",
            ),
            (
                with,
                "[modifiers.lwf]\n[tasks.a]\nclasses = { x = [\"0\"], y = [\"1\"] }",
                "not for episodes or tasks; hold the network by `[modifiers.ewc]` or `[modifiers.l2_sp]`",
            ),
            (with, "[data.source]\nval = \"s\"\nformat = \"g\"", "there is no data format `g`"),
        ] {
            let error = check(model, lines).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        check(with, "[modifiers.l2_sp]\n[modifiers.lwf]\n[modifiers.mixup]").unwrap();
        check(with, "[data.source]\nval = \"s\"").unwrap();
        check(with, "[modifiers.ewc]\n[data.source]\ntrain = \"s\"\nval = \"s\"").unwrap();
        check("", "[modifiers.mixup]").unwrap();
    }
}
