//! Where a gang goes: all of its ranks, or none.

use std::collections::{BTreeMap, BTreeSet};

use tl_proto::{ids::NodeId, spec::Device};

use super::{
    State,
    state::{NodeStatus, Placement},
};

/// Slots that a gang could use.
pub(super) struct Room {
    /// Free now, in the order of preference.
    pub free: Vec<Placement>,
    /// Free on nodes of another build than the one chosen: the ranks of a gang are one program.
    pub other_build: usize,
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
    let mut room = Room { free: Vec::new(), other_build: 0, busy: 0, draining: 0, unknown: 0 };
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
        nodes.push((node.build.as_str(), free.iter().map(place).collect::<Vec<_>>()));
    }
    // Fullest nodes first: a gang stays together, and small jobs do not break up large nodes. Stable, so by id.
    nodes.sort_by_key(|(_, free)| std::cmp::Reverse(free.len()));
    let mut builds: BTreeMap<&str, usize> = BTreeMap::new();
    nodes.iter().for_each(|(build, free)| *builds.entry(build).or_default() += free.len());
    let best = builds.iter().max_by_key(|(_, free)| **free).map(|(build, _)| *build);
    for (build, free) in nodes {
        if Some(build) == best {
            room.free.extend(free);
        } else {
            room.other_build += free.len();
        }
    }
    room
}
