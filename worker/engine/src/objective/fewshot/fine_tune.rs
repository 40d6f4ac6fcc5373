//! Fine-tuning, a baseline: the network gets a new head and is trained on what an episode shows; the next episode begins
//! with the first weights again.

use tl_proto::catalog::{Entry, entry, integer, names, number};

use super::{Learns, Method, Steps};

fn describe() -> Entry {
    Entry {
        params: vec![
            integer("steps", 50, 1, 10_000, "steps on all that an episode shows"),
            number("rate", 0.01, 1e-8, 1e2, "learning rate of these steps"),
            number("momentum", 0.9, 0.0, 0.9999, "momentum of SGD"),
            names("layers", &["*"], "what is trained, as `train` in a stage; batch-norms stay frozen"),
        ],
        ..entry("fine_tune", "a new head, and gradient descent on what an episode shows; a baseline, without stages")
    }
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    learns: Learns::Adapts(|params| {
        let number = |name: &str| describe().number(params, name);
        Steps {
            trained: 0,
            judged: number("steps") as usize,
            rate: number("rate"),
            momentum: number("momentum"),
            moves: describe().names(params, "layers"),
        }
    }),
};
