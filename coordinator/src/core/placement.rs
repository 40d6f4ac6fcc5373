//! Where a gang goes: all of its ranks, or none.

use std::collections::{BTreeMap, BTreeSet};

use tl_proto::{
    hardware::{self, kind},
    ids::NodeId,
    spec::Device,
};

use super::{
    State,
    state::{Node, NodeStatus, Placement},
    teach::Reach,
};

/// Slots that a gang could use.
#[derive(Default)]
pub(super) struct Room {
    /// Free now, in the order of preference.
    pub free: Vec<Placement>,
    /// Free, but not able to form one gang with those.
    pub apart: usize,
    /// Held by others on nodes that are there.
    pub busy: usize,
    /// The most, free or held, that could ever form one gang.
    pub most: usize,
    /// Free and held ones by the kind of their device, of any build.
    pub kinds: BTreeMap<String, usize>,
    /// On nodes that are being emptied.
    pub draining: usize,
    /// On nodes that are not heard of at the moment.
    pub unknown: usize,
}

/// Slots whose ranks are one program on one kind of device, GPUs of one model, and reach each other.
#[derive(Default)]
struct Group<'a> {
    /// The free ones of each node.
    free: BTreeMap<&'a NodeId, Vec<Placement>>,
    /// Free and held ones.
    size: usize,
}

impl Group<'_> {
    fn free(&self) -> usize {
        self.free.values().map(Vec::len).sum()
    }
}

/// What there is for a job that wants `need` ranks or more on `device`, or for a unit of it within its `reach`, besides what
/// is `taken` in this round, once `back` is given back. Who takes any device gets GPUs where those are enough.
pub(super) fn room(
    state: &State,
    (device, need): (Device, usize),
    reach: Option<&Reach<'_>>,
    taken: &BTreeSet<(NodeId, u32)>,
    back: &[Placement],
) -> Room {
    let back: BTreeSet<(&NodeId, u32)> = back.iter().map(|p| (&p.node, p.slot)).collect();
    let held = state.held().into_iter().chain(taken.iter().map(|(n, s)| (n, *s)));
    let held: BTreeSet<(&NodeId, u32)> = held.filter(|slot| !back.contains(slot)).collect();
    let mut room = Room::default();
    let mut groups: BTreeMap<(&str, bool, &str, &str), Group<'_>> = BTreeMap::new();
    for (id, node) in state.nodes.iter().filter(|(_, n)| n.status != NodeStatus::Lost) {
        let fits = |d: &str| match device {
            Device::Auto => true,
            Device::Cpu => d == "cpu",
            Device::Cuda => kind(d) == "cuda",
        };
        let of_use = |d: &str| reach.is_none_or(|reach| reach.has(id, &node.build, d));
        let slots = node.slots.iter().filter(|s| fits(&s.device) && of_use(&s.device));
        if node.status == NodeStatus::Unknown {
            room.unknown += slots.count();
            continue;
        }
        if node.draining {
            room.draining += slots.count();
            continue;
        }
        for slot in slots {
            let (kind_of, model) = (kind(&slot.device), model(node, &slot.device));
            let group = groups.entry((node.build.as_str(), is_local(&slot.address), kind_of, model)).or_default();
            group.size += 1;
            *room.kinds.entry(kind_of.to_owned()).or_default() += 1;
            if held.contains(&(id, slot.index)) {
                room.busy += 1;
                continue;
            }
            let (node, incarnation) = (id.clone(), node.incarnation.clone());
            let (address, weight, device) = (slot.address.clone(), slot.weight, slot.device.clone());
            let placement = Placement { node, incarnation, slot: slot.index, address, weight, device };
            group.free.entry(id).or_default().push(placement);
        }
    }
    room.most = groups.values().map(|g| g.size).max().unwrap_or(0);
    let free: usize = groups.values().map(Group::free).sum();
    let merit = |kind: &str, free: usize| (free >= need && kind == "cuda", free);
    if let Some((_, best)) = groups.into_iter().max_by_key(|((_, _, kind, _), g)| merit(kind, g.free())) {
        let mut nodes: Vec<Vec<Placement>> = best.free.into_values().collect();
        // Fullest nodes first: a gang stays together, and small jobs do not break up large nodes. Of equal ones the
        // strongest. Stable, so by id.
        let strength = |free: &[Placement]| free.iter().map(|p| u64::from(p.weight)).sum::<u64>();
        nodes.sort_by_key(|free| std::cmp::Reverse((free.len(), strength(free))));
        room.free = nodes.into_iter().flatten().collect();
    }
    room.apart = free - room.free.len();
    room
}

/// What a GPU of a node is called: another one computes other bits. Nothing for a CPU, whose numbers its build names.
fn model<'a>(node: &'a Node, device: &str) -> &'a str {
    let mut gpus = node.hardware.gpus.iter();
    gpus.find(|gpu| hardware::Device::Cuda(gpu.index).to_string() == device).map_or("", |gpu| gpu.name.as_str())
}

/// Whether nobody on another machine reaches this address.
fn is_local(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.starts_with("127.") || ["localhost", "[::1]"].contains(&host)
}
