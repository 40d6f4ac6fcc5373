//! LoRA, IA3 and bottleneck adapters against peft and AdapterHub, by the files that `tests/parity/tuning.py` has written.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;
use tl_engine::{
    backbone::{Asked, Backbone, Inside, Network, Shape, find},
    data::tokens::Text,
    nn::{self, Kind, Pass, Plan, Store, Tape, host},
    weights::{
        Contract,
        peft::{FILES, Folder, files},
    },
};
use tl_proto::spec::HeadSection;

use crate::rule;

/// How far logits may be from the reference's in float64.
const TOLERANCE: f64 = 1e-5;

/// What `logits.json` says.
#[derive(Deserialize)]
struct Golden {
    shape: Shape,
    lengths: Vec<usize>,
    room: usize,
    classes: usize,
    side: usize,
    logits: BTreeMap<String, Vec<f64>>,
}

impl Golden {
    fn contract(&self) -> Contract {
        self.contract_of(self.shape.clone())
    }

    fn contract_of(&self, shape: Shape) -> Contract {
        let text = Text::new(self.room, Some(shape), String::new());
        Contract { text: Some(text), ..Contract::named("unit", self.side as u32, None).unwrap() }
    }

    /// How far the outputs of a network are from those of the reference.
    fn away(&self, name: &str, network: &Network) -> f64 {
        let side = self.side;
        let image = || rule::uniform("image").map(|v| v as f32).take(2 * side * side * 3).collect();
        let ids = rule::classes("input", self.shape.words - 1).take(self.lengths.len() * self.room);
        let mut ids: Vec<f32> = ids.map(|id| (id + 1) as f32).collect();
        ids.chunks_exact_mut(self.room).zip(&self.lengths).for_each(|(row, length)| row[*length..].fill(-1.0));
        let x = match name.starts_with("vit") {
            true => nn::tensor(image(), &[2, side, side, 3]),
            false => nn::tensor(ids, &[self.lengths.len(), self.room]),
        };
        let (pass, mut tape) = (Pass::eval(&network.initial), Tape::default());
        let run = |x, unit: &tl_engine::backbone::Unit| nn::Layer::forward(&unit.layer, &x, &pass, &mut tape).unwrap();
        let y = network.units.iter().fold(x.unwrap(), run);
        let (y, wanted) = (host(&y).unwrap().to_vec(), &self.logits[name]);
        assert_eq!(y.len(), wanted.len());
        y.iter().zip(wanted).map(|(y, w)| (f64::from(*y) - w).abs()).fold(0.0, f64::max)
    }
}

fn golden() -> (PathBuf, Golden) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/tuning");
    let golden = serde_json::from_slice(&std::fs::read(folder.join("logits.json")).unwrap()).unwrap();
    (folder, golden)
}

/// The head that Hugging Face's classifier has.
fn head(backbone: &Backbone) -> HeadSection {
    let hidden = if backbone.name == "distilbert" { vec![8] } else { Vec::new() };
    HeadSection { hidden, ..HeadSection::default() }
}

fn asked(plan: &Plan) -> Asked<'_> {
    Asked { plan: Some(plan), ..Asked::default() }
}

fn tensors(bytes: &[u8]) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    file.tensors().into_iter().map(|(name, t)| (name, (t.shape().to_vec(), t.data().to_vec()))).collect()
}

/// All values of a key that counts in both configurations.
fn set(config: &Value, key: &str) -> BTreeSet<String> {
    config[key].as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()).collect()
}

#[test]
fn folders_of_peft_are_read_and_written_and_mean_the_same() {
    let (place, golden) = golden();
    let mut compared = 0;
    // DistilBERT's dense layer is a head of the job's, or comes with the weights.
    for (name, own, pre_classifier) in [
        ("bert_lora", "bert", false),
        ("bert_rslora", "bert", false),
        ("bert_ia3", "bert", false),
        ("distilbert_lora", "distilbert", false),
        ("distilbert_lora", "distilbert", true),
        ("vit_lora", "vit_s16", false),
    ] {
        let backbone = find(own).unwrap();
        let contract = golden.contract_of(Shape { pre_classifier, ..golden.shape.clone() });
        let head = if pre_classifier { HeadSection::default() } else { head(backbone) };
        let classes = ["a", "b", "c"].map(String::from);
        let folder = Folder::read(&place.join(name), backbone).unwrap();
        let build = || Network::build_with(backbone, &contract, &head, golden.classes, 1, asked(&folder.plan));
        let mut network = build();
        rule::fill(&mut network.initial);
        let blank = network.adapters.params.iter().map(|p| network.initial.params[p.0].range.clone());
        blank.collect::<Vec<_>>().into_iter().for_each(|r| network.initial.values[r].fill(0.0));
        folder.fill(&mut network, backbone, Some(&classes)).unwrap();
        let away = golden.away(name, &network);
        println!("{name}: {away:.1e} away");
        assert!(away < TOLERANCE, "{name}: {away}");

        let first = network.head - usize::from(pre_classifier);
        let units = network.units[first..].iter().map(|u| u.name.clone()).collect();
        let ours = files(&network, backbone, &network.initial, &units, None).unwrap().unwrap();
        let theirs = FILES.map(|file| std::fs::read(place.join(name).join(file)).unwrap());
        assert_eq!(tensors(&ours[1]), tensors(&theirs[1]), "{name}");
        let [own, other]: [Value; 2] = [&ours[0], &theirs[0]].map(|text| serde_json::from_slice(text).unwrap());
        let keys =
            ["peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias", "fan_in_fan_out"];
        keys.iter().for_each(|key| assert_eq!(own[key], other[key], "{name}: {key}"));
        assert!(set(&own, "modules_to_save").is_subset(&set(&other, "modules_to_save")), "{name}");
        for key in ["target_modules", "feedforward_modules"] {
            let ends = set(&other, key);
            assert!(
                set(&own, key).iter().all(|n| ends.iter().any(|end| format!(".{n}").ends_with(&format!(".{end}")))),
                "{name}"
            );
        }
        if let Some(out) = std::env::var_os("TL_PEFT_OUT") {
            let out = Path::new(&out).join(name);
            std::fs::create_dir_all(&out).unwrap();
            FILES.iter().zip(&ours).for_each(|(file, bytes)| std::fs::write(out.join(file), bytes).unwrap());
        }

        // What is worked into the weights is the same network but for rounding, without a trace of the adapter.
        let parts = network.adapters.params.len();
        assert!(parts > 0);
        let merged = network.merged(backbone, &contract, &head, 1, Inside::default());
        let plain = Network::build(backbone, &contract, &head, golden.classes, 1);
        let names = |store: &Store| store.params.iter().map(|e| (e.name.clone(), e.range.clone())).collect::<Vec<_>>();
        assert_eq!(names(&merged.initial), names(&plain.initial));
        let away = golden.away(name, &merged);
        assert!(away < TOLERANCE, "{name}, merged: {away}");
        compared += 1;
    }
    assert_eq!(compared, 6);
}

