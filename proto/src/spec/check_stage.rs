//! Checks of one stage.

use super::{
    BnMode, BnScope, JobSpec, Missing, Norm, Rates, StageSection,
    check::{Checked, found, require, within},
    name_pattern,
};
use crate::catalog::Catalog;

pub(super) fn check_stage(stage: &StageSection, catalog: &Catalog) -> Checked {
    let at = |key: &str| format!("stage `{}`: {key}", stage.name);
    // A stage may be there to look for a rate only.
    within(&at("epochs"), f64::from(stage.epochs), if stage.lr_find.is_some() { 0.0 } else { 1.0 }, 100_000.0)?;
    require(!matches!(&stage.lr, Rates::Rules(rules) if rules.is_empty()), || {
        (at("`lr` has no rates"), "write `lr = 1e-3`".into())
    })?;
    stage.lr.all().into_iter().try_for_each(|lr| within(&at("lr"), lr, 1e-12, 1e3))?;
    within(&at("layer_decay"), stage.layer_decay, 0.01, 1.0)?;
    within(&at("min_scale"), stage.min_scale, 0.0, 1.0)?;
    require(stage.layer_decay == 1.0 || matches!(stage.lr, Rates::One(_)), || {
        (at("`layer_decay` and several rates in `lr` say the same thing twice"), "keep one of them".into())
    })?;
    if let Rates::Range([low, high]) = stage.lr {
        require(low <= high, || (at(&format!("`lr` falls from {low} to {high}")), "write `[low, high]`".into()))?;
    }
    found(Catalog::find(&catalog.schedules, "schedule", &stage.schedule))?;
    require(!stage.train.is_empty(), || (at("`train` is empty"), "write `train = [\"head\"]`".into()))?;
    let rates = if let Rates::Rules(rules) = &stage.lr { rules.keys().collect() } else { Vec::new() };
    stage.train.iter().chain(rates).try_for_each(|rule| check_rule(rule, at))?;
    if let Some(c) = &stage.cycle {
        require(stage.schedule == "one_cycle", || {
            (at("`cycle` shapes the schedule `one_cycle`"), "write `schedule = \"one_cycle\"`".into())
        })?;
        within(&at("cycle.pct_start"), c.pct_start, 0.0, 1.0)?;
        within(&at("cycle.div"), c.div, 1.0, 1e6)?;
        within(&at("cycle.div_final"), c.div_final, 1.0, 1e12)?;
        c.momentum.into_iter().flatten().try_for_each(|m| within(&at("cycle.momentum"), m, 0.0, 0.9999))?;
    }
    if let Some(p) = &stage.plateau {
        monitor(&at("plateau.monitor"), &p.monitor)?;
        within(&at("plateau.factor"), p.factor, 1e-6, 0.999)?;
        within(&at("plateau.patience"), f64::from(p.patience), 1.0, 1e5)?;
        within(&at("plateau.min_delta"), p.min_delta, 0.0, 1e3)?;
        within(&at("plateau.min_lr"), p.min_lr, 0.0, 1e3)?;
    }
    if let Some(a) = &stage.advance {
        monitor(&at("advance.monitor"), &a.monitor)?;
        within(&at("advance.patience"), f64::from(a.patience), 1.0, 1e5)?;
        within(&at("advance.min_delta"), a.min_delta, 0.0, 1e3)?;
    }
    if let Some(f) = &stage.lr_find {
        within(&at("lr_find.start"), f.start, 1e-12, 1e3)?;
        within(&at("lr_find.end"), f.end, 1e-12, 1e3)?;
        require(f.start < f.end, || (at("`lr_find` must rise"), "set `lr_find.end` above `lr_find.start`".into()))?;
        within(&at("lr_find.steps"), f64::from(f.steps), 10.0, 1000.0)?;
        within(&at("lr_find.smooth"), f.smooth, 0.0, 0.9999)?;
        within(&at("lr_find.stop_factor"), f.stop_factor, 1.0, 1e6)?;
    }
    Ok(())
}

/// Least pairs of a grain whose statistics are taken, where a pair may lack a half.
const MASKED: u32 = 8;

