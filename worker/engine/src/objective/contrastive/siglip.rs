//! SigLIP (Zhai et al., 2023): whether two halves are a pair is decided for every two of the batch by itself:
//! −Σ log σ(±(scale·cosine + bias)), plus for pairs. The bias begins at −10, since most are none.

use tl_proto::catalog::{Entry, entry, number};

use super::{super::ops::softplus, Method, diagonal, scale, there};
use crate::nn::{Fill, Own, tensor};

fn describe() -> Entry {
    Entry {
        params: vec![number("init_bias", -10.0, -100.0, 100.0, "what is added to similarities before it is learned")],
        ..entry("siglip", "every two of the batch are a pair or none, each decided by itself")
    }
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    own: |params| {
        let fill = Fill::Constant(describe().number(params, "init_bias") as f32);
        vec![scale(10.0), Own { name: "bias".into(), shape: vec![1], fill, span: None }]
    },
    loss: |batch, similarities| {
        let z = similarities.broadcast_add(batch.own("bias")?)?;
        let [samples, halves] = there(batch, z.dim(0)?)?;
        let whole: Vec<f32> = samples.iter().zip(&halves).map(|(sample, half)| sample * half).collect();
        let n = whole.len();
        // What is alone is a negative of whole pairs, not of what is alone on the other side.
        let counts = |i: usize, j: usize| samples[i] * halves[j] * whole[i].max(whole[j]);
        let both = (0..n * n).map(|at| counts(at / n, at % n)).collect();
        let all = softplus(&z)?.mul(&tensor(both, z.dims())?)?.sum_all()?;
        // softplus(−z) = softplus(z) − z for pairs, softplus(z) for all others.
        Ok((all - diagonal(batch, &z)?)?)
    },
};
