//! Methods against their formulas in f64, with gradients by finite differences.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

use super::{
    super::{Objective, Taught, exp},
    *,
};
use crate::nn::{
    host, tensor,
    testing::{self, check_loss},
};

const N: usize = 5;
const STUDENT: usize = 3;
const TEACHER: usize = 4;

fn rows(t: &Tensor) -> Vec<Vec<f64>> {
    host(t).unwrap().chunks(t.dims()[1]).map(|r| r.iter().map(|v| f64::from(*v)).collect()).collect()
}

/// What a method adds for features, or for the outputs of units.
fn loss(
    method: &Method,
    params: &Params,
    features: Option<[&Tensor; 2]>,
    taps: &[(Tensor, Tensor)],
    own: &BTreeMap<String, Tensor>,
) -> Option<Tensor> {
    let logits = tensor(vec![0.0; N * 2], &[N, 2]).unwrap();
    let teacher = Some(Taught { logits: &logits, features: features.map(|f| f[1]) });
    let features = features.map_or(&logits, |f| f[0]);
    let batch = Batch { features, teacher, taps, ..Batch::plain(&logits, &logits, own) };
    (method.loss)(params, &batch, &Soft::of(params, &batch, 4.0).unwrap()).unwrap()
}

fn params(text: &str) -> Params {
    serde_json::from_str(text).unwrap()
}

fn own() -> BTreeMap<String, Tensor> {
    let widths = Widths { features: STUDENT, classes: 2, teacher: TEACHER, ..Widths::default() };
    regressor(&widths).into_iter().map(|o| (o.name.clone(), testing::input(&o.shape))).collect()
}

fn huber(a: &[f64], b: &[f64]) -> f64 {
    let one = |(a, b): (&f64, &f64)| if (a - b).abs() < 1.0 { (a - b) * (a - b) / 2.0 } else { (a - b).abs() - 0.5 };
    a.iter().zip(b).map(one).sum::<f64>() / a.len() as f64
}

/// Cosines at `j` between `i` and `k`, for all three; 0 where two are the same.
fn cosines(rows: &[Vec<f64>]) -> Vec<f64> {
    let toward = |j: usize, i: usize| -> Vec<f64> {
        let d: Vec<f64> = rows[i].iter().zip(&rows[j]).map(|(a, b)| a - b).collect();
        let length = d.iter().map(|v| v * v).sum::<f64>().sqrt();
        d.iter().map(|v| if length > 0.0 { v / length } else { 0.0 }).collect()
    };
    let each = (0..N * N * N).map(|t| (t / (N * N), t / N % N, t % N));
    each.map(|(j, i, k)| toward(j, i).iter().zip(toward(j, k)).map(|(a, b)| a * b).sum()).collect()
}

/// The losses on features in f64, of student's rows that were mapped and of student's rows as they are.
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
            25.0 * huber(&relative(student), &relative(teacher)) + 50.0 * huber(&cosines(student), &cosines(teacher))
        }
    }
}

#[test]
fn methods_are_their_formulas_and_their_gradients_the_slopes() {
    let (student, own) = (testing::input(&[N, STUDENT]), own());
    let teacher = (testing::input(&[N, TEACHER]) * 2.0).unwrap();
    for name in ["hint", "cosine", "relational"] {
        let method = METHODS.iter().find(|m| (m.entry)().name == name).unwrap();
        let value = |student: &[Vec<f64>]| {
            let (w, b) = (rows(&own["regressor.weight"]), host(&own["regressor.bias"]).unwrap().to_vec());
            let map = |r: &Vec<f64>| -> Vec<f64> {
                (0..TEACHER).map(|j| r.iter().zip(&w).map(|(v, w)| v * w[j]).sum::<f64>() + f64::from(b[j])).collect()
            };
            let mapped: Vec<Vec<f64>> = student.iter().map(map).collect();
            wanted(name, &mapped, student, &rows(&teacher))
        };
        let var = Var::from_tensor(&student).unwrap();
        let got = loss(method, &Params::new(), Some([var.as_tensor(), &teacher]), &[], &own).unwrap();
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

/// Numbers of maps `[N, side, side, channels]`.
struct Maps<'a>(&'a [f64], usize, usize);

/// `at(x)` and `at_loss` of the authors' code, with the larger maps averaged to the size of the smaller ones.
fn attention_apart(own: &Maps<'_>, theirs: &Maps<'_>) -> f64 {
    let side = own.1.min(theirs.1);
    let map = |Maps(values, h, c): &Maps<'_>, sample: usize| -> Vec<f64> {
        let strength = |y: usize, x: usize| {
            let at = ((sample * h + y) * h + x) * c;
            values[at..at + c].iter().map(|v| v * v).sum::<f64>() / *c as f64
        };
        let f = h / side;
        let cell = |k: usize| {
            let (y, x) = (k / side * f, k % side * f);
            (0..f * f).map(|i| strength(y + i / f, x + i % f)).sum::<f64>() / (f * f) as f64
        };
        let map: Vec<f64> = (0..side * side).map(cell).collect();
        let length = map.iter().map(|v| v * v).sum::<f64>().sqrt();
        map.into_iter().map(|v| v / length).collect()
    };
    let one = |sample: usize| {
        let (a, b) = (map(own, sample), map(theirs, sample));
        a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / (N * side * side) as f64
    };
    (0..N).map(one).sum()
}

