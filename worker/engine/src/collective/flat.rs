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
    if fast
        && matches!(pieces[..], [Node { data: Flat::Device(_), .. }])
        && let Some(Node { level, index, data: Flat::Device(own) }) = pieces.pop()
    {
        let (own, summed) = sum_there(group, own)?;
        if summed {
            return Ok(Flat::Device(own));
        }
        pieces.push(Node { level, index, data: Flat::Device(own) });
    }
    let down =
        |p: Node<Flat>| -> Result<Node> { Ok(Node { level: p.level, index: p.index, data: p.data.into_host()? }) };
    let pieces = pieces.drain(..).map(down).collect::<Result<_>>()?;
    let reduce = if fast { reduce_fast } else { reduce };
    reduce(group, pieces, leaves, len).map(Flat::Host)
}

/// Adds up where the numbers lie, if the group has a way of its own for that: the numbers, and whether they are the sum.
#[cfg(feature = "cuda")]
fn sum_there(group: &mut dyn Collective, own: Placed) -> Result<(Placed, bool)> {
    let device = own.device().clone();
    let (own, summed) = group.sum_placed(own.into_array()?)?;
    Ok((Placed::new(device, own), summed))
}
