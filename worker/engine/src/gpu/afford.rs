//! Memory that is short. What was freed stays with the driver's pool, where neither libraries that take theirs beside it nor
//! arrays of another size may find it: before it is said that there is none, it goes back to the system, and with it what went
//! up before it was asked for.

use cudarc::driver::{result, sys};

use super::{Device, Fault};

impl Device {
    /// Does what takes memory; where there is none, once more after what was freed and what is spare have gone back.
    ///
    /// # Errors
    /// There is none then either; or whatever else fails.
    pub(in crate::gpu) fn afford<T>(&self, take: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
        again(take, || self.give_back())
    }

    /// Gives the system what the pool holds and no array does but spare ones.
    #[expect(unsafe_code, reason = "calls the driver")]
    ///
    /// # Errors
    /// The GPU has failed.
    pub(in crate::gpu) fn give_back(&self) -> Result<(), Fault> {
        self.spare().iter().try_for_each(|ahead| ahead.let_go())?;
        // What was freed is free once the stream has come to it.
        self.synchronize()?;
        let context = self.stream().context();
        if !context.has_async_alloc() {
            return Ok(());
        }
        context.bind_to_thread()?;
        // SAFETY: the device is the context's, and has a pool.
        unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device())?;
            sys::cuMemPoolTrimTo(pool, 0).result()?;
        }
        Ok(())
    }
}

fn again<T>(
    mut take: impl FnMut() -> Result<T, Fault>,
    give_back: impl FnOnce() -> Result<(), Fault>,
) -> Result<T, Fault> {
    match take() {
        Err(Fault::Memory) => {
            give_back()?;
            take()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What comes of it where so many bytes are free, so many can be given back and so many are taken; and how often it was
    /// asked.
    fn asked(free: u64, held: u64, taken: u64) -> (Result<u64, Fault>, u32) {
        let (free, times) = (Cell::new(free), Cell::new(0));
        let take = || {
            times.set(times.get() + 1);
            free.get().checked_sub(taken).ok_or(Fault::Memory)
        };
        let came = again(take, || {
            free.set(free.get() + held);
            Ok(())
        });
        (came, times.get())
    }

    #[test]
    fn what_was_freed_goes_back_once_before_memory_is_full() {
        assert!(matches!(asked(10, 5, 8), (Ok(2), 1)));
        assert!(matches!(asked(10, 5, 12), (Ok(3), 2)));
        assert!(matches!(asked(10, 5, 16), (Err(Fault::Memory), 2)));
        // Only where memory is what is missing; and what fails on the way is told instead.
        let unasked = again(|| Err::<(), _>(Fault::shape("other")), || panic!("nothing is given back"));
        assert!(matches!(unasked, Err(Fault::Shape(_))));
        let lost = again(|| Err::<(), _>(Fault::Memory), || Err(Fault::Driver("lost".into())));
        assert!(matches!(lost, Err(Fault::Driver(_))));
    }
}
