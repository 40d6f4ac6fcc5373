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
    nn::{self, Kind, Pass, Plan, Store, Tape, Target, host},
    weights::{
        Contract,
        peft::{FILES, Folder, files, has_their_head},
    },
};
use tl_proto::spec::HeadSection;

use crate::rule;

/// How far logits may be from the reference's in float64, and where these are large, as a part of the largest.
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
    fn away(&self, name: &str, backbone: &Backbone, network: &Network) -> f64 {
        let side = self.side;
        let image = || rule::uniform("image").map(|v| v as f32).take(2 * side * side * 3).collect();
        let ids = rule::classes("input", self.shape.words - 1).take(self.lengths.len() * self.room);
        let mut ids: Vec<f32> = ids.map(|id| (id + 1) as f32).collect();
        ids.chunks_exact_mut(self.room).zip(&self.lengths).for_each(|(row, length)| row[*length..].fill(-1.0));
        let x = match backbone.reads_text() {
            true => nn::array(ids, &[self.lengths.len(), self.room]),
            false => nn::array(image(), &[2, side, side, 3]),
        };
        let (pass, mut tape) = (Pass::eval(&network.initial), Tape::default());
        let run = |x, unit: &tl_engine::backbone::Unit| nn::Layer::forward(&unit.layer, &x, &pass, &mut tape).unwrap();
        let y = network.units.iter().fold(x.unwrap(), run);
        let (y, wanted) = (host(&y).unwrap().to_vec(), &self.logits[name]);
        assert_eq!(y.len(), wanted.len());
        let most = wanted.iter().fold(1.0f64, |most, w| most.max(w.abs()));
        y.iter().zip(wanted).map(|(y, w)| (f64::from(*y) - w).abs() / most).fold(0.0, f64::max)
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

/// All values of a key.
fn set(config: &Value, key: &str) -> BTreeSet<String> {
    config[key].as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()).collect()
}

/// The layers of a network that a pattern of ours names, as peft takes it.
fn matched(config: &Value, key: &str, layers: impl Iterator<Item = String>) -> BTreeSet<String> {
    let Some(pattern) = config[key].as_str() else { return BTreeSet::new() };
    let whole = regex::bytes::Regex::new(&format!("(?-u)^(?:{pattern})$")).unwrap();
    layers.filter(|layer| whole.is_match(layer.as_bytes())).collect()
}

/// Leaves files for `tuning.py check`, where they are asked for.
fn leave(name: &str, files: &[Vec<u8>; 2]) {
    let Some(out) = std::env::var_os("TL_PEFT_OUT") else { return };
    let out = Path::new(&out).join(name);
    std::fs::create_dir_all(&out).unwrap();
    FILES.iter().zip(files).for_each(|(file, bytes)| std::fs::write(out.join(file), bytes).unwrap());
}

