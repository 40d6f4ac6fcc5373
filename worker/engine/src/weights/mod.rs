//! Pretrained weights: read by name, checked by shape, refused with names.

mod contract;
mod file;
mod fill;
mod format;
mod header;
mod heads;
mod inside;
pub mod keras;
mod labels;
pub mod peft;
mod plain;
mod positions;
mod prefix;
mod pth;
mod shards;
pub mod strokes;
#[cfg(test)]
pub(crate) mod testing;
pub mod text;
mod timm;
mod which;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use candle_core::Tensor;

pub use contract::{Contract, Scale};
pub use file::{names, read};
use file::{of_bytes, size};
pub use fill::fill;
use format::Format;
pub use header::metadata;
use header::not_whole;
pub use heads::{load_tasks, relabelled};
use heads::{order, same_number};
pub use inside::{Inside, Merged, inside};
pub use shards::of_folder;
pub use which::{TOWER, Which, outputs};

use crate::{
    Error, Result,
    backbone::{Backbone, Network},
    nn::ParamId,
};

/// Fills a new network from a file: all but the head, or all of it where the head is `kept` for these classes, in their
/// order where the file comes with another one. Returns the names of the parameters that were there.
///
/// # Errors
/// See [`read`] and [`fill()`]; a file that says it was trained on other classes than a kept head is for.
pub fn load(
    network: &mut Network,
    backbone: &Backbone,
    path: &Path,
    which: Which,
    kept: Option<&[String]>,
) -> Result<BTreeSet<String>> {
    let order = kept.map(|classes| order(path, classes)).transpose()?.flatten();
    let ours = about(path)?.get("contract").is_some();
    if !ours && let Some(text) = text::beside(path, "config.json")? {
        timm::same_network(backbone, &text, &path.with_file_name("config.json").display().to_string())?;
    }
    let head = |name: &str| {
        name.starts_with("head.") || name.strip_prefix(backbone.classifier).is_some_and(|r| r.starts_with('.'))
    };
    // Parts are new, or the file has all of them.
    let part = |id: &ParamId| network.initial.params[id.0].name.clone();
    let parts: BTreeSet<String> = network.adapters.params.iter().map(part).collect();
    let mut elsewhere = Vec::new();
    let mut file = if keras::is_h5(path) {
        keras::usual_names(backbone.name, keras::read(path, size(path)?)?, &network.initial)?
    } else {
        let usual = |file: BTreeMap<String, Tensor>| {
            if backbone.reads_text() { text::usual_names(file) } else { timm::usual_names(backbone.name, file) }
        };
        if ours {
            usual(read(path)?)
        } else {
            let entries = network.initial.params.iter().chain(&network.initial.buffers).map(|e| e.name.as_str());
            let body: Vec<&str> = entries.filter(|name| !head(name) && !parts.contains(*name)).collect();
            let fitted = prefix::fitted(read(path)?, usual, &body);
            elsewhere = fitted.elsewhere;
            fitted.file
        }
    };
    which.choose(&mut file);
    positions::fit(&mut file, &network.initial)?;
    if let Some(order) = order {
        order.apply(&mut file, backbone.classifier)?;
    }
    if kept.is_some() {
        same_number(&network.initial, &file, backbone.classifier, path)?;
    }
    let has_parts = inside(path)?.plan.is_some() || parts.iter().any(|name| file.contains_key(name));
    let wanted = |name: &str| (kept.is_some() || !head(name)) && (has_parts || !parts.contains(name));
    fill(&mut network.initial, &file, wanted, &path.display().to_string())
        .map_err(|e| prefix::hinted(e, &elsewhere))?;
    Ok(network.initial.params.iter().map(|e| &e.name).filter(|name| wanted(name)).cloned().collect())
}

