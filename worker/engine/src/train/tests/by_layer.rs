//! Adapters whose layers have ranks and alphas of their own: worked into a base, and trained on.

use std::collections::HashMap;

use serde_json::{Value, json};
use tl_proto::spec::ModelSection;

use super::*;
use crate::{
    backbone::find,
    nn::{Kind, tensor},
    weights::{
        peft::{FILES, Folder},
        testing::bare,
    },
};

const CONFIG: &str = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["conv"],
    "rank_pattern": {"block1.conv": 3, "^block2.conv": 1, "conv": 2}, "alpha_pattern": {"block[13].conv": 9.5}}"#;

/// By that, rank and alpha of the convolution of each block, and its channels.
const LAYERS: [(usize, f64, [usize; 2]); 4] =
    [(2, 4.0, [3, 16]), (3, 9.5, [16, 32]), (1, 4.0, [32, 64]), (2, 9.5, [64, 128])];

/// A and B of a block.
fn change(block: usize) -> [Vec<f32>; 2] {
    let (rank, _, [input, output]) = LAYERS[block];
    let number = |i: usize| ((i + block) % 13) as f32 / 60.0 - 0.1;
    let some = |n: usize, step: usize| -> Vec<f32> { (0..n).map(|i| number(i * step)).collect() };
    [some(rank * input * 9, 7), some(output * rank, 5)]
}

/// A folder as peft leaves it.
fn folder(dir: &Path, config: &str) -> String {
    let mut tensors = HashMap::new();
    for (block, (rank, _, [input, output])) in LAYERS.into_iter().enumerate() {
        let [a, b] = change(block);
        let name = |part: &str| format!("base_model.model.block{block}.conv.{part}.weight");
        tensors.insert(name("lora_A"), tensor(a, &[rank, input, 3, 3]).unwrap());
        tensors.insert(name("lora_B"), tensor(b, &[output, rank, 1, 1]).unwrap());
    }
    std::fs::write(dir.join(FILES[0]), config).unwrap();
    candle_core::safetensors::save(&tensors, dir.join(FILES[1])).unwrap();
    dir.display().to_string()
}

fn classes() -> Vec<String> {
    ["a", "b"].map(str::to_owned).into()
}

/// The file of some weights, in a folder.
fn base(dir: &Path) -> String {
    let model = ModelSection { backbone: "small_cnn".into(), ..ModelSection::default() };
    let path = dir.join("base.safetensors");
    bare(&Net::build(&model, &classes(), false, 3, &[].into()).unwrap(), &path);
    path.display().to_string()
}

/// The kernel of each block with an adapter worked in, if there is one.
fn kernels(base: &str, adapter: Option<&str>) -> Result<[Vec<f32>; 4]> {
    let model = ModelSection {
        backbone: "small_cnn".into(),
        weights: Some(base.into()),
        preprocess: Some("unit".into()),
        adapter: adapter.map(str::to_owned),
        ..ModelSection::default()
    };
    let store = Net::build(&model, &classes(), false, 1, &[].into())?.network.initial;
    Ok([0, 1, 2, 3].map(|block| {
        let name = format!("block{block}.conv.weight");
        let entry = store.params.iter().find(|e| e.name == name).unwrap();
        store.values[entry.range.clone()].to_vec()
    }))
}

#[test]
fn each_layer_is_changed_by_its_own_rank_and_alpha() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let before = kernels(&base, None).unwrap();
    let by_root = CONFIG.replacen('{', "{\"use_rslora\": true, ", 1);
    for (config, root) in [(CONFIG, false), (by_root.as_str(), true)] {
        let after = kernels(&base, Some(&folder(dir.path(), config))).unwrap();
        for (block, (rank, alpha, [input, output])) in LAYERS.into_iter().enumerate() {
            let scale = alpha / if root { (rank as f64).sqrt() } else { rank as f64 };
            let ([a, b], width) = (change(block), input * 9);
            for at in 0..output * width {
                let product = |r: usize| f64::from(b[at / width * rank + r]) * f64::from(a[r * width + at % width]);
                let want = f64::from(before[block][at]) + scale * (0..rank).map(product).sum::<f64>();
                let got = f64::from(after[block][at]);
                assert!((got - want).abs() < 1e-6, "block {block}, {at}: {got} for {want}");
            }
        }
    }
}

