//! Where a gang goes: all of its ranks, or none.

use std::collections::{BTreeMap, BTreeSet};

use tl_proto::{
    hardware::kind,
    ids::NodeId,
    spec::{Device, Reduction},
};

use super::{
    State,
    devices::Owners,
    plan::ranks,
    state::{Job, Node, NodeStatus, Phase, PhaseKind, Placement, Slot},
    teach::Reach,
};

/// What a phase asks for.
pub(super) struct Want<'a> {
    /// On what.
    pub device: Device,
    /// Fewest ranks.
    pub need: usize,
    /// Whether ranks of it that have GPUs add up over NCCL.
    pub over_nccl: bool,
    /// Whether it waits for GPUs that are free in a moment: what it begins on, it stays on.
    pub patient: bool,
    /// Where a unit may run.
    pub reach: Option<Reach<'a>>,
}

impl<'a> Want<'a> {
    /// That of a phase; nothing of one that runs nowhere.
    pub(super) fn of(job: &'a Job, phase: &'a Phase) -> Option<Self> {
        let cluster = &job.step_spec(&phase.step)?.cluster;
        let (need, most) = ranks(job, phase)?;
        let open = cluster.device == Device::Auto && phase.stays_on.is_none();
        Some(Self {
            device: match phase.stays_on.as_deref() {
                Some(kind) if cluster.device == Device::Auto => of_kind(kind),
                _ => cluster.device,
            },
            need,
            over_nccl: most > 1 && cluster.reduction != Reduction::Ordered,
            patient: open && phase.kind == PhaseKind::Train,
            reach: job.reach(phase),
        })
    }

    /// What ranks that have begun ask for: the kind of device that they are on.
    pub(super) fn kept(job: &'a Job, phase: &'a Phase, placements: &[Placement]) -> Option<Self> {
        let device = of_kind(kind(&placements.first()?.device));
        Some(Self { device, patient: false, ..Self::of(job, phase)? })
    }

    fn takes(&self, kind: &str) -> bool {
        match self.device {
            Device::Auto => true,
            Device::Cpu => kind == "cpu",
            Device::Cuda => kind == "cuda",
        }
    }
}

fn of_kind(kind: &str) -> Device {
    if kind == "cuda" { Device::Cuda } else { Device::Cpu }
}

/// A slot, by its place among those of a [`Supply`].
pub(super) type Seat = usize;

/// The slots that there are, before anybody is placed.
pub(super) struct Supply<'a> {
    all: Vec<Known<'a>>,
}

/// Who has a slot.
#[derive(Clone, Copy, PartialEq)]
enum Held {
    No,
    /// By a probe, which is a matter of seconds.
    Shortly,
    Yes,
}

/// What is known of a slot.
struct Known<'a> {
    id: &'a NodeId,
    node: &'a Node,
    slot: &'a Slot,
    kind: &'a str,
    numbers: &'a str,
    held: Held,
    /// Why nobody is placed on it, if so.
    withheld: Option<String>,
}

impl Known<'_> {
    /// Whether its node is there and takes ranks.
    fn is_open(&self) -> bool {
        self.node.status == NodeStatus::Ready && !self.node.draining && self.withheld.is_none()
    }
}

/// Slots that a gang could use.
#[derive(Default)]
pub(super) struct Room {
    /// Free now, in the order of preference.
    pub free: Vec<Seat>,
    /// Free or held, what it waits for: all of groups that have enough for it, or, where it rather waits, as many as it needs.
    pub usable: Vec<Seat>,
    /// Whether others are free on which it could start, and it waits for better ones.
    pub rather_waits: bool,
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
    /// GPUs on nodes without NCCL, where that would be needed.
    pub without_nccl: usize,
    /// Why some are not used, each with its node.
    pub withheld: Vec<String>,
}

/// Slots whose ranks are one program on one kind of device that computes the same numbers, and reach each other.
#[derive(Default)]
struct Group<'a> {
    /// The free ones of each node.
    free: BTreeMap<&'a NodeId, Vec<Seat>>,
    /// Free and held ones.
    all: Vec<Seat>,
    /// Those that probes hold.
    soon: Vec<Seat>,
}

/// What slots of a group have in common: build, whether only their machine reaches them, kind of device, its numbers, NCCL, and
/// a number of its own for a GPU that can be of no gang.
type Key<'a> = (&'a str, bool, &'a str, &'a str, &'a str, usize);

impl Group<'_> {
    fn free(&self) -> usize {
        self.free.values().map(Vec::len).sum()
    }

    /// How good it is for who needs so many: GPUs first that are free, then those that a patient one waits for.
    fn merit(&self, kind: &str, want: &Want<'_>) -> (u8, usize) {
        let free = self.free();
        let rank = match kind == "cuda" {
            true if free >= want.need => 2,
            true if want.patient && free + self.soon.len() >= want.need => 1,
            _ => 0,
        };
        (rank, free)
    }
}

