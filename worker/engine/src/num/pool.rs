//! The rank's threads. Work is split over outputs only, so their number never shows in a result.

use std::sync::OnceLock;

static POOL: OnceLock<rayon::ThreadPool> = OnceLock::new();

/// Builds the pool; later calls have no effect.
pub fn init(threads: usize) {
    let _ = POOL.get_or_init(|| build(threads));
}

/// A pool of so many threads; 0 is as many as there are cores.
pub(crate) fn build(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("compute-{i}"))
        .build()
        .expect("the machine can start threads")
}

/// Runs `work` inside the pool.
pub fn run<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    POOL.get_or_init(|| build(0)).install(work)
}

/// Lets threads outside a pool compute: rayon hands their work to its global pool, which becomes as large as the pool
/// that this is called in. Whoever waits for those threads inside the pool leaves the cores to them.
pub fn lend() {
    // It may be there already.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build_global();
}
