//! Whole networks of images, forward and backward, on the GPU as on the host.

use tl_engine::{
    backbone::{Network, find},
    nn::{BufferId, Layer, Layout, ParamId, Pass, Sequential},
    weights::Contract,
};
use tl_proto::spec::HeadSection;

use crate::{
    image_layers::{here, passed, there},
    layers::down,
    numbers, shared,
};

/// Networks all of whose layers can compute on a GPU, with a small side of images and a padding; and whether batch-norms take
/// the statistics of the batch too. Those of a deep network over so few pixels magnify the last digit of what they are given,
/// layer by layer, until little can be compared.
const NETWORKS: &[(&str, u32, &str, bool)] =
    &[("small_cnn", 9, "symmetric", true), ("small_cnn", 10, "same", false), ("mobilenet_v2", 16, "same", false)];

fn norm(x: impl Iterator<Item = f32>) -> f64 {
    x.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// Refuses what is farther off than `share` of the whole, or than `least`. Not number by number: a rectifier at its kink may
/// go the other way.
fn alike(what: &str, got: &[f32], want: &[f32], share: f64, least: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let (off, whole) = (norm(got.iter().zip(want).map(|(g, w)| g - w)), norm(want.iter().copied()));
    assert!(off <= share * whole + least, "{what} is {off} off {whole}");
}

#[test]
fn networks_of_images_give_and_learn_what_they_do_on_the_host() {
    if shared().is_none() {
        return;
    }
    for &(name, side, padding, statistics) in NETWORKS {
        let contract = Contract::named("torch", side, Some(padding)).unwrap();
        let network = Network::build(find(name).unwrap(), &contract, &HeadSection::default(), 3, 1);
        let store = network.initial;
        let layers = network.units.into_iter().map(|unit| Box::new(unit.layer) as Box<dyn Layer>);
        let whole = Sequential(layers.collect());
        let params: Vec<ParamId> = (0..store.params.len()).map(ParamId).collect();
        let mut norms = Vec::new();
        whole.norms(&mut norms);
        let means: Vec<BufferId> = norms.iter().map(|(mean, _)| *mean).collect();
        let shape = [3, side as usize, side as usize, 3];
        let x = numbers(1, shape.iter().product());
        for means in [&[][..], &means[..]].into_iter().take(1 + usize::from(statistics)) {
            let what = |part: &str| format!("{part} of {name}, {padding}, {} norms in training", means.len());
            let layout = Layout::new(&store, &params, means);
            let pass = Pass { layout: Some(&layout), ..Pass::eval(&store) };
            let want = passed(&whole, &pass, (&x, &shape), true, here);
            let got = passed(&whole, &pass, (&x, &shape), true, there);
            alike(&what("the output"), &down(&got.y), &down(&want.y), 1e-4, 0.0);
            let [dx, wanted] = [got.dx, want.dx].map(|dx| down(&dx.unwrap()));
            alike(&what("the slope of the input"), &dx, &wanted, 2e-2, 0.0);
            let all = norm(want.flat[..layout.params_len()].iter().copied());
            for (id, at) in layout.trained() {
                let tensor = what(&store.params[id.0].name);
                alike(&tensor, &got.flat[at.clone()], &want.flat[at], 2e-2, 1e-5 * all);
            }
            for (mean, at) in layout.norms() {
                let sums = what(&store.buffers[mean.0].name);
                alike(&sums, &got.flat[at.clone()], &want.flat[at], 1e-4, 0.0);
            }
        }
    }
}
