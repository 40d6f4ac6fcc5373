//! `tlctl plan`: what a job would do, before it does it.

use serde_json::{Value, json};
use tl_proto::{spec::JobSpec, words::size};

use super::{args::JobFile, output::Output, told};
use crate::{Client, Error, spec_file};

pub(super) async fn run(client: &Client, a: &JobFile, output: &Output) -> Result<u8, Error> {
    let spec = spec_file::load(&a.file, &a.set, &told(client).await)?;
    let plan = client.plan(&spec).await?;
    output.print(&json!({ "event": "plan", "plan": plan }), || {
        let steps = spec.steps();
        let planned = steps.iter().filter_map(|(step, ..)| Some((step, plan["steps"].get(step)?)));
        planned.map(|(step, plan)| format!("{}\n{}", head(&spec, step), text(plan))).collect()
    });
    Ok(0)
}

/// What a step is called, what it stands for, and what it and others wait for.
fn head(spec: &JobSpec, step: &str) -> String {
    let mut head = format!("step `{step}`");
    let Some(known) = spec.step.iter().find(|s| s.id == step) else { return head };
    let seeds = known.group.as_deref().map_or(1, |group| spec.members(group).len());
    if seeds > 1 {
        head += &format!(" ({seeds} seeds)");
    }
    if !known.needs.is_empty() {
        let needs: Vec<String> = known.needs.iter().map(|n| format!("`{n}`")).collect();
        head += &format!(", after {}", needs.join(", "));
    }
    for gate in &known.gate.0 {
        head += &format!(", gate {gate}");
    }
    head
}

