//! How kernels are started.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DeviceSlice, LaunchConfig};

use super::Fault;

/// Threads of a block where each has numbers of its own.
const THREADS: usize = 256;
/// Blocks of such a grid, at most; its threads go on to further numbers. No part of any result.
const GRID: usize = 1 << 16;
/// The same where a thread divides once for all of its numbers: more blocks than any GPU runs at a time.
const FEW: usize = 1 << 11;
/// Blocks of such a grid whose threads have several rows each, at least: about as many as a large GPU runs at a time.
const BUSY: usize = 1 << 10;
/// Threads that add up a row, and rows of a block: `LANES` and `LINES` of `common.cuh`.
const LANES: u32 = 16;
const LINES: usize = 8;
/// The same of attention's scores: `QUAD` and `ROWS` of `softmax.cu`.
const QUAD: u32 = 4;
const ROWS: usize = 32;
/// Rows whose sum is one chain: `BLOCK` of `common.cuh`.
pub(in crate::gpu) const BLOCK: usize = 64;
/// Lines of such sums that a block adds up: `GROUP` of `common.cuh`.
pub(in crate::gpu) const GROUP: usize = 256;
/// Columns and chains of a block that adds up columns.
const COLUMNS: usize = 32;
const CHAINS: u32 = 8;

/// A thread for each of `n` numbers, or for several.
pub(in crate::gpu) fn each(n: usize) -> LaunchConfig {
    let blocks = n.div_ceil(THREADS).clamp(1, GRID);
    LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (THREADS as u32, 1, 1), shared_mem_bytes: 0 }
}

/// A thread for four of `n` numbers, which it reads and writes at once where it can, or for many fours.
pub(in crate::gpu) fn fours(n: usize) -> LaunchConfig {
    let blocks = n.div_ceil(4 * THREADS).clamp(1, FEW);
    LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (THREADS as u32, 1, 1), shared_mem_bytes: 0 }
}

/// A thread for sixteen bytes of `n` numbers of that type, or for many times as many.
pub(in crate::gpu) fn words<T>(n: usize) -> LaunchConfig {
    fours(n.div_ceil(16 / size_of::<T>()) * 4)
}

/// The same in rows of `c` numbers, where a thread has the same channels in each of its rows, and reads what belongs to them
/// once. It has eight of bf16 where that goes, else four; where not even these do, any.
pub(in crate::gpu) fn rows_of<T>(n: usize, c: usize) -> LaunchConfig {
    let numbers = [16 / size_of::<T>(), 4].into_iter().find(|numbers| c.is_multiple_of(*numbers)).unwrap_or(1);
    let blocks = n.div_ceil(numbers * THREADS).max(1);
    let blocks = blocks.div_ceil((blocks / BUSY).max(1));
    // All of its threads are whole rows. Some may have nothing to do.
    let line = c / numbers;
    let whole = line >> line.trailing_zeros().min(THREADS.trailing_zeros());
    let blocks = blocks.next_multiple_of(whole.clamp(1, GRID));
    LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (THREADS as u32, 1, 1), shared_mem_bytes: 0 }
}

/// Sixteen threads for each row.
pub(in crate::gpu) fn lines(rows: usize) -> Result<LaunchConfig, Fault> {
    let blocks = wide(rows.div_ceil(LINES))?;
    Ok(LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (LANES, LINES as u32, 1), shared_mem_bytes: 0 })
}

/// Four threads for each row.
pub(in crate::gpu) fn quads(rows: usize) -> Result<LaunchConfig, Fault> {
    let blocks = wide(rows.div_ceil(ROWS))?;
    Ok(LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (QUAD, ROWS as u32, 1), shared_mem_bytes: 0 })
}

/// Eight threads for each of `width` columns, `times` over.
pub(in crate::gpu) fn columns(width: usize, times: usize) -> Result<LaunchConfig, Fault> {
    let grid_dim = (wide(width.div_ceil(COLUMNS))?, narrow(times)?, 1);
    Ok(LaunchConfig { grid_dim, block_dim: (COLUMNS as u32, CHAINS, 1), shared_mem_bytes: 0 })
}

/// A block for each tile of 32 rows and columns of `batch` matrices.
pub(in crate::gpu) fn tiles(batch: usize, rows: usize, width: usize) -> Result<LaunchConfig, Fault> {
    let grid_dim = (wide(width.div_ceil(COLUMNS))?, narrow(rows.div_ceil(COLUMNS))?, narrow(batch)?);
    Ok(LaunchConfig { grid_dim, block_dim: (COLUMNS as u32, CHAINS, 1), shared_mem_bytes: 0 })
}

