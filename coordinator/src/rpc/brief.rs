//! Results of phases as users get them: lists by class end early, for a pipeline has a copy of them in each step.

use serde_json::{Map, Value};

/// Items of such a list that are shown.
const SHOWN: usize = 100;
/// Lists that have an item for each class.
const BY_CLASS: [&str; 2] = ["classes", "class_weights"];

/// A result in which lists by class, its own and those of its tasks, have their first 100 items. Of a list that is cut,
/// `classes_total` or `class_weights_total` says how many there are.
pub(super) fn brief(result: &Value) -> Value {
    let Value::Object(fields) = result else { return result.clone() };
    let mut shown = Map::new();
    for (key, value) in fields {
        match value {
            Value::Array(all) if all.len() > SHOWN && BY_CLASS.contains(&key.as_str()) => {
                shown.insert(key.clone(), Value::from(&all[..SHOWN]));
                shown.insert(format!("{key}_total"), Value::from(all.len()));
            }
            Value::Array(tasks) if key == "tasks" => {
                shown.insert(key.clone(), tasks.iter().map(brief).collect());
            }
            other => {
                shown.insert(key.clone(), other.clone());
            }
        }
    }
    Value::Object(shown)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tl_proto::MAX_MESSAGE_BYTES;

    use super::*;

    #[test]
    fn results_of_many_steps_over_many_classes_fit_a_message() {
        // The most steps of a pipeline, classes as a collection of species has them, names as long as a folder's may be.
        let (steps, classes) = (64, 10_000);
        let names = |from: usize| (from..from + classes).map(|i| format!("{i:0>255}")).collect::<Vec<_>>();
        let result = json!({
            "classes": names(0), "class_weights": vec![1.0; classes], "samples": [5, 6], "split": vec![1; 128],
            "tasks": [{ "name": "second", "classes": names(7) }, { "name": "parity", "classes": ["even", "odd"] }],
        });
        let shown = brief(&result);
        assert!(steps * serde_json::to_vec(&shown).unwrap().len() < MAX_MESSAGE_BYTES / 2);
        assert_eq!(
            (shown["classes"].as_array().unwrap().len(), &shown["classes"][99]),
            (SHOWN, &result["classes"][99])
        );
        assert_eq!((&shown["classes_total"], &shown["class_weights_total"]), (&json!(classes), &json!(classes)));
        assert_eq!(shown["tasks"][0]["classes_total"], classes);
        // What is short, or not by class, is as it was.
        assert_eq!(shown["tasks"][1], result["tasks"][1]);
        assert_eq!((&shown["samples"], &shown["split"]), (&result["samples"], &result["split"]));
        assert_eq!(brief(&Value::Null), Value::Null);
    }
}
