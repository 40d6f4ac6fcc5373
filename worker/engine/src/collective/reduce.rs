//! The sum over all grains, on every rank, in chunks, so that one is added up while the next is on the wire. Sums are
//! made in place and chunks are sent from where they lie: a step's gradient is not copied, and nothing of its size is
//! allocated.

use std::ops::Range;

use super::{
    Collective,
    tree::{self, Node},
};
use crate::{Error, Result, num::simd::vectorised};

/// Elements of one chunk where everyone sends everything.
const CHUNK: usize = 1 << 17;
/// Up to so many elements everybody sends everything to everybody: one way instead of two.
const DIRECT: usize = 1 << 12;

/// The fast reduction: the sum over ranks, each of which has one piece, the sum of its own, or none. In the group's own way, if
/// it has one; else a piece is a leaf of [`reduce`]'s tree, which has as many as there are `pieces` on all ranks.
///
/// # Errors
/// As [`reduce`]; several pieces.
pub fn reduce_fast(group: &mut dyn Collective, mut pieces: Vec<Node>, leaves: usize, len: usize) -> Result<Vec<f32>> {
    let mut sum = match &mut pieces[..] {
        [] => vec![0.0; len],
        [own] if own.data.len() == len => std::mem::take(&mut own.data),
        _ => return Err(Error::Internal("a rank has several sums, or one of another length than its step".into())),
    };
    if group.sum(&mut sum)? {
        return Ok(sum);
    }
    if let [own] = &mut pieces[..] {
        own.data = sum;
    }
    reduce(group, pieces, leaves, len)
}

/// Sums the pieces of all ranks; everyone gets the sum of all `grains` leaves, each of `len` elements.
///
/// By one fixed binary tree over the leaves, so the bits depend neither on who owned which nor on how the elements are
/// cut.
///
/// # Errors
/// A lost peer, or pieces that do not tile the grains.
pub fn reduce(group: &mut dyn Collective, pieces: Vec<Node>, grains: usize, len: usize) -> Result<Vec<f32>> {
    if pieces.iter().any(|p| p.data.len() != len) {
        return Err(Error::Internal("a grain has another length than its step".into()));
    }
    let world = group.world();
    if world == 1 {
        return tree::finish(pieces, grains, len);
    }
    let rank = group.rank();
    let others = (1..world).map(|step| (rank + step) % world).collect();
    // A rank without a grain has nothing of its own to add to.
    let blank = if pieces.is_empty() { vec![0.0; len] } else { Vec::new() };
    let mut all = Reduction { group, others, pieces, blank, grains };
    // For two it costs the same bytes, and waits only once.
    if len <= DIRECT || world == 2 {
        all.exchange(len)?
    } else {
        all.scatter(len, rank)?
    }
    let Reduction { mut pieces, blank, .. } = all;
    Ok(if pieces.is_empty() { blank } else { pieces.swap_remove(0).data })
}

struct Reduction<'a> {
    group: &'a mut dyn Collective,
    others: Vec<usize>,
    /// The sum comes into the first one.
    pieces: Vec<Node>,
    /// Or here, where there is none.
    blank: Vec<f32>,
    grains: usize,
}