const COUNTER: &str = ".num_batches_tracked";

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
        ("resnet_lora", "resnet18", false),
        ("resnet_ia3", "resnet18", false),
        ("mobilenet_lora", "mobilenet_v2", false),
    ] {
        let backbone = find(own).unwrap();
        let contract = golden.contract_of(Shape { pre_classifier, ..golden.shape.clone() });
        let head = if pre_classifier { HeadSection::default() } else { head(backbone) };
        let classes = ["a", "b", "c"].map(String::from);
        let folder = Folder::read(&place.join(name), backbone).unwrap();
        let build = || Network::build_with(backbone, &contract, &head, golden.classes, 1, asked(&folder.plan));
        let mut network = build();
        rule::fill(&mut network.initial);
        let sites = network.adapters.sites.len();
        let blank = network.adapters.params.iter().map(|p| network.initial.params[p.0].range.clone());
        blank.collect::<Vec<_>>().into_iter().for_each(|r| network.initial.values[r].fill(0.0));
        folder.fill(&mut network, backbone, Some(&classes)).unwrap();
        let away = golden.away(name, backbone, &network);
        println!("{name}: {away:.1e} away");
        assert!(away < TOLERANCE, "{name}: {away}");

        let first = network.head - usize::from(pre_classifier);
        let mut units: BTreeSet<String> = network.units[first..].iter().map(|u| u.name.clone()).collect();
        if name == "resnet_lora" {
            // peft takes it for all whose names end so.
            units.insert("bn1".into());
        }
        let ours = files(&network, backbone, &network.initial, &units, None).unwrap().unwrap();
        let theirs = FILES.map(|file| std::fs::read(place.join(name).join(file)).unwrap());
        let [mut own, mut other] = [&ours[1], &theirs[1]].map(|bytes| tensors(bytes));
        let counters = [&mut own, &mut other].map(|all| {
            let whole = all.len();
            all.retain(|name, _| !name.ends_with(COUNTER));
            whole - all.len()
        });
        assert_eq!(counters, if name == "resnet_lora" { [9; 2] } else { [0; 2] });
        assert_eq!(own, other, "{name}");
        let parts: BTreeSet<String> = own
            .keys()
            .filter_map(|n| Some(n.split_once(".lora_A.").or_else(|| n.split_once(".ia3_l"))?.0))
            .map(|n| n.replace("base_model.model.", ""))
            .collect();
        assert_eq!(parts.len(), sites, "{name}");
        let [own, other]: [Value; 2] = [&ours[0], &theirs[0]].map(|text| serde_json::from_slice(text).unwrap());
        let keys =
            ["peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias", "fan_in_fan_out"];
        keys.iter().for_each(|key| assert_eq!(own[key], other[key], "{name}: {key}"));
        assert!(set(&own, "modules_to_save").is_subset(&with_likes(&other, &network.initial)), "{name}");
        // Every module of the network, and every block around it.
        let modules = || {
            let all = network.initial.params.iter().map(|e| e.name.as_str());
            let all = all.flat_map(|name| name.match_indices('.').map(|(at, _)| &name[..at]));
            all.flat_map(|name| [name.to_owned(), format!("{own}.{name}", own = backbone.name)])
        };
        assert_eq!(matched(&own, "target_modules", modules()), parts, "{name}");
        let inner = matched(&own, "feedforward_modules", modules());
        let wanted = match name {
            "bert_ia3" => 4,
            "resnet_ia3" => 1,
            _ => 0,
        };
        assert!(inner.is_subset(&parts) && inner.len() == wanted, "{name}: {inner:?}");
        leave(name, &ours);

        // What is worked into the weights is the same network but for rounding, without a trace of the adapter.
        let parts = network.adapters.params.len();
        assert!(parts > 0);
        let merged = network.merged(backbone, &contract, &head, 1, Inside::default());
        let plain = Network::build(backbone, &contract, &head, golden.classes, 1);
        let names = |store: &Store| store.params.iter().map(|e| (e.name.clone(), e.range.clone())).collect::<Vec<_>>();
        assert_eq!(names(&merged.initial), names(&plain.initial));
        let away = golden.away(name, backbone, &merged);
        assert!(away < TOLERANCE, "{name}, merged: {away}");
        compared += 1;
    }
    assert_eq!(compared, 9);
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
        let away = golden.away(name, backbone, &network);
        println!("{name}: {away:.1e} away");
        assert!(away < TOLERANCE, "{name}: {away}");
    }
}

