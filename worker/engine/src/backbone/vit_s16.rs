//! ViT-S/16 (Dosovitskiy et al., 2020; Touvron et al., 2020): twelve blocks on patches of 16 pixels, with timm's names.

use super::{Backbone, Same, Unit};
use crate::nn::{Act, Activation, Builder, EncoderBlock, Order, Pool, Sequential};

pub(super) const ENTRY: Backbone = Backbone {
    name: "vit_s16",
    doc: "ViT-S/16 as timm's vit_small_patch16_224, 22 million parameters, 384 features of the class token; other \
          inputs than 224 must be multiples of 16, and weights' position embeddings are resampled; weights of timm's \
          augreg want `preprocess = \"tf\"`",
    input: 224,
    classifier: "head",
    timm: &["vit_small_patch16_224", "vit_small_patch16_384", "deit_small_patch16_224"],
    activation: "gelu",
    blocks: true,
    build,
};

/// Pixels of a patch's side, width of a row, blocks, heads.
const PATCH: usize = 16;
const WIDTH: usize = 384;
const BLOCKS: usize = 12;
const HEADS: usize = 6;

const EPS: f32 = 1e-6;

fn block(b: &mut Builder, name: &str) -> EncoderBlock {
    let full = |part: &str| format!("{name}.{part}");
    let drop = b.given.dropout;
    let attention = b.mask(drop.attention(0.0));
    let drops = [drop.hidden(0.0); 3].map(|p| b.mask(p));
    let first = b.layer_norm(&full("norm1"), WIDTH, EPS);
    let attention =
        b.attention_fused([&full("attn.qkv"), &full("attn.proj")], WIDTH, (HEADS, WIDTH / HEADS), attention);
    let second = b.layer_norm(&full("norm2"), WIDTH, EPS);
    EncoderBlock {
        attention,
        norms: [first, second].map(Into::into),
        order: Order::Before,
        up: b.dense(&full("mlp.fc1"), (WIDTH, 4 * WIDTH)),
        act: Activation(Act::Gelu),
        down: b.dense(&full("mlp.fc2"), (4 * WIDTH, WIDTH)),
        drops,
    }
}

fn build(b: &mut Builder, _: Same) -> (Vec<Unit>, usize) {
    b.output = Builder::dense;
    let drop = b.mask(b.given.dropout.hidden(0.0));
    let patches = b.patches(PATCH, WIDTH, b.given.side, drop);
    let mut units = vec![Unit::new("patch_embed", patches)];
    for i in 0..BLOCKS {
        let name = format!("blocks.{i}");
        let layer = block(b, &name);
        units.push(Unit::new(name, layer));
    }
    // Rows are normalised one by one: only that of the class is needed.
    let norm = Sequential::default().with(Pool::First).with(b.layer_norm("norm", WIDTH, EPS));
    units.push(Unit::of("norm", norm).joined());
    (units, WIDTH)
}

#[cfg(test)]
mod tests {
    use tl_proto::spec::ModelSection;

    use crate::{
        nn::{Entry, ParamId},
        train::net::Net,
        weights::testing::bare,
    };

    #[test]
    fn initial_values_have_the_distributions_of_timms() {
        let model = ModelSection {
            backbone: "vit_s16".into(),
            input: Some(32),
            preprocess: Some("tf".into()),
            ..ModelSection::default()
        };
        let classes: Vec<String> = (0..40).map(|c| c.to_string()).collect();
        let net = Net::build(&model, &classes, false, 1, &[].into()).unwrap();
        let store = &net.network.initial;
        // Largest magnitude and standard deviation; of a uniform distribution they are √3 apart.
        let seen = |name: &str| {
            let entry = store.params.iter().find(|e| e.name == name).unwrap();
            let v = &store.values[entry.range.clone()];
            let most = v.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            (most, (v.iter().map(|v| v * v).sum::<f32>() / v.len() as f32).sqrt())
        };
        let bound = 1.0 / 768f32.sqrt();
        for name in ["patch_embed.proj.weight", "patch_embed.proj.bias"] {
            let (most, std) = seen(name);
            assert!(most <= bound && most > 0.98 * bound, "{name}: {most}");
            assert!((std * 3f32.sqrt() / bound - 1.0).abs() < 0.05, "{name}: {std}");
        }
        for (name, wanted) in [
            ("cls_token", 1e-6),
            ("pos_embed", 0.02),
            ("blocks.0.attn.qkv.weight", 0.02),
            ("blocks.11.mlp.fc2.weight", 0.02),
            ("head.weight", 0.02),
        ] {
            let (most, std) = seen(name);
            assert!((std / wanted - 1.0).abs() < 0.1 && most > 2.5 * wanted, "{name}: {most}, {std}");
        }
        for name in ["blocks.0.attn.qkv.bias", "blocks.11.mlp.fc2.bias", "head.bias", "norm.bias"] {
            assert_eq!(seen(name), (0.0, 0.0), "{name}");
        }
    }

    #[test]
    fn weights_of_another_input_size_fit_and_a_size_that_patches_do_not_tile_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let build = |input: u32, weights: bool| {
            let model = ModelSection {
                backbone: "vit_s16".into(),
                weights: weights.then(|| path.display().to_string()),
                preprocess: Some("tf".into()),
                input: Some(input),
                ..ModelSection::default()
            };
            Net::build(&model, &["a".into(), "b".into()], false, 1, &[].into()).unwrap()
        };
        let small = build(32, false);
        // As timm's `no_weight_decay` says: everything else of more than one dimension decays.
        let store = &small.network.initial;
        let still: Vec<&str> =
            store.params.iter().filter(|p| p.shape.len() > 1 && !p.decays).map(|p| p.name.as_str()).collect();
        assert_eq!(still, ["cls_token", "pos_embed"]);
        let rest = store.without(&[ParamId(0)]);
        let said = |e: &Entry| (e.name.clone(), e.decays, e.norm);
        assert!(rest.params.iter().map(said).eq(store.params[1..].iter().map(said)), "what is left keeps its marks");
        bare(&small, &path);
        let large = build(48, true);
        let places = |net: &Net| {
            let store = &net.network.initial;
            let entry = store.params.iter().find(|e| e.name == "pos_embed").unwrap();
            (entry.shape.clone(), store.values[entry.range.clone()].to_vec())
        };
        let ((small_shape, from), (large_shape, to)) = (places(&small), places(&large));
        assert_eq!((small_shape, large_shape), (vec![1, 5, 384], vec![1, 10, 384]));
        assert_eq!(from[..384], to[..384], "the class has no place to be moved");
        // The middle of nine is the mean of four.
        let middle: f32 = (1..5).map(|i| from[i * 384]).sum::<f32>() / 4.0;
        assert!((to[5 * 384] - middle).abs() < 1e-6);
        assert_eq!(large.shape_at(&large.network.initial, 1).unwrap(), [11, 384]);
        let odd = build(40, true);
        let error = odd.shape_at(&odd.network.initial, 1).unwrap_err().to_string();
        assert!(error.contains("an input of 40x40"), "{error}");
    }
}
