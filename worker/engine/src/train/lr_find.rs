//! Looks for a learning rate (Smith, 2017), as fastai's `lr_find`: the rate rises exponentially from step to step, the
//! smoothed loss is watched, then the network goes back to where it was. Every rank decides from the same reduced loss.

use serde::{Deserialize, Serialize};
use tl_proto::spec::{LrFindSection, Pick};

use super::{Fed, Loop, stage::Stage, step};
use crate::{
    Error, Result,
    collective::Collective,
    link::{Link, Notice, Row},
    optim::Optimizer,
};

/// What a search came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Name of the stage.
    pub stage: String,
    /// Rates that were tried.
    pub rates: Vec<f64>,
    /// The smoothed loss at each.
    pub losses: Vec<f64>,
    /// The rate two thirds into the longest valley.
    pub valley: Option<f64>,
    /// The rate where the loss fell fastest.
    pub steepest: Option<f64>,
    /// Optimizer steps that it took, all of them undone: one for each rate, and those without a loss.
    #[serde(default)]
    pub steps: u64,
}

impl Found {
    /// The rate that a stage takes.
    pub fn picked(&self, pick: Pick) -> Option<f64> {
        match pick {
            Pick::Valley => self.valley,
            Pick::Steepest => self.steepest,
        }
    }

    /// In one sentence.
    pub fn sentence(&self) -> String {
        let Self { stage, rates, valley, steepest, .. } = self;
        match (valley, steepest) {
            (Some(valley), Some(steepest)) => {
                format!("stage `{stage}`: suggested learning rate {valley:.2e} (valley), {steepest:.2e} (steepest)")
            }
            _ => format!(
                "stage `{stage}`: no learning rate was found: the loss blew up after {} steps; lower `lr_find.start`",
                rates.len()
            ),
        }
    }
}

/// A search on its way.
struct Sweep<'a> {
    find: &'a LrFindSection,
    mean: f64,
    kept: f64,
    best: f64,
    found: Found,
}

impl<'a> Sweep<'a> {
    fn new(find: &'a LrFindSection, stage: &str) -> Self {
        let found = Found { stage: stage.into(), ..Found::default() };
        Self { find, mean: 0.0, kept: 1.0, best: f64::INFINITY, found }
    }

    /// The rate of the next step, if there is one.
    fn rate(&self) -> Option<f64> {
        let (i, n) = (self.found.rates.len(), self.find.steps);
        let rise = self.find.end / self.find.start;
        (i < n as usize).then(|| self.find.start * libm::pow(rise, i as f64 / f64::from(n)))
    }

    /// Takes the loss of a step; says whether to go on.
    fn add(&mut self, rate: f64, loss: f64) -> bool {
        self.mean = self.find.smooth * self.mean + (1.0 - self.find.smooth) * loss;
        self.kept *= self.find.smooth;
        let smoothed = self.mean / (1.0 - self.kept);
        self.found.rates.push(rate);
        self.found.losses.push(smoothed);
        self.best = self.best.min(smoothed);
        smoothed <= self.find.stop_factor * self.best
    }

    /// Without the first tenth and the last five, as fastai leaves them out: what comes first is noise, what comes last
    /// has blown up.
    fn end(mut self) -> Found {
        let from = self.find.steps as usize / 10;
        let to = self.found.rates.len().saturating_sub(5);
        if from + 2 < to {
            let (rates, losses) = (&self.found.rates[from..to], &self.found.losses[from..to]);
            (self.found.valley, self.found.steepest) = (valley(rates, losses), steepest(rates, losses));
        }
        self.found
    }
}

/// Two thirds into the longest run of ever lower losses, not counting what lies between them.
fn valley(rates: &[f64], losses: &[f64]) -> Option<f64> {
    let mut longest = vec![1usize; losses.len()];
    let (mut start, mut end) = (0, 0);
    for i in 1..losses.len() {
        for j in 0..i {
            if losses[i] < losses[j] && longest[i] < longest[j] + 1 {
                longest[i] = longest[j] + 1;
            }
            if longest[end] < longest[i] {
                end = i;
                start = end.saturating_sub(longest[end]);
            }
        }
    }
    let third = (end - start) as f64 / 3.0;
    rates.get(start + third as usize + (third / 2.0) as usize).copied()
}

/// Where the loss falls fastest over the logarithm of the rate.
fn steepest(rates: &[f64], losses: &[f64]) -> Option<f64> {
    let slope = |i: usize| (losses[i + 1] - losses[i]) / (libm::log(rates[i + 1]) - libm::log(rates[i]));
    let best = (0..losses.len().saturating_sub(1)).min_by(|a, b| slope(*a).total_cmp(&slope(*b)))?;
    rates.get(best).copied()
}

