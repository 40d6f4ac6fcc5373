//! The step of training that `tl-worker doctor` tries.

use tl_engine::gpu;

use crate::shared;

#[test]
fn a_small_step_of_training_gives_what_the_host_gives() {
    let Some(device) = shared() else { return };
    let seconds = gpu::step(device).unwrap();
    assert!(seconds.is_finite() && seconds > 0.0, "{seconds}");
}
