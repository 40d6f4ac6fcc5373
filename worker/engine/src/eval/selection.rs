//! Which epoch of a run that adapts each criterion would pick, and what that epoch comes to in the other domain. The last
//! line is the oracle's, who looks at the labels there: what the others may be compared with, and nothing is decided by it.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

/// Criteria that need no labels of the other domain, and whether more is better.
pub const CRITERIA: [(&str, bool); 3] = [("target.entropy", false), ("target.snd", true), ("val.accuracy", true)];
/// Who looks at its labels.
pub const ORACLE: &str = "oracle";
/// What an oracle goes by.
const LABELS: &str = "target.accuracy";

/// What a criterion picks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picked {
    /// Its name.
    pub criterion: String,
    /// The epoch within the stage, from 1.
    pub epoch: u32,
    /// What it saw there.
    pub value: f64,
    /// Part of the other domain's samples with labels that is right after that epoch, where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Whether the model is of that epoch because of it.
    pub used: bool,
}

/// What is picked among the epochs of a stage, with their values by name; `used` is the criterion that the job goes by.
pub fn selection(epochs: &[(u32, &BTreeMap<String, f64>)], used: Option<&str>) -> Vec<Picked> {
    let best = |name: &str, more: bool| {
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
    let line = |criterion: &str, name: &str, more: bool| {
        let (epoch, value, accuracy) = best(name, more)?;
        Some(Picked {
            criterion: criterion.into(),
            epoch,
            value,
            accuracy,
            used: used == Some(name) && criterion == name,
        })
    };
    let known = CRITERIA.iter().filter_map(|(name, more)| line(name, name, *more));
    known.chain(line(ORACLE, LABELS, true)).collect()
}

/// For people.
pub fn to_text(picked: &[Picked]) -> String {
    let mut out =
        String::from("what each criterion picks (the oracle looks at labels, and nothing is decided by it):\n");
    for p in picked {
        let accuracy =
            p.accuracy.map_or(String::new(), |a| format!("  {:>5.1} % right in the other domain", 100.0 * a));
        let used = if p.used { "  <- the model" } else { "" };
        let _ = writeln!(out, "{:>16}  epoch {:>3}  {:>8.4}{accuracy}{used}", p.criterion, p.epoch, p.value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_criterion_has_its_epoch_and_the_oracle_is_never_used() {
        let epoch = |entropy: f64, snd: f64, val: f64, target: f64| -> BTreeMap<String, f64> {
            [("target.entropy", entropy), ("target.snd", snd), ("val.accuracy", val), ("target.accuracy", target)]
                .map(|(k, v)| (k.to_owned(), v))
                .into()
        };
        let epochs = [epoch(0.5, 1.0, 0.9, 0.4), epoch(0.3, 3.0, 0.8, 0.7), epoch(0.2, 2.0, 0.9, 0.6)];
        let epochs: Vec<_> = epochs.iter().enumerate().map(|(i, v)| (i as u32 + 1, v)).collect();
        let picked = selection(&epochs, Some("target.snd"));
        let short: Vec<_> =
            picked.iter().map(|p| (p.criterion.as_str(), p.epoch, p.accuracy.unwrap(), p.used)).collect();
        let want = [("target.entropy", 3, 0.6, false), ("target.snd", 2, 0.7, true), ("val.accuracy", 1, 0.4, false)];
        assert_eq!(short[..3], want);
        assert_eq!(short[3], (ORACLE, 2, 0.7, false));
        assert!(selection(&epochs, Some("target.accuracy")).iter().all(|p| !p.used));
        let bare: BTreeMap<String, f64> = epochs[0].1.clone().into_iter().filter(|(k, _)| k != LABELS).collect();
        let picked = selection(&[(1, &bare)], None);
        assert!(picked.len() == 3 && picked.iter().all(|p| p.accuracy.is_none() && !p.used));
        assert!(!to_text(&picked).contains("right in"));
    }
}
