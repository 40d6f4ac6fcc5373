//! Attention and embeddings, each put together of its operations as the layer is.

use half::bf16;
use tl_engine::{
    gpu::{
        Array, Device,
        ops::{self, Dropped, Groups, Heads, Matrix, Softmax},
    },
    nn::{Act, Builder, DropoutDraw, Gradients, Layout, Mask, ParamId, Pass, Ragged, Store, Tape, array, host},
    num::rng::Philox,
};

use crate::{close, device, fetched, numbers, run, same, up};

fn weight(device: &Device, store: &Store, param: usize) -> Array {
    up(device, store.param(ParamId(param)), &store.params[param].shape)
}

fn of(x: &Array) -> Matrix<'_, f32> {
    Matrix::of(x)
}

fn gradients(device: &Device, store: &Store) -> Vec<Array> {
    store.params.iter().map(|p| device.zeros(&p.shape).unwrap()).collect()
}

#[test]
fn attention_with_its_heads_apart_is_that_of_the_layer_also_under_dropout() {
    let Some(device) = device() else { return };
    let (c, heads, depth, site, p) = (6, 2, 3, 4, 0.3);
    let (lengths, draws, rng) = ([5, 17, 1], [7, 1 << 40, 9], Philox::new(5, "dropout"));
    let rows = 23;
    let mut b = Builder::new(3);
    let layer = b.attention(["q", "k", "v", "o"], c, (heads, depth), Mask { p, site });
    b.store.values.iter_mut().for_each(|v| *v *= 3.0);
    let store = &b.store;
    let layout = Layout::new(store, &(0..8).map(ParamId).collect::<Vec<_>>(), &[]);
    let dropout = Some(DropoutDraw { rng, draws: &draws });
    let pass = Pass { layout: Some(&layout), dropout, ..Pass::eval(store) };
    let ragged = Ragged { lengths: lengths.to_vec(), room: 17 };
    let (x, dy) = (numbers(1, rows * c), numbers(2, rows * c));
    let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
    let [input, slope] = [&x, &dy].map(|v| array(v.clone(), &[rows, c]).unwrap());
    let want = layer.forward(&input, &ragged, &pass, &mut tape).unwrap();
    let want_dx = layer.backward(&slope, &ragged, &pass, &mut tape, &mut grads, true).unwrap().unwrap();

    let (xs, dys) = (up(device, &x, &[rows, c]), up(device, &dy, &[rows, c]));
    let dense = |x: &Array, param: usize| {
        let mut y = ops::linear(device, x, &weight(device, store, param)).unwrap();
        ops::add_bias(device, &mut y, &weight(device, store, param + 1)).unwrap();
        y
    };
    let apart = Heads::new(device, &lengths, heads, depth).unwrap();
    let (all, t, scale) = (lengths.len() * heads, apart.longest(), 1.0 / (depth as f32).sqrt());
    let [q, k, v] = [0, 2, 4].map(|i| ops::split_heads(device, &dense(&xs, i), &apart, 0).unwrap());
    let times = |a: Matrix<'_, f32>, b: Matrix<'_, f32>, (m, n, k): (usize, usize, usize)| {
        let mut c = device.zeros(&[all, m, n]).unwrap();
        ops::product(device, (a, b), (all, m, n, k), &mut c, false).unwrap();
        c
    };
    let dropped = Dropped::new(device, rng, site, p, &draws).unwrap();
    let how = Softmax { lengths: apart.lengths(), scale, dropped: Some(&dropped) };
    let mut shown = times(of(&q), of(&k).turned(), (t, t, depth));
    let mut again = device.copy(&shown).unwrap();
    let notes = ops::softmax(device, &mut shown, &how).unwrap();
    let out = times(of(&shown), of(&v), (t, depth, t));
    let mut joined = device.zeros(&[rows, heads * depth]).unwrap();
    ops::join_heads(device, &out, &apart, &mut joined, 0).unwrap();
    close(device, &dense(&joined, 6), &host(&want).unwrap(), 3e-5);

    let mut dw = gradients(device, store);
    ops::linear_weights(device, &dys, &joined, &mut dw[6]).unwrap();
    ops::add_sums(device, &dys, &mut dw[7]).unwrap();
    let g = ops::linear_input(device, &dys, &weight(device, store, 6)).unwrap();
    let g = ops::split_heads(device, &g, &apart, 0).unwrap();
    let mut ds = times(of(&g), of(&v).turned(), (t, t, depth));
    ops::softmax_back(device, [&mut again, &mut ds], &notes, &how).unwrap();
    same(device, &again, &device.download(&shown).unwrap());
    let dv = times(of(&again).turned(), of(&g), (t, depth, t));
    let dq = times(of(&ds), of(&k), (t, depth, t));
    let dk = times(of(&ds).turned(), of(&q), (t, depth, t));
    let mut dx = device.zeros(&[rows, c]).unwrap();
    for (param, part) in [(0, dq), (2, dk), (4, dv)] {
        let mut slope = device.zeros(&[rows, heads * depth]).unwrap();
        ops::join_heads(device, &part, &apart, &mut slope, 0).unwrap();
        ops::linear_weights(device, &slope, &xs, &mut dw[param]).unwrap();
        ops::add_sums(device, &slope, &mut dw[param + 1]).unwrap();
        let own = ops::linear_input(device, &slope, &weight(device, store, param)).unwrap();
        dx = ops::add_activate(device, Act::None, &dx, &own).unwrap();
    }
    close(device, &dx, &host(&want_dx).unwrap(), 3e-5);
    for (i, dw) in dw.iter().enumerate() {
        close(device, dw, &grads.flat[layout.slot(ParamId(i)).unwrap()], 3e-5);
    }
}

