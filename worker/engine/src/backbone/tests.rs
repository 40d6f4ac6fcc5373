//! Every image backbone against its reference: all names and shapes, and a pass both ways.

use tl_proto::spec::{HeadSection, Precision};

use super::{ALL, Inside, Network, Unit};
use crate::{
    Result,
    nn::{Array, BufferId, DropoutDraw, Entry, Gradients, Layer, Layout, ParamId, Pass, Tape, host, testing},
    num::{bf16::rounded, rng::Philox},
    weights::Contract,
};

/// FNV-1a (Fowler, Noll and Vo) of the sorted lines `name [shape]` of all tensors.
fn digest(network: &Network) -> u64 {
    let line = |e: &Entry| format!("{} {:?}\n", e.name, e.shape);
    let mut lines: Vec<String> = network.initial.params.iter().chain(&network.initial.buffers).map(line).collect();
    lines.sort();
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    lines.concat().bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

fn build(name: &str) -> Network {
    let backbone = ALL.iter().find(|b| b.name == name).unwrap();
    build_for(name, backbone.input, Inside::default())
}

fn build_for(name: &str, side: u32, dropout: Inside) -> Network {
    let backbone = ALL.iter().find(|b| b.name == name).unwrap();
    let contract = Contract::named("torch", side, None).unwrap();
    let asked = super::Asked { dropout, ..super::Asked::default() };
    Network::build_with(backbone, &contract, &HeadSection::default(), 1000, 1, asked)
}

/// Elements of parameters and of buffers, and one tensor that a person can look up; then the digest of all, computed from
/// the state dict of the reference (of Keras' layers: kernels in PyTorch's order, `gamma` as `weight`, `beta` as `bias`).
fn has(network: &Network, elements: (usize, usize), example: (&str, &[usize]), all: u64) {
    let store = &network.initial;
    let found = store.params.iter().find(|p| p.name == example.0).unwrap_or_else(|| panic!("no {}", example.0));
    assert_eq!(found.shape, example.1);
    assert_eq!((store.values.len(), store.buffer_values.len()), elements);
    assert_eq!(digest(network), all, "names or shapes differ from the reference");
}

/// Trains everything on three small images: all is finite, and backward reaches every parameter.
fn learns(network: &Network, side: usize) {
    learns_seen(network, side, |_, _| {});
}

/// The same; `seen` is told of what each unit gives, and of what it hands back to the one before it.
fn learns_seen(network: &Network, side: usize, mut seen: impl FnMut(&str, &Array)) {
    let store = &network.initial;
    let params: Vec<ParamId> = (0..store.params.len()).map(ParamId).collect();
    let mut norms = Vec::new();
    network.units.iter().filter(|u| u.name != "normalization").for_each(|u| u.layer.norms(&mut norms));
    let norms: Vec<BufferId> = norms.iter().map(|n| n.0).collect();
    let layout = Layout::new(store, &params, &norms);
    let draw = DropoutDraw { rng: Philox::new(1, "dropout"), draws: &[4, 5, 6] };
    let pass = Pass { layout: Some(&layout), dropout: Some(draw), ..Pass::eval(store) };
    let mut tape = Tape::default();
    let forward = |x: Array, unit: &Unit| -> Result<Array> {
        let y = unit.layer.forward(&x, &pass, &mut tape)?;
        seen(&unit.name, &y);
        Ok(y)
    };
    let y = network.units.iter().try_fold(testing::array(&[3, side, side, 3]), forward).unwrap();
    assert_eq!(y.dims(), [3, 1000]);
    let mut grads = Gradients::new(&layout);
    let mut dy = testing::array(&[3, 1000]);
    for (i, unit) in network.units.iter().enumerate().rev() {
        let Some(dx) = unit.layer.backward(&dy, &pass, &mut tape, &mut grads, i > 0).unwrap() else {
            assert!(i == 0, "{} gives no gradient", unit.name);
            break;
        };
        seen(&unit.name, &dx);
        dy = dx;
    }
    assert!(host(&y).unwrap().iter().chain(&grads.flat).all(|v| v.is_finite()));
    for (id, slot) in layout.trained() {
        let learnt = grads.touched[id.0] && grads.flat[slot].iter().any(|g| *g != 0.0);
        assert!(learnt, "backward does not reach {}", store.params[id.0].name);
    }
    // Every unit between the first and the head has something to train, but for steps without parameters.
    let bare: Vec<&str> = (0..network.head)
        .filter(|u| network.unit_params(*u).is_empty())
        .map(|u| network.units[u].name.as_str())
        .collect();
    assert!(bare.iter().all(|name| ["pool", "grid", "normalization"].contains(name)), "{bare:?}");
}

#[test]
fn vgg16_is_torchvisions() {
    let net = build("vgg16");
    has(&net, (138_357_544, 0), ("features.28.weight", &[512, 512, 3, 3]), 0xc289_28e3_9d00_7d16);
    learns(&net, 32);
}

#[test]
fn vgg19_is_torchvisions() {
    let net = build("vgg19");
    has(&net, (143_667_240, 0), ("features.34.weight", &[512, 512, 3, 3]), 0x36d3_3bf2_95df_503e);
}

#[test]
fn densenet121_is_torchvisions() {
    let net = build("densenet121");
    let example = ("features.denseblock4.denselayer16.norm1.weight", &[992][..]);
    has(&net, (7_978_856, 83_648), example, 0xfb86_7ca5_94e7_9589);
    learns(&net, 32);
}

#[test]
fn efficientnet_b0_is_torchvisions() {
    let net = build("efficientnet_b0");
    let example = ("features.6.3.block.2.fc1.weight", &[48, 1152, 1, 1][..]);
    has(&net, (5_288_548, 42_016), example, 0x5c24_6a99_fb3c_e69c);
    learns(&net, 32);
}

#[test]
fn inception_v3_is_torchvisions_without_its_auxiliary_head() {
    let net = build("inception_v3");
    let example = ("Mixed_6c.branch7x7dbl_3.conv.weight", &[160, 160, 1, 7][..]);
    has(&net, (23_834_568, 34_432), example, 0x59b1_ee96_dc81_4f7f);
    learns(&net, 75);
}

#[test]
fn inception_resnet_v2_is_timms() {
    let net = build("inception_resnet_v2");
    let example = ("repeat_1.19.branch1.1.conv.weight", &[160, 128, 1, 7][..]);
    has(&net, (55_843_464, 60_544), example, 0x07ab_3b53_f496_bde2);
    learns(&net, 75);
}

#[test]
fn resnet50_keras_has_biases_and_strides_first() {
    let net = build("resnet50_keras");
    let example = ("conv3_block1_1_conv.bias", &[128][..]);
    has(&net, (25_583_592, 53_120), example, 0xb2b3_e9fd_373e_820e);
    let mut said = String::new();
    net.units.iter().find(|u| u.name == "conv3_block1").unwrap().layer.describe(&mut said);
    assert!(said.contains("norm:0.00001001:relu;"), "{said}");
    learns(&net, 32);
}

#[test]
fn efficientnet_b0_keras_normalises_its_input() {
    let net = build("efficientnet_b0_keras");
    let example = ("block6d_se_reduce.weight", &[48, 1152, 1, 1][..]);
    has(&net, (5_288_548, 42_022), example, 0x0970_aa7e_2c6d_88fc);
    // The published weights' constants: the usual normalisation by ImageNet's means and deviations.
    let x = crate::nn::array(vec![0.5, 0.5, 0.5], &[1, 1, 1, 3]).unwrap();
    let y = net.units[0].layer.forward(&x, &Pass::eval(&net.initial), &mut Tape::default()).unwrap();
    let usual = [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225];
    testing::assert_close(&y, &crate::nn::tensor(usual.to_vec(), &[1, 1, 1, 3]).unwrap(), 1e-6);
    learns(&net, 32);
}

#[test]
fn vit_s16_is_timms() {
    let net = build("vit_s16");
    let example = ("blocks.11.attn.qkv.weight", &[1152, 384][..]);
    has(&net, (22_050_664, 0), example, 0xf5e7_8326_e3f1_45bc);
    let units: Vec<&str> = net.units.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(
        (units.len(), units[0], units[1], units[13], units[14]),
        (15, "patch_embed", "blocks.0", "norm", "head")
    );
    learns(&build_for("vit_s16", 32, Inside { hidden: Some(0.1), attention: Some(0.1) }), 32);
}

#[test]
fn nasnet_mobile_is_keras() {
    let net = build("nasnet_mobile");
    let example = ("separable_conv_1_reduction_right1_reduce_8.depthwise.weight", &[176, 1, 7, 7][..]);
    has(&net, (5_289_978, 36_738), example, 0x7d46_299b_3d3f_bff1);
    learns(&net, 32);
}

#[test]
fn conv4_is_the_network_of_few_shot_learning() {
    let net = build("conv4_64");
    // Without biases of convolutions, and for three channels; a classifier of 1000.
    let own = 9 * 64 * (3 + 3 * 64) + 4 * 2 * 64;
    assert_eq!((net.initial.values.len() - 1000 * 65, net.initial.buffer_values.len()), (own, 4 * 2 * 64));
    learns(&net, 28);
    for (side, width) in [(28, 64), (84, 1600)] {
        let net = build_for("conv4_64", side, Inside::default());
        assert_eq!(net.width, width);
        learns(&net, side as usize);
    }
}

#[test]
fn networks_of_images_hand_on_what_bf16_has_from_unit_to_unit() {
    for name in ["small_cnn", "conv4_64", "resnet20", "mobilenet_v2", "efficientnet_b0"] {
        let mut net = build_for(name, 32, Inside::default());
        net.initial.precision = Precision::Bf16;
        learns_seen(&net, 32, |unit, handed| {
            let handed = host(handed).unwrap();
            assert!(handed.iter().all(|v| *v == rounded(*v)), "{unit} of {name}");
        });
    }
}

#[test]
fn a_network_for_no_classes_ends_with_its_features() {
    let backbone = ALL.iter().find(|b| b.name == "resnet20").unwrap();
    let contract = Contract::named("torch", 32, None).unwrap();
    let of = |head: &HeadSection, outputs| Network::build(backbone, &contract, head, outputs, 1);
    let (bare, whole) = (of(&HeadSection::default(), 0), of(&HeadSection::default(), 3));
    assert_eq!((bare.units.len(), bare.embeds(), bare.head), (whole.units.len() - 1, whole.embeds(), whole.head));
    assert!(bare.initial.params.iter().all(|p| !p.name.starts_with("linear")));
    let hidden = HeadSection { hidden: vec![7], ..HeadSection::default() };
    assert_eq!((of(&hidden, 0).width, of(&hidden, 0).embeds() - bare.embeds()), (7, 1));
}

#[test]
fn lenet_has_the_widths_of_caffes_and_takes_digits_of_any_size_that_leaves_some_pixels() {
    let net = build("lenet");
    let names: Vec<(&str, &[usize])> = net.initial.params.iter().map(|p| (p.name.as_str(), &p.shape[..])).collect();
    let (first, second, dense) = ([20, 3, 5, 5], [50, 20, 5, 5], [500, 50 * 4 * 4]);
    assert_eq!(names[..2], [("conv1.weight", &first[..]), ("conv1.bias", &[20])]);
    assert_eq!(names[2..5], [("conv2.weight", &second[..]), ("conv2.bias", &[50]), ("fc1.weight", &dense)]);
    learns(&net, 28);
    learns(&build_for("lenet", 33, Inside::default()), 33);
}

#[test]
fn the_convolutions_of_lenet_alone_have_its_weights_and_what_they_see_at_each_place_as_features() {
    let (whole, net) = (build("lenet"), build("lenet_conv"));
    let names =
        |net: &Network| net.initial.params.iter().map(|p| (p.name.clone(), p.shape.clone())).collect::<Vec<_>>();
    assert_eq!(names(&net)[..4], names(&whole)[..4]);
    assert_eq!(net.width, 50 * 4 * 4);
    learns(&net, 28);
}
