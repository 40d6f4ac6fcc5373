//! From the square that was cut out of an image to what the network sees: bytes to numbers, in the network's order of
//! channels, under a view.

use super::augment::View;
pub use super::resize::{Filter, square};
use crate::{nn, weights::Contract};

/// What every byte of every channel becomes. Two divisions a value would cost more than looking it up.
struct Tones([[f32; 256]; 3]);

impl Tones {
    fn new(contract: &Contract) -> Self {
        Self(std::array::from_fn(|c| std::array::from_fn(|byte| contract.value(c, byte as f32))))
    }

    /// Pixels one by one, mirrored in every row of `side` pixels or not, as `[side, side, 3]`.
    fn paint<const BGR: bool>(&self, square: &[u8], side: usize, flip: bool, out: &mut [f32]) {
        let Self([first, second, third]) = self;
        let tone = |p: &[u8; 3]| {
            let [a, b, c] = if BGR { [p[2], p[1], p[0]] } else { *p };
            [first[usize::from(a)], second[usize::from(b)], third[usize::from(c)]]
        };
        for (row, out) in square.chunks_exact(side * 3).zip(out.chunks_exact_mut(side * 3)) {
            let (row, out) = (row.as_chunks::<3>().0, out.as_chunks_mut::<3>().0);
            if flip {
                out.iter_mut().zip(row.iter().rev()).for_each(|(o, p)| *o = tone(p));
            } else {
                out.iter_mut().zip(row).for_each(|(o, p)| *o = tone(p));
            }
        }
    }
}

/// A sample cut to the network's square, before it is made numbers of a view.
#[derive(Debug, PartialEq)]
pub enum Square {
    /// Interleaved bytes, three channels.
    Bytes(Vec<u8>),
    /// One value a pixel, the same for all channels: 0 is black and 1 is white, as a byte of 0 and of 255.
    Grey(Vec<f32>),
}

impl Square {
    /// How much memory it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Grey(values) => 4 * values.len(),
        }
    }
}

/// Numbers of one input.
pub fn values(contract: &Contract) -> usize {
    3 * contract.side() * contract.side()
}

/// Writes the network's input, `[side, side, 3]`, for a square under a view.
pub fn input(square: &Square, view: &View, contract: &Contract, out: &mut [f32]) {
    match square {
        Square::Bytes(bytes) => coloured(bytes, view, contract, out),
        Square::Grey(values) => grey(values, view, contract, out),
    }
    view.blank(out, contract.side());
}

fn grey(values: &[f32], view: &View, contract: &Contract, out: &mut [f32]) {
    let mut toned: Vec<f32> = values.iter().flat_map(|v| [0, 1, 2].map(|c| contract.value(c, 255.0 * v))).collect();
    if view.only_flips() == Some(false) {
        return out.copy_from_slice(&toned);
    }
    // One value more than pixels, so that every pixel can be read as four values.
    toned.push(0.0);
    view.warp(&toned, contract.side(), out);
}

fn coloured(square: &[u8], view: &View, contract: &Contract, out: &mut [f32]) {
    let (tones, side) = (Tones::new(contract), contract.side());
    let paint = if contract.bgr() { Tones::paint::<true> } else { Tones::paint::<false> };
    if let Some(flip) = view.only_flips() {
        paint(&tones, square, side, flip, out);
    } else {
        // One value more than pixels, so that every pixel can be read as four values.
        let mut toned = vec![0.0; square.len() + 1];
        paint(&tones, square, side, false, &mut toned);
        view.warp(&toned, side, out);
    }
}

/// A batch `[n, side, side, 3]` of inputs one after the other.
///
/// # Errors
/// Inputs of another size.
pub fn batch(inputs: Vec<f32>, n: usize, side: usize) -> crate::Result<candle_core::Tensor> {
    nn::tensor(inputs, &[n, side, side, 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_wants_blue_first_gets_its_own_mean_with_it() {
        let named = Contract::named("unit", 2, None).unwrap();
        let rgb = Contract { mean: [0.0, 0.5, 1.0], ..named };
        let bgr = Contract { color: "bgr".into(), ..rgb.clone() };
        // Red, blue; black, green.
        let square = [255, 0, 0, 0, 0, 255, 0, 0, 0, 0, 255, 0];
        let seen = |contract: &Contract, view| {
            let mut out = vec![9.0; 12];
            input(&Square::Bytes(square.to_vec()), &view, contract, &mut out);
            out
        };
        let (black, plain) = ([0.0, -0.5, -1.0], View::PLAIN);
        assert_eq!(seen(&rgb, plain), [[1.0, -0.5, -1.0], [0.0, -0.5, 0.0], black, [0.0, 0.5, -1.0]].concat());
        assert_eq!(seen(&bgr, plain), [[0.0, -0.5, 0.0], [1.0, -0.5, -1.0], black, [0.0, 0.5, -1.0]].concat());
        let mirrored = [[0.0, -0.5, 0.0], [1.0, -0.5, -1.0], [0.0, 0.5, -1.0], black].concat();
        assert_eq!(seen(&rgb, View::FLIPPED), mirrored);
    }
}
