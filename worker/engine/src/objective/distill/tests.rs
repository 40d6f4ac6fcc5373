//! Methods against their formulas in f64, with gradients by finite differences.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

use super::{super::Taught, *};
use crate::nn::{host, tensor, testing};

const N: usize = 5;
const STUDENT: usize = 3;
const TEACHER: usize = 4;

fn rows(t: &Tensor) -> Vec<Vec<f64>> {
    host(t).unwrap().chunks(t.dims()[1]).map(|r| r.iter().map(|v| f64::from(*v)).collect()).collect()
}

fn loss(method: &Method, student: &Tensor, teacher: &Tensor, own: &BTreeMap<String, Tensor>) -> Tensor {
    let logits = Tensor::zeros((N, 2), candle_core::DType::F32, student.device()).unwrap();
    let taught = Taught { logits: &logits, features: Some(teacher) };
    let (averaged, paired, weights, progress) = (None, None, None, 0.0);
    let (features, logits, targets, teacher_says) = (student, &logits, &logits, Some(taught));
    let batch = Batch { features, logits, targets, teacher: teacher_says, averaged, paired, weights, own, progress };
    (method.loss)(&batch, teacher).unwrap().unwrap()
}

fn own() -> BTreeMap<String, Tensor> {
    let widths = Widths { features: STUDENT, classes: 2, teacher: TEACHER, tasks: 1 };
    regressor(widths).into_iter().map(|o| (o.name.clone(), testing::input(&o.shape))).collect()
}

/// The three losses in f64, of student's rows that were mapped and of student's rows as they are.
fn wanted(name: &str, mapped: &[Vec<f64>], student: &[Vec<f64>], teacher: &[Vec<f64>]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    match name {
        "hint" => mapped.iter().zip(teacher).map(|(a, b)| apart(a, b)).sum::<f64>() / (N * TEACHER) as f64,
        "cosine" => {
            let cosine = |(a, b): (&Vec<f64>, &Vec<f64>)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
            1.0 - mapped.iter().zip(teacher).map(cosine).sum::<f64>() / N as f64
        }
        _ => {
            let relative = |rows: &[Vec<f64>]| -> Vec<f64> {
                let far: Vec<f64> = (0..N * N).map(|k| apart(&rows[k / N], &rows[k % N]).sqrt()).collect();
                let mean = far.iter().sum::<f64>() / (N * (N - 1)) as f64;
                far.iter().map(|d| d / mean).collect()
            };
            let huber =
                |(a, b): (f64, f64)| if (a - b).abs() < 1.0 { (a - b) * (a - b) / 2.0 } else { (a - b).abs() - 0.5 };
            relative(student).into_iter().zip(relative(teacher)).map(huber).sum::<f64>() / (N * N) as f64
        }
    }
}

#[test]
fn methods_are_their_formulas_and_their_gradients_the_slopes() {
    let (student, own) = (testing::input(&[N, STUDENT]), own());
    let teacher = (testing::input(&[N, TEACHER]) * 2.0).unwrap();
    for method in METHODS.iter().filter(|m| m.inside) {
        let name = (method.entry)().name;
        let value = |student: &[Vec<f64>]| {
            let (w, b) = (rows(&own["regressor.weight"]), host(&own["regressor.bias"]).unwrap().to_vec());
            let map = |r: &Vec<f64>| -> Vec<f64> {
                (0..TEACHER).map(|j| r.iter().zip(&w).map(|(v, w)| v * w[j]).sum::<f64>() + f64::from(b[j])).collect()
            };
            let mapped: Vec<Vec<f64>> = student.iter().map(map).collect();
            wanted(&name, &mapped, student, &rows(&teacher))
        };
        let var = Var::from_tensor(&student).unwrap();
        let got = loss(method, var.as_tensor(), &teacher, &own);
        let want = value(&rows(&student));
        assert!((f64::from(host(&got).unwrap()[0]) - want).abs() < 1e-5 * (1.0 + want), "{name}: {want}");
        let grads = got.backward().unwrap();
        let slopes = rows(&grads.get(&var).unwrap().contiguous().unwrap());
        for i in 0..N * STUDENT {
            let moved = |by: f64| {
                let mut student = rows(&student);
                student[i / STUDENT][i % STUDENT] += by;
                value(&student)
            };
            let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let got = slopes[i / STUDENT][i % STUDENT];
            assert!((got - want).abs() < 1e-4 * (1.0 + want.abs()), "{name}[{i}]: {got} {want}");
        }
    }
}

#[test]
fn samples_that_are_all_the_same_have_no_relations() {
    let same = tensor(vec![1.0; N * STUDENT], &[N, STUDENT]).unwrap();
    let logits = Tensor::zeros((N, 2), candle_core::DType::F32, same.device()).unwrap();
    let own = BTreeMap::new();
    let taught = Some(Taught { logits: &logits, features: Some(&same) });
    let (averaged, paired, weights, progress) = (None, None, None, 0.0);
    let (features, logits, targets) = (&same, &logits, &logits);
    let batch = Batch { features, logits, targets, teacher: taught, averaged, paired, weights, own: &own, progress };
    assert!((relational::METHOD.loss)(&batch, &same).unwrap().is_none());
}