/// Checks that batch-norms that learn have something to learn from.
pub(super) fn check_norms(spec: &JobSpec, batch: u32) -> Checked {
    let grains = spec.grains();
    let heads =
        spec.model.iter().chain(spec.nets.values()).map(|m| &m.head).chain(spec.tasks.values().map(|t| &t.head));
    let in_head = heads.into_iter().any(|head| head.norm == Norm::Batch);
    // Some see the samples of one task alone.
    let alone = spec.tasks.values().filter(|t| t.head.norm == Norm::Batch).filter_map(|t| t.batch);
    let batch = alone.fold(batch, u32::min);
    // Over the whole batch, grains of one sample are as good as others.
    let learn = |s: &StageSection| s.bn_scope == BnScope::Grain && (in_head || s.bn == BnMode::Train);
    let pairs = spec.data.as_ref().and_then(|d| d.pairs.as_ref());
    if pairs.is_some_and(|pairs| pairs.missing == Missing::Mask) {
        return require(!spec.stage.iter().any(learn) || grains * MASKED <= batch, || {
            (
                format!(
                    "{grains} grains of a batch of {batch} may hold one sample for a network, or none, with \
                     `data.pairs.missing = \"mask\"`: batch-norm learns nothing from it"
                ),
                format!(
                    "give a grain {MASKED} pairs or more (`data.grains`, `data.batch`), or let no batch-norm learn: `bn = \
                     \"frozen\"`, no `head.norm`"
                ),
            )
        });
    }
    let episodes = spec.data.as_ref().is_some_and(|d| d.episodes.is_some());
    require(!spec.stage.iter().any(learn) || grains * 2 <= batch || batch == 1 || episodes, || {
        (
            format!("{grains} grains of a batch of {batch} hold one sample each: batch-norm learns nothing from it"),
            format!(
                "set `data.grains = {}` or less, raise the `batch`, or write `bn_scope = \"batch\"` in the stage",
                (batch / 2).max(1)
            ),
        )
    })
}

fn check_rule(rule: &str, at: impl Fn(&str) -> String) -> Checked {
    if let Some(n) = rule.strip_prefix("top:") {
        require(n.parse::<u32>().is_ok(), || {
            (at(&format!("`top:{n}` is not a number of layers")), "write `top:20`".into())
        })?;
    }
    name_pattern(rule).map(|_| ()).map_err(|mut e| {
        e.message = at(&e.message);
        e
    })
}