impl Loop<'_> {
    /// Searches, says what was found, and leaves everything but the count of steps as it was: rows of the series are
    /// named by it.
    pub(super) fn find_rate(
        &mut self,
        index: usize,
        stage: &Stage,
        fed: Fed<'_>,
        optimizer: &Optimizer,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<()> {
        let section = &self.run.spec.stage[index];
        let Some(find) = section.lr_find.as_ref().filter(|_| !self.state.progress.found.contains_key(&index)) else {
            return Ok(());
        };
        let before = self.state.clone();
        if section.reset_optimizer {
            self.state.moments = (optimizer.init)(self.state.store.values.len());
        }
        (self.state.progress.watched, self.state.progress.stage) = (0, index);
        let per_epoch = self.per_epoch();
        let mut sweep = Sweep::new(find, &section.name);
        // What is trained stays where it is, and nobody wants it back.
        let mut stay = self.stay_for(u64::from(find.steps), stage, &fed);
        let mut taken = 0;
        while let Some(rate) = sweep.rate() {
            self.state.progress.epoch = (taken / per_epoch) as u32;
            let epoch = self.epoch();
            let stop = link.stop_requested();
            let reduced = self.with_room(stage, &mut stay, group, |from, group| {
                step::compute(&from.step(stage, fed, &epoch, false), taken % per_epoch, group, stop)
            });
            let mut reduced = match reduced {
                // Beyond all numbers, on every rank alike: that is an end as good as any.
                Err(Error::NotFinite(_)) => break,
                other => other?,
            };
            self.publish(group, link);
            if reduced.stop {
                self.state = before;
                group.barrier()?;
                return Err(Error::Stopped);
            }
            // Where no pair is whole there is no loss, and the next step is taken at the same rate.
            let has_loss = reduced.samples > 0;
            let goes_on = !has_loss || sweep.add(rate, reduced.loss / reduced.samples as f64);
            match self.apply(stage, optimizer, &mut reduced, (rate.into(), 0), &mut stay) {
                Err(Error::NotFinite(_)) => break,
                other => other?,
            };
            let smoothed = sweep.found.losses.last().filter(|_| has_loss && group.rank() == 0);
            if let Some(loss) = smoothed {
                let values = [("lr_find.rate", rate), ("lr_find.loss", *loss)];
                link.row(&Row {
                    step: self.state.progress.step,
                    stage: section.name.clone(),
                    epoch: taken as f64 / per_epoch as f64,
                    values: values.map(|(k, v)| (k.to_owned(), v)).into(),
                });
                let tried = sweep.found.rates.len() as u64;
                link.activity(&format!("find a rate for {}", section.name), tried, u64::from(find.steps));
            }
            taken += 1;
            if !goes_on {
                break;
            }
        }
        stay.leave(stage);
        let step = self.state.progress.step;
        self.state = before;
        let steps = step - self.state.progress.step;
        self.state.progress.step = step;
        let found = Found { steps, ..sweep.end() };
        if group.rank() == 0 {
            link.notice(Notice::RateFound, &found.sentence());
        }
        self.state.progress.found.insert(index, found);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_from_end_to_end_and_the_search_stops_at_four_times_the_best() {
        let find = LrFindSection::default();
        let mut sweep = Sweep::new(&find, "s");
        // Constant, so that smoothing changes nothing: then four times as much, until the mean is there.
        let mut n = 0;
        while let Some(rate) = sweep.rate() {
            let want = 1e-7 * 1e8f64.powf(n as f64 / 100.0);
            assert!((rate / want - 1.0).abs() < 1e-9);
            n += 1;
            if !sweep.add(rate, if n <= 50 { 1.0 } else { 400.0 }) {
                break;
            }
        }
        // After the 51st: (1·Σ + 400·0.02)/(1 − .98^51) = 13: above four at once.
        assert_eq!(n, 51);
        let (mut sweep, mut n) = (Sweep::new(&find, "s"), 0);
        while let Some(rate) = sweep.rate() {
            assert!(sweep.add(rate, 2.0));
            n += 1;
        }
        assert_eq!((n, sweep.found.losses[99]), (100, sweep.found.losses[99]));
        assert!((sweep.found.losses[99] - 2.0).abs() < 1e-12 && (sweep.found.losses[0] - 2.0).abs() < 1e-12);
    }

    #[test]
    fn suggestions_are_those_of_fastai() {
        let rates: Vec<f64> = (0..12).map(|i| 10f64.powi(i - 8)).collect();
        // fastai.callback.schedule.valley: the longest fall is 3.0 > 2.8 > 2.5 > 1.5 > 1.2 > 1.0 at 1, 3, 4, 5, 6, 8;
        // it counts back six from the end, start 8 - 6 = 2, and takes 2 + int(2) + int(1) = 5.
        let losses = [3.0, 3.0, 3.1, 2.8, 2.5, 1.5, 1.2, 1.4, 1.0, 2.0, 4.0, 9.0];
        assert_eq!(valley(&rates, &losses), Some(rates[5]));
        // The steepest fall is from 4 to 5.
        assert_eq!(steepest(&rates, &losses), Some(rates[4]));
    }

    #[test]
    fn a_search_that_blows_up_at_once_suggests_nothing_and_says_so() {
        let find = LrFindSection::default();
        let mut sweep = Sweep::new(&find, "s");
        sweep.add(1e-7, 1.0);
        let found = sweep.end();
        assert_eq!((found.valley, found.steepest), (None, None));
        assert!(found.sentence().contains("no learning rate was found"));
    }
}
