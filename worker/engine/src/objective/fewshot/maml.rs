//! Model-agnostic meta-learning (Finn et al., 2017), of first order: the network takes steps on what an episode shows, and
//! the gradient of the queries' loss there, at the adapted weights, is taken for that of the weights before. Defaults are
//! those of learn2learn's Omniglot example.

use tl_proto::catalog::{Entry, entry, integer, names, number};

use super::{Learns, Method, Steps};

fn describe() -> Entry {
    Entry {
        params: vec![
            integer("steps", 1, 1, 100, "steps on what an episode shows"),
            integer("test_steps", 0, 0, 1000, "steps in an episode that is judged; 0: as many as in training"),
            number("inner_lr", 0.5, 1e-6, 1e2, "learning rate of these steps"),
            names("adapt", &["*"], "what moves in them, as `train` in a stage: [\"head\"] is ANIL"),
        ],
        ..entry(
            "maml",
            "first weights from which a few steps of gradient descent learn a task (first-order MAML); episodes that are \
             trained on have as many classes as those that are judged",
        )
    }
}

pub(super) const METHOD: Method = Method {
    entry: describe,
    learns: Learns::Adapts(|params| {
        let number = |name: &str| describe().number(params, name);
        let trained = number("steps") as usize;
        let judged = match number("test_steps") as usize {
            0 => trained,
            n => n,
        };
        let moves = describe().names(params, "adapt");
        Steps { trained, judged, rate: number("inner_lr"), momentum: 0.0, moves }
    }),
};
