//! Sums of flat gradients, wherever they lie.

use super::{
    Collective, reduce,
    tree::{self, Node},
};
use crate::{Error, Result, nn::Flat};

/// As [`reduce()`], of pieces that may lie on a GPU. One rank alone adds them up there, and the sum stays; others are sent
/// what comes down, and the sum is the host's.
///
/// # Errors
/// As [`reduce()`]; what makes the pieces has failed.
pub fn reduce_flat(group: &mut dyn Collective, pieces: Vec<Node<Flat>>, grains: usize, len: usize) -> Result<Flat> {
    if pieces.iter().any(|p| p.data.count() != len) {
        return Err(Error::Internal("a grain has another length than its step".into()));
    }
    if group.world() == 1 && grains > 0 {
        return tree::finish_with(pieces, grains, Flat::plus);
    }
    let down = |p: Node<Flat>| -> Result<Node> {
        Ok(Node { level: p.level, index: p.index, data: p.data.into_host()? })
    };
    let pieces = pieces.into_iter().map(down).collect::<Result<_>>()?;
    reduce(group, pieces, grains, len).map(Flat::Host)
}