/// What a `.safetensors` file of ours says of itself; nothing for any other file.
///
/// # Errors
/// A file that is not whole.
pub fn about(path: &Path) -> Result<serde_json::Value> {
    if Format::of(path) != Some(Format::Safetensors) {
        return Ok(serde_json::Value::Null);
    }
    let text = metadata(path)?.remove("tl").unwrap_or_default();
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

/// The contract of a file of weights: inside it if it is ours, else beside it, in our words or in timm's.
///
/// # Errors
/// A file that is not whole, a contract that says something we cannot do, or two that differ.
pub fn contract_of(path: &Path, which: Which) -> Result<Option<Contract>> {
    let shown = path.display().to_string();
    let about = which.about(path)?;
    let inside = about.get("contract").map(|c| Contract::parse(&c.to_string(), &shown)).transpose()?;
    // What lies beside two networks is for the first.
    let beside = if which == Which::Tower && inside.is_some() { None } else { Contract::beside(path)? };
    match (&inside, &beside) {
        (Some(inside), Some(beside)) if inside != beside => Err(Error::user(
            format!(
                "the preprocessing contract inside `{shown}` differs from `{}` beside it",
                path.with_file_name("preprocess.json").display()
            ),
            "what is inside was written with the weights: remove the file, or put the one back that belongs to them",
        )),
        (None, None) => match text::beside(path, "config.json")? {
            Some(text) => timm::contract(&text, &path.with_file_name("config.json").display().to_string()),
            None => Ok(None),
        },
        _ => Ok(inside.or(beside)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tl_proto::spec::{JobSpec, ModelSection};

    use super::{header::METADATA, testing::bare, *};
    use crate::{
        predict::Model,
        train::{export, net::Net},
    };

    fn model(backbone: &str, weights: Option<&Path>) -> ModelSection {
        ModelSection {
            backbone: backbone.into(),
            weights: weights.map(|p| p.display().to_string()),
            ..ModelSection::default()
        }
    }

    fn classes(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn build(model: &ModelSection) -> Result<Net> {
        Net::build(model, &classes(&["a", "b"]), false, 1, &BTreeMap::new())
    }

    /// A model file as a job exports it, alone in a folder.
    fn exported(net: &Net, dir: &Path) -> PathBuf {
        let job = "schema = 1\njob = { name = \"t\", kind = \"finetune\" }\nmodel = { backbone = \"small_cnn\" }";
        let spec = JobSpec::from_toml(job, &[]).unwrap();
        let bytes = export::safetensors(net, &net.network.initial, &classes(&["a", "b"]), &spec).unwrap();
        let path = dir.join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn weights_of_another_network_are_refused_by_the_names_of_tensors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        bare(&build(&model("small_cnn", None)).unwrap(), &path);
        let mut other = model("resnet20", Some(&path));
        other.preprocess = Some("unit".into());
        let error = build(&other).err().unwrap().to_string();
        assert!(error.contains("are of another network: no conv1.weight"), "{error}");
    }

    #[test]
    fn weights_beside_timms_word_for_another_network_are_refused_though_they_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let net = build(&model("small_cnn", None)).unwrap();
        bare(&net, &path);
        let mut other = model("small_cnn", Some(&path));
        other.preprocess = Some("unit".into());
        assert!(build(&other).is_ok());
        std::fs::write(dir.path().join("config.json"), r#"{"architecture": "resnetblur50", "pretrained_cfg": null}"#)
            .unwrap();
        let error = build(&other).err().unwrap().to_string();
        assert!(error.contains("are of timm's `resnetblur50`, which is not small_cnn"), "{error}");
        // A file of ours says itself what it is.
        std::fs::remove_file(&path).unwrap();
        let own = exported(&net, dir.path());
        assert!(build(&model("small_cnn", Some(&own))).is_ok());
    }

    #[test]
    fn a_network_behind_a_prefix_is_loaded_or_the_prefix_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let net = Net::build(&model("small_cnn", None), &classes(&["a", "b"]), false, 2, &BTreeMap::new()).unwrap();
        let path = dir.path().join("w.safetensors");
        bare(&net, &path);
        let file = read(&path).unwrap();
        let behind = |prefix: &str| {
            let named = file.iter().map(|(name, t)| (format!("{prefix}{name}"), t.clone()));
            candle_core::safetensors::save(&named.collect(), &path).unwrap();
            build(&ModelSection { preprocess: Some("unit".into()), ..model("small_cnn", Some(&path)) })
        };
        let first = |net: &Net| {
            let store = &net.network.initial;
            store.values[store.params[0].range.clone()].to_vec()
        };
        for prefix in ["", "module.", "_orig_mod.", "model.", "module.model._orig_mod.", "net.backbone."] {
            assert_eq!(first(&behind(prefix).unwrap()), first(&net), "{prefix}");
        }
        let Err(Error::User { message, hint }) = behind("encoder_q.") else { panic!("no error") };
        assert!(
            message.contains("are of another network") && hint.contains("behind `encoder_q.`"),
            "{message}: {hint}"
        );
    }

    #[test]
    fn a_contract_must_be_there_and_be_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        bare(&build(&model("small_cnn", None)).unwrap(), &path);
        let mut job = model("small_cnn", Some(&path));
        assert!(build(&job).err().unwrap().to_string().contains("without a preprocessing contract"));
        job.preprocess = Some("torch".into());
        assert_eq!(build(&job).unwrap().contract.scale, Scale::Unit);
        let said = serde_json::to_string(&Contract::named("tf", 32, None).unwrap()).unwrap();
        std::fs::write(dir.path().join("preprocess.json"), said).unwrap();
        assert!(build(&job).err().unwrap().to_string().contains("ask for different preprocessing"));
        job.preprocess = None;
        assert_eq!(build(&job).unwrap().contract.scale, Scale::Tf);
    }

    proptest::proptest! {
        #[test]
        fn damaged_safetensors_are_refused_without_a_panic(at in 0usize..20_000, put in proptest::collection::vec(0u8.., 1..9)) {
            let dir = tempfile::tempdir().unwrap();
            let path = exported(&build(&model("small_cnn", None)).unwrap(), dir.path());
            let mut bytes = std::fs::read(&path).unwrap();
            // Mostly in the header: what follows is numbers.
            let at = at % 4096.min(bytes.len() - put.len());
            bytes[at..at + put.len()].copy_from_slice(&put);
            std::fs::write(&path, &bytes).unwrap();
            if let Err(e) = build(&model("small_cnn", Some(&path))) {
                assert!(!e.to_string().is_empty());
            }
        }
    }

    #[test]
    fn parts_that_no_model_of_ours_has_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        for (said, good) in [
            (r#"{"adapter":{"reduction":8}}"#, true),
            (r#"{"ema":{"decay":0.9}}"#, true),
            (r#"{"adapter":{"reduction":0}}"#, false),
            (r#"{"adapter":{"reduction":-1}}"#, false),
            (r#"{"lora":{"rank":4000000000}}"#, false),
            (r#"{"ia3":{}}"#, false),
            ("3", false),
        ] {
            let tl = serde_json::json!({ "modifiers": serde_json::from_str::<serde_json::Value>(said).unwrap() });
            let header = serde_json::json!({ METADATA: { "tl": tl.to_string() } }).to_string();
            std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
            assert_eq!(inside(&path).is_ok(), good, "{said}");
        }
    }

    #[test]
    fn a_file_that_is_cut_off_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        bare(&build(&model("small_cnn", None)).unwrap(), &path);
        let bytes = std::fs::read(&path).unwrap();
        for len in [0, 7, 100, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert!(read(&path).is_err(), "{len} bytes");
        }
        // What is whole is read whatever it is called.
        for name in ["w.pth", "w.pth.tar", "last.ckpt", "w"] {
            let other = dir.path().join(name);
            std::fs::write(&other, &bytes).unwrap();
            assert!(read(&other).unwrap().len() > 3, "{name}");
            std::fs::write(&other, &bytes[..7]).unwrap();
            assert!(read(&other).is_err(), "{name}");
        }
    }

    #[test]
    fn the_contract_inside_a_file_of_ours_counts_and_another_one_beside_it_is_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = from.path().join("w.safetensors");
        bare(&build(&model("small_cnn", None)).unwrap(), &path);
        let said = r#"{"input_size": [3, 32, 32], "scale": "x / 255", "color": "bgr", "batch_norm_eps": 0.001}"#;
        std::fs::write(from.path().join("preprocess.json"), said).unwrap();
        let first = build(&model("small_cnn", Some(&path))).unwrap();
        assert!(first.contract.bgr() && first.contract.batch_norm_eps == 0.001);

        let file = exported(&first, to.path());
        let beside = to.path().join("preprocess.json");
        for text in [None, Some(serde_json::to_string_pretty(&first.contract).unwrap())] {
            text.iter().for_each(|t| std::fs::write(&beside, t).unwrap());
            assert_eq!(build(&model("small_cnn", Some(&file))).unwrap().contract, first.contract);
            Model::open(to.path()).unwrap();
        }
        std::fs::write(&beside, said.replace("bgr", "rgb")).unwrap();
        let errors = [build(&model("small_cnn", Some(&file))).err(), Model::open(&file).err()];
        for error in errors.map(|e| e.unwrap().to_string()) {
            assert!(error.contains("model.safetensors` differs from") && error.contains("preprocess.json"), "{error}");
        }
    }

    #[test]
    fn a_head_is_kept_for_its_own_classes_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = exported(&build(&model("small_cnn", None)).unwrap(), dir.path());
        let keep = |names: &[&str]| {
            Net::build(&model("small_cnn", Some(&file)), &classes(names), true, 1, &BTreeMap::new()).map(|_| ())
        };
        keep(&["a", "b"]).unwrap();
        for (names, says) in [
            (&["b", "a"][..], "class 1 of weights"),
            (&["a", "c"][..], "is `b`, and of the data `c`"),
            (&["a", "b", "c"][..], "is missing, and of the data `c`"),
            (&["a"][..], "is `b`, and of the data missing"),
        ] {
            let error = keep(names).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        // A new head may be for anything.
        Net::build(&model("small_cnn", Some(&file)), &classes(&["x", "y", "z"]), false, 1, &BTreeMap::new()).unwrap();
    }
}
