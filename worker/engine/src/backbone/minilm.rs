//! MiniLM sentence encoders (Wang et al., 2020; Reimers and Gurevych, 2019): BERT's blocks, the mean of all rows.

use super::{
    Backbone, Same, Unit,
    text::{BASE, BERT, Shape, encoder},
};
use crate::nn::{Builder, Pool};

pub(super) const ENTRY: Backbone = Backbone {
    name: "minilm",
    doc: "MiniLM for text, 6 layers by default (23 million parameters, 384 features, mean over tokens), such as \
          all-MiniLM-L6-v2; `input` is the most tokens of a text",
    input: 128,
    classifier: "classifier",
    timm: &[],
    activation: "gelu",
    blocks: true,
    build,
};

fn build(b: &mut Builder, _: Same) -> (Vec<Unit>, usize) {
    let (mut units, shape) = encoder(b, &BERT, Shape { layers: 6, hidden: 384, wide: 1536, ..BASE });
    units.push(Unit::new("pool", Pool::Mean));
    (units, shape.hidden)
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, process::Command};

    use tl_proto::spec::ModelSection;

    use crate::{
        nn::{Pass, host},
        train::net::Net,
    };

    /// The folder of the real all-MiniLM-L6-v2: `TL_MINILM`, or fetched by the script of the shared data.
    fn folder() -> Option<PathBuf> {
        if let Some(folder) = std::env::var_os("TL_MINILM") {
            return Some(folder.into());
        }
        let folder = std::env::temp_dir().join("tl-all-minilm-l6-v2");
        if folder.join("model.safetensors").is_file() {
            return Some(folder);
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/fetch_minilm.sh");
        let whole = Command::new("sh").arg(script).arg(&folder).output().is_ok_and(|o| o.status.success());
        whole.then_some(folder)
    }

    const TEXTS: [&str; 5] = [
        "The card has not arrived yet.",
        "I am still waiting for my new bank card!",
        "How do I top up my account?",
        "A gripping, beautifully acted film.",
        "naïve café — 42% déjà vu",
    ];

    /// Pairs in the order (1, 0), (2, 0), (2, 1), …, and lengths: of transformers' `BertModel` in float64, mean over tokens.
    const COSINES: [f64; 10] = [
        0.592_007_5,
        0.039_985,
        0.175_974_8,
        0.043_846_5,
        -0.050_282_2,
        -0.090_880_1,
        0.179_124_8,
        0.219_960_1,
        0.077_396_3,
        0.071_198_4,
    ];
    const NORMS: [f64; 5] = [5.4808, 5.3577, 6.3279, 5.6156, 5.4035];

    #[test]
    fn embeddings_of_the_real_weights_are_those_of_the_reference() {
        let Some(folder) = folder() else {
            eprintln!("SKIPPED: no all-MiniLM-L6-v2; set TL_MINILM to its folder");
            return;
        };
        let model = ModelSection {
            backbone: "minilm".into(),
            weights: Some(folder.display().to_string()),
            ..ModelSection::default()
        };
        let net = Net::build(&model, &["a".into(), "b".into()], false, 1, &[].into()).unwrap();
        let text = net.contract.text.as_ref().unwrap();
        let ids: Vec<Vec<f32>> = TEXTS.iter().map(|t| text.ids(t).unwrap()).collect();
        assert_eq!(ids[0], [101.0, 1996.0, 4003.0, 2038.0, 2025.0, 3369.0, 2664.0, 1012.0, 102.0]);
        assert_eq!(ids[4][1..8], [15743.0, 7668.0, 1517.0, 4413.0, 1003.0, 2139.0, 3900.0]);
        let run = |ids: &[Vec<f32>], whole| {
            let x = text.batch(ids, whole).unwrap();
            let pass = Pass::eval(&net.network.initial);
            host(&net.forward(&pass, x, 0, net.network.head).unwrap()).unwrap().to_vec()
        };
        let all = run(&ids, true);
        let rows: Vec<&[f32]> = all.chunks_exact(384).collect();
        let dot =
            |a: usize, b: usize| rows[a].iter().zip(rows[b]).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        let mut wanted = COSINES.iter();
        for a in 0..TEXTS.len() {
            let norm = dot(a, a).sqrt();
            assert!((norm - NORMS[a]).abs() < 1e-4 * NORMS[a], "{norm} against {}", NORMS[a]);
            for b in 0..a {
                let (ours, wanted) = (dot(a, b) / (norm * dot(b, b).sqrt()), wanted.next().unwrap());
                assert!((ours - wanted).abs() < 1e-5, "{a}, {b}: {ours} against {wanted}");
            }
            // Alone and without padding: the same bits.
            assert_eq!(run(&ids[a..=a], false), rows[a]);
        }
    }
}