#[test]
fn heads_that_the_base_does_not_have_stay_out_of_pefts_way() {
    let (_, golden) = golden();
    let lora = |targets: &[&str]| {
        let kind = Kind::Lora { rank: 2, alpha: 3.0, rslora: false, dropout: 0.0, own: Default::default() };
        Plan { kind, targets: Target::list(targets.iter().copied()), strict: true }
    };
    let hidden = || HeadSection { hidden: vec![5], ..HeadSection::default() };
    for (name, own, targets, head, task, saved) in [
        ("bert_hidden", "bert", ["query"], hidden(), Some("FEATURE_EXTRACTION"), "pooler.dense"),
        ("minilm", "minilm", ["query"], HeadSection::default(), Some("FEATURE_EXTRACTION"), ""),
        ("distilbert_bare", "distilbert", ["q_lin"], HeadSection::default(), Some("FEATURE_EXTRACTION"), ""),
        ("resnet_hidden", "resnet18", ["conv1"], hidden(), None, ""),
        ("vit_token", "vit_s16", ["qkv"], HeadSection::default(), None, "cls_token"),
    ] {
        let backbone = find(own).unwrap();
        let plan = lora(&targets);
        let build = || Network::build_with(backbone, &golden.contract(), &head, golden.classes, 1, asked(&plan));
        let mut network = build();
        rule::fill(&mut network.initial);
        let mut units: BTreeSet<String> = network.units[network.head..].iter().map(|u| u.name.clone()).collect();
        assert_eq!(has_their_head(&network, backbone), own == "vit_s16");
        units.extend((!saved.is_empty()).then(|| saved.to_owned()));
        let ours = files(&network, backbone, &network.initial, &units, None).unwrap().unwrap();
        let config: Value = serde_json::from_slice(&ours[0]).unwrap();
        assert_eq!(config["task_type"].as_str(), task, "{name}");
        let modules = if own == "vit_s16" { vec!["head"] } else { saved.split_terminator(' ').collect() };
        assert_eq!(set(&config, "modules_to_save"), modules.into_iter().map(String::from).collect(), "{name}");
        let names = tensors(&ours[1]);
        for (tensor, inner) in names.keys().map(|n| (n, n.strip_prefix("base_model.model.").unwrap())) {
            let of_head = own != "vit_s16" && (inner.contains("head.0.") || inner.contains(backbone.classifier));
            assert_eq!(inner.starts_with("own_head."), of_head, "{name}: {tensor}");
            assert!(!inner.starts_with("bert.") && !inner.starts_with("distilbert."), "{name}: {tensor}");
        }
        leave(name, &ours);
        // And all of it comes back.
        let dir = tempfile::tempdir().unwrap();
        FILES.iter().zip(&ours).for_each(|(file, bytes)| std::fs::write(dir.path().join(file), bytes).unwrap());
        let folder = Folder::read(dir.path(), backbone).unwrap();
        let mut again = build();
        folder.fill(&mut again, backbone, Some(&["a", "b", "c"].map(String::from))).unwrap();
        let of = |network: &Network| -> Vec<Vec<f32>> {
            let ours = |name: &str| {
                names.contains_key(&format!("base_model.model.{name}"))
                    || names.contains_key(&format!("base_model.model.own_head.{name}"))
            };
            let all = network.initial.params.iter().filter(|e| ours(&e.name));
            all.map(|e| network.initial.values[e.range.clone()].to_vec()).collect()
        };
        assert_eq!((of(&again), of(&network).len()), (of(&network), names.len()), "{name}");
    }
}

/// What a person reads.
fn sentence(e: tl_engine::Error) -> String {
    match e {
        tl_engine::Error::User { message, hint } => format!("{message}; {hint}"),
        other => other.to_string(),
    }
}

/// A file without some of its tensors.
fn without(bytes: &[u8], part: &str) -> Vec<u8> {
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let kept: Vec<_> = file.tensors().into_iter().filter(|(name, _)| !name.contains(part)).collect();
    assert!(kept.len() < file.len(), "{part}");
    safetensors::serialize(kept, None).unwrap()
}