impl Reduction<'_> {
    /// Everyone sends everything to everyone, and adds it all up.
    fn exchange(&mut self, len: usize) -> Result<()> {
        let chunks: Vec<_> = (0..len.div_ceil(CHUNK)).map(|c| c * CHUNK..((c + 1) * CHUNK).min(len)).collect();
        // One ahead: while it is on the wire, the one before is added up.
        for ahead in 0..=chunks.len() {
            if let Some(chunk) = chunks.get(ahead) {
                for to in self.others.clone() {
                    self.send(to, chunk)?;
                }
            }
            if let Some(chunk) = ahead.checked_sub(1).and_then(|c| chunks.get(c)) {
                self.add(chunk)?;
            }
        }
        Ok(())
    }

    /// Each chunk is cut into a run for every rank, which adds it up and sends the sum to the others.
    fn scatter(&mut self, len: usize, rank: usize) -> Result<()> {
        let world = self.others.len() + 1;
        let size = CHUNK * world;
        // Runs are multiples of 1024 elements, and a function of length and world only.
        let runs = |chunk: Range<usize>| -> Vec<Range<usize>> {
            let each = chunk.len().div_ceil(world).next_multiple_of(1024);
            let bound = |r: usize| (chunk.start + r * each).min(chunk.end);
            (0..world).map(|r| bound(r)..bound(r + 1)).collect()
        };
        let chunks: Vec<_> = (0..len.div_ceil(size)).map(|c| runs(c * size..((c + 1) * size).min(len))).collect();
        // Three chunks are under way: one goes out, one is added up, the sums of one come in. Whatever a rank sends, the
        // others take in this order.
        for ahead in 0..chunks.len() + 2 {
            if let Some(runs) = chunks.get(ahead) {
                for to in self.others.clone() {
                    self.send(to, &runs[to])?;
                }
            }
            if let Some(runs) = ahead.checked_sub(1).and_then(|c| chunks.get(c)) {
                self.add(&runs[rank])?;
                for to in self.others.clone() {
                    let sum = bytemuck::cast_slice(&target(&mut self.pieces, &mut self.blank)[runs[rank].clone()]);
                    self.group.send(to, sum)?;
                }
            }
            if let Some(runs) = ahead.checked_sub(2).and_then(|c| chunks.get(c)) {
                for from in self.others.clone() {
                    let bytes = self.group.receive(from)?;
                    let place = &mut target(&mut self.pieces, &mut self.blank)[runs[from].clone()];
                    if bytes.len() != 4 * place.len() {
                        let text = format!("rank {from} sent {} bytes instead of {}", bytes.len(), 4 * place.len());
                        return Err(Error::Internal(text));
                    }
                    bytemuck::cast_slice_mut::<f32, u8>(place).copy_from_slice(&bytes);
                    self.group.reuse(from, bytes);
                }
            }
        }
        Ok(())
    }

    /// Sends some elements of all pieces.
    fn send(&mut self, to: usize, elements: &Range<usize>) -> Result<()> {
        let head = head(&self.pieces);
        let mut parts: Vec<&[u8]> = vec![&head];
        parts.extend(self.pieces.iter().map(|p| bytemuck::cast_slice(&p.data[elements.clone()])));
        self.group.send_parts(to, &parts)
    }

    /// Receives these elements of everyone's pieces, and makes the sum of all in their place.
    fn add(&mut self, elements: &Range<usize>) -> Result<()> {
        let mut received = Vec::with_capacity(self.others.len());
        for from in &self.others {
            received.push((*from, self.group.receive(*from)?));
        }
        let mut theirs = Vec::new();
        for (_, bytes) in &received {
            theirs.extend(decode(bytes, elements.len())?);
        }
        match (&mut self.pieces[..], &theirs[..]) {
            ([own], [other]) => {
                // Of two pieces there is one sum, whichever is on the left; that they tile is found out without elements.
                let bare = |level, index| Node { level, index, data: Vec::new() };
                tree::finish(vec![bare(own.level, own.index), bare(other.level, other.index)], self.grains, 0)?;
                add(&mut own.data[elements.clone()], other.data);
            }
            _ => {
                let cut = |p: &Node| Node { data: p.data[elements.clone()].to_vec(), ..*p };
                let mut nodes: Vec<Node> = self.pieces.iter().map(cut).collect();
                nodes.extend(theirs.iter().map(|t| Node {
                    level: t.level,
                    index: t.index,
                    data: bytemuck::pod_collect_to_vec(t.data),
                }));
                let sum = tree::finish(nodes, self.grains, elements.len())?;
                target(&mut self.pieces, &mut self.blank)[elements.clone()].copy_from_slice(&sum);
            }
        }
        received.into_iter().for_each(|(from, bytes)| self.group.reuse(from, bytes));
        Ok(())
    }
}

/// Where the sum is made.
fn target<'a>(pieces: &'a mut [Node], blank: &'a mut [f32]) -> &'a mut [f32] {
    match pieces.first_mut() {
        Some(first) => &mut first.data,
        None => blank,
    }
}

