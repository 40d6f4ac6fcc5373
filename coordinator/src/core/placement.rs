//! Where a gang goes: all of its ranks, or none.

use std::collections::BTreeSet;

use tl_proto::{ids::NodeId, spec::Device};

use super::{
    State,
    state::{NodeStatus, Placement},
};

/// Slots that a gang could use.
pub(super) struct Room {
    /// Free now, in the order of preference.
    pub free: Vec<Placement>,
    /// Held by others on nodes that are there.
    pub busy: usize,
    /// On nodes that are being emptied.
    pub draining: usize,
    /// On nodes that are not heard of at the moment.
    pub unknown: usize,
}

/// What there is for a job that wants `device`, besides what is `taken` in this round.
pub(super) fn room(state: &State, device: Device, taken: &BTreeSet<(NodeId, u32)>) -> Room {
    let held: BTreeSet<(&NodeId, u32)> = state.held().into_iter().chain(taken.iter().map(|(n, s)| (n, *s))).collect();
    let mut room = Room { free: Vec::new(), busy: 0, draining: 0, unknown: 0 };
    let mut nodes = Vec::new();
    for (id, node) in state.nodes.iter().filter(|(_, n)| n.status != NodeStatus::Lost) {
        let fits = |d: &str| match device {
            Device::Auto => true,
            Device::Cpu => d == "cpu",
            Device::Cuda => d.starts_with("cuda"),
        };
        let slots: Vec<_> = node.slots.iter().filter(|s| fits(&s.device)).collect();
        if node.status == NodeStatus::Unknown {
            room.unknown += slots.len();
            continue;
        }
        if node.draining {
            room.draining += slots.len();
            continue;
        }
        let free: Vec<_> = slots.iter().filter(|s| !held.contains(&(id, s.index))).collect();
        room.busy += slots.len() - free.len();
        let place = |s: &&&super::state::Slot| Placement {
            node: id.clone(),
            incarnation: node.incarnation.clone(),
            slot: s.index,
            address: s.address.clone(),
        };
        nodes.push(free.iter().map(place).collect::<Vec<_>>());
    }
    // Fullest nodes first: a gang stays together, and small jobs do not break up large nodes. Stable, so by id.
    nodes.sort_by_key(|n| std::cmp::Reverse(n.len()));
    room.free = nodes.into_iter().flatten().collect();
    room
}
