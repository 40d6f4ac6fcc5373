//! What a model is worth: accuracy, per-class figures and the confusion matrix, as JSON and as text; and what can be said
//! of it in a domain without labels.

pub mod confusion;
pub mod density;
mod matrix;
mod pca;
pub mod retrieval;
pub mod selection;
pub mod shift;
pub mod softened;
mod table;

use std::fmt::Write as _;

use confusion::Confusion;
use serde::{Deserialize, Serialize};
use tl_proto::spec::{EpisodeShape, EpisodesSection};

/// What was predicted for one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Its class.
    pub label: usize,
    /// The class with the largest logit.
    pub predicted: usize,
    /// Cross-entropy with the label; 0 where there is none.
    pub loss: f64,
    /// Of the prediction, in nats.
    pub entropy: f64,
}

/// Figures of one class. One without samples has 0 in all of them, and does not count in means over classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassFigures {
    /// Its name.
    pub class: String,
    /// Of those predicted as this class, the part that was.
    pub precision: f64,
    /// Of this class, the part that was found.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// Samples of this class.
    pub support: usize,
}

/// The classification report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Samples.
    pub samples: usize,
    /// Part that was right.
    pub accuracy: f64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// By class.
    pub classes: Vec<ClassFigures>,
    /// Which of them were taken for which.
    pub confusion: Confusion,
    /// Where it was judged by few-shot episodes: these have no classes in common.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub episodes: Option<Episodes>,
}

/// What was judged by episodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Episodes {
    /// How many.
    pub count: usize,
    /// What each of them shows and asks for.
    pub shape: EpisodeShape,
    /// Half the width of the 95 % confidence interval of the mean accuracy: 1.96·σ/√n.
    pub interval: f64,
}

impl Episodes {
    /// What there is to say of a mean over so many, where others' are over more.
    pub fn scarce(count: usize) -> Option<String> {
        let usual = EpisodesSection::USUAL as usize;
        let said = || format!("it is judged by {count} episodes, and published figures are means over {usual} or more");
        (count < usual).then(said)
    }
}

