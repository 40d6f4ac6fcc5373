//! L2-SP (Li, Grandvalet and Davoine, 2018): `½α·‖w − w₀‖²` on what came with the weights and `½β·‖w‖²` on what is new, in
//! place of weight decay. With AdamW the gradient of it is scaled as all gradients are.

use tl_proto::catalog::{Entry, entry, number};

use super::{Hold, Modifier};

fn describe() -> Entry {
    Entry {
        params: vec![
            number("alpha", 0.1, 0.0, 1e6, "weight of the distance to the pretrained weights"),
            number("beta", 0.01, 0.0, 1e6, "weight of the norm of what is new, such as the head"),
        ],
        begins_with_weights: true,
        ..entry("l2_sp", "decays weights towards those that the network began with, instead of zero")
    }
}

pub(super) const MODIFIER: Modifier = Modifier {
    hold: Some(|params| {
        let entry = describe();
        Hold { came: entry.number(params, "alpha"), new: entry.number(params, "beta"), importance: None }
    }),
    ..Modifier::new(describe)
};