#[test]
fn half_an_adapter_is_refused_by_the_name_of_what_is_missing() {
    let (place, golden) = golden();
    for (case, own, part, said) in [
        (
            "bert_lora",
            "bert",
            "layer.0.attention.self.query.lora_B",
            "layer.0.attention.self.query` has a `lora_A` and no",
        ),
        (
            "bert_lora",
            "bert",
            "layer.1.attention.self.value.lora_A",
            "layer.1.attention.self.value` has a `lora_B` and no",
        ),
        ("bert_lora", "bert", "classifier.bias", "is half there: it has `classifier.weight`, and no `classifier.bias`"),
        (
            "bert_lora",
            "bert",
            "layer.1.attention.self.value.",
            "`target_modules` of adapter_config.json names `encoder.layer.1.attention.self.value`, and it has no change",
        ),
        ("resnet_ia3", "resnet18", "layer2.0.conv2.", "names `layer2.0.conv2`, and it has no change"),
        ("bert_lora", "bert", "model.classifier.", "`modules_to_save` of adapter_config.json names `classifier`, and"),
        ("distilbert_lora", "distilbert", "model.classifier.", "it has `head.0.bias`, and no `classifier.weight`"),
        ("resnet_lora", "resnet18", "layer1.0.bn1.", "names `bn1`, and it has no `layer1.0.bn1.weight`"),
        ("distilbert_lora", "distilbert", "pre_classifier.", "it has `classifier.bias`, and no `head.0.weight`"),
        (
            "resnet_lora",
            "resnet18",
            "layer1.0.bn1.running_var",
            "it has `layer1.0.bn1.weight`, and no `layer1.0.bn1.running",
        ),
    ] {
        let backbone = find(own).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let [config, weights] = FILES.map(|file| std::fs::read(place.join(case).join(file)).unwrap());
        std::fs::write(dir.path().join(FILES[0]), config).unwrap();
        std::fs::write(dir.path().join(FILES[1]), without(&weights, part)).unwrap();
        let classes = ["a", "b", "c"].map(String::from);
        let filled = Folder::read(dir.path(), backbone).and_then(|folder| {
            let contract = golden.contract();
            let mut network =
                Network::build_with(backbone, &contract, &head(backbone), golden.classes, 1, asked(&folder.plan));
            // A head that is not kept may be anything.
            let other = folder.fill(&mut network, backbone, None);
            assert_eq!(other.is_ok(), part.contains("classifier"));
            folder.fill(&mut network, backbone, Some(&classes))
        });
        let error = sentence(filled.unwrap_err());
        assert!(error.contains(said), "{part}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(place.join("bert_lora").join(FILES[0]), dir.path().join(FILES[0])).unwrap();
    std::fs::write(dir.path().join("adapter_model.bin"), "pickled").unwrap();
    let error = sentence(Folder::read(dir.path(), find("bert").unwrap()).err().unwrap());
    assert!(
        error.contains("`adapter_model.bin` and no") && error.contains("safetensors.torch.save_file(torch.load("),
        "{error}"
    );
}

/// Modules that peft saves for those that a configuration lists: all whose names end so.
fn with_likes(config: &Value, store: &Store) -> BTreeSet<String> {
    let ends = set(config, "modules_to_save");
    let own = store.params.iter().filter_map(|e| Some(e.name.rsplit_once('.')?.0.to_owned()));
    let likes = own.filter(|m| ends.iter().any(|end| m.ends_with(end.as_str())));
    likes.chain(ends.iter().cloned()).collect()
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
        Folder::read(dir.path(), backbone).map_err(sentence)
    };
    for (from, to, part) in [
        ("\"use_dora\": false", "\"use_dora\": true", "`use_dora` is not supported"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "`bias` is not supported"),
        ("\"rank_pattern\": {}", "\"rank_pattern\": {\"query\": 2}", "is not of rank 2"),
        ("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"quer(\": 2}", "the pattern `quer(` cannot be read here"),
        ("\"LORA\"", "\"LOHA\", \"rank_dropout\": 0.5", "its kind is `LOHA`"),
        ("\"r\": 4", "\"r\": 0", "rank 0"),
        ("\"r\": 4", "\"r\": 5", "is not of rank 5"),
        ("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"", "changes the base"),
        ("\"init_lora_weights\": true", "\"init_lora_weights\": \"OLoRA\"", "began with `OLoRA`"),
        ("\"init_lora_weights\": true", "\"init_lora_weights\": \"loftq\"", "changes the base; merge it with peft"),
        ("\"lora_alpha\": 6", "\"lora_alpha\": 0", "rank 4 and alpha 0"),
        ("\"lora_alpha\": 6", "\"lora_alpha\": 1e-60", "rank 4 and alpha"),
        ("{", "[", "adapter_config.json"),
        ("\"fan_in_fan_out\": false", "\"fan_in_fan_out\": true", "is not supported; it is for layers of GPT-2's kind"),
        ("\"lora_dropout\": 0.0", "\"lora_dropout\": 1.0", "`lora_dropout` is 1"),
        ("{", "{\"new_way\": {\"of\": 1},", "`new_way` of adapter_config.json is not known, and is {\"of\":1}; if it"),
        ("\"target_parameters\": null", "\"target_parameters\": [\"a\"]", "`target_parameters` is not supported"),
    ] {
        let error = read(&config.replacen(from, to, 1), &weights).err().unwrap();
        assert!(error.contains(part), "{to}: {error}");
    }
    let harmless = "{\"new_way\": null, \"newer\": {}, \"newest\": false, \"eva_config\": {\"rho\": 2.0},";
    read(
        &config.replacen("{", harmless, 1).replace("\"layers_to_transform\": null", "\"layers_to_transform\": [0, 1]"),
        &weights,
    )
    .unwrap();
    // What is not said is as in peft's `LoraConfig`.
    let silent = read(&config.replace("\"lora_alpha\": 6,", ""), &weights).unwrap();
    assert!(matches!(silent.plan.kind, Kind::Lora { rank: 4, alpha: 8.0, .. }), "{:?}", silent.plan.kind);
    assert!(read(&config.replace("\"r\": 4,", ""), &weights).err().unwrap().contains("is not of rank 8"));
    assert!(read(&config, &weights[..weights.len() - 1]).is_err());
    assert!(Folder::read(&dir.path().join("none"), backbone).is_err());
    // Under two names for one place.
    let file = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let mut twice = file.tensors();
    let (name, tensor) = twice.iter().find(|(name, _)| name.contains(".bert.")).unwrap().clone();
    twice.push((name.replace("model.bert.", "model."), tensor));
    let error = read(&config, &safetensors::serialize(twice, None).unwrap()).err().unwrap();
    assert!(error.contains(" are both `"), "{error}");
    // Classes that cannot be read are not none.
    for bytes in [vec![0xff], vec![b'a'; (1 << 20) + 1]] {
        std::fs::write(dir.path().join("labels.txt"), bytes).unwrap();
        assert!(read(&config, &weights).err().unwrap().contains("labels.txt"));
    }
    std::fs::remove_file(dir.path().join("labels.txt")).unwrap();
    // Of another network, of another rank, for other classes.
    let folder = read(&config, &weights).unwrap();
    let fill = |backbone: &Backbone, plan: &Plan, labels: Option<&str>| {
        labels.iter().for_each(|text| std::fs::write(dir.path().join("labels.txt"), text).unwrap());
        let folder = read(&config, &weights).unwrap();
        let mut network =
            Network::build_with(backbone, &golden.contract(), &HeadSection::default(), golden.classes, 1, asked(plan));
        let classes = ["a", "b", "c"].map(String::from);
        folder.fill(&mut network, backbone, Some(&classes)).map_err(sentence)
    };
    let other = fill(find("distilbert").unwrap(), &folder.plan, None).unwrap_err();
    assert!(other.contains("which distilbert does not have"), "{other}");
    let Kind::Lora { alpha, rslora, dropout, .. } = folder.plan.kind else { panic!() };
    let kind = Kind::Lora { rank: 5, alpha, rslora, dropout, own: Default::default() };
    let wider = Plan { kind, ..folder.plan.clone() };
    assert!(fill(backbone, &wider, None).unwrap_err().contains("[4, 8] instead of [5, 8]"));
    fill(backbone, &folder.plan, Some("a\nb\nc\n")).unwrap();
    assert!(fill(backbone, &folder.plan, Some("a\nc\nb\n")).unwrap_err().contains("is for the classes"));
}
