//! Whether a metric still improves, epoch by epoch: decisions from numbers that every rank has alike.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tl_proto::spec::PlateauSection;

use crate::eval::selection::more_is_better;

/// What is remembered of a metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    /// Its best value.
    pub best: Option<f64>,
    /// Epochs without improvement.
    pub wait: u32,
    /// Epochs that are not counted yet to come.
    pub cooldown: u32,
}

/// What decisions are taken by where the job asks for something that there is not.
const USUAL: &str = "val.accuracy";

/// The value of a metric by name among those of an epoch, and whether more of it is better.
pub fn monitored(monitor: &str, values: &BTreeMap<String, f64>) -> (f64, bool) {
    let name = if values.contains_key(monitor) { monitor } else { USUAL };
    (values.get(name).copied().unwrap_or_default(), more_is_better(name))
}

impl Watch {
    /// Looks at a new value; says whether it is better than the best one by more than `min_delta`.
    pub fn improves(&mut self, (value, more): (f64, bool), min_delta: f64) -> bool {
        let gain = |best: f64| if more { value - best } else { best - value };
        let better = self.best.is_none_or(|best| gain(best) > min_delta);
        if better {
            (self.best, self.wait) = (Some(value), 0);
        }
        better
    }

    /// Whether `patience` epochs have passed without improvement, this one among them.
    pub fn exhausted(&mut self, value: (f64, bool), min_delta: f64, patience: u32) -> bool {
        if self.improves(value, min_delta) {
            return false;
        }
        self.wait += 1;
        self.wait >= patience
    }

    /// The rate after an epoch that ended with `value`, as Keras' `ReduceLROnPlateau` lowers it.
    pub fn lowered(&mut self, value: (f64, bool), rate: f64, p: &PlateauSection) -> f64 {
        if self.cooldown > 0 {
            self.cooldown -= 1;
            self.wait = 0;
        }
        if self.improves(value, p.min_delta) || self.cooldown > 0 {
            return rate;
        }
        self.wait += 1;
        if self.wait < p.patience || rate <= p.min_lr {
            return rate;
        }
        (self.wait, self.cooldown) = (0, p.cooldown);
        (rate * p.factor).max(p.min_lr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rates after each epoch, by hand from Keras' `on_epoch_end`.
    #[test]
    fn rates_are_lowered_as_in_keras() {
        let losses = [1.0, 0.99995, 0.9, 0.95, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.8];
        let run = |p: PlateauSection| -> Vec<f64> {
            let (mut watch, mut rate) = (Watch::default(), 1.0);
            losses
                .map(|loss| {
                    rate = watch.lowered((loss, false), rate, &p);
                    rate
                })
                .into()
        };
        let settings = PlateauSection { factor: 0.5, patience: 2, ..PlateauSection::default() };
        // 0.99995 is no improvement by 1e-4; 0.9 is; then waits of two.
        assert_eq!(run(settings.clone()), [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125]);
        let cool = PlateauSection { cooldown: 2, ..settings.clone() };
        assert_eq!(run(cool), [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]);
        let floor = PlateauSection { min_lr: 0.4, ..settings };
        assert_eq!(run(floor)[4..], [0.5, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4]);
    }

    #[test]
    fn less_is_better_of_losses_and_entropies() {
        let names = ["val.loss", "val.accuracy", "target.entropy", "target.snd"];
        let values: BTreeMap<String, f64> =
            names.iter().zip([1.0, 2.0, 3.0, 4.0]).map(|(n, v)| ((*n).into(), v)).collect();
        let seen = names.map(|name| monitored(name, &values));
        assert_eq!(seen, [(1.0, false), (2.0, true), (3.0, false), (4.0, true)]);
        assert_eq!(monitored("target.gone", &values), (2.0, true));
    }

    #[test]
    fn patience_is_the_number_of_epochs_without_improvement() {
        let mut watch = Watch::default();
        let ended: Vec<bool> = [0.5, 0.6, 0.6, 0.65, 0.605].map(|v| watch.exhausted((v, true), 0.01, 2)).into();
        assert_eq!(ended, [false, false, false, false, false]);
        assert!(watch.exhausted((0.655, true), 0.01, 2), "two in a row");
    }
}
