//! Memory of packed matrices, used again. Whoever packs writes all that is read later, so it is not cleared in between:
//! clearing costs as much as packing.

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

/// Most elements of one block that is kept, and of all of them.
const LARGEST: usize = 8 << 20;
const KEPT: usize = 16 << 20;

static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Bytes of a cache line: a vector that lies across two of them is loaded twice.
const LINE: usize = 64;

/// Numbers with whatever was in them before, from the beginning of a cache line on; given back when dropped.
pub(super) struct Scratch {
    block: Vec<f32>,
    start: usize,
    len: usize,
}

impl Scratch {
    /// `len` numbers.
    pub fn new(len: usize) -> Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let room = len + LINE / size_of::<f32>();
        let fitting = free.iter().enumerate().filter(|(_, block)| block.len() >= room);
        let smallest = fitting.min_by_key(|(_, block)| block.len()).map(|(i, _)| i);
        let mut block = smallest.map(|i| free.swap_remove(i)).unwrap_or_default();
        drop(free);
        if block.is_empty() {
            block = vec![0.0; room];
        }
        // The excess is kept, so that the next one may be larger.
        let start = block.as_ptr().align_offset(LINE).min(room - len);
        Self { block, start, len }
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.block[self.start..self.start + self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.block[self.start..self.start + self.len]
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