vectorised! {
    fn add(sum: &mut [f32], bytes: &[u8]) {
        for (s, b) in sum.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *s += f32::from_le_bytes(*b);
        }
    }
}

/// Some elements of a piece, as they came.
struct Piece<'a> {
    level: u32,
    index: usize,
    data: &'a [u8],
}

/// Bytes of a piece's line: level and index.
const LINE: usize = 12;

/// How many pieces follow, and which.
fn head(pieces: &[Node]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + pieces.len() * LINE);
    bytes.extend((pieces.len() as u32).to_le_bytes());
    for piece in pieces {
        bytes.extend(piece.level.to_le_bytes());
        bytes.extend((piece.index as u64).to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8], len: usize) -> Result<Vec<Piece<'_>>> {
    let bad = || Error::Internal("a peer sent a piece that is cut off".into());
    let (count, rest) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
    let count = u32::from_le_bytes(*count) as usize;
    let (lines, data) = count.checked_mul(LINE).and_then(|n| rest.split_at_checked(n)).ok_or_else(bad)?;
    if Some(data.len()) != count.checked_mul(4 * len) {
        return Err(bad());
    }
    let piece = |(i, line): (usize, &[u8; LINE])| {
        let [level @ .., _, _, _, _, _, _, _, _] = *line;
        let [_, _, _, _, index @ ..] = *line;
        let index = usize::try_from(u64::from_le_bytes(index)).map_err(|_| bad())?;
        Ok(Piece { level: u32::from_le_bytes(level), index, data: &data[4 * len * i..4 * len * (i + 1)] })
    };
    lines.as_chunks::<LINE>().0.iter().enumerate().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Solo;

    /// A group that adds up in a way of its own: what the others have is 1 each.
    struct Quick;

    impl Collective for Quick {
        fn rank(&self) -> usize {
            0
        }
        fn weights(&self) -> &[u32] {
            &[1, 1]
        }
        fn messages(&self) -> u64 {
            0
        }
        fn send_parts(&mut self, _: usize, _: &[&[u8]]) -> Result<()> {
            Err(Error::Stopped)
        }
        fn receive(&mut self, _: usize) -> Result<Vec<u8>> {
            Err(Error::Stopped)
        }
        fn sum(&mut self, own: &mut [f32]) -> Result<bool> {
            own.iter_mut().for_each(|v| *v += 1.0);
            Ok(true)
        }
    }

    #[test]
    fn the_fast_reduction_takes_a_groups_own_way_and_the_ordered_one_never_does() {
        let own = || vec![Node::leaf(0, vec![2.0, 3.0])];
        assert_eq!(reduce_fast(&mut Quick, own(), 2, 2).unwrap(), [3.0, 4.0]);
        assert_eq!(reduce_fast(&mut Quick, Vec::new(), 1, 2).unwrap(), [1.0, 1.0], "who has no grain adds nothing");
        assert!(matches!(reduce(&mut Quick, own(), 2, 2), Err(Error::Stopped)));
        assert_eq!(reduce_fast(&mut Solo, own(), 1, 2).unwrap(), [2.0, 3.0]);
        assert_eq!(reduce_fast(&mut Solo, Vec::new(), 0, 2).unwrap(), [0.0, 0.0]);
    }

    #[test]
    fn several_sums_and_sums_of_another_length_are_refused() {
        for pieces in [vec![Node::leaf(0, vec![1.0]), Node::leaf(1, vec![1.0])], vec![Node::leaf(0, vec![1.0; 2])]] {
            assert!(matches!(reduce_fast(&mut Quick, pieces, 2, 1), Err(Error::Internal(_))));
        }
    }

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
        let mut bytes = head(&pieces);
        pieces.iter().for_each(|p| bytes.extend_from_slice(bytemuck::cast_slice(&p.data[2..5])));
        let back = decode(&bytes, 3).unwrap();
        assert_eq!((back.len(), back[1].level, back[1].index), (2, 1, 3));
        assert_eq!(back[1].data, bytemuck::cast_slice::<f32, u8>(&[102.0, 103.0, 104.0]));
        assert!(decode(&bytes, 4).is_err() && decode(&bytes[..bytes.len() - 1], 3).is_err());
    }
}