/// The plan of one step.
fn text(plan: &Value) -> String {
    let mut text = weights(plan);
    if plan["episodes"].is_object() {
        text += &episodes(&plan["episodes"]);
    } else if let Some(n) = plan["dimensions"].as_u64() {
        text += &format!("  embeds a sample in {n} numbers\n");
    } else {
        text += &format!("  classes: {}\n", classes(plan));
    }
    text += &format!("  samples: {} to train, {} to validate\n", plan["samples"][0], plan["samples"][1]);
    text += &format!("  preprocessing: {}\n", plan["preprocess"].as_str().unwrap_or_default());
    for (net, precision) in plan["precision"].as_object().into_iter().flatten() {
        let precision = precision.as_str().unwrap_or_default();
        text +=
            &format!("  precision: products of `{net}` in {precision}; its parameters and their gradients in f32\n");
    }
    text += &format!(
        "  {} steps an epoch, {} grains a step, by rank {}\n",
        plan["steps_per_epoch"], plan["grains"], plan["split"]
    );
    text += &format!(
        "  gradients of the grains add up to the batch's; at most {} samples of it are in memory at a time\n",
        plan["grain_samples"]
    );
    if plan["weighed"].is_object() {
        let method = plan["weighed"]["method"].as_str().unwrap_or_default();
        text += &format!(
            "  task `main`: the classes of `[data]`; counts {} at first; tasks are weighed by `{method}`\n",
            plan["weighed"]["first"]
        );
    }
    for task in plan["tasks"].as_array().into_iter().flatten() {
        let name = task["name"].as_str().unwrap_or_default();
        let samples = match task["batch"].as_u64() {
            Some(batch) => format!(
                "{} samples of its own to train, {batch} in a step, {} to validate",
                task["samples"][0], task["samples"][1]
            ),
            None => "the samples of `[data]`; what lies below the heads runs once for both".into(),
        };
        text += &format!("  task `{name}`: {}; {samples}; counts {} at first\n", classes(task), task["weight"]);
        if task["class_weights"].is_array() {
            text += &format!("    its classes count {}{}\n", task["class_weights"], more(task, "class_weights"));
        }
    }
    for warning in plan["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        text += &format!("  warning: {warning}\n");
    }
    if plan["class_weights"].is_array() {
        text += &format!("  classes count {}{}\n", plan["class_weights"], more(plan, "class_weights"));
    }
    if plan["teaching"].is_object() {
        text += &teaching(&plan["teaching"]);
    }
    for stage in plan["stages"].as_array().into_iter().flatten() {
        let (name, first) =
            (stage["name"].as_str().unwrap_or_default(), stage["first_unit"].as_str().unwrap_or_default());
        let rates = [&stage["lr"][0], &stage["lr"][1]].map(|r| r.as_f64().unwrap_or_default());
        let rates = if rates[0] == rates[1] {
            format!("rate {:e}", rates[1])
        } else {
            format!("rates {:.1e} to {:e}", rates[0], rates[1])
        };
        let kept = stage["cached"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let kept: Vec<String> = kept.map(|unit| format!("`{unit}`")).collect();
        let place = if kept.is_empty() { format!("`{first}`") } else { kept.join(" and ") };
        text += &format!(
            "  stage `{name}`: {} of {} parameters trained, {rates}\n    {}\n",
            stage["trained"],
            stage["parameters"],
            cached(&place, &stage["saving"])
        );
    }
    text
}

/// Names of classes.
fn classes(of: &Value) -> String {
    let names: Vec<&str> = of["classes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    names.join(", ") + &more(of, "classes")
}

/// How many items of a list the coordinator has left out, if it has.
fn more(of: &Value, list: &str) -> String {
    let total = of[format!("{list}_total")].as_u64().unwrap_or(0);
    let left = total.saturating_sub(of[list].as_array().map_or(0, Vec::len) as u64);
    if left > 0 { format!(" and {left} more") } else { String::new() }
}

/// Weights of the hub: where they come from, and what would be downloaded.
fn weights(plan: &Value) -> String {
    let mut text = String::new();
    for source in plan["sources"].as_array().into_iter().flatten() {
        let bytes: u64 = source["files"].as_array().into_iter().flatten().filter_map(|f| f["bytes"].as_u64()).sum();
        let pinned = source["pinned"].as_str().unwrap_or_default();
        text += &format!("  weights: `{pinned}`, {} that are on the node\n", size(bytes));
    }
    for (place, bytes) in plan["downloads"].as_object().into_iter().flatten() {
        let bytes = size(bytes.as_u64().unwrap_or_default());
        text += &format!("  weights: `{place}`; the job would download {bytes} first\n");
    }
    text
}

/// What teachers have still to say, and who may work it out.
fn teaching(found: &Value) -> String {
    let (seconds, bytes) = (found["seconds"].as_f64().unwrap_or_default(), found["bytes"].as_u64().unwrap_or_default());
    format!(
        "  teachers: {} outputs that the node does not have, {}, about {} on one rank of it; where training begins \
         sooner by that, slots that would be idle take units of them first\n",
        found["rows"],
        size(bytes),
        time(seconds)
    )
}

/// What few-shot episodes are drawn from, and how they look.
fn episodes(plan: &Value) -> String {
    let section = &plan["section"];
    let or = |key: &str, other: &str| if section[key].is_null() { &section[other] } else { &section[key] };
    let (way, shot, query) = (or("train_way", "way"), or("train_shot", "shot"), or("train_query", "query"));
    let trained = format!(
        "  episodes to train: {} an epoch, {way}-way {shot}-shot with {query} queries of each, of {} classes\n",
        section["per_epoch"], plan["classes"][0]
    );
    let judged = format!(
        "  episodes to judge: {}, {}-way {}-shot with {} queries of each, of {} classes, by `{}`\n",
        section["test"],
        section["way"],
        section["shot"],
        section["query"],
        plan["classes"][1],
        plan["method"].as_str().unwrap_or_default()
    );
    trained + &judged
}

/// Where features of a stage are kept, how much they take, and what they save.
fn cached(place: &str, saving: &Value) -> String {
    let number = |key: &str| saving[key].as_f64().unwrap_or_default();
    let (bytes, seconds, all) = (saving["bytes"].as_u64().unwrap_or_default(), number("seconds"), number("of_seconds"));
    if bytes == 0 {
        return "nothing is cached: no frozen unit comes first, or its outputs would be too large".into();
    }
    let place = format!("cached in front of {place}: {}", size(bytes));
    let share = 100.0 * number("share");
    let of = format!("{} of {}", time(seconds.abs()), time(all));
    if seconds < 0.0 {
        return format!("{place}; filling it costs more than this stage saves: {of}");
    }
    let when = if saving["encoded"] == 0 { "which an earlier stage fills" } else { "if it is empty now" };
    format!("{place}, {when}; saves {share:.0} % of the forward work, about {of} on one rank of that node")
}

/// A time for people.
fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 5400.0 => format!("{:.1} h", s / 3600.0),
        s if s >= 90.0 => format!("{:.1} min", s / 60.0),
        s if s >= 1.0 => format!("{s:.1} s"),
        s => format!("{:.0} ms", 1000.0 * s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_where_it_caches_how_much_and_what_that_saves() {
        let saving = |encoded: u64, seconds: f64| {
            json!({ "bytes": 3 << 20, "passes": 70, "encoded": encoded, "share": seconds / 560.0, "seconds": seconds,
                "of_seconds": 560.0 })
        };
        let said = cached("`pool`", &saving(14, 168.0));
        assert_eq!(
            said,
            "cached in front of `pool`: 3.0 MiB, if it is empty now; saves 30 % of the forward work, about 2.8 min of \
             9.3 min on one rank of that node"
        );
        assert!(cached("`pool`", &saving(0, 42.0)).contains("which an earlier stage fills; saves 8 %"));
        assert!(cached("`pool`", &saving(14, -90.0)).ends_with("costs more than this stage saves: 1.5 min of 9.3 min"));
        assert!(cached("`stem`", &json!({ "bytes": 0 })).starts_with("nothing is cached"));
    }

    #[test]
    fn a_precision_is_said_where_it_is_not_the_usual_one() {
        let said = text(&json!({ "precision": { "model": "bf16", "nets.teacher": "tf32" } }));
        assert!(said.contains("  precision: products of `model` in bf16; its parameters"), "{said}");
        assert!(said.contains("products of `nets.teacher` in tf32"), "{said}");
        assert!(!text(&json!({})).contains("precision"));
    }

    #[test]
    fn what_teachers_have_to_say_is_told_where_it_was_measured() {
        let said = text(&json!({ "teaching": { "rows": 4096, "seconds": 120.0, "bytes": 3 << 20 } }));
        assert!(said.contains("4096 outputs that the node does not have, 3.0 MiB, about 2.0 min on"), "{said}");
        assert!(!text(&json!({})).contains("teachers"));
    }

    #[test]
    fn episodes_are_told_in_the_place_of_classes() {
        let section = json!({ "way": 5, "shot": 1, "query": 15, "train_way": 60, "train_query": 5, "per_epoch": 100,
            "test": 600 });
        let plan = json!({ "episodes": { "method": "prototype", "classes": [182, 60], "section": section } });
        let said = text(&plan);
        assert!(
            said.contains("to train: 100 an epoch, 60-way 1-shot with 5 queries of each, of 182 classes"),
            "{said}"
        );
        assert!(said.contains("to judge: 600, 5-way 1-shot with 15 queries of each, of 60 classes, by `prototype`"));
        assert!(!said.contains("classes: "), "{said}");
    }

    #[test]
    fn an_embedding_is_told_in_the_place_of_classes() {
        let said = text(&json!({ "dimensions": 128, "classes": [] }));
        assert!(said.contains("  embeds a sample in 128 numbers\n") && !said.contains("classes: "), "{said}");
        assert!(text(&json!({ "classes": ["ants", "bees"] })).contains("  classes: ants, bees\n"));
        let many = text(&json!({ "classes": ["ants", "bees"], "classes_total": 5 }));
        assert!(many.contains("  classes: ants, bees and 3 more\n"), "{many}");
    }

    #[test]
    fn a_step_says_what_it_stands_for_and_what_waits_for_it() {
        let text = r#"
schema = 1
job = { name = "t", kind = "pipeline" }
step = [
  { id = "a", group = "a", gate = ["val.accuracy >= 0.9", "val.loss < 1"] }, { id = "a-seed2", group = "a" },
  { id = "b", needs = ["a"] },
]
"#;
        let spec = tl_proto::spec::parse(text).unwrap();
        assert_eq!(head(&spec, "a"), "step `a` (2 seeds), gate val.accuracy >= 0.9, gate val.loss < 1");
        assert_eq!(head(&spec, "b"), "step `b`, after `a`");
        assert_eq!(head(&spec, "main"), "step `main`");
    }

    #[test]
    fn a_task_says_whose_samples_it_has() {
        let parity = json!({ "name": "parity", "classes": ["even", "odd"], "samples": [9, 3], "weight": 1.0 });
        let mut own = parity.clone();
        (own["name"], own["batch"]) = ("other".into(), 4.into());
        own["class_weights"] = json!([0.5, 2.0]);
        let weighed = json!({ "method": "gradnorm", "first": 1.0 });
        let said = text(&json!({ "tasks": [parity, own], "weighed": weighed }));
        assert!(
            said.contains("task `main`: the classes of `[data]`; counts 1.0 at first; tasks are weighed by `gradnorm`")
        );
        assert!(said.contains("    its classes count [0.5,2.0]\n"), "{said}");
        assert!(said.contains("  task `parity`: even, odd; the samples of `[data]`; what lies below"), "{said}");
        assert!(
            said.contains("`other`: even, odd; 9 samples of its own to train, 4 in a step, 3 to validate"),
            "{said}"
        );
    }

    #[test]
    fn a_download_is_announced() {
        let plan = json!({ "downloads": { "hf://a/b": 102_000_000 }, "sources": [{ "pinned": "hf://a/c@0#w.pth",
            "files": [{ "bytes": 1000 }, { "bytes": 24 }] }] });
        let said = weights(&plan);
        assert!(said.contains("`hf://a/b`; the job would download 97.3 MiB first"), "{said}");
        assert!(said.contains("`hf://a/c@0#w.pth`, 1.0 KiB that are on the node"), "{said}");
    }
}
