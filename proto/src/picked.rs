//! What criteria pick among the epochs of a run: what a node says, and people read.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Who looks at labels of the other domain.
pub const ORACLE: &str = "oracle";

/// What a criterion picks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picked {
    /// Its name.
    pub criterion: String,
    /// The epoch within the stage, from 1.
    pub epoch: u32,
    /// What it saw there; the model saw nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Part of the other domain's samples with labels that is right after that epoch, where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Whether it is what the job goes by. The model may be of an earlier epoch, if later ones are hardly better.
    pub used: bool,
}

/// For people.
pub fn to_text(picked: &[Picked]) -> String {
    let oracle = picked.iter().any(|p| p.criterion == ORACLE);
    let aside = if oracle { " (the oracle looks at labels, and nothing is decided by it)" } else { "" };
    let mut out = format!("what each criterion picks{aside}:\n");
    for p in picked {
        let accuracy =
            p.accuracy.map_or(String::new(), |a| format!("  {:>5.1} % right in the other domain", 100.0 * a));
        let used = if p.used { "  <- the job goes by it" } else { "" };
        let value = p.value.map_or(String::new(), |value| format!("{value:.4}"));
        let _ = writeln!(out, "{:>16}  epoch {:>3}  {value:>8}{accuracy}{used}", p.criterion, p.epoch);
    }
    out
}
