//! How kernels are started.

use cudarc::driver::LaunchConfig;

use super::Fault;

/// Threads of a block where each has numbers of its own.
const THREADS: usize = 256;
/// Blocks of such a grid, at most; its threads go on to further numbers. No part of any result.
const GRID: usize = 1 << 16;
/// The same where a thread divides once for all of its numbers: more blocks than any GPU runs at a time.
const FEW: usize = 1 << 11;
/// Threads that add up a row, and rows of a block: `LANES` and `LINES` of `common.cuh`.
const LANES: u32 = 16;
const LINES: usize = 8;
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

/// Sixteen threads for each row.
pub(in crate::gpu) fn lines(rows: usize) -> Result<LaunchConfig, Fault> {
    let blocks = wide(rows.div_ceil(LINES))?;
    Ok(LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (LANES, LINES as u32, 1), shared_mem_bytes: 0 })
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

/// Starts a kernel of a file on a device: the grid, then its arguments in order, each behind a reference.
///
/// What the compiler cannot check, and whoever writes a call must: that the arguments are those of the kernel, and that what
/// it writes is given by `&mut`. The tests of `tests/gpu` call every one.
macro_rules! launch {
    ($device:expr, $source:ident, $name:expr, $grid:expr, $($arg:expr),+ $(,)?) => {{
        use ::cudarc::driver::PushKernelArg as _;
        let grid = $grid;
        let function = $device.function($crate::gpu::kernels::Source::$source, $name)?;
        #[expect(unsafe_code, reason = "kernels take what they are given on trust")]
        // SAFETY: the arguments are those of the kernel, and the shapes of the arrays were checked above.
        let started = unsafe { $device.stream().launch_builder(&function)$(.arg($arg))+.launch(grid) };
        started.map_err($crate::gpu::Fault::from)?;
    }};
}
pub(in crate::gpu) use launch;
