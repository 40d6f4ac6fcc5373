//! Values that both sides of the parity test can compute: a function of a tensor's name, its shape and the element's
//! index. `tests/parity/rule.py` is the same in Python.

use std::collections::BTreeSet;

use tl_engine::nn::{Entry, Store};

/// FNV-1a, 64 bits.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// splitmix64 of the elements of `name`, from the first on.
fn bits(name: &str) -> impl Iterator<Item = u64> {
    let start = fnv(name);
    (1u64..).map(move |i| {
        let z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(start);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// In [-1, 1): the top 24 bits.
pub fn uniform(name: &str) -> impl Iterator<Item = f64> {
    bits(name).map(|b| (b >> 40) as f64 / f64::from(1 << 23) - 1.0)
}

/// Either 1 or -1 for each element: the top bit.
fn signs(name: &str) -> impl Iterator<Item = f64> {
    bits(name).map(|b| if b >> 63 == 1 { 1.0 } else { -1.0 })
}

/// Which of `classes` each of `count` samples is of.
pub fn labels(count: usize, classes: usize) -> Vec<usize> {
    self::classes("labels", classes).take(count).collect()
}

/// One of `count` for each element.
pub fn classes(name: &str, count: usize) -> impl Iterator<Item = usize> {
    bits(name).map(move |b| ((b >> 40) % count as u64) as usize)
}

/// Fills every parameter and running statistic of a network; constants stay as they are.
pub fn fill(store: &mut Store) {
    let Store { params, buffers, values, buffer_values, .. } = store;
    let layer = |name: &str| name.rsplit_once('.').map(|(layer, _)| layer.to_owned());
    let running = |e: &&Entry| e.name.ends_with(".running_mean") || e.name.ends_with(".running_var");
    let norms: BTreeSet<_> = buffers.iter().filter(running).map(|e| layer(&e.name)).collect();
    for entry in &*params {
        tensor(entry, norms.contains(&layer(&entry.name)), &mut values[entry.range.clone()]);
    }
    buffers.iter().filter(running).for_each(|e| tensor(e, true, &mut buffer_values[e.range.clone()]));
}

fn tensor(entry: &Entry, of_norm: bool, out: &mut [f32]) {
    let fan_in: usize = entry.shape[1..].iter().product();
    let bound = (3.0 / fan_in as f64).sqrt();
    let value: &dyn Fn(f64) -> f64 = match entry.name.rsplit('.').next() {
        Some("running_mean") => &|u| 0.1 * u,
        Some("running_var") => &|u| 1.0 + 0.1 * u.abs(),
        Some("ia3_l") => &|u| 1.0 + 0.5 * u,
        _ if entry.shape.len() > 1 => &|u| u * bound,
        Some("weight") => &|u| 1.0 + 0.1 * u,
        _ if of_norm => &|u| 3.0 + 0.1 * u,
        _ => &|u| 0.1 * u,
    };
    out.iter_mut().zip(uniform(&entry.name)).for_each(|(o, u)| *o = value(u) as f32);
}

/// Norm and two projections on hashed signs of a tensor.
pub fn figures(name: &str, values: &[f32]) -> [f64; 3] {
    let project = |p: &str| values.iter().zip(signs(&format!("{name}/{p}"))).map(|(v, s)| f64::from(*v) * s).sum();
    let square: f64 = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    [square.sqrt(), project("p1"), project("p2")]
}
