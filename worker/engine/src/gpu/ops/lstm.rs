//! The gates of an LSTM: one time step of all samples that go on.

use crate::gpu::{
    Array, Device, Fault,
    launch::{each, launch, small},
};

/// Activates `gates` `[m, 4w]` in place, moves the memory `[m, w]` on, and gives the state.
///
/// # Errors
/// Other shapes, a full memory, or a GPU that has failed.
pub fn lstm_step(device: &Device, gates: &mut Array, memory: &mut Array) -> Result<Array, Fault> {
    let (m, w) = (memory.rows(), memory.width());
    gates.expect(&[m, 4 * w])?;
    let (mut state, n) = (device.fresh::<f32>(memory.shape())?, m * w);
    launch!(
        device,
        Lstm,
        "lstm_step",
        each(n),
        &mut gates.data,
        &mut memory.data,
        &mut state.data,
        &(n as u64),
        &small(w)?
    );
    Ok(state)
}

/// The same backwards: activated `gates` become slopes of what they were given, and `dmemory` that of the memory `before`.
///
/// # Errors
/// Other shapes.
pub fn lstm_back(
    device: &Device,
    gates: &mut Array,
    [memory, before, dstate]: [&Array; 3],
    dmemory: &mut Array,
) -> Result<(), Fault> {
    let (m, w) = (memory.rows(), memory.width());
    gates.expect(&[m, 4 * w])?;
    for other in [before, dstate, &*dmemory] {
        other.expect(memory.shape())?;
    }
    let n = m * w;
    launch!(
        device,
        Lstm,
        "lstm_back",
        each(n),
        &mut gates.data,
        &memory.data,
        &before.data,
        &dstate.data,
        &mut dmemory.data,
        &(n as u64),
        &small(w)?
    );
    Ok(())
}
