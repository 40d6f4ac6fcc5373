//! What timm keeps in `config.json` beside its weights: their preprocessing, and how the network was built. And the names of
//! those of its networks that torchvision names otherwise.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::Value;

use super::{Contract, Scale};
use crate::{Error, Result, backbone::Backbone};

/// `config.json` of timm; whatever else lies under that name has no `pretrained_cfg`.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architecture: String,
    pretrained_cfg: Option<Pretrained>,
}

#[derive(Deserialize)]
struct Pretrained {
    input_size: [u32; 3],
    #[serde(default = "bicubic")]
    interpolation: String,
    #[serde(default = "crop_pct")]
    crop_pct: f64,
    #[serde(default = "center")]
    crop_mode: String,
    mean: [f32; 3],
    std: [f32; 3],
}

fn bicubic() -> String {
    "bicubic".into()
}

fn crop_pct() -> f64 {
    0.875
}

fn center() -> String {
    "center".into()
}

/// The contract that a `config.json` of timm's says; nothing for any other.
///
/// # Errors
/// A `config.json` that is damaged, or asks for what we cannot do.
pub fn contract(text: &str, shown: &str) -> Result<Option<Contract>> {
    let bad = |why: &str| {
        Error::user(
            format!("`{shown}` asks for preprocessing that is not known: {why}"),
            "write `preprocess` and `padding` in the job instead, and put the weights where that file is not",
        )
    };
    // Text encoders keep other things under the same name; who reads them will say what is wrong.
    let Ok(value) = serde_json::from_str::<Value>(text) else { return Ok(None) };
    if value.get("pretrained_cfg").is_none() {
        return Ok(None);
    }
    let config: Config = serde_json::from_value(value).map_err(|e| bad(&e.to_string()))?;
    let Some(said) = config.pretrained_cfg else { return Ok(None) };
    let side = said.input_size[1];
    if said.crop_mode != "center" || !(0.1..=1.0).contains(&said.crop_pct) {
        return Err(bad(&format!("crop `{}` of {}", said.crop_mode, said.crop_pct)));
    }
    // Networks that were brought over from TensorFlow pad as it does.
    let tensorflow = config.architecture.starts_with("tf_");
    let contract = Contract {
        input_size: said.input_size,
        resize_short_side: (f64::from(side) / said.crop_pct).floor() as u32,
        scale: Scale::Unit,
        mean: said.mean,
        std: said.std,
        interpolation: said.interpolation,
        padding: if tensorflow { "tf_same" } else { "symmetric" }.into(),
        batch_norm_eps: if tensorflow { 1e-3 } else { crate::nn::Builder::EPS },
        ..Contract::named("unit", side, None)?
    };
    // The same limits as for ours.
    let text = serde_json::to_string(&contract).map_err(|e| bad(&e.to_string()))?;
    Contract::parse(&text, shown).map(Some)
}

/// Names that timm gave networks before it put the origin of weights into a tag, and what it calls them now.
const OLDER: [(&str, &str); 17] = [
    ("gluon_resnet101_v1b", "resnet101"),
    ("gluon_resnet152_v1b", "resnet152"),
    ("gluon_resnet18_v1b", "resnet18"),
    ("gluon_resnet34_v1b", "resnet34"),
    ("gluon_resnet50_v1b", "resnet50"),
    ("ssl_resnet18", "resnet18"),
    ("ssl_resnet50", "resnet50"),
    ("swsl_resnet18", "resnet18"),
    ("swsl_resnet50", "resnet50"),
    ("tf_efficientnet_b0_ap", "tf_efficientnet_b0"),
    ("tf_efficientnet_b0_ns", "tf_efficientnet_b0"),
    ("tv_densenet121", "densenet121"),
    ("tv_resnet101", "resnet101"),
    ("tv_resnet152", "resnet152"),
    ("tv_resnet34", "resnet34"),
    ("tv_resnet50", "resnet50"),
    ("vit_deit_small_patch16_224", "deit_small_patch16_224"),
];

