//! Losses of pairs against their formulas in f64, gradients against finite differences of them.

use std::collections::BTreeMap;

use candle_core::Var;
use tl_proto::spec::Params;

use super::*;
use crate::nn::{host, tensor, testing};

const N: usize = 5;
const D: usize = 3;

/// CLIP's or SigLIP's loss, added up over the pairs, straight from the papers.
fn naive(method: &str, a: &[f64], b: &[f64], scale: f64, bias: f64) -> f64 {
    let unit = |rows: &[f64]| -> Vec<Vec<f64>> {
        let length = |r: &[f64]| r.iter().map(|v| v * v).sum::<f64>().sqrt();
        rows.chunks_exact(D).map(|r| r.iter().map(|v| v / length(r)).collect()).collect()
    };
    let (a, b) = (unit(a), unit(b));
    let z = |i: usize, j: usize| scale.exp() * a[i].iter().zip(&b[j]).map(|(a, b)| a * b).sum::<f64>();
    let mut loss = 0.0;
    for i in 0..N {
        if method == "clip" {
            let row: f64 = (0..N).map(|j| z(i, j).exp()).sum();
            let column: f64 = (0..N).map(|j| z(j, i).exp()).sum();
            loss -= 0.5 * ((z(i, i).exp() / row).ln() + (z(i, i).exp() / column).ln());
        } else {
            for j in 0..N {
                let sign = if i == j { 1.0 } else { -1.0 };
                loss -= (1.0 / (1.0 + (-sign * (z(i, j) + bias)).exp())).ln();
            }
        }
    }
    loss
}

#[test]
fn losses_and_gradients_are_those_of_the_formulas() {
    for (method, scale, bias) in [("clip", 1.3, 0.0), ("siglip", 0.8, -0.7)] {
        let vars = [
            testing::input(&[N, D]),
            (testing::input(&[D, N]).t().unwrap().contiguous().unwrap() * 0.7).unwrap(),
            tensor(vec![scale], &[1]).unwrap(),
            tensor(vec![bias], &[1]).unwrap(),
        ]
        .map(|t| Var::from_tensor(&t).unwrap());
        let own: BTreeMap<String, Tensor> =
            [("scale", 2), ("bias", 3)].map(|(name, i)| (name.to_owned(), vars[i].as_tensor().clone())).into();
        let params: Params = [("method".to_owned(), method.into())].into();
        let targets = tensor(vec![0.0; N * D], &[N, D]).unwrap();
        let (a, b) = (vars[0].as_tensor(), vars[1].as_tensor());
        let (teacher, averaged, weights, progress) = (None, None, None, 0.0);
        let (logits, targets, own) = (a, &targets, &own);
        let batch = Batch {
            features: a,
            logits,
            targets,
            teacher,
            taps: &[],
            averaged,
            weights,
            own,
            progress,
            paired: Some(b),
        };
        let loss = (OBJECTIVE.loss)(&params, &batch).unwrap();
        let at: Vec<Vec<f64>> =
            vars.iter().map(|v| host(v.as_tensor()).unwrap().iter().map(|v| f64::from(*v)).collect()).collect();
        let of = |at: &[Vec<f64>]| naive(method, &at[0], &at[1], at[2][0], at[3][0]);
        let got = f64::from(loss.to_scalar::<f32>().unwrap());
        assert!((got - of(&at)).abs() < 1e-5 * of(&at), "{method}: {got}, and not {}", of(&at));
        let grads = loss.backward().unwrap();
        for (which, var) in vars.iter().enumerate().filter(|(i, _)| method == "siglip" || *i < 3) {
            let got = grads.get(var).unwrap().contiguous().unwrap();
            for (i, got) in host(&got).unwrap().iter().enumerate() {
                let moved = |by: f64| {
                    let mut at = at.clone();
                    at[which][i] += by;
                    of(&at)
                };
                let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((f64::from(*got) - want).abs() < 1e-4, "{method}, {which}, {i}: {got}, and not {want}");
            }
        }
    }
}

#[test]
fn embeddings_of_nothing_give_no_division_by_zero() {
    let zeros = tensor(vec![0.0; N * D], &[N, D]).unwrap();
    assert!(host(&unit(&zeros).unwrap()).unwrap().iter().all(|v| *v == 0.0));
    let rows = testing::input(&[N, D]);
    for row in host(&unit(&rows).unwrap()).unwrap().chunks_exact(D) {
        assert!((row.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