#[test]
fn samples_longer_than_the_square_end_with_it() {
    let Some(device) = device() else { return };
    let (scores, slopes) = (numbers(1, 2 * 9), numbers(2, 2 * 9));
    let both = [3u32, 90].map(|length| {
        let lengths = device.upload(&[length], &[1]).unwrap();
        let (mut s, mut ds) = (up(device, &scores, &[2, 3, 3]), up(device, &slopes, &[2, 3, 3]));
        let (how, mut shown) = (Softmax { lengths: &lengths, scale: 1.0, dropped: None }, device.copy(&s).unwrap());
        let notes = ops::softmax(device, &mut shown, &how).unwrap();
        ops::softmax_back(device, [&mut s, &mut ds], &notes, &how).unwrap();
        [shown, s, ds].map(|a| device.download(&a).unwrap())
    });
    assert_eq!(both[0], both[1]);
    // Scores of other samples, slopes and notes of other scores, and draws of other samples.
    let (one, three) = (device.upload(&[3u32], &[1]).unwrap(), device.upload(&[3u32; 3], &[3]).unwrap());
    let (mut s, mut other) = (up(device, &scores, &[2, 3, 3]), up(device, &scores, &[1, 3, 3, 2]));
    let how = |lengths, dropped| Softmax { lengths, scale: 1.0, dropped };
    assert!(ops::softmax(device, &mut s, &how(&three, None)).is_err());
    assert!(ops::softmax(device, &mut other, &how(&one, None)).is_err());
    let dropped = Dropped::new(device, Philox::new(1, "dropout"), 0, 0.5, &[1, 2]).unwrap();
    assert!(ops::softmax(device, &mut s, &how(&one, Some(&dropped))).is_err());
    let notes = up(device, &numbers(3, 12), &[6, 2]);
    assert!(ops::softmax_back(device, [&mut s, &mut other], &notes, &how(&one, None)).is_err());
    let (mut ds, few) = (device.copy(&s).unwrap(), up(device, &numbers(3, 10), &[5, 2]));
    assert!(ops::softmax_back(device, [&mut s, &mut ds], &few, &how(&one, None)).is_err());
    assert!(ops::softmax_back(device, [&mut s, &mut ds], &notes, &how(&one, Some(&dropped))).is_err());
    assert!(ops::softmax_back(device, [&mut s, &mut ds], &notes, &how(&one, None)).is_ok());
}

#[test]
fn heads_of_one_wide_matrix_are_cut_from_their_columns() {
    let Some(device) = device() else { return };
    let (lengths, heads, depth, width, first) = ([2, 3], 2, 3, 11, 4);
    let x = numbers(1, 5 * width);
    let apart = Heads::new(device, &lengths, heads, depth).unwrap();
    let split = ops::split_heads::<_, f32>(device, &up(device, &x, &[5, width]), &apart, first).unwrap();
    let mut want = vec![0.0; 4 * 3 * depth];
    for (sample, start, length) in [(0, 0, 2), (1, 2, 3)] {
        for (head, row) in (0..heads).flat_map(|h| (0..length).map(move |r| (h, r))) {
            let from = (start + row) * width + first + head * depth;
            want[((sample * heads + head) * 3 + row) * depth..][..depth].copy_from_slice(&x[from..from + depth]);
        }
    }
    same(device, &split, &want);
    let mut back = device.zeros(&[5, width]).unwrap();
    ops::join_heads(device, &split, &apart, &mut back, first).unwrap();
    let kept = |i: usize| (first..first + heads * depth).contains(&(i % width));
    same(device, &back, &x.iter().enumerate().map(|(i, v)| if kept(i) { *v } else { 0.0 }).collect::<Vec<_>>());
    assert!(ops::split_heads::<_, f32>(device, &up(device, &x, &[5, width]), &apart, 6).is_err());
    assert!(Heads::new(device, &[2, 0], heads, depth).is_err());
}

