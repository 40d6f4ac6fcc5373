//! Which epoch of a run each criterion would pick; first of all the one that the model is of. Where a run adapts, also what
//! each of them comes to in the other domain, and the last line is the oracle's, who looks at the labels there: what the others
//! may be compared with, and nothing is decided by it.

use std::collections::BTreeMap;

pub use tl_proto::picked::{ORACLE, Picked, to_text};

/// Criteria that need no labels of the other domain.
const CRITERIA: [&str; 4] = ["target.entropy", "target.snd", "val.accuracy", "val.loss"];
/// The epoch that the model is of, whatever picked it.
pub const MODEL: &str = "the model";
/// What an oracle goes by.
const LABELS: &str = "target.accuracy";

/// Whether more of a metric is better.
pub fn more_is_better(name: &str) -> bool {
    !(name.ends_with(".loss") || name == "target.entropy")
}

/// What is picked among the epochs of a stage, with their values by name; the model is of epoch `model`, and `used` is the
/// criterion that the job goes by.
pub fn selection(epochs: &[(u32, &BTreeMap<String, f64>)], model: Option<u32>, used: Option<&str>) -> Vec<Picked> {
    let best = |name: &str| {
        let more = more_is_better(name);
        let mut best: Option<(u32, f64, Option<f64>)> = None;
        for (epoch, values) in epochs {
            let Some(value) = values.get(name).copied() else { continue };
            // The first of equals, as a run that goes by it keeps it.
            if best.is_none_or(|(_, known, _)| if more { value > known } else { value < known }) {
                best = Some((*epoch, value, values.get(LABELS).copied()));
            }
        }
        best
    };
    let line = |criterion: &str, name: &str| {
        let (epoch, value, accuracy) = best(name)?;
        Some(Picked {
            criterion: criterion.into(),
            epoch,
            value: Some(value),
            accuracy,
            used: used == Some(name) && criterion == name,
        })
    };
    let known = CRITERIA.iter().filter_map(|name| line(name, name));
    // A job may go by one of its tasks.
    let own = used.filter(|name| name.starts_with("tasks.")).and_then(|name| line(name, name));
    let model = epochs.iter().find(|(epoch, _)| model == Some(*epoch)).map(|(epoch, values)| Picked {
        criterion: MODEL.into(),
        epoch: *epoch,
        value: None,
        accuracy: values.get(LABELS).copied(),
        used: false,
    });
    model.into_iter().chain(known).chain(own).chain(line(ORACLE, LABELS)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_criterion_has_its_epoch_and_the_oracle_is_never_used() {
        let epoch = |entropy: f64, snd: f64, val: f64, target: f64| -> BTreeMap<String, f64> {
            let known = [("target.entropy", entropy), ("target.snd", snd), ("val.accuracy", val), ("val.loss", -snd)];
            let all = known.into_iter().chain([("target.accuracy", target)]);
            all.map(|(k, v)| (k.to_owned(), v)).collect()
        };
        let epochs = [epoch(0.5, 1.0, 0.9, 0.4), epoch(0.3, 3.0, 0.8, 0.7), epoch(0.2, 2.0, 0.9, 0.6)];
        let epochs: Vec<_> = epochs.iter().enumerate().map(|(i, v)| (i as u32 + 1, v)).collect();
        let picked = selection(&epochs, Some(2), Some("target.snd"));
        let short: Vec<_> =
            picked.iter().map(|p| (p.criterion.as_str(), p.epoch, p.accuracy.unwrap(), p.used)).collect();
        let want = [
            (MODEL, 2, 0.7, false),
            ("target.entropy", 3, 0.6, false),
            ("target.snd", 2, 0.7, true),
            ("val.accuracy", 1, 0.4, false),
            ("val.loss", 2, 0.7, false),
            (ORACLE, 2, 0.7, false),
        ];
        assert_eq!(short, want);
        assert!(selection(&epochs, None, Some("target.accuracy")).iter().all(|p| !p.used));
        // What improves by too little is not taken: the model stays where it was, and the criterion where it is best.
        let early = selection(&epochs, Some(1), Some("val.loss"));
        let of = |name: &str| early.iter().find(|p| p.criterion == name).map(|p| (p.epoch, p.used));
        assert_eq!((of(MODEL), of("val.loss")), (Some((1, false)), Some((2, true))));
        let bare: BTreeMap<String, f64> = epochs[0].1.clone().into_iter().filter(|(k, _)| k != LABELS).collect();
        let picked = selection(&[(1, &bare)], Some(1), None);
        assert!(picked.len() == 5 && picked.iter().all(|p| p.accuracy.is_none() && !p.used));
        let text = to_text(&picked);
        assert!(!text.contains("right in") && !text.contains("oracle"), "{text}");
        let tasks = |loss: f64, accuracy: f64| -> BTreeMap<String, f64> {
            [("tasks.b.loss", loss), ("tasks.b.accuracy", accuracy)].map(|(k, v)| (k.to_owned(), v)).into()
        };
        let (first, second) = (tasks(0.2, 0.6), tasks(0.3, 0.7));
        for (name, epoch) in [("tasks.b.loss", 1), ("tasks.b.accuracy", 2)] {
            let picked = selection(&[(1, &first), (2, &second)], Some(epoch), Some(name));
            assert_eq!(picked.iter().map(|p| (p.epoch, p.used)).collect::<Vec<_>>(), [(epoch, false), (epoch, true)]);
        }
    }
}
