//! Sums of flat gradients, wherever they lie.

use super::{
    Collective, reduce, reduce_fast,
    tree::{self, Node},
};
#[cfg(feature = "cuda")]
use crate::gpu::Placed;
use crate::{Error, Result, nn::Flat};

/// As [`reduce()`], or where it may be `fast` as [`reduce_fast()`], of pieces that may lie on a GPU. One rank alone adds them
/// up there, and so do several that have a way of their own for it, and the sum stays; else others are sent what comes down,
/// and the sum is the host's.
///
/// # Errors
/// As [`reduce()`]; what makes the pieces has failed.
pub fn reduce_flat(
    group: &mut dyn Collective,
    mut pieces: Vec<Node<Flat>>,
    fast: bool,
    leaves: usize,
    len: usize,
) -> Result<Flat> {
    if pieces.iter().any(|p| p.data.count() != len) {
        return Err(Error::Internal("a grain has another length than its step".into()));
    }
    if group.world() == 1 && leaves > 0 {
        return tree::finish_with(pieces, leaves, Flat::plus);
    }
    #[cfg(feature = "cuda")]
    if let (true, [Node { data: Flat::Device(own), .. }]) = (fast, &mut pieces[..])
        && sum_there(group, own)?
    {
        return Ok(Flat::Device(own.clone()));
    }
    let down =
        |p: Node<Flat>| -> Result<Node> { Ok(Node { level: p.level, index: p.index, data: p.data.into_host()? }) };
    let pieces = pieces.drain(..).map(down).collect::<Result<_>>()?;
    let reduce = if fast { reduce_fast } else { reduce };
    reduce(group, pieces, leaves, len).map(Flat::Host)
}

/// Adds up where the numbers lie, if the group has a way of its own for that.
#[cfg(feature = "cuda")]
fn sum_there(group: &mut dyn Collective, own: &mut Placed) -> Result<bool> {
    let mut done = Ok(false);
    own.change(|_, own| {
        done = group.sum_placed(own);
        Ok(())
    })?;
    if done.is_err() {
        // Where an abort hangs, the library is still at it, and giving the memory back could wait for that. The rank ends.
        std::mem::forget(own.clone());
    }
    done
}
