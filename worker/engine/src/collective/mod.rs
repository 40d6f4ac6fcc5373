//! What ranks do together. Messages between pairs of ranks, in order; everything else is built on them, in one total
//! order per rank.
//!
//! How the gradients of a step are added up follows from what the ranks run on, which is [`choice`]'s matter, and from the
//! reduction that the job asks for; `auto` is ordered where no rank has a GPU, else fast:
//!
//! | ranks | `ordered`: the bits of one rank | `fast`: a rank adds its grains as they come, then |
//! |---|---|---|
//! | one | the tree of grains | that is all |
//! | on CPUs | the tree of grains, over TCP | the tree of ranks, over TCP |
//! | on GPUs | the same, in the hosts' memory | NCCL, in the GPUs' memory, while the last grain still goes backward |
//!
//! All else that ranks say to each other, tallies, barriers and embeddings, goes over TCP everywhere. Where sums do too, ranks
//! of one machine share memory for what is large.

mod alarm;
pub mod choice;
#[cfg(any(test, feature = "cuda"))]
mod cut;
mod flat;
mod frame;
mod loopback;
mod meet;
#[cfg(feature = "cuda")]
mod nccl;
pub mod partition;
mod peer;
mod reduce;
mod shared;
mod solo;
mod tcp;
pub mod tree;

use std::ops::Range;

pub use flat::reduce_flat;
pub use frame::parse_header;
pub use loopback::on_loopback;
pub use meet::meet;
#[cfg(feature = "cuda")]
pub use nccl::{BUCKET, Buckets, NcclGroup, Patience};
pub use reduce::{reduce, reduce_fast};
pub use solo::Solo;
pub use tcp::{Mesh, MeshConfig};

use crate::{Error, Result};

// Numbers travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "ranks talk little-endian");

/// A group of ranks.
pub trait Collective: Send {
    /// This rank.
    fn rank(&self) -> usize;

    /// How much each rank can do, relative to the others.
    fn weights(&self) -> &[u32];

    /// How many messages this rank has sent or taken. Who counts as many as before has told nobody anything and heard of nothing,
    /// and may begin anew with what it was at.
    fn messages(&self) -> u64;

    /// With how many ranks this one shares memory, through which large messages go.
    fn neighbours(&self) -> usize {
        0
    }

    /// Sends another rank a message of several parts; it arrives as one, after those sent before. Every rank takes
    /// messages off the wire whatever it does, so that ranks may send to each other at the same time.
    ///
    /// # Errors
    /// [`Error::LostPeer`] if the rank is known to be gone.
    fn send_parts(&mut self, to: usize, parts: &[&[u8]]) -> Result<()>;

    /// The next message of another rank.
    ///
    /// # Errors
    /// [`Error::LostPeer`] if it is gone or silent.
    fn receive(&mut self, from: usize) -> Result<Vec<u8>>;

    /// Gives the memory of a message back, for the next ones of that rank.
    fn reuse(&mut self, _from: usize, _bytes: Vec<u8>) {}

    /// Tells the others that this rank gives up and why, and ends what joins it to them.
    fn abort(&mut self, _why: &str) {}

    /// Adds up what all ranks have, in place, if this group has a way of its own that is faster than messages: says whether
    /// it has. In which order is its own matter, and the sum is the same on every rank.
    ///
    /// # Errors
    /// [`Error::LostPeer`]; numbers of which another rank has more or fewer. What is in their place then is no sum.
    fn sum(&mut self, _own: &mut [f32]) -> Result<bool> {
        Ok(false)
    }

    /// The same of numbers that lie on this rank's GPU: gives them back, and says whether they are the sum.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    #[cfg(feature = "cuda")]
    fn sum_placed(&mut self, own: crate::gpu::Array) -> Result<(crate::gpu::Array, bool)> {
        Ok((own, false))
    }

    /// This group, if its ranks have a GPU each and may begin to add up what they are still making.
    #[cfg(feature = "cuda")]
    fn on_gpus(&mut self) -> Option<&mut NcclGroup> {
        None
    }

    /// Sends another rank a message.
    ///
    /// # Errors
    /// As [`Collective::send_parts`].
    fn send(&mut self, to: usize, bytes: &[u8]) -> Result<()> {
        self.send_parts(to, &[bytes])
    }

    /// How many ranks there are.
    fn world(&self) -> usize {
        self.weights().len()
    }

    /// `items` cut into a run for each rank, by weight.
    fn shares(&self, items: usize) -> Vec<Range<usize>> {
        partition::by_weight(items, self.weights())
    }

    /// Everybody's bytes, by rank.
    ///
    /// # Errors
    /// As [`Collective::receive`].
    fn all_gather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let (rank, world) = (self.rank(), self.world());
        for step in 1..world {
            // Each starts with its right neighbour, so that no one is the first target of all.
            self.send((rank + step) % world, &bytes)?;
        }
        let mut all = Vec::with_capacity(world);
        for from in 0..world {
            all.push(if from == rank { Vec::new() } else { self.receive(from)? });
        }
        all[rank] = bytes;
        Ok(all)
    }

    /// The bytes of `root`.
    ///
    /// # Errors
    /// As [`Collective::receive`].
    fn broadcast(&mut self, bytes: Vec<u8>, root: usize) -> Result<Vec<u8>> {
        if self.rank() != root {
            return self.receive(root);
        }
        for to in (0..self.world()).filter(|r| *r != root) {
            self.send(to, &bytes)?;
        }
        Ok(bytes)
    }

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// As [`Collective::receive`].
    fn barrier(&mut self) -> Result<()> {
        self.all_gather(Vec::new()).map(|_| ())
    }
}

/// Little-endian bytes of numbers.
pub fn to_bytes(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// Numbers from little-endian bytes.
///
/// # Errors
/// A length that is no multiple of four.
pub fn from_bytes(bytes: &[u8]) -> Result<Vec<f32>> {
    if !bytes.len().is_multiple_of(4) {
        return Err(Error::Internal("a peer sent half a number".into()));
    }
    Ok(bytemuck::pod_collect_to_vec(bytes))
}
