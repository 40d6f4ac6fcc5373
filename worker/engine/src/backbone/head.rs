//! A classifier's head: hidden layers, each dense, then norm and activation in either order, then dropout; and the output.

use tl_proto::spec::{HeadAct, HeadSection, Norm};

use super::Unit;
use crate::{
    nn::{Act, Activation, Builder, Dropout, Linear, Sequential},
    weights::Contract,
};

/// A head that is to be built.
pub(super) struct Wanted<'a> {
    /// As the job has it.
    pub head: &'a HeadSection,
    /// What the names of its tensors begin with.
    pub prefix: &'a str,
    /// What its output is called behind that.
    pub classifier: &'a str,
    /// The number of the random numbers of its first dropout, less one.
    pub site: u32,
    /// How the output begins.
    pub output: fn(&mut Builder, &str, (usize, usize)) -> Linear,
}

impl Wanted<'_> {
    /// Its units, and how many numbers the output takes; where there are no classes, there is none, and that is what comes out.
    pub fn units(
        self,
        b: &mut Builder,
        contract: &Contract,
        (features, outputs): (usize, usize),
    ) -> (Vec<Unit>, usize) {
        let Self { head, prefix, classifier, mut site, output } = self;
        let usual = contract.text.as_ref().and_then(|t| t.shape.as_ref()).map_or(0.0, |s| s.head_dropout);
        let p = head.dropout.map_or(usual, |p| p as f32);
        let mut drop = |layers: Sequential| {
            site += 1;
            if p > 0.0 { layers.with(Dropout { p, site }) } else { layers }
        };
        let (mut units, mut width) = (Vec::new(), features);
        for (i, wide) in head.hidden.iter().map(|h| *h as usize).enumerate() {
            let name = format!("{prefix}head.{i}");
            let layers = hidden(b, head, &name, (width, wide));
            units.push(Unit::of(name, drop(layers)));
            width = wide;
        }
        if outputs > 0 {
            let before = if head.hidden.is_empty() { drop(Sequential::default()) } else { Sequential::default() };
            let name = format!("{prefix}{classifier}");
            let layer = before.with(output(b, &name, (width, outputs)));
            units.push(Unit::of(name, layer));
        }
        (units, width)
    }
}

/// A hidden layer called `name`. PyTorch's heads have the norm before the activation; Keras' have it after
/// (`act_first`).
fn hidden(b: &mut Builder, head: &HeadSection, name: &str, (input, output): (usize, usize)) -> Sequential {
    let layers = Sequential::default().with(b.linear(name, (input, output)));
    let normed = |b: &mut Builder, layers: Sequential| match head.norm {
        Norm::Batch => layers.with(b.norm(&format!("{name}.norm"), output)),
        Norm::None => layers,
    };
    let activated = |layers: Sequential| match act(head.activation) {
        Act::None => layers,
        act => layers.with(Activation(act)),
    };
    if head.act_first { normed(b, activated(layers)) } else { activated(normed(b, layers)) }
}

fn act(named: HeadAct) -> Act {
    match named {
        HeadAct::Relu => Act::Relu,
        HeadAct::Gelu => Act::Gelu,
        HeadAct::Silu => Act::Silu,
        HeadAct::Tanh => Act::Tanh,
        HeadAct::Sigmoid => Act::Sigmoid,
        HeadAct::None => Act::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Layer, Pass, Tape, host, testing};

    fn layer(head: &HeadSection) -> (Sequential, crate::nn::Store) {
        let mut b = Builder::new(3);
        let layers = hidden(&mut b, head, "head.0", (4, 5));
        (layers, b.store)
    }

    #[test]
    fn norm_and_activation_come_in_either_order() {
        // The lesson's head: dense with relu, then batch-norm.
        let keras = HeadSection { norm: Norm::Batch, act_first: true, ..HeadSection::default() };
        let torch = HeadSection { norm: Norm::Batch, ..HeadSection::default() };
        let said = |head: &HeadSection| {
            let mut text = String::new();
            layer(head).0.describe(&mut text);
            (text.find("norm").unwrap(), text.find("relu").unwrap())
        };
        let ((norm, relu), (before, after)) = (said(&torch), said(&keras));
        assert!(norm < relu && after < before);
        // With statistics that shift, the last layer tells: after a rectifier nothing is negative.
        let lowest = |head: &HeadSection| {
            let (layers, mut store) = layer(head);
            store.buffer_values[..5].fill(0.5);
            let y = layers.forward(&testing::array(&[6, 4]), &Pass::eval(&store), &mut Tape::default()).unwrap();
            host(&y).unwrap().iter().copied().fold(f32::INFINITY, f32::min)
        };
        assert!(lowest(&torch) >= 0.0 && lowest(&keras) < 0.0);
    }

    #[test]
    fn activations_are_the_ones_that_are_named() {
        let x = testing::array(&[3, 4]);
        let run = |activation| {
            let (layers, store) = layer(&HeadSection { activation, ..HeadSection::default() });
            let y = layers.forward(&x, &Pass::eval(&store), &mut Tape::default()).unwrap();
            host(&y).unwrap().to_vec()
        };
        let plain = run(HeadAct::None);
        type Function = fn(f64) -> f64;
        let functions: [(HeadAct, Function); 5] = [
            (HeadAct::Relu, |v| v.max(0.0)),
            (HeadAct::Silu, |v| v / (1.0 + (-v).exp())),
            (HeadAct::Tanh, f64::tanh),
            (HeadAct::Sigmoid, |v| 1.0 / (1.0 + (-v).exp())),
            (HeadAct::Gelu, |v| 0.5 * v * (1.0 + libm::erf(v / std::f64::consts::SQRT_2))),
        ];
        for (named, f) in functions {
            for (y, v) in run(named).iter().zip(&plain) {
                assert!((f64::from(*y) - f(f64::from(*v))).abs() < 1e-5, "{named:?}: {y} {v}");
            }
        }
    }
}