/// What may be said of how a network was built without making it another one: sizes, which shapes of tensors show, what is
/// dropped while it trains, how its weights began or where they lay, how its statistics are kept, and what it is built for.
const FREE: [&str; 22] = [
    "num_classes",
    "in_chans",
    "img_size",
    "dynamic_img_size",
    "pretrained",
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "zero_init_last",
    "bn_momentum",
    "cache_dir",
    "checkpoint_path",
    "exportable",
    "fix_init",
    "no_jit",
    "scriptable",
    "strict_img_size",
    "weight_init",
];

/// Arguments of which nothing, or `false`, is something else than what timm takes by itself.
const SAID: [&str; 3] = ["act_layer", "global_pool", "pad_type"];

/// Whether an argument leaves a network as timm builds it.
fn changes_nothing(backbone: &Backbone, (name, value): (&str, &Value)) -> bool {
    let is_nothing = match value {
        Value::Null => return true,
        Value::Bool(on) => !on,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Number(_) => false,
    };
    // A transformer is judged by the row of its class.
    let pool = if backbone.blocks { "token" } else { "avg" };
    let usual = match (name, value.as_str()) {
        ("act_layer", Some("swish")) => backbone.activation == "silu",
        ("act_layer", act) => act == Some(backbone.activation),
        ("global_pool", said) => said == Some(pool),
        ("output_stride", _) => value.as_u64() == Some(32),
        _ => false,
    };
    usual || FREE.contains(&name) || (is_nothing && !SAID.contains(&name))
}

/// Refuses weights that `config.json` beside them says are of another network than `backbone`: many share names and shapes
/// of tensors, and compute something else (`resnetblur50` would load as `resnet50`). A file that is not timm's, or names none, is
/// nobody's word. timm's tags, as in `resnet50.a1_in1k`, name weights of one network. Refused too are those of
/// one that was built with arguments (`model_args`) that change what it computes, such as another activation.
///
/// # Errors
/// Names both networks, or the argument.
pub fn same_network(backbone: &Backbone, text: &str, shown: &str) -> Result<()> {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let Some(said) = value.get("architecture").and_then(|a| a.as_str()) else { return Ok(()) };
    if value.get("pretrained_cfg").is_none() {
        return Ok(());
    }
    let bare = said.split_once('.').map_or(said, |(name, _)| name);
    let bare = OLDER.iter().find(|(older, _)| *older == bare).map_or(bare, |(_, now)| now);
    if backbone.timm.contains(&bare) {
        let other = |(name, value): &(&String, &Value)| !changes_nothing(backbone, (name.as_str(), *value));
        let built = value.get("model_args").and_then(|args| args.as_object());
        return match built.and_then(|args| args.iter().find(other)) {
            None => Ok(()),
            Some((name, value)) => Err(Error::user(
                format!(
                    "`{shown}` says that the weights beside it are of timm's `{said}` built with `{name}` = {value}, which {} \
                     does not have",
                    backbone.name
                ),
                "give weights of the network as timm builds it; if that argument changes nothing of what it computes, take it \
                 out of that file",
            )),
        };
    }
    let known: Vec<String> = backbone.timm.iter().map(|name| format!("`{name}`")).collect();
    let known = if known.is_empty() { "none".into() } else { known.join(", ") };
    Err(Error::user(
        format!("`{shown}` says that the weights beside it are of timm's `{said}`, which is not {}", backbone.name),
        format!(
            "`model.backbone` must be the network that the weights were trained with; of timm's, this one is {known}. If that \
             file belongs to others, put it elsewhere"
        ),
    ))
}

/// Blocks of each stage.
const MOBILENET: [usize; 7] = [1, 2, 3, 4, 3, 3, 1];

