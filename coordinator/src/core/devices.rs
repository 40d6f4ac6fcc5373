//! What slots are good for: which numbers their devices compute, and which of them nobody is placed on, and why.

use std::collections::{BTreeMap, BTreeSet};

use tl_proto::{hardware::Gpu, ids::NodeId};

use super::state::{Node, NodeStatus, Slot, State};

impl Node {
    /// The GPU that is the device of a slot, if one is.
    pub fn gpu(&self, device: &str) -> Option<&Gpu> {
        self.hardware.gpu(device)
    }

    /// Which numbers a rank computes on a device: those that its agent has found, or, where it does not tell, the model.
    /// Nothing for a CPU, whose numbers the build names.
    pub fn numbers(&self, device: &str) -> &str {
        self.gpu(device).map_or("", |gpu| if gpu.numbers.is_empty() { &gpu.name } else { &gpu.numbers })
    }

    /// Whether a device multiplies bf16 and TF32: GPUs do since compute capability 8.0. One of which it is not known is taken to.
    pub(super) fn rounds(&self, device: &str) -> bool {
        let major = self.gpu(device).and_then(|gpu| gpu.compute.split('.').next()?.parse::<u32>().ok());
        major.is_none_or(|major| major >= 8)
    }
}

/// GPUs that are offered, by what they are called in every process, and the node that has each: two agents on one machine
/// see the same. Who came first has it for as long as it is there and offers it.
pub(super) struct Owners<'a>(BTreeMap<&'a str, (&'a NodeId, &'a Node)>);

impl<'a> Owners<'a> {
    pub(super) fn of(state: &'a State) -> Self {
        let held: BTreeSet<_> = state.held().into_iter().collect();
        // Whose rank is on it has it, whatever its agent has said before and after.
        let order = |id: &'a NodeId, node: &Node, uuid: &str| {
            let is_it = |slot: &&Slot| node.gpu(&slot.device).is_some_and(|gpu| gpu.uuid == uuid);
            let runs = node.slots.iter().filter(is_it).any(|slot| held.contains(&(id, slot.index)));
            (!runs, node.joined, id)
        };
        let mut owners: BTreeMap<&'a str, (&'a NodeId, &'a Node)> = BTreeMap::new();
        for (id, node) in state.nodes.iter().filter(|(_, n)| n.status != NodeStatus::Lost) {
            let gpus = node.slots.iter().filter_map(|slot| node.gpu(&slot.device));
            for gpu in gpus.filter(|gpu| !gpu.uuid.is_empty()) {
                let owner = owners.entry(gpu.uuid.as_str()).or_insert((id, node));
                if order(id, node, &gpu.uuid) < order(owner.0, owner.1, &gpu.uuid) {
                    *owner = (id, node);
                }
            }
        }
        Self(owners)
    }

    /// Why nobody is placed on a slot, if so.
    pub(super) fn withheld(&self, id: &NodeId, node: &Node, slot: &Slot) -> Option<String> {
        if let Some(problem) = node.broken.get(&slot.index) {
            return Some(problem.clone());
        }
        let gpu = node.gpu(&slot.device)?;
        let (owner, first) = self.0.get(gpu.uuid.as_str())?;
        (*owner != id).then(|| {
            let hint = "`--gpus` shares the GPUs of a machine out among its workers";
            format!("GPU {} is the one that node `{}` offers; {hint}", gpu.index, first.name)
        })
    }
}

/// Slots of a node that nobody is placed on, with the reason.
pub fn withheld(state: &State, id: &NodeId) -> BTreeMap<u32, String> {
    let Some(node) = state.nodes.get(id) else { return BTreeMap::new() };
    let owners = Owners::of(state);
    node.slots.iter().filter_map(|slot| Some((slot.index, owners.withheld(id, node, slot)?))).collect()
}

/// Why GPUs of nodes that are there are not offered, each with its node.
pub(super) fn not_offered(state: &State) -> Vec<String> {
    let mut all = Vec::new();
    for node in state.nodes.values().filter(|n| n.status != NodeStatus::Lost) {
        let (name, hardware) = (&node.name, &node.hardware);
        all.extend((!hardware.note.is_empty()).then(|| format!("`{name}`: {}", hardware.note)));
        for gpu in hardware.gpus.iter().filter(|gpu| !gpu.problem.is_empty()) {
            let which = if gpu.problem.starts_with("GPU ") { String::new() } else { format!("GPU {}: ", gpu.index) };
            all.push(format!("`{name}`: {which}{}", gpu.problem));
        }
    }
    all
}