#[test]
fn heads_are_cut_and_joined_in_either_type() {
    let Some(device) = device() else { return };
    // All of it goes by four, or the depth, the rows or the first column do not.
    for (depth, width, first) in [(4, 12, 4), (8, 16, 0), (3, 12, 4), (4, 13, 4), (4, 12, 2)] {
        let apart = Heads::new(device, &[2, 5, 1], 2, depth).unwrap();
        let exact = up(device, &numbers(1, 8 * width), &[8, width]);
        let half = ops::to_bf16(device, &exact).unwrap();
        let wide = ops::from_bf16(device, &half).unwrap();
        let split = ops::split_heads::<_, f32>(device, &wide, &apart, first).unwrap();
        let want = fetched(device, &split);
        same(device, &ops::split_heads::<_, f32>(device, &half, &apart, first).unwrap(), &want);
        // What is rounded on its way is what was rounded before.
        same(device, &ops::split_heads::<_, bf16>(device, &exact, &apart, first).unwrap(), &want);
        let own = ops::split_heads::<_, bf16>(device, &half, &apart, first).unwrap();
        same(device, &own, &want);

        // Columns beside them stay.
        let mut joined = up(device, &vec![1.0; 8 * width], &[8, width]);
        let mut back = ops::to_bf16(device, &joined).unwrap();
        ops::join_heads(device, &split, &apart, &mut joined, first).unwrap();
        ops::join_heads(device, &own, &apart, &mut back, first).unwrap();
        let (rows, kept) = (fetched(device, &wide), first..first + 2 * depth);
        let want: Vec<f32> =
            rows.iter().enumerate().map(|(i, v)| if kept.contains(&(i % width)) { *v } else { 1.0 }).collect();
        same(device, &joined, &want);
        same(device, &back, &want);
        assert!(ops::join_heads(device, &own, &apart, &mut back, width).is_err());
        assert!(ops::split_heads::<_, bf16>(device, &half, &apart, width).is_err());
    }
}

#[test]
fn rows_of_tables_and_their_gradients_have_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    let (c, words) = (5, 6);
    let mut b = Builder::new(1);
    let layer = b.embedding("e", ["word", "position", "kind"], (words, c), (4, 2), None, Mask::NONE);
    b.store.values = numbers(3, b.store.values.len());
    let framed = [4.0, 1.0, 4.0, -1.0, 0.0, -1.0, -1.0, -1.0, 2.0, 4.0, 0.0, 1.0];
    let want = run(&layer, &b.store, (&framed, &[3, 4]), None, false);
    // The first row of a frame is its header.
    let real = [(0, 3), (1, 1), (2, 4)];
    let rows: Vec<usize> = real.iter().flat_map(|(sample, n)| (0..*n).map(move |r| sample * 5 + 1 + r)).collect();
    let packed = |v: &[f32]| rows.iter().flat_map(|r| v[r * c..(r + 1) * c].to_vec()).collect::<Vec<f32>>();
    let (ids, places) = ([4u32, 1, 4, 0, 2, 4, 0, 1], [0u32, 1, 2, 0, 0, 1, 2, 3]);
    let [word, position, kind] = [0, 1, 2].map(|i| weight(device, &b.store, i));
    let (id_array, place_array) = (device.upload(&ids, &[8]).unwrap(), device.upload(&places, &[8]).unwrap());
    let y = ops::embed(device, &word, &id_array, Some(&kind), Some((&position, &place_array))).unwrap();
    same(device, &y, &packed(&want.y));

    let dy = up(device, &packed(&want.dy), &[8, c]);
    let mut dw = gradients(device, &b.store);
    for (param, which, table) in [(0, ids, words), (1, places, 4)] {
        ops::embed_back(device, &dy, &Groups::of(device, &which, table).unwrap(), &mut dw[param]).unwrap();
    }
    same(device, &dw[0], &want.flat[..words * c]);
    same(device, &dw[1], &want.flat[words * c..(words + 4) * c]);
    let mut first = device.zeros(&[c]).unwrap();
    ops::add_sums(device, &dy, &mut first).unwrap();
    close(device, &first, &want.flat[(words + 4) * c..][..c], 1e-6);
    assert!(Groups::of(device, &[6], words).is_err());
    // Without kinds and places the word's row is all.
    let alone = ops::embed(device, &word, &id_array, None, None).unwrap();
    let row = |id: &u32| b.store.param(ParamId(0))[*id as usize * c..][..c].to_vec();
    same(device, &alone, &ids.iter().flat_map(row).collect::<Vec<_>>());
    let beyond = device.upload(&[words as u32], &[1]).unwrap();
    let nothing = device.download(&ops::embed(device, &word, &beyond, None, None).unwrap()).unwrap();
    assert!(nothing.iter().all(|v| v.is_nan()), "{nothing:?}");
}
