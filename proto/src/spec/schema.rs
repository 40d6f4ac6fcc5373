//! The JSON Schema of a job file, with the names that a catalog offers, for editors and programs.

use std::collections::BTreeMap;

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

fn table(params: impl Iterator<Item = Param>) -> Value {
    // Several kinds of job may have a parameter of the same name, as each has a `method` of its own.
    let mut said: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for p in params {
        let (all, one) = (said.entry(p.name.clone()).or_default(), param(&p));
        if !all.contains(&one) {
            all.push(one);
        }
    }
    let any = |mut all: Vec<Value>| if all.len() == 1 { all.remove(0) } else { json!({ "anyOf": all }) };
    let known: Map<String, Value> = said.into_iter().map(|(name, all)| (name, any(all))).collect();
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
        // What is written in two ways is read in two ways.
        let text = schema.to_string();
        assert!(text.contains("fresh") || of("AugmentSection", "views").to_string().contains("$ref"), "{text}");
    }
}
