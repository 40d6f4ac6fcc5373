//! The fixed binary tree by which grains are added: node `(level, index)` covers grains `index·2^level ..
//! (index+1)·2^level`, its value is left + right, and an empty right child costs no arithmetic.

use std::convert::Infallible;

use crate::{Error, Result};

/// The sum of a run of grains.
#[derive(Clone, Debug, PartialEq)]
pub struct Node<T = Vec<f32>> {
    /// Height in the tree; 0 is one grain.
    pub level: u32,
    /// Which node of that height.
    pub index: usize,
    /// Elements.
    pub data: T,
}

impl<T> Node<T> {
    /// One grain.
    pub fn leaf(grain: usize, data: T) -> Self {
        Self { level: 0, index: grain, data }
    }

    fn start(&self) -> Option<usize> {
        self.index.checked_shl(self.level)
    }
}

/// Adds a node to a stack of nodes that end where it begins, merging siblings.
pub fn push(stack: &mut Vec<Node>, node: Node, grains: usize) {
    let Ok(()) = push_with(stack, node, grains, |left, right| Ok::<_, Infallible>(plus(left, &right)));
}

/// The same of whatever `plus` adds up, left and right.
///
/// # Errors
/// Those of `plus`.
pub fn push_with<T, E>(
    stack: &mut Vec<Node<T>>,
    mut node: Node<T>,
    grains: usize,
    mut plus: impl FnMut(T, T) -> Result<T, E>,
) -> Result<(), E> {
    loop {
        let last = grains - 1;
        if node.index.is_multiple_of(2) && (node.index + 1) << node.level >= grains && last >> node.level != 0 {
            // The sibling is empty.
            (node.level, node.index) = (node.level + 1, node.index / 2);
        } else if node.index % 2 == 1
            && stack.last().is_some_and(|t| (t.level, t.index + 1) == (node.level, node.index))
        {
            if let Some(left) = stack.pop() {
                node = Node { level: node.level + 1, index: node.index / 2, data: plus(left.data, node.data)? };
            }
        } else {
            stack.push(node);
            return Ok(());
        }
    }
}

fn plus(mut left: Vec<f32>, right: &[f32]) -> Vec<f32> {
    left.iter_mut().zip(right).for_each(|(l, r)| *l += r);
    left
}

/// Adds up pieces that tile all grains; nothing at all is a sum of zeros.
///
/// # Errors
/// Pieces that leave a grain out or hold one twice.
pub fn finish(pieces: Vec<Node>, grains: usize, len: usize) -> Result<Vec<f32>> {
    if grains == 0 {
        return Ok(vec![0.0; len]);
    }
    if pieces.iter().any(|piece| piece.data.len() != len) {
        return Err(bad());
    }
    finish_with(pieces, grains, |left, right| Ok(plus(left, &right)))
}

/// The same of whatever `plus` adds up, left and right; there is something.
///
/// # Errors
/// As [`finish`]; those of `plus`.
pub fn finish_with<T>(mut pieces: Vec<Node<T>>, grains: usize, mut plus: impl FnMut(T, T) -> Result<T>) -> Result<T> {
    pieces.sort_by_key(Node::start);
    let (mut stack, mut next) = (Vec::new(), 0);
    for piece in pieces {
        let end = 1usize.checked_shl(piece.level).and_then(|w| piece.start()?.checked_add(w)).ok_or_else(bad)?;
        if piece.start() != Some(next) || next == grains {
            return Err(bad());
        }
        next = end.min(grains);
        push_with(&mut stack, piece, grains, &mut plus)?;
    }
    match stack.pop() {
        Some(root) if next == grains && stack.is_empty() => Ok(root.data),
        _ => Err(bad()),
    }
}

fn bad() -> Error {
    Error::Internal("the pieces of a step do not tile its grains".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::rng::Philox;

    proptest::proptest! {
        #[test]
        fn any_cut_into_runs_gives_the_same_bits(grains in 1usize..40, cuts in proptest::collection::vec(0usize..40, 0..6)) {
            let mut s = Philox::new(1, "tree").stream(grains as u64, 0);
            let leaves: Vec<Vec<f32>> = (0..grains).map(|_| vec![s.normal(), s.normal()]).collect();
            let run = |from: usize, to: usize| {
                let mut stack = Vec::new();
                (from..to).for_each(|g| push(&mut stack, Node::leaf(g, leaves[g].clone()), grains));
                stack
            };
            let whole = finish(run(0, grains), grains, 2).unwrap();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(grains)).chain([0, grains]).collect();
            cuts.sort_unstable();
            let pieces: Vec<Node> = cuts.windows(2).flat_map(|w| run(w[0], w[1])).collect();
            assert_eq!(finish(pieces.clone(), grains, 2).unwrap(), whole);
            let mut twice = pieces.clone();
            twice.push(pieces[0].clone());
            assert!(finish(twice, grains, 2).is_err());
            assert!(grains == 1 || finish(pieces[1..].to_vec(), grains, 2).is_err());
        }
    }

    #[test]
    fn children_are_added_left_and_right_and_one_that_cannot_be_added_ends_it() {
        let leaves = |n: usize| -> Vec<Node<String>> { (0..n).map(|g| Node::leaf(g, g.to_string())).collect() };
        let sum = |n: usize| finish_with(leaves(n), n, |left, right| Ok(format!("({left}+{right})")));
        assert_eq!([1, 2, 5].map(|n| sum(n).unwrap()), ["0", "(0+1)", "(((0+1)+(2+3))+4)"]);
        assert!(sum(0).is_err());
        assert!(matches!(finish_with(leaves(2), 2, |_, _| Err(Error::Stopped)), Err(Error::Stopped)));
    }
}
