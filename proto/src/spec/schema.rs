//! The JSON Schema of a job file, with the names that a catalog offers, for editors and programs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::JobSpec;
use crate::catalog::{Catalog, Entry, Param, ParamKind};

/// The schema (draft 2020-12) of a job file for workers with this catalog.
pub fn schema(catalog: &Catalog) -> Value {
    let mut schema = Value::from(schemars::schema_for!(JobSpec));
    schema["title"] = "A tl job file".into();
    let pipeline = Entry { name: JobSpec::PIPELINE.into(), doc: "a chain of jobs".into(), ..Entry::default() };
    let kinds: Vec<Entry> = catalog.objectives.iter().cloned().chain([pipeline]).collect();
    for (section, key, entries) in [
        ("JobSection", "kind", &kinds),
        ("ModelSection", "backbone", &catalog.backbones),
        ("DataSection", "format", &catalog.formats),
        ("TargetSection", "format", &catalog.formats),
        ("PairsSection", "format", &catalog.formats),
        ("SourceSection", "format", &catalog.formats),
        ("TaskSection", "format", &catalog.formats),
        ("OptimizerSection", "name", &catalog.optimizers),
        ("StageSection", "schedule", &catalog.schedules),
    ] {
        schema["$defs"][section]["properties"][key]["oneOf"] =
            entries.iter().map(|e| json!({ "const": e.name, "description": e.doc })).collect();
    }
    // Parameters of the objective and the data format depend on which one it is; all of them are listed.
    schema["properties"]["objective"] = table(catalog.objectives.iter().flat_map(Entry::all_params));
    for section in ["DataSection", "TargetSection", "SourceSection", "PairsSection", "TaskSection"] {
        schema["$defs"][section]["properties"]["params"] = table(catalog.formats.iter().flat_map(Entry::all_params));
    }
    let modifiers: Map<String, Value> = catalog
        .modifiers
        .iter()
        .map(|e| {
            let mut known = table(e.all_params().into_iter());
            known["description"] = e.doc.clone().into();
            (e.name.clone(), known)
        })
        .collect();
    schema["properties"]["modifiers"] =
        json!({ "type": "object", "properties": modifiers, "additionalProperties": false });
    schema
}

/// Parameters, each with the name of what has it. Several may have one of the same name, as each kind of job has a `method`
/// of its own: its sentence says whose it is.
fn table<'a>(params: impl Iterator<Item = (&'a str, Param)>) -> Value {
    let mut said: BTreeMap<String, Vec<(BTreeSet<&str>, Value)>> = BTreeMap::new();
    for (owner, p) in params {
        let (all, one) = (said.entry(p.name.clone()).or_default(), param(&p));
        match all.iter().position(|(_, known)| *known == one) {
            Some(at) => {
                all[at].0.insert(owner);
            }
            None => all.push(([owner].into(), one)),
        }
    }
    let owned = |(owners, mut one): (BTreeSet<&str>, Value)| {
        let owners: Vec<String> = owners.into_iter().map(|owner| format!("`{owner}`")).collect();
        let doc = format!("{}: {}", owners.join(", "), one["description"].as_str().unwrap_or_default());
        one["description"] = doc.into();
        one
    };
    let any = |mut all: Vec<Value>| if all.len() == 1 { all.remove(0) } else { json!({ "anyOf": all }) };
    let known: Map<String, Value> =
        said.into_iter().map(|(name, all)| (name, any(all.into_iter().map(owned).collect()))).collect();
    json!({ "type": "object", "properties": known, "additionalProperties": false })
}

fn param(p: &Param) -> Value {
    let mut value = match &p.kind {
        ParamKind::Number { min, max } => json!({ "type": "number", "minimum": min, "maximum": max }),
        ParamKind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        ParamKind::Flag => json!({ "type": "boolean" }),
        ParamKind::Choice { of } => json!({ "enum": of }),
        ParamKind::Numbers { min, max } => {
            json!({ "type": "array", "items": { "type": "number", "minimum": min, "maximum": max } })
        }
        ParamKind::Place => json!({ "type": "string", "minLength": 1 }),
        ParamKind::Paths => json!({ "type": "array", "minItems": 1, "items": { "type": "string", "minLength": 1 } }),
        ParamKind::Pattern => json!({ "type": "string", "format": "regex" }),
        ParamKind::Column { several } => {
            let mut one = vec![json!({ "type": "integer", "minimum": 1 }), json!({ "type": "string", "minLength": 1 })];
            if *several {
                let list = json!({ "type": "array", "minItems": 1, "items": { "anyOf": one } });
                one.push(list);
            }
            json!({ "anyOf": one })
        }
        ParamKind::Names | ParamKind::Texts => json!({ "type": "array", "minItems": 1, "items": { "type": "string" } }),
    };
    value["description"] = p.doc.clone().into();
    value["default"] = p.default.clone();
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{entry, number};

    #[test]
    fn names_of_the_catalog_and_documentation_of_the_keys_are_in_it() {
        let mixup = Entry { params: vec![number("alpha", 0.2, 0.0, 8.0, "Of Beta")], ..entry("mixup", "Mixes") };
        let catalog = Catalog { backbones: vec![entry("resnet18", "R")], modifiers: vec![mixup], ..Catalog::default() };
        let schema = schema(&catalog);
        let of = |section: &str, key: &str| schema["$defs"][section]["properties"][key].clone();
        assert_eq!(of("ModelSection", "backbone")["oneOf"], json!([{ "const": "resnet18", "description": "R" }]));
        assert_eq!(of("JobSection", "kind")["oneOf"][0]["const"], "pipeline");
        assert_eq!(of("StageSection", "epochs")["type"], "integer");
        assert!(of("StageSection", "lr")["description"].as_str().unwrap().contains("rate"));
        assert_eq!(schema["properties"]["modifiers"]["properties"]["mixup"]["properties"]["alpha"]["maximum"], 8.0);
        assert_eq!(schema["additionalProperties"], false, "unknown keys are errors");
        let alpha = &schema["properties"]["modifiers"]["properties"]["mixup"]["properties"]["alpha"];
        assert_eq!(alpha["description"], "`mixup`: Of Beta");
        // What is written in two ways is read in two ways.
        let text = schema.to_string();
        assert!(text.contains("fresh") || of("AugmentSection", "views").to_string().contains("$ref"), "{text}");
    }

    #[test]
    fn a_parameter_of_several_says_whose_it_is() {
        let has =
            |name: &str, doc: &str| Entry { params: vec![number("alpha", 1.0, 0.0, 8.0, doc)], ..entry(name, "") };
        let kind = |name: &str, method: Entry| Entry { methods: vec![method], ..has(name, "A rate") };
        let objectives = vec![kind("adapt", has("dann", "How fast")), kind("distill", has("dkd", "A part"))];
        let schema = schema(&Catalog { objectives, ..Catalog::default() });
        let of = |key: &str| schema["properties"]["objective"]["properties"][key]["anyOf"].clone();
        let docs: Vec<Value> = of("alpha").as_array().unwrap().iter().map(|one| one["description"].clone()).collect();
        assert_eq!(docs, ["`adapt`, `distill`: A rate", "`dann`: How fast", "`dkd`: A part"]);
        assert_eq!(of("method")[1]["description"], "`distill`: how it is done");
    }
}
