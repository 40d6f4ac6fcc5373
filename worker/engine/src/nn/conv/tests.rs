use proptest::prelude::*;

use super::*;
use crate::nn::{Builder, testing};

fn spec(cin: usize, cout: usize, kernel: (usize, usize), stride: usize, pad: (Padding, Padding)) -> ConvSpec {
    ConvSpec { cin, cout, kernel, stride, pad, bias: false }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let same = (Padding::Same, Padding::Same);
    let by = |y, x| (Padding::Symmetric(y), Padding::Symmetric(x));
    for (kernel, stride, pad, side) in [
        ((1, 1), 1, by(0, 0), 4),
        ((3, 3), 1, by(1, 1), 5),
        ((3, 3), 2, same, 6),
        ((3, 3), 2, by(1, 1), 6),
        ((1, 1), 2, by(0, 0), 5),
        ((1, 5), 1, by(0, 2), 5),
        ((3, 1), 3, by(1, 0), 7),
        // As many outputs as inputs, and yet not the same pixels.
        ((1, 1), 2, by(2, 2), 3),
        ((1, 1), 1, by(1, 1), 3),
    ] {
        for cin in [3, 9] {
            let mut b = Builder::new(1);
            let conv = b.conv_spec("c", ConvSpec { bias: cin == 9, ..spec(cin, 4, kernel, stride, pad) });
            testing::check_gradients(&conv, &b.store, &[2, side, side, cin]);
        }
    }
}

#[test]
fn of_no_images_nothing_comes() {
    let pad = (Padding::Symmetric(1), Padding::Symmetric(1));
    for (cin, bias) in [(3, None), (80, None), (80, Some(&[1.0; 4][..]))] {
        let spec = spec(cin, 4, (3, 3), 1, pad);
        let g = Geometry::new(&spec, &[0, 5, 5, cin]).unwrap();
        let weights = Packed::of(View::rows(&vec![1.0; 9 * cin * 4], 4), 9 * cin, 4);
        assert!(Window { g, kernel: spec.kernel, channels: cin }.times(&[], &weights, bias).is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// All three passes against sums written down from the definition, in double precision.
    #[test]
    fn agrees_with_the_definition_on_random_shapes(
        (n, h, w) in (1usize..3, 1usize..9, 1usize..9),
        // Few channels and many are multiplied in different ways.
        (cin, cout) in prop_oneof![(1usize..20, 1usize..40), (64usize..68, 1usize..8), (1usize..8, 64usize..68)],
        (kh, kw, stride) in (1usize..5, 1usize..5, 1usize..4),
        (py, px, same) in (0usize..3, 0usize..3, any::<bool>()),
    ) {
        let pad = if same { (Padding::Same, Padding::Same) } else { (Padding::Symmetric(py), Padding::Symmetric(px)) };
        prop_assume!(same || (h + 2 * py >= kh && w + 2 * px >= kw));
        let mut b = Builder::new(1);
        let conv = b.conv_spec("c", spec(cin, cout, (kh, kw), stride, pad));
        let x = testing::array(&[n, h, w, cin]);
        let layout = crate::nn::Layout::new(&b.store, &[conv.w], &[]);
        let pass = Pass { layout: Some(&layout), ..Pass::eval(&b.store) };
        let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
        let y = conv.forward(&x, &pass, &mut tape).unwrap();
        let dy = testing::array(y.dims());
        let dx = conv.backward(&dy, &pass, &mut tape, &mut grads, true).unwrap().unwrap();
        let (oh, ow) = (y.dims()[1], y.dims()[2]);
        let ((top, _), (left, _)) = (pad.0.plan(h, kh, stride), pad.1.plan(w, kw, stride));
        let (xs, ys, gs, dxs) = (host(&x).unwrap(), host(&y).unwrap(), host(&dy).unwrap(), host(&dx).unwrap());
        let weights = b.store.param(conv.w);
        let (mut wy, mut wdx, mut wdw) = (vec![0.0f64; ys.len()], vec![0.0f64; xs.len()], vec![0.0f64; weights.len()]);
        for i in 0..n { for oy in 0..oh { for ox in 0..ow { for o in 0..cout { for ky in 0..kh { for kx in 0..kw {
            let (iy, ix) = ((oy * stride + ky) as isize - top as isize, (ox * stride + kx) as isize - left as isize);
            if iy < 0 || ix < 0 || iy >= h as isize || ix >= w as isize { continue; }
            for c in 0..cin {
                let xi = ((i * h + iy as usize) * w + ix as usize) * cin + c;
                let yi = ((i * oh + oy) * ow + ox) * cout + o;
                let wi = ((o * cin + c) * kh + ky) * kw + kx;
                wy[yi] += f64::from(xs[xi]) * f64::from(weights[wi]);
                wdx[xi] += f64::from(gs[yi]) * f64::from(weights[wi]);
                wdw[wi] += f64::from(gs[yi]) * f64::from(xs[xi]);
            }
        }}}}}}
        let close = |got: &[f32], want: &[f64]| got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 1e-4 * (1.0 + w.abs()));
        prop_assert!(close(&ys, &wy), "output");
        prop_assert!(close(&dxs, &wdx), "gradient of the input");
        prop_assert!(close(&grads.flat, &wdw), "gradient of the weights");
    }
}

#[test]
fn a_sample_has_the_same_bits_in_every_batch() {
    let mut b = Builder::new(1);
    let conv = b.conv("c", (16, 24), 3, 2, Padding::Same);
    let x = testing::array(&[5, 13, 11, 16]);
    let all = conv.forward(&x, &Pass::eval(&b.store), &mut Tape::default()).unwrap();
    let one = testing::part(&x, 0, 3, 1);
    let one = conv.forward(&one, &Pass::eval(&b.store), &mut Tape::default()).unwrap();
    testing::assert_close(&one, &testing::part(&all, 0, 3, 1), 0.0);
}

#[test]
fn same_padding_puts_the_odd_zero_last() {
    assert_eq!(Padding::Same.plan(224, 3, 2), (0, 112));
    assert_eq!(Padding::Same.plan(225, 3, 2), (1, 113));
    assert_eq!(Padding::Same.plan(7, 3, 1), (1, 7));
    assert_eq!(Padding::Symmetric(1).plan(224, 3, 2), (1, 112));
}
