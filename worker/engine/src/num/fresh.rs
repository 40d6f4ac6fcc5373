//! New memory, cleared where it is used first.

#![expect(unsafe_code, reason = "memory that was written on several threads becomes a vector")]

use std::{
    mem::MaybeUninit,
    sync::atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;

/// Elements of one task, when nobody says otherwise.
const TASK: usize = 1 << 15;

/// Memory for `f32` that nobody has written yet. Each part is cleared by the thread that goes on to fill it, while it lies
/// in that thread's cache: clearing all of it at once would be a pass over memory more, on one thread.
pub struct Fresh {
    data: Box<[MaybeUninit<f32>]>,
    given: AtomicUsize,
}

impl Fresh {
    /// Room for `len` numbers.
    pub fn new(len: usize) -> Self {
        Self { data: Box::new_uninit_slice(len), given: AtomicUsize::new(0) }
    }

    /// Parts of `size` numbers each, the last one perhaps smaller, all zero.
    pub fn parts(&mut self, size: usize) -> impl IndexedParallelIterator<Item = &mut [f32]> {
        self.given = AtomicUsize::new(0);
        let given = &self.given;
        self.data.par_chunks_mut(size.max(1)).map(move |part| {
            given.fetch_add(part.len(), Ordering::Relaxed);
            clear(part)
        })
    }

    /// Parts of these sizes, to be cleared by whoever fills them; together all there is.
    pub fn cut(&mut self, sizes: impl IntoIterator<Item = usize>) -> Vec<Part<'_>> {
        self.given = AtomicUsize::new(0);
        let (given, mut rest) = (&self.given, &mut self.data[..]);
        let cut = |size| {
            let (data, behind) = std::mem::take(&mut rest).split_at_mut(size);
            rest = behind;
            Part { data, given }
        };
        sizes.into_iter().map(cut).collect()
    }

    /// The numbers.
    ///
    /// # Panics
    /// If a part was not handed out.
    pub fn done(self) -> Vec<f32> {
        assert_eq!(self.given.into_inner(), self.data.len(), "a part of new memory was left out");
        // SAFETY: since `parts` or `cut` last began to count, each part was handed out once at most, cleared; they are
        // disjoint, and their lengths add up to all of it.
        unsafe { self.data.assume_init() }.into_vec()
    }
}

/// A part that is not cleared yet.
pub struct Part<'a> {
    data: &'a mut [MaybeUninit<f32>],
    given: &'a AtomicUsize,
}

impl<'a> Part<'a> {
    /// Its numbers, all zero.
    pub fn zeros(self) -> &'a mut [f32] {
        self.given.fetch_add(self.data.len(), Ordering::Relaxed);
        clear(self.data)
    }
}

fn clear(part: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    part.fill(MaybeUninit::new(0.0));
    // SAFETY: every element was just written.
    unsafe { &mut *(std::ptr::from_mut(part) as *mut [f32]) }
}

/// `len` zeros.
pub fn zeros(len: usize) -> Vec<f32> {
    if len <= 2 * TASK {
        return vec![0.0; len];
    }
    let mut fresh = Fresh::new(len);
    fresh.parts(TASK).for_each(|_| ());
    fresh.done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_zero_and_stay_where_they_were_written() {
        for len in [0, 1, 7, 3 * TASK + 5] {
            assert_eq!(zeros(len), vec![0.0; len]);
            let mut fresh = Fresh::new(len);
            fresh.parts(4).enumerate().for_each(|(i, part)| part.iter_mut().for_each(|v| *v += i as f32));
            assert_eq!(fresh.done(), (0..len).map(|i| (i / 4) as f32).collect::<Vec<_>>());
        }
        let mut fresh = Fresh::new(5);
        fresh.cut([2, 0, 3]).into_iter().zip([1.0, 2.0, 3.0]).for_each(|(part, v)| part.zeros().fill(v));
        assert_eq!(fresh.done(), [1.0, 1.0, 3.0, 3.0, 3.0]);
    }

    #[test]
    #[should_panic(expected = "left out")]
    fn memory_that_was_not_handed_out_does_not_get_out() {
        let mut fresh = Fresh::new(5);
        fresh.parts(2).skip(1).for_each(|_| ());
        // A second look at a part does not stand in for the first.
        let mut parts = fresh.cut([2, 3]).into_iter();
        parts.next().unwrap().zeros();
        fresh.done();
    }
}