/// Metrics that decisions can be taken by.
pub(super) fn monitor(key: &str, name: &str) -> Checked {
    // Of one task, whose name is looked at elsewhere.
    let of_task = name.strip_prefix("tasks.").and_then(|rest| rest.rsplit_once('.'));
    let of_task = of_task.is_some_and(|(_, what)| ["accuracy", "loss"].contains(&what));
    require(of_task || ["val.accuracy", "val.loss", "target.entropy", "target.snd"].contains(&name), || {
        let hint = "use `val.accuracy`, `val.loss`, `tasks.NAME.accuracy` or `tasks.NAME.loss` of one of several tasks, or, \
            where a network is brought to another domain, `target.entropy` or `target.snd`; labels of that domain decide nothing";
        (format!("`{key}` cannot be `{name}`"), hint.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::entry,
        spec::{SpecError, parse},
    };

    fn stage(lines: &str) -> Result<StageSection, SpecError> {
        let head = "schema = 1\njob = { name = \"t\", kind = \"finetune\" }\n[[stage]]\nname = \"s\"\n";
        let spec = parse(&format!("{head}{lines}"))?;
        let catalog = Catalog {
            schedules: ["constant", "one_cycle", "plateau"].map(|s| entry(s, "")).into(),
            ..Catalog::default()
        };
        check_stage(&spec.stage[0], &catalog).map(|()| spec.stage[0].clone())
    }

    #[test]
    fn rates_are_written_in_three_ways() {
        let lr = |lr: &str| stage(&format!("epochs = 1\ntrain = [\"*\"]\nlr = {lr}\n"));
        assert_eq!(lr("1e-3").unwrap().lr, Rates::One(1e-3));
        assert_eq!(lr("1").unwrap().lr, Rates::One(1.0));
        assert_eq!(lr("[1e-5, 1e-3]").unwrap().lr, Rates::Range([1e-5, 1e-3]));
        assert_eq!(lr("{ head = 1e-3, \"re:conv1$\" = 1e-6 }").unwrap().lr.top(), 1e-3);
        for (text, part) in [
            ("\"fast\"", "`lr` takes a number, `[low, high]`"),
            ("[1e-5, 1e-3, 1]", "`lr` takes a number"),
            ("[1e-3, 1e-5]", "`lr` falls from 0.001 to 0.00001"),
            ("{}", "has no rates"),
            ("{ head = -1 }", "lr cannot be -1"),
            ("{ \"re:(\" = 1 }", "is no regular expression"),
        ] {
            let e = lr(text).unwrap_err();
            assert!(e.message.contains(part), "{text}: {e}");
        }
    }

    #[test]
    fn grains_of_one_sample_need_the_statistics_of_the_batch() {
        let head = "schema = 1\njob = { name = \"t\", kind = \"finetune\" }\n";
        let data = "data = { format = \"g\", train = \"s\", val = \"s\", batch = 8, grains = 8 }\n";
        let stage = "[[stage]]\nname = \"s\"\nepochs = 1\ntrain = [\"*\"]\nlr = 1\nbn = \"train\"\n";
        let check = |more: &str| check_norms(&parse(&format!("{head}{data}{stage}{more}")).unwrap(), 8);
        let e = check("").unwrap_err();
        assert!(e.message.contains("one sample each") && e.hint.contains("bn_scope = \"batch\""), "{e} ({})", e.hint);
        check("bn_scope = \"batch\"\n").unwrap();
        let fewer = check("bn_scope = \"grain\"\n[tasks.t]\nbatch = 3\nhead = { norm = \"batch\" }\n").unwrap_err();
        assert!(fewer.message.contains("8 grains of a batch of 3"), "{fewer}");
        let e = parse(&format!("{head}{stage}bn_scope = \"all\"\n")).unwrap_err();
        assert!(e.message.contains("unknown variant `all`"), "{e}");
    }

    #[test]
    fn grains_of_half_pairs_need_more_samples_for_statistics() {
        let check = |grains: u32, model: &str, bn: &str| {
            let text = format!(
                "schema = 1\njob = {{ name = \"t\", kind = \"contrastive\" }}\nmodel = {{ backbone = \"b\"{model} }}\n\
                 data = {{ format = \"g\", train = \"s\", val = \"s\", batch = 16, grains = {grains}, pairs = {{ \
                 format = \"g\", train = \"s\", missing = \"mask\" }} }}\n\
                 [[stage]]\nname = \"s\"\nepochs = 1\ntrain = [\"*\"]\nlr = 1\nbn = \"{bn}\"\n"
            );
            check_norms(&parse(&text).unwrap(), 16)
        };
        let norm = ", head = { norm = \"batch\" }";
        for (model, bn) in [("", "train"), (norm, "frozen")] {
            let e = check(4, model, bn).unwrap_err();
            // What is refused elsewhere is not proposed.
            assert!(e.message.contains("missing = \"mask\"") && !e.hint.contains("bn_scope"), "{e} ({})", e.hint);
            check(2, model, bn).unwrap();
        }
        check(16, "", "frozen").unwrap();
    }

    #[test]
    fn what_does_not_fit_together_is_refused_with_a_hint() {
        for (text, part) in [
            ("epochs = 0\ntrain = [\"*\"]\nlr = 1", "epochs cannot be 0"),
            ("epochs = 1\ntrain = [\"top:x\"]\nlr = 1", "`top:x` is not a number of layers"),
            ("epochs = 1\ntrain = [\"re:[a\"]\nlr = 1", "stage `s`: `re:[a` is no regular expression"),
            ("epochs = 1\ntrain = [\"re:(((x{100}){100}){100})\"]\nlr = 1", "is no regular expression"),
            ("epochs = 1\ntrain = [\"*\"]\nlr = [1e-3, 1]\nlayer_decay = 0.5", "twice"),
            ("epochs = 1\ntrain = [\"*\"]\nlr = 1\ncycle = {}", "shapes the schedule `one_cycle`"),
            ("epochs = 1\ntrain = [\"*\"]\nlr = 1\nadvance = { patience = 0 }", "advance.patience cannot be 0"),
            ("epochs = 1\ntrain = [\"*\"]\nlr = 1\nadvance = { patience = 1, monitor = \"f1\" }", "cannot be `f1`"),
            ("epochs = 1\ntrain = [\"*\"]\nlr = 1\nplateau = { factor = 1 }", "plateau.factor cannot be 1"),
            ("epochs = 1\ntrain = [\"*\"]\nlr = 1\nlr_find = { end = 1e-9 }", "must rise"),
        ] {
            let e = stage(text).unwrap_err();
            assert!(e.message.contains(part) && !e.hint.is_empty(), "{text}: {e} ({})", e.hint);
        }
        stage("epochs = 0\ntrain = [\"re:layer[34]\"]\nlr = 1\nlr_find = { use = \"valley\" }").unwrap();
        let s = stage("epochs = 9\ntrain = [\"*\"]\nlr = 1\nschedule = \"plateau\"").unwrap();
        assert_eq!(s.plateau().unwrap().patience, 10);
    }
}
