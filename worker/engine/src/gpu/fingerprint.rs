//! Which numbers a GPU computes: what [`num::fingerprint`](crate::num::fingerprint) says of the host, for ranks that have one.

use half::bf16;
use nvlib::{Library, Opened, driver};
use tl_proto::spec::Precision;

use super::{
    Array, Device, Fault,
    operand::multiplies,
    ops::{self, Affine, Convolution, Element, Math, Softmax},
};
use crate::{
    nn::Act,
    num::{
        fingerprint::fingerprint as of_host,
        rng::{Philox, Stream},
    },
};

/// Rows, inputs and outputs of products: a few numbers, and more than a block of a kernel takes at once.
const PRODUCTS: [[usize; 3]; 3] = [[3, 7, 5], [64, 520, 48], [33, 1100, 96]];
/// Output channels, stride and border of convolutions of images with three channels, by kernels of three by three.
const CONVOLUTIONS: [[usize; 3]; 2] = [[16, 2, 1], [24, 1, 0]];
/// The functions that are computed by formulas.
const FUNCTIONS: [Act; 5] = [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Tanh, Act::Sigmoid];

/// Digest of the host's numbers, which a rank with a GPU computes too; of the GPU's model, the driver, and the versions of
/// cuBLAS, cuDNN and NVRTC; and of the bits that a little of everything comes to there. It is made anew for each call, and
/// takes as long as loading what it calls: a rank keeps it.
///
/// # Errors
/// A library is missing, or the GPU has failed.
pub fn fingerprint(device: &Device) -> Result<[u8; 32], Fault> {
    Ok(digest(&of_host(), &names(device)?, &probe(device)?))
}

fn digest(host: &[u8; 32], names: &[String], bits: &[f32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(host);
    for name in names {
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
    }
    hasher.update(bytemuck::cast_slice(bits));
    *hasher.finalize().as_bytes()
}

/// What decides on algorithms and on machine code.
fn names(device: &Device) -> Result<Vec<String>, Fault> {
    let context = device.stream().context();
    let (major, minor) = context.compute_capability()?;
    let driver = driver::probe().map_err(|e| Fault::Refused { library: Library::Driver, answer: e.to_string() })?;
    // One that is not there has no version: the probe fails over it.
    let version = |library: Library| library.open().ok().and_then(Opened::version).unwrap_or_default();
    Ok(vec![
        context.name()?,
        format!("{major}.{minor}"),
        driver.module,
        driver.cuda.to_string(),
        version(Library::Cublas),
        version(Library::Cudnn),
        version(Library::Nvrtc),
    ])
}

/// What is computed of drawn numbers, one thing after the other.
struct Probe<'a> {
    device: &'a Device,
    draws: Stream,
    bits: Vec<f32>,
}