impl Evaluation {
    /// Folds outcomes, in index order.
    pub fn new(classes: &[String], outcomes: &[Outcome]) -> Self {
        let k = classes.len();
        let confusion = Confusion::of(k, outcomes.iter().map(|o| (o.label, o.predicted)));
        let [mut hits, mut supports, mut predicted] = [(); 3].map(|()| vec![0_usize; k]);
        for [label, said, n] in confusion.cells() {
            supports[*label] += n;
            predicted[*said] += n;
            hits[*label] += if label == said { *n } else { 0 };
        }
        let ratio = |a: usize, b: usize| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        let figures = |c: usize| {
            let (hit, support) = (hits[c], supports[c]);
            let precision = ratio(hit, predicted[c]);
            let recall = ratio(hit, support);
            let f1 = if hit == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) };
            ClassFigures { class: classes[c].clone(), precision, recall, f1, support }
        };
        let right = hits.iter().sum();
        let loss = outcomes.iter().map(|o| o.loss).sum::<f64>() / outcomes.len().max(1) as f64;
        Self {
            samples: outcomes.len(),
            accuracy: ratio(right, outcomes.len()),
            loss,
            classes: (0..k).map(figures).collect(),
            confusion,
            episodes: None,
        }
    }

    /// The mean of a figure over the classes that have samples: of another nothing is known. 0 where there is none.
    pub fn mean_of_classes(&self, figure: fn(&ClassFigures) -> f64) -> f64 {
        let known: Vec<f64> = self.classes.iter().filter(|class| class.support > 0).map(figure).collect();
        known.iter().sum::<f64>() / known.len().max(1) as f64
    }

    /// Folds accuracies and mean losses of episodes of a shape, in order.
    pub fn of_episodes(shape: EpisodeShape, outcomes: &[(f64, f64)]) -> Self {
        let n = outcomes.len().max(1) as f64;
        let mean = |f: fn(&(f64, f64)) -> f64| outcomes.iter().map(f).fold(0.0, |sum, v| sum + v) / n;
        let (accuracy, loss) = (mean(|o| o.0), mean(|o| o.1));
        let square = outcomes.iter().map(|o| (o.0 - accuracy) * (o.0 - accuracy)).fold(0.0, |sum, v| sum + v);
        let sigma = libm::sqrt(square / (n - 1.0).max(1.0));
        let interval = 1.96 * sigma / libm::sqrt(n);
        Self {
            samples: outcomes.len() * shape.queries(),
            accuracy,
            loss,
            classes: Vec::new(),
            confusion: Confusion::default(),
            episodes: Some(Episodes { count: outcomes.len(), shape, interval }),
        }
    }

    /// The accuracy for people, with its interval where it has one.
    pub fn accuracy_text(&self) -> String {
        match &self.episodes {
            Some(e) => format!("{:.1} ± {:.1} %", 100.0 * self.accuracy, 100.0 * e.interval),
            None => format!("{:.1} %", 100.0 * self.accuracy),
        }
    }

    /// Where samples have no classes: what part of so many was right.
    pub fn without_classes(samples: usize, accuracy: f64) -> Self {
        Self { samples, accuracy, ..Self::default() }
    }

    /// The report as people read it.
    pub fn to_text(&self) -> String {
        if let Some(Episodes { count, shape: EpisodeShape { way, shot, query }, .. }) = &self.episodes {
            return format!(
                "{way}-way {shot}-shot, {query} queries of each class, {count} episodes (mean and 95 % interval)\n\
                 accuracy {}, loss {:.4}\n",
                self.accuracy_text(),
                self.loss
            );
        }
        let width = self.classes.iter().map(|c| c.class.chars().count()).max().unwrap_or(0).max(12);
        if self.classes.is_empty() {
            return format!("accuracy {:.3}  loss {:.4}  ({} samples)\n", self.accuracy, self.loss, self.samples);
        }
        let mut out = format!("{:>width$}  precision  recall  f1-score  support\n", "");
        out += &table::rows(&self.classes, width);
        let mean = |figure: fn(&ClassFigures) -> f64| self.mean_of_classes(figure);
        let (p, r, f) = (mean(|c| c.precision), mean(|c| c.recall), mean(|c| c.f1));
        let _ = writeln!(out, "{:>width$}  {p:>9.3}  {r:>6.3}  {f:>8.3}  {:>7}", "macro mean", self.samples);
        let _ = writeln!(out, "{:>width$}  {:>9.3}  loss {:.4}", "accuracy", self.accuracy, self.loss);
        let (all, absent) = (self.classes.len(), self.classes.iter().filter(|c| c.support == 0).count());
        if absent > 0 {
            let _ = writeln!(out, "{absent} of {all} classes have no samples here; the macro mean is of the others");
        }
        let names: Vec<&str> = self.classes.iter().map(|c| c.class.as_str()).collect();
        let _ = write!(out, "\n{}", self.confusion.to_text(&names, width));
        out
    }
}

/// Class, loss and entropy of one row of logits.
pub fn judge(logits: &[f32], label: usize) -> Outcome {
    let mut predicted = 0;
    for (i, v) in logits.iter().enumerate() {
        if *v > logits[predicted] {
            predicted = i;
        }
    }
    let largest = f64::from(logits[predicted]);
    let (mut total, mut weighed) = (0.0, 0.0);
    for v in logits {
        let below = f64::from(*v) - largest;
        let e = libm::exp(below);
        total += e;
        weighed += if e > 0.0 { e * below } else { 0.0 };
    }
    let log_total = libm::log(total);
    let loss = logits.get(label).map_or(0.0, |v| log_total + largest - f64::from(*v));
    Outcome { label, predicted, loss, entropy: log_total - weighed / total }
}

