//! What both VGG networks are made of (Simonyan and Zisserman, 2014), with torchvision's names. Keras' VGG16 and VGG19 are the
//! same up to the last pooling; their first dense layer reads the pixels in another order, and no dropout follows it.

use super::{SITE, Unit};
use crate::nn::{AvgPool, Builder, ConvSpec, Dropout, FlattenChannels, MaxPool, Padding, Relu, Sequential};

/// Channels of the five blocks.
const CHANNELS: [usize; 5] = [64, 128, 256, 512, 512];

/// Side of the grid in front of the classifier.
const GRID: usize = 7;

/// Five blocks of so many 3x3 convolutions, and two dense layers of 4096; all with biases, none with a batch-norm.
pub(super) fn build(b: &mut Builder, depths: [usize; 5]) -> (Vec<Unit>, usize) {
    let pad = (Padding::Symmetric(1), Padding::Symmetric(1));
    let mut units = Vec::new();
    // The place in torchvision's list, in which rectifiers and poolings count too.
    let (mut cin, mut at) = (3, 0);
    for (block, (depth, cout)) in depths.into_iter().zip(CHANNELS).enumerate() {
        let mut layer = Sequential::default();
        for _ in 0..depth {
            let spec = ConvSpec { cin, cout, kernel: (3, 3), stride: 1, pad, bias: true };
            layer = layer.with(b.conv_spec(&format!("features.{at}"), spec)).with(Relu);
            (cin, at) = (cout, at + 2);
        }
        layer = layer.with(MaxPool { k: 2, stride: 2, pad: 0 });
        units.push(Unit::of(format!("block{}", block + 1), layer));
        at += 1;
    }
    let grid = Sequential::default().with(AvgPool::Grid(GRID)).with(FlattenChannels);
    units.push(Unit::of("grid", grid));
    let mut width = cin * GRID * GRID;
    for (i, name) in ["classifier.0", "classifier.3"].into_iter().enumerate() {
        let dense = Sequential::default().with(b.linear(name, (width, 4096))).with(Relu);
        units.push(Unit::of(name, dense.with(Dropout { p: 0.5, site: SITE + i as u32 })));
        width = 4096;
    }
    (units, width)
}