impl<'a> Supply<'a> {
    /// What there is.
    pub(super) fn of(state: &'a State) -> Self {
        let mut held: BTreeMap<(&NodeId, u32), Held> = BTreeMap::new();
        for phase in state.jobs.values().flat_map(|j| &j.phases) {
            let how = if phase.kind == PhaseKind::Probe { Held::Shortly } else { Held::Yes };
            held.extend(phase.attempt.iter().flat_map(|a| &a.placements).map(|p| ((&p.node, p.slot), how)));
        }
        let owners = Owners::of(state);
        let mut all = Vec::new();
        for (id, node) in state.nodes.iter().filter(|(_, n)| n.status != NodeStatus::Lost) {
            all.extend(node.slots.iter().map(|slot| Known {
                id,
                node,
                slot,
                kind: kind(&slot.device),
                numbers: node.numbers(&slot.device),
                held: held.get(&(id, slot.index)).copied().unwrap_or(Held::No),
                withheld: owners.withheld(id, node, slot),
            }));
        }
        Self { all }
    }

    /// The slots of placements.
    pub(super) fn seats(&self, placements: &[Placement]) -> BTreeSet<Seat> {
        let theirs: BTreeSet<(&NodeId, u32)> = placements.iter().map(|p| (&p.node, p.slot)).collect();
        (0..self.all.len()).filter(|seat| theirs.contains(&(self.all[*seat].id, self.all[*seat].slot.index))).collect()
    }

    /// Slots on which somebody could be placed now.
    pub(super) fn free(&self) -> BTreeSet<Seat> {
        let free = |seat: &Seat| self.all[*seat].is_open() && self.all[*seat].held == Held::No;
        (0..self.all.len()).filter(free).collect()
    }

    /// A rank there.
    pub(super) fn placement(&self, seat: Seat) -> Placement {
        let Known { id, node, slot, .. } = &self.all[seat];
        let (node, incarnation) = ((*id).clone(), node.incarnation.clone());
        let (address, weight, device) = (slot.address.clone(), slot.weight, slot.device.clone());
        Placement { node, incarnation, slot: slot.index, address, weight, device }
    }

    /// What there is for who wants something, besides what is `taken` in this round, once `back` is given back. Who takes any
    /// device gets GPUs where those are enough.
    pub(super) fn room(&self, want: &Want<'_>, taken: &BTreeSet<Seat>, back: &BTreeSet<Seat>) -> Room {
        let mut room = Room::default();
        let mut groups: BTreeMap<Key<'_>, Group<'_>> = BTreeMap::new();
        for (seat, known) in self.all.iter().enumerate().filter(|(_, known)| want.takes(known.kind)) {
            let Known { id, node, slot, kind, numbers, held, withheld } = known;
            if want.reach.as_ref().is_some_and(|reach| !reach.has(id, node, &slot.device)) {
                continue;
            }
            if let Some(why) = withheld {
                room.withheld.push(format!("`{}`: {why}", node.name));
                continue;
            }
            if !known.is_open() {
                let count = if node.status == NodeStatus::Unknown { &mut room.unknown } else { &mut room.draining };
                *count += 1;
                continue;
            }
            let nccl = if want.over_nccl && *kind == "cuda" { Some(node.hardware.nccl.as_str()) } else { None };
            let alone = nccl.is_some_and(str::is_empty);
            room.without_nccl += usize::from(alone);
            let own = if alone { seat + 1 } else { 0 };
            let local = is_local(&slot.address);
            let key = (node.build.as_str(), local, *kind, *numbers, nccl.unwrap_or_default(), own);
            let group = groups.entry(key).or_default();
            group.all.push(seat);
            *room.kinds.entry((*kind).to_owned()).or_default() += 1;
            let held = if back.contains(&seat) { Held::No } else { *held };
            if taken.contains(&seat) || held != Held::No {
                room.busy += 1;
                if !taken.contains(&seat) && held == Held::Shortly {
                    group.soon.push(seat);
                }
                continue;
            }
            group.free.entry(*id).or_default().push(seat);
        }
        room.most = groups.values().map(|g| g.all.len()).max().unwrap_or(0);
        let free: usize = groups.values().map(Group::free).sum();
        let could_start = groups.values().any(|g| g.free() >= want.need);
        let large = groups.values().filter(|g| g.all.len() >= want.need);
        room.usable = large.flat_map(|g| &g.all).copied().collect();
        if let Some((_, best)) = groups.into_iter().max_by_key(|((_, _, kind, ..), g)| g.merit(kind, want)) {
            room.rather_waits = could_start && best.free() < want.need;
            if room.rather_waits {
                room.usable = best.free.values().flatten().chain(&best.soon).take(want.need).copied().collect();
            }
            let mut nodes: Vec<Vec<Seat>> = best.free.into_values().collect();
            // Fullest nodes first: a gang stays together, and small jobs do not break up large nodes. Of equal ones the
            // strongest. Stable, so by id.
            let strength = |free: &[Seat]| free.iter().map(|seat| u64::from(self.all[*seat].slot.weight)).sum::<u64>();
            nodes.sort_by_key(|free| std::cmp::Reverse((free.len(), strength(free))));
            room.free = nodes.into_iter().flatten().collect();
        }
        room.apart = free - room.free.len();
        room
    }
}

/// Whether nobody on another machine reaches this address.
fn is_local(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.starts_with("127.") || ["localhost", "[::1]"].contains(&host)
}