/// Tensors of timm's MobileNetV2, EfficientNet-B0 and VGG under torchvision's names; other files as they are.
pub fn usual_names(backbone: &str, file: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    if matches!(backbone, "vgg16" | "vgg19") {
        return file.into_iter().map(|(name, t)| vgg(name, t)).collect();
    }
    if !file.contains_key("conv_stem.weight") {
        return file;
    }
    let name: fn(&str, &str) -> Option<String> = match backbone {
        "mobilenet_v2" => mobilenet,
        "efficientnet_b0" => efficientnet,
        _ => return file,
    };
    let usual = |whole: String| match whole.rsplit_once('.') {
        Some((layer, kind)) => name(layer, kind).unwrap_or(whole),
        None => whole,
    };
    file.into_iter().map(|(name, t)| (usual(name), t)).collect()
}

/// timm's VGG has convolutions over the whole grid where torchvision's has dense layers of the same numbers.
fn vgg(name: String, tensor: Tensor) -> (String, Tensor) {
    let usual = |(theirs, ours): &(&str, &str)| Some(format!("{ours}{}", name.strip_prefix(*theirs)?));
    let layers =
        [("pre_logits.fc1.", "classifier.0."), ("pre_logits.fc2.", "classifier.3."), ("head.fc.", "classifier.6.")];
    let Some(usual) = layers.iter().find_map(usual) else { return (name, tensor) };
    let tensor = if tensor.rank() > 2 { tensor.flatten_from(1).unwrap_or(tensor) } else { tensor };
    (usual, tensor)
}

