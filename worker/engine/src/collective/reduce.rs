//! The sum over all grains, on every rank: a reduce-scatter and an all-gather, in chunks, so that one is added up while
//! the next is on the wire.

use super::{
    Collective, from_bytes, to_bytes,
    tree::{self, Node},
};
use crate::{Error, Result};

/// Elements of one chunk, of all ranks together.
const CHUNK: usize = 1 << 19;
/// Up to so many elements everybody sends everything to everybody: one way instead of two.
const DIRECT: usize = 1 << 12;

/// Sums the pieces of all ranks; everyone gets the sum of all `grains` leaves, each of `len` elements.
///
/// By one fixed binary tree over the leaves, so the bits depend neither on who owned which nor on how the elements are
/// cut. In the fast reduction a leaf is the sum of a rank.
///
/// # Errors
/// A lost peer, or pieces that do not tile the grains.
pub fn reduce(group: &mut dyn Collective, pieces: Vec<Node>, grains: usize, len: usize) -> Result<Vec<f32>> {
    let world = group.world();
    if world == 1 {
        return tree::finish(pieces, grains, len);
    }
    if len <= DIRECT {
        let mut nodes = Vec::new();
        for bytes in group.all_gather(encode(&pieces, 0..len))? {
            nodes.extend(decode(&bytes, len)?);
        }
        return tree::finish(nodes, grains, len);
    }
    let rank = group.rank();
    let others: Vec<usize> = (1..world).map(|step| (rank + step) % world).collect();
    let chunks = (0..len.div_ceil(CHUNK)).map(|c| c * CHUNK..((c + 1) * CHUNK).min(len));
    // Runs are multiples of 1024 elements, and a function of length and world only.
    let runs = |chunk: &std::ops::Range<usize>| -> Vec<std::ops::Range<usize>> {
        let each = chunk.len().div_ceil(world).next_multiple_of(1024);
        let bound = |r: usize| (chunk.start + r * each).min(chunk.end);
        (0..world).map(|r| bound(r)..bound(r + 1)).collect()
    };
    let runs: Vec<_> = chunks.map(|chunk| runs(&chunk)).collect();
    for run in &runs {
        for to in &others {
            group.send(*to, encode(&pieces, run[*to].clone()).into())?;
        }
    }
    let mut sum = vec![0.0; len];
    for run in &runs {
        let own = run[rank].clone();
        let mut nodes: Vec<Node> = pieces.iter().map(|p| Node { data: p.data[own.clone()].to_vec(), ..*p }).collect();
        for from in &others {
            nodes.extend(decode(&group.receive(*from)?, own.len())?);
        }
        let reduced = tree::finish(nodes, grains, own.len())?;
        let bytes = std::sync::Arc::new(to_bytes(&reduced));
        for to in &others {
            group.send(*to, bytes.clone())?;
        }
        sum[own].copy_from_slice(&reduced);
    }
    for run in &runs {
        for from in &others {
            let (place, part) = (run[*from].clone(), from_bytes(&group.receive(*from)?)?);
            if part.len() != place.len() {
                let text = format!("rank {from} sent {} elements instead of {}", part.len(), place.len());
                return Err(Error::Internal(text));
            }
            sum[place].copy_from_slice(&part);
        }
    }
    Ok(sum)
}

/// Some elements of all pieces.
fn encode(pieces: &[Node], elements: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + pieces.len() * (12 + 4 * elements.len()));
    bytes.extend((pieces.len() as u32).to_le_bytes());
    for piece in pieces {
        bytes.extend(piece.level.to_le_bytes());
        bytes.extend((piece.index as u64).to_le_bytes());
        bytes.extend_from_slice(bytemuck::cast_slice(&piece.data[elements.clone()]));
    }
    bytes
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
    if rest.is_empty() { Ok(nodes) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_message_makes_the_reader_panic(bytes in proptest::collection::vec(0u8.., 0..200), len in 0usize..40) {
            let _ = decode(&bytes, len);
        }
    }

    #[test]
    fn pieces_come_back_by_run() {
        let node = |index, from: f32| Node { level: 1, index, data: (0..9).map(|i| from + i as f32).collect() };
        let pieces = [node(0, 0.5), node(3, 100.0)];
        let back = decode(&encode(&pieces, 2..5), 3).unwrap();
        assert_eq!(back[1], Node { level: 1, index: 3, data: vec![102.0, 103.0, 104.0] });
        assert!(decode(&encode(&pieces, 2..5), 4).is_err());
    }
}