/// Probabilities of one row of logits.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = logits.iter().map(|v| libm::exp(f64::from(v - largest))).collect();
    let total: f64 = exps.iter().sum();
    exps.into_iter().map(|e| e / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_scikit_learn() {
        // sklearn.metrics.classification_report([0,0,0,1,1,2], [0,0,1,1,2,2])
        let pairs = [(0, 0), (0, 0), (0, 1), (1, 1), (1, 2), (2, 2)];
        let outcomes = pairs.map(|(label, predicted)| Outcome { label, predicted, loss: 0.5, entropy: 0.0 });
        let e = Evaluation::new(&["a", "b", "c"].map(String::from), &outcomes);
        assert_eq!((e.accuracy, e.loss), (4.0 / 6.0, 0.5));
        let rows: Vec<_> = e.classes.iter().map(|c| (c.precision, c.recall, c.support)).collect();
        assert_eq!(rows, [(1.0, 2.0 / 3.0, 3), (0.5, 0.5, 2), (0.5, 1.0, 1)]);
        assert!((e.classes[0].f1 - 0.8).abs() < 1e-12 && e.confusion.row(0) == [2, 1, 0]);
        assert!(e.to_text().contains("accuracy"));
    }

    #[test]
    fn a_class_without_samples_counts_nothing() {
        // sklearn.metrics.classification_report([0,0,1,1], [0,2,1,1], labels=[0,1]): macro avg
        let pairs = [(0, 0), (0, 2), (1, 1), (1, 1)];
        let outcomes = pairs.map(|(label, predicted)| Outcome { label, predicted, loss: 0.5, entropy: 0.0 });
        let e = Evaluation::new(&["a", "b", "c", "d"].map(String::from), &outcomes);
        assert_eq!((e.accuracy, e.confusion.row(2)), (0.75, vec![0; 4]));
        let rows: Vec<_> = e.classes.iter().map(|c| (c.precision, c.recall, c.f1, c.support)).collect();
        assert_eq!(rows, [(1.0, 0.5, 2.0 / 3.0, 2), (1.0, 1.0, 1.0, 2), (0.0, 0.0, 0.0, 0), (0.0, 0.0, 0.0, 0)]);
        let means = [e.mean_of_classes(|c| c.precision), e.mean_of_classes(|c| c.recall), e.mean_of_classes(|c| c.f1)];
        let wanted: [f64; 3] = [1.0, 0.75, 5.0 / 6.0];
        assert!(means.iter().zip(wanted).all(|(mean, wanted)| (*mean - wanted).abs() < 1e-12), "{means:?}");
        assert!(e.to_text().contains("2 of 4 classes have no samples here"), "{}", e.to_text());
        assert_eq!(Evaluation::new(&["a", "b"].map(String::from), &[]).mean_of_classes(|c| c.f1), 0.0);
    }

    /// numpy: a.mean(), 1.96 * a.std(ddof=1) / sqrt(5).
    #[test]
    fn an_interval_is_that_of_the_mean_over_episodes() {
        let shape = EpisodeShape { way: 5, shot: 1, query: 15 };
        let accuracies = [0.8, 0.9, 1.0, 0.7, 0.85];
        let e = Evaluation::of_episodes(shape, &accuracies.map(|a| (a, 1.0 - a)));
        let wanted = 1.96 * (0.05f64 / 4.0).sqrt() / 5f64.sqrt();
        let episodes = e.episodes.clone().unwrap();
        assert!((e.accuracy - 0.85).abs() < 1e-12 && (episodes.interval - wanted).abs() < 1e-12, "{e:?}");
        assert_eq!((e.samples, episodes.count), (375, 5));
        assert!(e.to_text().contains("5-way 1-shot") && e.to_text().contains("85.0 ± 9.8 %"), "{}", e.to_text());
    }

    #[test]
    fn a_row_is_judged_by_its_largest_logit() {
        let o = judge(&[0.0, 2.0, 1.0], 2);
        assert_eq!(o.predicted, 1);
        let p = softmax(&[0.0, 2.0, 1.0]);
        let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
        assert!((o.entropy - entropy).abs() < 1e-12 && judge(&[0.0, 2.0], usize::MAX).loss == 0.0);
        assert!((o.loss + p[2].ln()).abs() < 1e-12 && (p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
}
