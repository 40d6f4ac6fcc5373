//! Memory of packed matrices, used again. Whoever packs writes all that is read later, so it is not cleared in between:
//! clearing costs as much as packing.

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

/// Most elements of one block that is kept, and of all of them.
const LARGEST: usize = 4 << 20;
const KEPT: usize = 16 << 20;

static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Numbers with whatever was in them before; given back when dropped.
pub(super) struct Scratch {
    block: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// `len` numbers.
    pub fn new(len: usize) -> Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = free.iter().enumerate().filter(|(_, block)| block.len() >= len);
        let smallest = fitting.min_by_key(|(_, block)| block.len()).map(|(i, _)| i);
        let mut block = smallest.map(|i| free.swap_remove(i)).unwrap_or_default();
        drop(free);
        if block.is_empty() {
            block = vec![0.0; len];
        }
        // The excess is kept, so that the next one may be larger.
        Self { block, len }
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.block[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.block[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let block = std::mem::take(&mut self.block);
        if block.is_empty() || block.len() > LARGEST {
            return;
        }
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(block);
        // What is too much goes, the smallest first: they are the soonest made again.
        while free.iter().map(Vec::len).sum::<usize>() > KEPT {
            let smallest = free.iter().enumerate().min_by_key(|(_, block)| block.len()).map(|(i, _)| i);
            smallest.map(|i| free.swap_remove(i));
        }
    }
}