#[test]
fn a_rank_and_an_alpha_that_no_layer_has_may_be_anything() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let wanted = kernels(&base, Some(&folder(dir.path(), CONFIG))).unwrap();
    let all = CONFIG.replace("\"r\": 2, \"lora_alpha\": 4", "\"r\": 0, \"lora_alpha\": 0");
    let all = all.replace("{\"block[13].conv\": 9.5}", "{\"block[13].conv\": 9.5, \"conv\": 4}");
    assert_eq!(kernels(&base, Some(&folder(dir.path(), &all))).unwrap(), wanted);
}

#[test]
fn ranks_that_are_not_those_of_the_tensors_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    for (from, to, part) in [
        ("\"block1.conv\": 3, ", "", "the change of `block1.conv` is not of rank 2"),
        ("\"^block2.conv\": 1", "\"lock2.conv\": 1", "the change of `block2.conv` is not of rank 2"),
        ("\"conv\": 2", "\"block0.conv\": 0", "`block0.conv` has rank 0 and alpha 4"),
        ("9.5", "0", "`block1.conv` has rank 3 and alpha 0"),
        ("{\"block[13].conv\": 9.5}", "[9.5]", "a table of patterns and numbers"),
    ] {
        let config = CONFIG.replace(from, to);
        assert_ne!(config, CONFIG);
        let error = kernels(&base, Some(&folder(dir.path(), &config))).unwrap_err().to_string();
        assert!(error.contains(part), "{to}: {error}");
    }
}

#[test]
fn an_adapter_that_is_trained_on_keeps_the_ranks_and_alphas_of_its_layers() {
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (base, adapter) = (base(data.path()), folder(dir.path(), CONFIG));
    let job = format!(
        "schema = 1\njob = {{ name = \"t\", kind = \"finetune\", seed = 7 }}\n\
         data = {{ format = \"generated\", train = \"source\", val = \"source\", batch = 16, grains = 3, \
         params = {{ train_samples = 4, val_samples = 2 }} }}\n\
         model = {{ backbone = \"small_cnn\", weights = {base:?}, preprocess = \"unit\", adapter = {adapter:?} }}\n\
         [modifiers.lora]\n[[stage]]\nname = \"s\"\nepochs = 1\ntrain = [\"head\"]\nlr = 0.01\n"
    );
    let mut wanted = None;
    for world in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let report = train(&job, world, false, dir.path(), &[], &Recorder::default()).unwrap();
        let parts: usize = LAYERS.iter().map(|(rank, _, [input, output])| rank * (input * 9 + output)).sum();
        assert_eq!(report.stages[0].trained, parts + 128 * 8 + 8);
        let left = dir.path().join("work/model");
        let files = ["model.safetensors", FILES[0], FILES[1]].map(|name| std::fs::read(left.join(name)).unwrap());
        assert!(wanted.get_or_insert_with(|| files.clone()) == &files, "{world} ranks");
        // What peft reads of it, and what we do.
        let config: Value = serde_json::from_slice(&files[1]).unwrap();
        assert_eq!(config["rank_pattern"], json!({ r"^|^block1\.conv": 3, r"^|^block2\.conv": 1 }));
        assert_eq!(config["alpha_pattern"], json!({ r"^|^block1\.conv": 9.5, r"^|^block3\.conv": 9.5 }));
        let kind = |folder: &Path| Folder::read(folder, find("small_cnn").unwrap()).unwrap().plan.kind;
        assert_eq!(kind(&left), kind(Path::new(&adapter)));
        assert!(matches!(kind(&left), Kind::Lora { own, .. } if own["block1.conv"] == (3, 9.5) && own.len() == 3));
        // The base and what was left are the model, bit by bit.
        let tensors = safetensors::SafeTensors::deserialize(&files[0]).unwrap();
        let merged = kernels(&base, Some(&left.display().to_string())).unwrap();
        for (block, kernel) in merged.iter().enumerate() {
            let own = tensors.tensor(&format!("block{block}.conv.weight")).unwrap();
            assert_eq!(own.data(), crate::collective::to_bytes(kernel), "block {block}");
        }
    }
}