fn numbers(t: &Tensor) -> Vec<f64> {
    host(t).unwrap().iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn attention_is_the_distance_of_normalised_maps() {
    let given = params(r#"{"method": "attention", "feature_weight": 10}"#);
    let of = |taps: &[(Tensor, Tensor)]| loss(&attention::METHOD, &given, None, taps, &BTreeMap::new()).unwrap();
    let Looks::AtUnits(_, Some(look)) = (attention::METHOD.looks)(&given) else { panic!("it looks at whole maps") };
    for (own, theirs) in [(4, 2), (2, 4), (3, 3)] {
        let maps = testing::input(&[N, theirs, theirs, 5]);
        let said = numbers(&maps);
        let seen = (look.of)(&maps).unwrap();
        assert_eq!(seen.dims(), [N, theirs, theirs, 1], "one number a place is kept");
        let alone = (look.of)(&maps.narrow(0, 1, 1).unwrap().contiguous().unwrap()).unwrap();
        testing::assert_close(&alone, &seen.narrow(0, 1, 1).unwrap(), 0.0);
        let var = Var::from_tensor(&testing::input(&[N, own, own, 3])).unwrap();
        let pair = (var.as_tensor().clone(), seen);
        let formula = |x: &[f64]| 10.0 * attention_apart(&Maps(x, own, 3), &Maps(&said, theirs, 5));
        check_loss("attention", &of(std::slice::from_ref(&pair)), &var, formula);
        // Twice the same pair counts twice.
        check_loss("two pairs", &of(&[pair.clone(), pair]), &var, |x| 2.0 * formula(x));
    }
    // A map of zeros breaks nothing.
    let dark = tensor(vec![0.0; N * 48], &[N, 4, 4, 3]).unwrap();
    let light = (look.of)(&testing::input(&[N, 2, 2, 5])).unwrap();
    assert!(host(&of(&[(dark, light)])).unwrap()[0].is_finite());
}

#[test]
fn a_hint_inside_maps_every_place_alike() {
    let theirs = testing::input(&[N, 2, 2, 4]);
    let tap = Tap { names: ["a".into(), "b".into()], shapes: [vec![2, 2, 3], vec![2, 2, 4]] };
    let widths = Widths { taps: vec![tap], ..Widths::default() };
    let own = (hint::METHOD.own)(&widths).unwrap();
    let names: Vec<String> = own.iter().map(|o| o.name.clone()).collect();
    assert_eq!(names, ["regressor.0.weight", "regressor.0.bias"]);
    let mut vars = vec![Var::from_tensor(&testing::input(&[N, 2, 2, 3])).unwrap()];
    vars.extend(own.iter().map(|o| Var::from_tensor(&testing::input(&o.shape)).unwrap()));
    let tensors = names.into_iter().zip(&vars[1..]).map(|(name, var)| (name, var.as_tensor().clone())).collect();
    let given = params(r#"{"method": "hint", "taps": ["a:b"]}"#);
    let got = loss(&hint::METHOD, &given, None, &[(vars[0].as_tensor().clone(), theirs.clone())], &tensors).unwrap();
    let y = numbers(&theirs);
    let formula = |x: &[f64], w: &[f64], b: &[f64]| {
        let mapped = |place: usize, j: usize| (0..3).map(|i| x[place * 3 + i] * w[i * 4 + j]).sum::<f64>() + b[j];
        let all = (0..N * 4).flat_map(|place| (0..4).map(move |j| (place, j)));
        all.map(|(place, j)| (mapped(place, j) - y[place * 4 + j]).powi(2)).sum::<f64>() / (N * 16) as f64
    };
    let [x, w, b] = [0, 1, 2].map(|i| numbers(vars[i].as_tensor()));
    check_loss("hint by features", &got, &vars[0], |x| formula(x, &w, &b));
    check_loss("hint by weights", &got, &vars[1], |w| formula(&x, w, &b));
    check_loss("hint by biases", &got, &vars[2], |b| formula(&x, &w, b));
}

/// `hard·CE(z_s, y) + soft·T²·KL(softmax(z_t/T) ‖ softmax(z_s/T))`, added up over samples; without labels the second part.
#[test]
fn what_a_teacher_says_is_learned_by_the_formula() {
    let classes = 4;
    let softmax = |z: &[f64], t: f64| -> Vec<f64> {
        let e: Vec<f64> = z.iter().map(|v| (v / t).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|v| v / sum).collect()
    };
    let says = (testing::input(&[N, classes]) * -1.5).unwrap();
    let labels = tensor((0..N * classes).map(|i| [0.1, 0.7, 0.0, 0.2][i % 4]).collect(), &[N, classes]).unwrap();
    let (z_t, y) = (numbers(&says), numbers(&labels));
    for (kind, t, hard) in [("distill", 3.0f64, 0.3f64), ("cross_distill", 3.0, 0.0), ("cross_distill", 2.0, 0.0)] {
        let mut given = params(r#"{"soft_weight": 0.7}"#);
        // Of pairs, the temperature is 2 if nothing is said.
        if t != 2.0 {
            given.insert("temperature".to_owned(), t.into());
        }
        if hard > 0.0 {
            given.insert("hard_weight".to_owned(), hard.into());
        }
        let var = Var::from_tensor(&testing::input(&[N, classes])).unwrap();
        let (logits, own) = (var.as_tensor(), BTreeMap::new());
        let (averaged, paired, present, weights, progress) = (None, None, None, None, 0.0);
        let (features, targets, taps, own) = (logits, &labels, &[], &own);
        let teacher = Some(Taught { logits: &says, features: None });
        let batch =
            Batch { features, logits, targets, teacher, taps, averaged, paired, present, weights, own, progress };
        let got = (Objective::find(kind).loss)(&given, &batch).unwrap();
        check_loss(kind, &got, &var, |z| {
            let mut sum = 0.0;
            for ((z, z_t), y) in z.chunks(classes).zip(z_t.chunks(classes)).zip(y.chunks(classes)) {
                let (p, p_t, now) = (softmax(z, t), softmax(z_t, t), softmax(z, 1.0));
                sum -= hard * y.iter().zip(&now).map(|(y, p)| y * p.ln()).sum::<f64>();
                sum += 0.7 * t * t * p_t.iter().zip(&p).map(|(q, p)| q * (q / p).ln()).sum::<f64>();
            }
            sum
        });
    }
}

#[test]
fn maps_that_cannot_be_laid_on_each_other_are_refused() {
    let tap = |own: &[usize], theirs: &[usize]| Tap {
        names: ["block1".into(), "layer2".into()],
        shapes: [own.to_vec(), theirs.to_vec()],
    };
    let refused = |own: &[usize], theirs: &[usize], places: bool| {
        maps::check(&[tap(own, theirs)], places).map_err(|e| e.to_string()).err()
    };
    assert_eq!(refused(&[8, 8, 3], &[4, 4, 7], true), None);
    assert_eq!(refused(&[4, 4, 3], &[8, 8, 7], true), None);
    let error = refused(&[8, 8, 3], &[7, 7, 7], false).unwrap();
    assert!(error.contains("`block1` and of the teacher's `layer2` cannot be compared: 8x8 and 7x7"), "{error}");
    assert!(refused(&[8, 4, 3], &[4, 4, 7], false).is_some(), "not the same along both sides");
    assert_eq!(refused(&[6], &[9], false), None);
    assert!(refused(&[6], &[9], true).unwrap().contains("`block1` is one place: it has no map of attention"));
    assert!(refused(&[1, 1, 3], &[4, 4, 7], true).unwrap().contains("of `block1` is one place"));
    // All of the student's places would be averaged to the teacher's one, and nothing learned.
    for theirs in [&[9][..], &[1, 1, 9]] {
        let error = refused(&[4, 4, 3], theirs, true).unwrap();
        assert!(error.contains("of the teacher's `layer2` is one place"), "{error}");
        assert_eq!(refused(&[4, 4, 3], theirs, false), None);
    }
}

#[test]
fn samples_that_are_all_the_same_have_no_relations() {
    let same = tensor(vec![1.0; N * STUDENT], &[N, STUDENT]).unwrap();
    let got = loss(&relational::METHOD, &Params::new(), Some([&same, &same]), &[], &BTreeMap::new());
    assert!(got.is_none());
    // Two that are the same among others leave gradients finite.
    let mut values = host(&testing::input(&[N, STUDENT])).unwrap().to_vec();
    values.copy_within(0..STUDENT, STUDENT);
    let var = Var::from_tensor(&tensor(values, &[N, STUDENT]).unwrap()).unwrap();
    let teacher = testing::input(&[N, TEACHER]);
    let got = loss(&relational::METHOD, &Params::new(), Some([var.as_tensor(), &teacher]), &[], &BTreeMap::new());
    let grads = got.unwrap().backward().unwrap();
    let slopes = host(&grads.get(&var).unwrap().contiguous().unwrap()).unwrap().to_vec();
    assert!(slopes.iter().all(|g| g.is_finite() && g.abs() < 1e3), "{slopes:?}");
}

#[test]
fn logits_are_kept_for_the_temperature_at_which_they_are_learned() {
    // Each kind of job has a temperature of its own, if nothing is said.
    for (kind, given, temperature) in
        [("distill", "", 4.0), ("cross_distill", "", 2.0), ("cross_distill", r#", "temperature": 7.5"#, 7.5)]
    {
        let given = params(&format!(r#"{{"top_k": 3, "logits": "f16"{given}}}"#));
        let want = Packed { half: true, top: Some(Top { count: 3, temperature }) };
        assert_eq!((Objective::find(kind).packed)(&given), want, "{kind}");
    }
    assert!((Objective::find("distill").packed)(&params(r#"{"temperature": 7.5}"#)).is_plain());
}

#[test]
fn a_method_is_given_what_both_say_at_the_temperature_of_the_job() {
    let (logits, says) = (testing::input(&[N, 2]), (testing::input(&[N, 2]) * -2.0).unwrap());
    let (teacher, own) = (Some(Taught { logits: &says, features: None }), BTreeMap::new());
    let batch = Batch { teacher, ..Batch::plain(&logits, &logits, &own) };
    let soft = Soft::of(&Params::new(), &batch, 3.0).unwrap();
    let logarithms = |t: &Tensor| log_softmax(&(t / 3.0).unwrap()).unwrap();
    assert_eq!(soft.temperature, 3.0);
    testing::assert_close(&soft.log_q, &logarithms(&logits), 1e-6);
    testing::assert_close(&soft.log_p, &logarithms(&says), 1e-6);
    testing::assert_close(&soft.p, &exp(&logarithms(&says)).unwrap(), 1e-6);
}

/// The gradient of the soft part is T·(p_s − Σ w·p_t) for weights that add up to one.
#[test]
fn several_teachers_are_a_mean_of_their_softened_probabilities() {
    let classes = 4;
    let logits = Var::from_tensor(&testing::input(&[N, classes])).unwrap();
    let (first, second) = (testing::input(&[N, classes]), (testing::input(&[N, classes]) * -2.0).unwrap());
    let both = Tensor::cat(&[&first, &second], 1).unwrap();
    let softmax = |t: &Tensor| exp(&log_softmax(&(t / 3.0).unwrap()).unwrap()).unwrap();
    for (weights, shares) in [("[3, 1]", [0.75, 0.25]), ("[]", [0.5, 0.5])] {
        let given = params(&format!(
            r#"{{"temperature": 3, "soft_weight": 0.7, "hard_weight": 0, "teacher_weights": {weights}}}"#
        ));
        let (teacher, own) = (Some(Taught { logits: &both, features: None }), BTreeMap::new());
        let targets = tensor(vec![0.25; N * classes], &[N, classes]).unwrap();
        let batch = Batch { teacher, ..Batch::plain(logits.as_tensor(), &targets, &own) };
        let loss = (Objective::find("distill").loss)(&given, &batch).unwrap();
        let got = loss.backward().unwrap().get(&logits).unwrap().clone();
        let mean = ((softmax(&first) * shares[0]).unwrap() + (softmax(&second) * shares[1]).unwrap()).unwrap();
        let want = ((softmax(logits.as_tensor()) - mean).unwrap() * (0.7 * 3.0)).unwrap();
        testing::assert_close(&got, &want, 1e-5);
    }
    assert!(teachers::check(&[], 3).is_ok() && teachers::check(&[1.0, 0.0], 2).is_ok());
    for (bad, says) in [(&[1.0][..], "1 numbers for 2 teachers"), (&[0.0, 0.0][..], "are zero")] {
        assert!(teachers::check(bad, 2).unwrap_err().to_string().contains(says));
    }
}
