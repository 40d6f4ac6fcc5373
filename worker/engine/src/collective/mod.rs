//! What ranks do together. One primitive, an exchange of bytes between all pairs; everything else is built on it, in
//! one total order per rank.

mod frame;
pub mod partition;
mod solo;
mod tcp;
pub mod tree;

pub use frame::{Frame, parse_header};
pub use solo::Solo;
pub use tcp::{Mesh, MeshConfig};
use tree::Node;

use crate::{Error, Result};

/// A group of ranks.
pub trait Collective: Send {
    /// This rank.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world(&self) -> usize;

    /// Sends `out[r]` to every rank `r`, and returns what each rank sent to this one (own bytes are moved).
    ///
    /// # Errors
    /// [`Error::LostPeer`] if one is gone or silent.
    fn exchange(&mut self, out: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>>;

    /// Everybody's bytes, by rank.
    ///
    /// # Errors
    /// As [`Collective::exchange`].
    fn all_gather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let world = self.world();
        self.exchange(vec![bytes; world])
    }

    /// The bytes of `root`.
    ///
    /// # Errors
    /// As [`Collective::exchange`].
    fn broadcast(&mut self, bytes: Vec<u8>, root: usize) -> Result<Vec<u8>> {
        let mine = if self.rank() == root { bytes } else { Vec::new() };
        let world = self.world();
        let mut all = self.exchange(vec![mine; world])?;
        Ok(all.swap_remove(root))
    }

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// As [`Collective::exchange`].
    fn barrier(&mut self) -> Result<()> {
        self.all_gather(Vec::new()).map(|_| ())
    }
}

/// Sums the pieces of all ranks; everyone gets the sum of all `grains` leaves.
///
/// Ordered: by one fixed binary tree over the grains, so the bits do not depend on who owned which. Fast: rank by rank.
/// Each rank reduces one run of elements for all (a reduce-scatter), then they are gathered.
///
/// # Errors
/// A lost peer, or pieces that do not tile the grains.
pub fn reduce(group: &mut dyn Collective, pieces: Vec<Node>, grains: usize, len: usize) -> Result<Vec<f32>> {
    let world = group.world();
    if world == 1 {
        return tree::finish(pieces, grains, len);
    }
    // Runs are multiples of 1024 elements, and a function of length and world only.
    let per_rank = len.div_ceil(world).next_multiple_of(1024);
    let run = |r: usize| (r * per_rank).min(len)..((r + 1) * per_rank).min(len);
    let out = (0..world)
        .map(|r| {
            let mut bytes = Vec::with_capacity(4 + pieces.len() * (16 + 4 * run(r).len()));
            bytes.extend((pieces.len() as u32).to_le_bytes());
            for piece in &pieces {
                bytes.extend(piece.level.to_le_bytes());
                bytes.extend((piece.index as u64).to_le_bytes());
                piece.data[run(r)].iter().for_each(|v| bytes.extend(v.to_le_bytes()));
            }
            bytes
        })
        .collect();
    let mine = run(group.rank()).len();
    let mut nodes = Vec::new();
    for bytes in group.exchange(out)? {
        nodes.extend(decode(&bytes, mine)?);
    }
    let reduced = tree::finish(nodes, grains, mine)?;
    let mut sum = Vec::with_capacity(len);
    for (r, bytes) in group.all_gather(to_bytes(&reduced))?.into_iter().enumerate() {
        let part = from_bytes(&bytes)?;
        if part.len() != run(r).len() {
            return Err(Error::Internal(format!("rank {r} sent {} elements instead of {}", part.len(), run(r).len())));
        }
        sum.extend(part);
    }
    Ok(sum)
}

fn decode(bytes: &[u8], len: usize) -> Result<Vec<Node>> {
    let bad = || Error::Internal("a peer sent a piece that is cut off".into());
    let (count, mut rest) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
    let mut nodes = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let (level, tail) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
        let (index, tail) = tail.split_first_chunk::<8>().ok_or_else(bad)?;
        let data = tail.get(..4 * len).ok_or_else(bad)?;
        rest = &tail[4 * len..];
        let index = usize::try_from(u64::from_le_bytes(*index)).map_err(|_| bad())?;
        nodes.push(Node { level: u32::from_le_bytes(*level), index, data: from_bytes(data)? });
    }
    Ok(nodes)
}

/// Little-endian bytes of numbers.
pub fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Numbers from little-endian bytes.
///
/// # Errors
/// A length that is no multiple of four.
pub fn from_bytes(bytes: &[u8]) -> Result<Vec<f32>> {
    if !bytes.len().is_multiple_of(4) {
        return Err(Error::Internal("a peer sent half a number".into()));
    }
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}