#[test]
fn bottlenecks_are_those_of_adapterhub() {
    let (_, golden) = golden();
    let backbone = find("bert").unwrap();
    for (name, twice) in [("bert_pfeiffer", false), ("bert_houlsby", true)] {
        let plan = Plan { kind: Kind::Bottleneck { twice, reduction: 2 }, targets: Vec::new(), strict: false };
        let mut network =
            Network::build_with(backbone, &golden.contract(), &head(backbone), golden.classes, 1, asked(&plan));
        assert_eq!(network.adapters.params.len(), if twice { 16 } else { 8 });
        rule::fill(&mut network.initial);
        let away = golden.away(name, &network);
        println!("{name}: {away:.1e} away");
        assert!(away < TOLERANCE, "{name}: {away}");
    }
}

#[test]
fn folders_that_mean_something_else_are_refused() {
    let (place, golden) = golden();
    let backbone = find("bert").unwrap();
    let config = std::fs::read_to_string(place.join("bert_lora").join(FILES[0])).unwrap();
    let weights = std::fs::read(place.join("bert_lora").join(FILES[1])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let read = |config: &str, weights: &[u8]| {
        std::fs::write(dir.path().join(FILES[0]), config).unwrap();
        std::fs::write(dir.path().join(FILES[1]), weights).unwrap();
        Folder::read(dir.path(), backbone).map_err(|e| e.to_string())
    };
    for (from, to, part) in [
        ("\"use_dora\": false", "\"use_dora\": true", "`use_dora` is not supported"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "`bias` is not supported"),
        ("\"rank_pattern\": {}", "\"rank_pattern\": {\"query\": 2}", "`rank_pattern` is not supported"),
        ("\"LORA\"", "\"LOHA\"", "its kind is `LOHA`"),
        ("\"r\": 4", "\"r\": 0", "rank 0"),
        ("\"r\": 4", "\"r\": 5", "is not of rank 5"),
        ("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"", "changes the base"),
        ("{", "[", "adapter_config.json"),
    ] {
        let error = read(&config.replacen(from, to, 1), &weights).err().unwrap();
        assert!(error.contains(part), "{to}: {error}");
    }
    assert!(read(&config, &weights[..weights.len() - 1]).is_err());
    assert!(Folder::read(&dir.path().join("none"), backbone).is_err());
    // Of another network, of another rank, for other classes.
    let folder = read(&config, &weights).unwrap();
    let fill = |backbone: &Backbone, plan: &Plan, labels: Option<&str>| {
        labels.iter().for_each(|text| std::fs::write(dir.path().join("labels.txt"), text).unwrap());
        let folder = read(&config, &weights).unwrap();
        let mut network =
            Network::build_with(backbone, &golden.contract(), &HeadSection::default(), golden.classes, 1, asked(plan));
        let classes = ["a", "b", "c"].map(String::from);
        folder.fill(&mut network, backbone, Some(&classes)).map_err(|e| e.to_string())
    };
    let other = fill(find("distilbert").unwrap(), &folder.plan, None).unwrap_err();
    assert!(other.contains("which distilbert does not have"), "{other}");
    let Kind::Lora { alpha, rslora, dropout, .. } = folder.plan.kind else { panic!() };
    let wider = Plan { kind: Kind::Lora { rank: 5, alpha, rslora, dropout }, ..folder.plan.clone() };
    assert!(fill(backbone, &wider, None).unwrap_err().contains("[4, 8] instead of [5, 8]"));
    fill(backbone, &folder.plan, Some("a\nb\nc\n")).unwrap();
    assert!(fill(backbone, &folder.plan, Some("a\nc\nb\n")).unwrap_err().contains("is for the classes"));
}