impl Probe<'_> {
    fn draw(&mut self, shape: &[usize]) -> Result<Array, Fault> {
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| self.draws.normal()).collect();
        self.device.upload(&values, shape)
    }

    fn keep<T: Element + Clone + Default + Into<f32>>(&mut self, array: &Array<T>) -> Result<(), Fault> {
        self.bits.extend(self.device.download(array)?.into_iter().map(Into::<f32>::into));
        Ok(())
    }

    /// Whether it multiplies them in a precision.
    fn has(&self, precision: Precision) -> bool {
        multiplies(self.device.capability(), precision).is_ok()
    }

    fn in_bf16(&self, arrays: [&Array; 3]) -> Result<[Array<bf16>; 3], Fault> {
        let [a, b, c] = arrays.map(|array| ops::to_bf16(self.device, array));
        Ok([a?, b?, c?])
    }

    fn products(&mut self) -> Result<(), Fault> {
        let device = self.device;
        for [rows, input, output] in PRODUCTS {
            let (x, w) = (self.draw(&[rows, input])?, self.draw(&[output, input])?);
            let (y, mut dw) = (ops::linear(device, &x, &w)?, device.zeros(&[output, input])?);
            ops::linear_weights(device, &y, &x, &mut dw)?;
            for array in [&y, &ops::linear_input(device, &y, &w)?, &dw] {
                self.keep(array)?;
            }
            if self.has(Precision::Tf32) {
                let math = Math { device, tf32: true };
                self.keep(&ops::linear(math, &x, &w)?)?;
                self.keep(&ops::linear_input(math, &y, &w)?)?;
                ops::linear_weights(math, &y, &x, &mut dw)?;
                self.keep(&dw)?;
            }
            if self.has(Precision::Bf16) {
                let [x, w, dy] = self.in_bf16([&x, &w, &y])?;
                self.keep(&ops::linear(device, &x, &w)?)?;
                self.keep(&ops::linear_input(device, &dy, &w)?)?;
                ops::linear_weights(device, &dy, &x, &mut dw)?;
                self.keep(&dw)?;
            }
        }
        Ok(())
    }

    fn functions(&mut self) -> Result<(), Fault> {
        // Both ends of every branch, as the host's are sampled.
        let at: Vec<f32> = (0..257).map(|i| (i as f32 - 128.0) / 128.0).map(|x| 95.0 * x * x * x).collect();
        let (at, slopes) = (self.device.upload(&at, &[at.len()])?, self.draw(&[at.len()])?);
        for act in FUNCTIONS {
            self.keep(&ops::activate(self.device, act, &at)?)?;
            self.keep(&ops::activate_back(self.device, act, &at, &slopes)?)?;
        }
        Ok(())
    }

    fn softmax(&mut self) -> Result<(), Fault> {
        let (device, lengths) = (self.device, self.device.upload(&[19u32, 7], &[2])?);
        let (mut scores, mut slopes) = (self.draw(&[4, 19, 19])?, self.draw(&[4, 19, 19])?);
        let (how, mut probable) = (Softmax { lengths: &lengths, scale: 0.25, dropped: None }, device.copy(&scores)?);
        let notes = ops::softmax(device, &mut probable, &how)?;
        ops::softmax_back(device, [&mut scores, &mut slopes], &notes, &how)?;
        self.keep(&scores)?;
        self.keep(&slopes)
    }

    fn norms(&mut self) -> Result<(), Fault> {
        let (device, rows, c) = (self.device, 600, 9);
        let (x, dy) = (self.draw(&[rows, c])?, self.draw(&[rows, c])?);
        let (gamma, beta) = (self.draw(&[c])?, self.draw(&[c])?);
        let affine = Affine { gamma: &gamma, beta: &beta };
        let stats = ops::statistics(device, &ops::moments(device, &x)?, 1e-5)?;
        self.keep(&stats)?;
        self.keep(&ops::normalise(device, &x, &stats, affine, Act::Relu)?)?;
        let slopes = ops::slopes(device, &dy, &x, &stats, affine, Act::Relu)?;
        self.keep(&ops::through(device, &dy, &x, &slopes, &stats, affine, Act::Relu)?)?;
        self.keep(&ops::layer_norm(device, &x, &gamma, &beta, 1e-5)?.0)?;
        let (mut dgamma, mut dbeta) = (device.zeros(&[c])?, device.zeros(&[c])?);
        ops::add_products(device, &dy, &x, &mut dgamma)?;
        ops::add_sums(device, &dy, &mut dbeta)?;
        self.keep(&dgamma)?;
        self.keep(&dbeta)
    }

    fn convolutions(&mut self) -> Result<(), Fault> {
        let (device, images) = (self.device, [2, 11, 10, 3]);
        for [outputs, stride, border] in CONVOLUTIONS {
            let how = Convolution { stride, pad: (border, border), groups: 1 };
            let shape = [outputs, 3, 3, 3];
            let (x, w) = (self.draw(&images)?, self.draw(&shape)?);
            let (y, mut dw) = (ops::conv(device, &x, &w, how)?, device.zeros(&shape)?);
            ops::conv_weights(device, &y, &x, how, &mut dw)?;
            for array in [&y, &ops::conv_input(device, &y, &w, images, how)?, &dw] {
                self.keep(array)?;
            }
            if self.has(Precision::Tf32) {
                let math = Math { device, tf32: true };
                self.keep(&ops::conv(math, &x, &w, how)?)?;
                self.keep(&ops::conv_input(math, &y, &w, images, how)?)?;
                ops::conv_weights(math, &y, &x, how, &mut dw)?;
                self.keep(&dw)?;
            }
            if self.has(Precision::Bf16) {
                let [x, w, dy] = self.in_bf16([&x, &w, &y])?;
                self.keep(&ops::conv(device, &x, &w, how)?)?;
                self.keep(&ops::conv_input(device, &dy, &w, images, how)?)?;
                ops::conv_weights(device, &dy, &x, how, &mut dw)?;
                self.keep(&dw)?;
            }
        }
        Ok(())
    }
}

/// A little of everything.
fn probe(device: &Device) -> Result<Vec<f32>, Fault> {
    let draws = Philox::new(0, "fingerprint of a GPU").stream(0, 0);
    let mut probe = Probe { device, draws, bits: Vec::new() };
    probe.products()?;
    probe.functions()?;
    probe.softmax()?;
    probe.norms()?;
    probe.convolutions()?;
    Ok(probe.bits)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_changes_with_the_host_every_name_and_every_bit() {
        let names = |all: [&str; 3]| all.map(str::to_owned);
        let (host, other) = ([1; 32], [2; 32]);
        let (bits, flipped) = ([1.0, 2.0], [1.0, f32::from_bits(2.0f32.to_bits() ^ 1)]);
        let usual = names(["GPU", "13.0", "9.13"]);
        let seen = BTreeSet::from([
            digest(&host, &usual, &bits),
            digest(&other, &usual, &bits),
            digest(&host, &usual, &flipped),
            digest(&host, &usual, &bits[..1]),
            digest(&host, &names(["GPU 2", "13.0", "9.13"]), &bits),
            digest(&host, &names(["GPU", "13.0", "9.14"]), &bits),
            digest(&host, &names(["GPU", "", "13.09.13"]), &bits),
            digest(&host, &usual[..2], &bits),
        ]);
        assert_eq!(seen.len(), 8);
    }
}