/// Eight threads for each of `blocks` blocks of squares.
pub(in crate::gpu) fn squares(blocks: usize) -> Result<LaunchConfig, Fault> {
    let grid_dim = (wide(blocks.div_ceil(COLUMNS))?, 1, 1);
    Ok(LaunchConfig { grid_dim, block_dim: (CHAINS, COLUMNS as u32, 1), shared_mem_bytes: 0 })
}

/// A number that a kernel takes in 32 bits.
pub(in crate::gpu) fn small(n: usize) -> Result<u32, Fault> {
    u32::try_from(n).map_err(|_| Fault::shape(format!("{n} is more than a kernel counts to")))
}

/// Blocks in the first direction of a grid.
fn wide(blocks: usize) -> Result<u32, Fault> {
    i32::try_from(blocks).map(i32::unsigned_abs).map_err(|_| Fault::shape(format!("a grid of {blocks} blocks")))
}

/// Blocks in another one.
fn narrow(blocks: usize) -> Result<u32, Fault> {
    u16::try_from(blocks).map(u32::from).map_err(|_| Fault::shape(format!("a grid of {blocks} blocks across")))
}

/// What a kernel is given.
pub(in crate::gpu) trait Argument {
    /// The stream of memory; a number has none.
    fn of_stream(&self) -> Option<&Arc<CudaStream>>;
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl Argument for $number {
            fn of_stream(&self) -> Option<&Arc<CudaStream>> {
                None
            }
        }
    )+};
}
numbers!(u32, u64, i32, f32, f64);

impl<T> Argument for CudaSlice<T> {
    fn of_stream(&self) -> Option<&Arc<CudaStream>> {
        Some(self.stream())
    }
}

impl<T> Argument for CudaView<'_, T> {
    fn of_stream(&self) -> Option<&Arc<CudaStream>> {
        Some(self.stream())
    }
}

impl<T> Argument for CudaViewMut<'_, T> {
    fn of_stream(&self) -> Option<&Arc<CudaStream>> {
        Some(self.stream())
    }
}

impl<A: Argument> Argument for &A {
    fn of_stream(&self) -> Option<&Arc<CudaStream>> {
        A::of_stream(self)
    }
}

impl<A: Argument> Argument for &mut A {
    fn of_stream(&self) -> Option<&Arc<CudaStream>> {
        A::of_stream(self)
    }
}

/// Refuses an argument of another stream: nothing would keep what is done with it on this one behind what makes it there.
pub(in crate::gpu) fn own<A: Argument>(stream: &Arc<CudaStream>, argument: A) -> Result<A, Fault> {
    if argument.of_stream().is_some_and(|other| other != stream) {
        return Err(Fault::Foreign);
    }
    Ok(argument)
}

/// Starts a kernel of a file on a device: the grid, then its arguments in order, each behind a reference. Arrays of another
/// stream are refused.
///
/// What the compiler cannot check, and whoever writes a call must: that the arguments are those of the kernel, and that what
/// it writes is given by `&mut`. The tests of `tests/gpu` call every one.
macro_rules! launch {
    ($device:expr, $source:ident, $name:expr, $grid:expr, $($arg:expr),+ $(,)?) => {{
        use ::cudarc::driver::PushKernelArg as _;
        let (grid, stream) = ($grid, $device.stream());
        let function = $device.function($crate::gpu::kernels::Source::$source, $name)?;
        #[expect(unsafe_code, reason = "kernels take what they are given on trust")]
        // SAFETY: the arguments are those of the kernel and of its stream, and the shapes of the arrays were checked above.
        let started = unsafe {
            stream.launch_builder(&function)$(.arg($crate::gpu::launch::own(stream, $arg)?))+.launch(grid)
        };
        started.map_err($crate::gpu::Fault::from)?;
    }};
}
pub(in crate::gpu) use launch;

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn threads_of_rows_keep_their_channels_and_are_about_as_many_as_a_gpu_runs() {
        for c in [4, 8, 12, 24, 44, 64, 88, 96, 1280, 2040] {
            for rows in [1, 7, 1000, 100_000, 3_000_000] {
                for (config, numbers) in
                    [(rows_of::<f32>(rows * c, c), 4), (rows_of::<bf16>(rows * c, c), if c % 8 == 0 { 8 } else { 4 })]
                {
                    let threads = config.grid_dim.0 as usize * THREADS;
                    assert_eq!(threads % (c / numbers), 0, "{rows} rows of {c}");
                    let enough = (rows * c / numbers).min(BUSY * THREADS);
                    assert!((enough..=enough + (2 * BUSY + c) * THREADS).contains(&threads), "{rows} rows of {c}");
                }
            }
        }
        assert_eq!(rows_of::<bf16>(3 * 7, 7).grid_dim, (7, 1, 1));
    }
}
