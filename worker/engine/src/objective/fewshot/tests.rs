use super::*;
use crate::nn::testing;

const D: usize = 3;
const COUNTS: [usize; 2] = [2, 1];

/// Scores of `[support; query]` in one tensor, two queries of each class.
fn scores(method: &Method, params: &Params, all: &Tensor) -> Result<Tensor> {
    let (Learns::Compares(scores) | Learns::Fits(scores)) = method.learns else { panic!("it adapts") };
    let (support, query) = (all.narrow(0, 0, 3)?, all.narrow(0, 3, 4)?);
    scores(params, &Shown { support: &support, counts: &COUNTS, query: &query })
}

fn of(text: &str) -> (&'static Method, Params) {
    let params: Params = serde_json::from_str(text).unwrap();
    (method(&params), params)
}

/// The mean of −log p as the papers have it, in f64: by prototypes, or by the attention to cosines times `scale`.
fn by_the_paper(name: &str, scale: f64, all: &[f64]) -> f64 {
    let row = |i: usize| &all[i * D..(i + 1) * D];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let labels = [0, 0, 1, 1];
    let loss = (0..4).map(|q| {
        let query = row(3 + q);
        let weight = |class: usize| -> f64 {
            let shown: &[usize] = if class == 0 { &[0, 1] } else { &[2] };
            if name == "prototype" {
                let mean: Vec<f64> =
                    (0..D).map(|k| shown.iter().map(|i| row(*i)[k]).sum::<f64>() / shown.len() as f64).collect();
                let by: Vec<f64> = query.iter().zip(&mean).map(|(a, b)| a - b).collect();
                return (-dot(&by, &by)).exp();
            }
            let cosine = |i: &usize| dot(query, row(*i)) / (dot(query, query) * dot(row(*i), row(*i))).sqrt();
            shown.iter().map(|i| (scale * cosine(i)).exp()).sum()
        };
        -(weight(labels[q]) / (weight(0) + weight(1))).ln()
    });
    loss.sum::<f64>() / 4.0
}

#[test]
fn losses_are_those_of_the_papers_and_gradients_those_of_finite_differences() {
    let all = testing::input(&[7, D]);
    let values: Vec<f64> = host(&all).unwrap().iter().map(|v| f64::from(*v)).collect();
    // Features of length one (SimpleShot).
    let unit = |all: &[f64]| -> Vec<f64> {
        let length = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>().sqrt();
        all.chunks(D).flat_map(|row| row.iter().map(|v| v / length(row)).collect::<Vec<_>>()).collect()
    };
    for (text, scale) in [
        (r#"{"method": "prototype"}"#, 1.0),
        (r#"{"method": "prototype", "features": "unit"}"#, 1.0),
        (r#"{"method": "matching"}"#, 1.0),
        (r#"{"method": "matching", "scale": 7}"#, 7.0),
    ] {
        let (method, params) = of(text);
        let name = method.name();
        let formula = |all: &[f64]| match text.contains("unit") {
            true => by_the_paper(&name, scale, &unit(all)),
            false => by_the_paper(&name, scale, all),
        };
        let (loss, grad, _) = graded(&all, |x| scores(method, &params, x)).unwrap();
        let want = formula(&values);
        assert!((loss - want).abs() < 1e-5 * (1.0 + want), "{text}: {loss} for {want}");
        for (i, got) in host(&grad).unwrap().iter().enumerate() {
            let moved = |by: f64| {
                let mut values = values.clone();
                values[i] += by;
                formula(&values)
            };
            let want = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((f64::from(*got) - want).abs() < 1e-4 * (1.0 + want.abs()), "{text}[{i}]: {got} for {want}");
        }
    }
}

#[test]
fn the_nearest_shown_sample_decides() {
    let support = tensor(vec![0.0, 0.0, 4.0, 0.0, 1.0, 3.0], &[3, 2]).unwrap();
    let query = tensor(vec![1.0, 1.0, 3.0, 0.0], &[2, 2]).unwrap();
    let scores = nearest(&Shown { support: &support, counts: &COUNTS, query: &query }).unwrap();
    assert_eq!(host(&scores).unwrap().to_vec(), [-2.0, -4.0, -1.0, -13.0]);
}

#[test]
fn each_method_says_whether_stages_train_for_it() {
    let said = METHODS.iter().map(|m| {
        let params = [("method".to_owned(), m.name().into())].into();
        (m.name(), m.trains(&params), m.stands_alone(&params), m.classifies())
    });
    let said: Vec<(String, bool, bool, bool)> = said.collect();
    let wanted = [
        ("prototype", true, true, false),
        ("matching", true, true, false),
        ("maml", true, false, true),
        ("linear", false, true, false),
        ("fine_tune", false, true, true),
    ];
    for (name, trains, alone, classifies) in wanted {
        assert!(said.contains(&(name.to_owned(), trains, alone, classifies)), "{name}: {said:?}");
    }
}
