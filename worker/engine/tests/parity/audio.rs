//! Spectrograms against librosa's, by the figures that `tests/parity/audio.py` has stored.

use std::{f64::consts::TAU, fs, path::Path};

use serde::Deserialize;
use tl_engine::data::audio::{Audio, Clip};
use tl_proto::spec::Params;

#[derive(Deserialize)]
struct Golden {
    side: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    params: Params,
    picture: Vec<f64>,
}

/// The script's signal: a rising tone, a steady one, and silence at the end.
fn signal(rate: u32) -> Clip {
    let at = |i: u32| {
        let t = f64::from(i) / f64::from(rate);
        let sound = 0.5 * (TAU * (200.0 * t + 600.0 * t * t)).sin() + 0.05 * (TAU * 2345.0 * t).sin();
        if t < 0.8 { sound as f32 } else { 0.0 }
    };
    Clip { rate, samples: (0..rate).map(at).collect() }
}

#[test]
fn a_clip_becomes_the_picture_that_librosa_makes_of_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/audio.json");
    let golden: Golden = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(golden.cases.len(), 3);
    for case in &golden.cases {
        let got = Audio::agreed(None, &case.params).unwrap().picture(&signal(8_000), golden.side).unwrap();
        assert!(got.iter().filter(|v| **v > 0.0).count() > got.len() / 3, "much of it is no silence");
        let worst = got.iter().zip(&case.picture).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        // Their windows and filters are float32 in places.
        assert!(got.len() == case.picture.len() && worst < 2e-4, "{:?}: {worst}", case.params);
    }
}
