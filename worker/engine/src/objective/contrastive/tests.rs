//! Losses of pairs against their formulas in f64, gradients against finite differences of them.

use std::collections::BTreeMap;

use candle_core::Var;
use tl_proto::spec::Params;

use super::*;
use crate::nn::testing;

const N: usize = 5;
const D: usize = 3;

/// Which samples and which halves are there, where not all are: the first pair is whole, of two others one half is there,
/// of the last nothing.
const HALVES: [[bool; 2]; N] = [[true, true], [true, false], [false, true], [true, true], [false, false]];

/// CLIP's or SigLIP's loss, added up over the pairs, straight from the papers; what is missing is in no sum, and neither
/// is what two halves that are alone are to each other.
fn naive(method: &str, a: &[f64], b: &[f64], (scale, bias): (f64, f64), there: &[[bool; 2]; N]) -> f64 {
    let unit = |rows: &[f64]| -> Vec<Vec<f64>> {
        let length = |r: &[f64]| r.iter().map(|v| v * v).sum::<f64>().sqrt();
        rows.chunks_exact(D).map(|r| r.iter().map(|v| v / length(r)).collect()).collect()
    };
    let (a, b) = (unit(a), unit(b));
    let z = |i: usize, j: usize| scale.exp() * a[i].iter().zip(&b[j]).map(|(a, b)| a * b).sum::<f64>();
    let mut loss = 0.0;
    for (i, own) in there.iter().enumerate() {
        if method == "clip" && *own == [true, true] {
            let row: f64 = (0..N).filter(|j| there[*j][1]).map(|j| z(i, j).exp()).sum();
            let column: f64 = (0..N).filter(|j| there[*j][0]).map(|j| z(j, i).exp()).sum();
            loss -= 0.5 * ((z(i, i).exp() / row).ln() + (z(i, i).exp() / column).ln());
        } else if method == "siglip" && own[0] {
            for j in (0..N).filter(|j| there[*j][1] && (own[1] || there[*j][0])) {
                let sign = if i == j { 1.0 } else { -1.0 };
                loss -= (1.0 / (1.0 + (-sign * (z(i, j) + bias)).exp())).ln();
            }
        }
    }
    loss
}

#[test]
fn losses_and_gradients_are_those_of_the_formulas() {
    check(None);
    check(Some(HALVES));
    // Nothing to be learned: no whole pair.
    check(Some([[true, false], [false, true], [true, false], [false, true], [false, false]]));
}

#[test]
fn where_nothing_is_missing_a_mask_changes_no_bit() {
    for method in ["clip", "siglip"] {
        let run = |present: Option<&Tensor>| {
            let vars = [testing::input(&[N, D]), testing::input(&[N, D + 1]).narrow(1, 0, D).unwrap()];
            let vars = vars.map(|t| Var::from_tensor(&t.contiguous().unwrap()).unwrap());
            let own: BTreeMap<String, Tensor> =
                ["scale", "bias"].map(|name| (name.to_owned(), tensor(vec![0.7], &[1]).unwrap())).into();
            let loss = loss(method, [vars[0].as_tensor(), vars[1].as_tensor()], &own, present);
            let grads = loss.backward().unwrap();
            let bits = |t: &Tensor| host(t).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let mut all = bits(&loss);
            vars.iter().for_each(|v| all.extend(bits(&grads.get(v).unwrap().contiguous().unwrap())));
            all
        };
        assert_eq!(run(None), run(Some(&tensor(vec![1.0; 2 * N], &[N, 2]).unwrap())), "{method}");
    }
}

/// The loss of embeddings by a method.
fn loss(method: &str, [a, b]: [&Tensor; 2], own: &BTreeMap<String, Tensor>, present: Option<&Tensor>) -> Tensor {
    let params: Params = [("method".to_owned(), method.into())].into();
    let targets = tensor(vec![0.0; N * D], &[N, D]).unwrap();
    let batch = Batch { paired: Some(b), present, ..Batch::plain(a, &targets, own) };
    (OBJECTIVE.loss)(&params, &batch).unwrap()
}

/// Compares with the formulas, of what is there of each pair.
fn check(halves: Option<[[bool; 2]; N]>) {
    let present = halves.map(|halves| {
        let values = halves.as_flattened().iter().map(|there| f32::from(u8::from(*there))).collect();
        tensor(values, &[N, 2]).unwrap()
    });
    let there = halves.unwrap_or([[true; 2]; N]);
    let whole = there.contains(&[true; 2]);
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
        let loss = loss(method, [vars[0].as_tensor(), vars[1].as_tensor()], &own, present.as_ref());
        let at: Vec<Vec<f64>> =
            vars.iter().map(|v| host(v.as_tensor()).unwrap().iter().map(|v| f64::from(*v)).collect()).collect();
        let of = |at: &[Vec<f64>]| naive(method, &at[0], &at[1], (at[2][0], at[3][0]), &there);
        let got = f64::from(loss.to_scalar::<f32>().unwrap());
        assert!((got - of(&at)).abs() <= 1e-5 * of(&at), "{method}: {got}, and not {}", of(&at));
        assert!(whole || got == 0.0, "{method}: {got}");
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
                assert!(whole || *got == 0.0, "{method}, {which}, {i}: {got}");
            }
        }
    }
}

/// The scale is a logarithm.
#[test]
fn a_scale_begins_and_stays_between_one_and_a_hundred() {
    let scale_of = |params: &Params| (method(params).own)(params).swap_remove(0);
    for (params, start) in [
        (r#"{"method": "clip"}"#, 1.0 / 0.07f64),
        (r#"{"method": "clip", "init_temperature": 1.0}"#, 1.0),
        (r#"{"method": "clip", "init_temperature": 0.01}"#, 100.0),
        (r#"{"method": "siglip"}"#, 10.0),
    ] {
        let own = scale_of(&serde_json::from_str(params).unwrap());
        let (Fill::Constant(fill), Some([least, most])) = (own.fill, own.span) else { panic!("{own:?}") };
        assert!((f64::from(fill) - start.ln()).abs() < 1e-6 && (least..=most).contains(&fill), "{params}: {own:?}");
        assert_eq!((least, most), (0.0, 100f64.ln() as f32), "{params}");
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