/// Stage, block in it, and layer of `blocks.S.I.LAYER`.
fn place(layer: &str) -> Option<(usize, usize, &str)> {
    let mut parts = layer.strip_prefix("blocks.")?.splitn(3, '.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?))
}

fn mobilenet(layer: &str, kind: &str) -> Option<String> {
    let fixed = match layer {
        "conv_stem" => "features.0.0",
        "bn1" => "features.0.1",
        "conv_head" => "features.18.0",
        "bn2" => "features.18.1",
        "classifier" => "classifier.1",
        _ => "",
    };
    if !fixed.is_empty() {
        return Some(format!("{fixed}.{kind}"));
    }
    let (stage, index, part) = place(layer)?;
    let number = 1 + MOBILENET.get(..stage)?.iter().sum::<usize>() + index;
    // The first block does not expand.
    let part = match (stage, part) {
        (0, "conv_dw") | (1.., "conv_pw") => "0.0",
        (0, "bn1") | (1.., "bn1") => "0.1",
        (0, "conv_pw") => "1",
        (0, "bn2") => "2",
        (_, "conv_dw") => "1.0",
        (_, "bn2") => "1.1",
        (_, "conv_pwl") => "2",
        (_, "bn3") => "3",
        _ => return None,
    };
    Some(format!("features.{number}.conv.{part}.{kind}"))
}

fn efficientnet(layer: &str, kind: &str) -> Option<String> {
    let fixed = match layer {
        "conv_stem" => "features.0.0",
        "bn1" => "features.0.1",
        "conv_head" => "features.8.0",
        "bn2" => "features.8.1",
        "classifier" => "classifier.1",
        _ => "",
    };
    if !fixed.is_empty() {
        return Some(format!("{fixed}.{kind}"));
    }
    let (stage, index, part) = place(layer)?;
    let part = match (stage, part) {
        (0, "conv_dw") | (1.., "conv_pw") => "0.0",
        (_, "bn1") => "0.1",
        (0, "se.conv_reduce") => "1.fc1",
        (0, "se.conv_expand") => "1.fc2",
        (0, "conv_pw") => "2.0",
        (0, "bn2") => "2.1",
        (_, "conv_dw") => "1.0",
        (_, "bn2") => "1.1",
        (_, "se.conv_reduce") => "2.fc1",
        (_, "se.conv_expand") => "2.fc2",
        (_, "conv_pwl") => "3.0",
        (_, "bn3") => "3.1",
        _ => return None,
    };
    Some(format!("features.{}.{index}.block.{part}.{kind}", stage + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::find;

    /// As it lies beside `timm/resnet50.a1_in1k`, in part.
    const CONFIG: &str = r#"{"architecture": "resnet50", "num_classes": 1000, "num_features": 2048,
        "pretrained_cfg": {"tag": "a1_in1k", "custom_load": false, "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288], "fixed_input_size": false, "interpolation": "bicubic", "crop_pct": 0.95,
        "crop_mode": "center", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 1000,
        "pool_size": [7, 7], "first_conv": "conv1", "classifier": "fc"}}"#;

    #[test]
    fn timms_config_is_a_contract_and_another_config_is_none() {
        let c = contract(CONFIG, "c").unwrap().unwrap();
        assert_eq!((c.side(), c.resize_short_side, c.interpolation.as_str()), (224, 235, "bicubic"));
        assert_eq!((c.scale, c.mean[0], c.std[2], c.same()), (Scale::Unit, 0.485, 0.225, false));
        let tf = contract(&CONFIG.replace("\"resnet50\"", "\"tf_mobilenetv2\""), "c").unwrap().unwrap();
        assert!(tf.same() && tf.batch_norm_eps == 1e-3);
        assert_eq!(contract(r#"{"hidden_size": 384}"#, "c").unwrap(), None);
        assert_eq!(contract("not json", "c").unwrap(), None);
        for (from, to) in
            [("\"center\"", "\"squash\""), ("0.95", "0.01"), ("bicubic", "lanczos"), ("[3, 224, 224]", "[1, 9]")]
        {
            assert!(contract(&CONFIG.replacen(from, to, 1), "c").is_err(), "{to}");
        }
    }

    #[test]
    fn weights_of_a_network_that_only_looks_the_same_are_refused() {
        let check = |backbone: &str, said: &str| {
            let text = CONFIG.replacen("\"resnet50\"", &format!("{said:?}"), 1);
            same_network(find(backbone).unwrap(), &text, "c").map_err(|e| e.to_string())
        };
        for (backbone, said) in [
            ("resnet50", "resnet50"),
            ("resnet50", "resnet50.a1_in1k"),
            ("efficientnet_b0", "tf_efficientnet_b0"),
            ("efficientnet_b0", "tf_efficientnet_b0_ns"),
            ("resnet34", "tv_resnet34"),
            ("resnet152", "gluon_resnet152_v1b"),
            ("vit_s16", "deit_small_patch16_224.fb_in1k"),
        ] {
            check(backbone, said).unwrap();
        }
        for (backbone, said) in [
            ("resnet50", "resnetblur50"),
            ("resnet50", "seresnet50.a1_in1k"),
            ("resnet50", "resnet50d"),
            ("resnet50", "resnet18"),
            ("resnet50", "tv_resnet34"),
            ("resnet50", "gluon_resnet50_v1c"),
            ("vit_s16", "deit3_small_patch16_224"),
            ("small_cnn", "resnet50"),
        ] {
            let error = check(backbone, said).unwrap_err();
            assert!(error.contains(&format!("timm's `{said}`, which is not {backbone}")), "{error}");
        }
        for nobodys in [
            "{}",
            "not json",
            r#"{"architectures": ["BertModel"]}"#,
            r#"{"architecture": null}"#,
            r#"{"architecture": "tree"}"#,
        ] {
            same_network(find("resnet50").unwrap(), nobodys, "c").unwrap();
        }
    }

    #[test]
    fn weights_of_a_network_that_was_built_otherwise_are_refused() {
        let check_of = |backbone: &str, said: &str, args: &str| {
            let text = CONFIG.replacen("\"resnet50\"", &format!("{said:?}"), 1);
            let text = text.replacen('{', &format!("{{\"model_args\": {args}, "), 1);
            same_network(find(backbone).unwrap(), &text, "c").map_err(|e| e.to_string())
        };
        let check = |args: &str| check_of("resnet50", "resnet50", args);
        for args in [
            "null",
            "{}",
            r#"{"num_classes": 7, "drop_path_rate": 0.1}"#,
            r#"{"act_layer": null}"#,
            // What timm takes by itself, and what is of no weight.
            r#"{"act_layer": "relu", "global_pool": "avg", "output_stride": 32}"#,
            r#"{"features_only": false, "block_args": {}, "aa_layer": "", "bn_momentum": 0.1, "scriptable": true}"#,
        ] {
            check(args).unwrap();
        }
        let vit = |args: &str| check_of("vit_s16", "vit_small_patch16_224", args);
        vit(r#"{"global_pool": "token", "act_layer": "gelu"}"#).unwrap();
        assert!(vit(r#"{"global_pool": "avg"}"#).is_err());
        let tf = |args: &str| check_of("efficientnet_b0", "tf_efficientnet_b0", args);
        tf(r#"{"act_layer": "swish"}"#).unwrap();
        assert!(tf(r#"{"pad_type": ""}"#).is_err());
        for (args, said) in [
            (r#"{"global_pool": "max"}"#, "built with `global_pool` = \"max\""),
            (r#"{"avg_down": true}"#, "built with `avg_down` = true"),
            (r#"{"act_layer": "silu"}"#, "built with `act_layer` = \"silu\", which resnet50 does not have"),
            (r#"{"drop_rate": 0.1, "output_stride": 16}"#, "built with `output_stride` = 16"),
        ] {
            let error = check(args).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn timms_vgg_is_torchvisions_with_dense_layers() {
        let tensor = |shape: &[usize]| {
            let values = (0..shape.iter().product::<usize>()).map(|v| v as f32).collect();
            crate::nn::tensor(values, shape).unwrap()
        };
        let shapes: [(&str, &[usize], &str, &[usize]); 5] = [
            ("features.0.weight", &[2, 3, 3, 3], "features.0.weight", &[2, 3, 3, 3]),
            ("pre_logits.fc1.weight", &[4, 2, 7, 7], "classifier.0.weight", &[4, 98]),
            ("pre_logits.fc1.bias", &[4], "classifier.0.bias", &[4]),
            ("pre_logits.fc2.weight", &[4, 4, 1, 1], "classifier.3.weight", &[4, 4]),
            ("head.fc.weight", &[2, 4], "classifier.6.weight", &[2, 4]),
        ];
        let file = shapes.iter().map(|(name, shape, ..)| ((*name).to_owned(), tensor(shape))).collect();
        let usual = usual_names("vgg16", file);
        for (theirs, from, ours, shape) in shapes {
            let found = usual.get(ours).unwrap_or_else(|| panic!("{theirs}"));
            assert_eq!(found.dims(), shape, "{theirs}");
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(found), values(&tensor(from)), "{theirs}");
        }
        assert_eq!(usual.len(), 5);
    }

    #[test]
    fn names_of_timms_mobilenet_and_efficientnet_are_torchvisions() {
        for (theirs, ours) in [
            ("blocks.0.0.conv_dw.weight", "features.1.conv.0.0.weight"),
            ("blocks.0.0.bn2.bias", "features.1.conv.2.bias"),
            ("blocks.2.1.conv_pwl.weight", "features.5.conv.2.weight"),
            ("blocks.6.0.bn3.running_var", "features.17.conv.3.running_var"),
            ("conv_head.weight", "features.18.0.weight"),
        ] {
            let (layer, kind) = theirs.rsplit_once('.').unwrap();
            assert_eq!(mobilenet(layer, kind).unwrap(), ours);
        }
        for (theirs, ours) in [
            ("blocks.0.0.se.conv_expand.bias", "features.1.0.block.1.fc2.bias"),
            ("blocks.0.0.conv_pw.weight", "features.1.0.block.2.0.weight"),
            ("blocks.4.2.conv_dw.weight", "features.5.2.block.1.0.weight"),
            ("blocks.6.0.bn3.weight", "features.7.0.block.3.1.weight"),
        ] {
            let (layer, kind) = theirs.rsplit_once('.').unwrap();
            assert_eq!(efficientnet(layer, kind).unwrap(), ours);
        }
    }
}
