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
    teach::{Reach, Taught},
};

/// What a phase asks for.
pub(super) struct Want<'a> {
    /// On what.
    pub device: Device,
    /// Fewest ranks.
    pub need: usize,
    /// Whether ranks of it that have GPUs add up over NCCL.
    pub over_nccl: bool,
    /// Whether it takes either kind of device, and waits for GPUs where there are enough for it, whoever has them now: what it
    /// begins on, it stays on.
    pub patient: bool,
    /// Whether a network of it rounds what it multiplies, which not every GPU does.
    pub rounds: bool,
    /// Where a unit may run.
    pub reach: Option<Reach<'a>>,
    /// What the units of a training are of use for.
    pub taught: Option<Taught<'a>>,
}

impl<'a> Want<'a> {
    /// That of a phase; nothing of one that runs nowhere.
    pub(super) fn of(job: &'a Job, phase: &'a Phase) -> Option<Self> {
        let spec = job.step_spec(&phase.step)?;
        let cluster = &spec.cluster;
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
            rounds: spec.model.iter().chain(spec.nets.values()).any(|net| !net.precision.is_f32()),
            reach: job.reach(phase),
            taught: job.taught(phase),
        })
    }

    /// What ranks that have begun ask for: the kind of device that they are on.
    pub(super) fn kept(job: &'a Job, phase: &'a Phase, placements: &[Placement]) -> Option<Self> {
        let device = of_kind(kind(&placements.first()?.device));
        Some(Self { device, patient: false, taught: None, ..Self::of(job, phase)? })
    }

    fn takes(&self, kind: &str) -> bool {
        match self.device {
            Device::Auto => true,
            Device::Cpu => kind == "cpu",
            Device::Cuda => kind == "cuda",
        }
    }

    /// How much it prefers the slots of a group to others. What it prefers it waits for.
    fn prefers(&self, (build, _, kind, numbers, ..): &Key<'_>, group: &Group<'_>) -> Preference {
        let held = group.all.len() >= self.need;
        let taught = |taught: &Taught<'_>| {
            // While units run on its slots, others are to have what it will not take.
            let enough = if taught.open { held } else { group.free() >= self.need };
            enough && taught.unit.is_for(build, kind, numbers)
        };
        if self.taught.as_ref().is_some_and(taught) {
            return Preference::Taught;
        }
        if self.patient && *kind == "cuda" && held { Preference::Gpus } else { Preference::None }
    }
}

/// Why a phase prefers some slots to others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Preference {
    /// It does not.
    None,
    /// They are GPUs.
    Gpus,
    /// What its teachers say is worked out for them.
    Taught,
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

/// What is known of a slot.
struct Known<'a> {
    id: &'a NodeId,
    node: &'a Node,
    slot: &'a Slot,
    kind: &'a str,
    numbers: &'a str,
    /// Whether somebody has it.
    held: bool,
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
    /// Free or held, what it waits for: all of groups that have enough for it, of those that it prefers.
    pub usable: Vec<Seat>,
    /// Whether it takes either kind of device, and these are GPUs: there are enough for it.
    pub for_gpus: bool,
    /// The most CPU slots that are free and would be enough for it, where it waits for GPUs.
    pub instead: usize,
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
}

/// What slots of a group have in common: build, whether only their machine reaches them, kind of device, its numbers, NCCL, and
/// a number of its own for a GPU that can be of no gang.
type Key<'a> = (&'a str, bool, &'a str, &'a str, &'a str, usize);

impl Group<'_> {
    fn free(&self) -> usize {
        self.free.values().map(Vec::len).sum()
    }

    /// How good it is for who needs so many: GPUs first, if they are free.
    fn merit(&self, kind: &str, need: usize) -> (bool, usize) {
        let free = self.free();
        (kind == "cuda" && free >= need, free)
    }
}

impl<'a> Supply<'a> {
    /// What there is.
    pub(super) fn of(state: &'a State) -> Self {
        let held: BTreeSet<(&NodeId, u32)> = state.held().into_iter().collect();
        let owners = Owners::of(state);
        let mut all = Vec::new();
        for (id, node) in state.nodes.iter().filter(|(_, n)| n.status != NodeStatus::Lost) {
            all.extend(node.slots.iter().map(|slot| Known {
                id,
                node,
                slot,
                kind: kind(&slot.device),
                numbers: node.numbers(&slot.device),
                held: held.contains(&(id, slot.index)),
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
        let free = |seat: &Seat| self.all[*seat].is_open() && !self.all[*seat].held;
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
    /// device gets GPUs where those are enough, and one that is `patient` nothing else.
    pub(super) fn room(&self, want: &Want<'_>, taken: &BTreeSet<Seat>, back: &BTreeSet<Seat>) -> Room {
        let mut room = Room::default();
        let mut groups: BTreeMap<Key<'_>, Group<'_>> = BTreeMap::new();
        for (seat, known) in self.all.iter().enumerate().filter(|(_, known)| want.takes(known.kind)) {
            let Known { id, node, slot, kind, numbers, held, withheld } = known;
            if want.reach.as_ref().is_some_and(|reach| !reach.has(id, node, &slot.device)) {
                continue;
            }
            // Who asks for GPUs is told by the one that cannot; who takes either is not to begin, nor to wait, there.
            if want.rounds && want.device == Device::Auto && !node.rounds(&slot.device) {
                let why = format!("{} does not multiply what `precision` rounds to", slot.device);
                room.withheld.push(format!("`{}`: {why}", node.name));
                continue;
            }
            if let Some(why) = withheld {
                room.withheld.push(format!("`{}`: {why}", node.name));
                continue;
            }
            if !known.is_open() {
                let away = node.status == NodeStatus::Unknown && !node.draining;
                let count = if node.status == NodeStatus::Unknown { &mut room.unknown } else { &mut room.draining };
                *count += 1;
                // A connection that breaks sends nobody who waits for GPUs elsewhere: until the lease is over they may be back.
                if !(away && want.patient && *kind == "cuda") {
                    continue;
                }
            }
            let nccl = if want.over_nccl && *kind == "cuda" { Some(node.hardware.nccl.as_str()) } else { None };
            let alone = nccl.is_some_and(str::is_empty);
            room.without_nccl += usize::from(alone && known.is_open());
            let own = if alone { seat + 1 } else { 0 };
            let local = is_local(&slot.address);
            let key = (node.build.as_str(), local, *kind, *numbers, nccl.unwrap_or_default(), own);
            let group = groups.entry(key).or_default();
            group.all.push(seat);
            if !known.is_open() {
                continue;
            }
            *room.kinds.entry((*kind).to_owned()).or_default() += 1;
            if taken.contains(&seat) || (*held && !back.contains(&seat)) {
                room.busy += 1;
                continue;
            }
            group.free.entry(*id).or_default().push(seat);
        }
        room.most = groups.values().map(|g| g.all.len()).max().unwrap_or(0);
        let free: usize = groups.values().map(Group::free).sum();
        let preference = groups.iter().map(|(key, group)| want.prefers(key, group)).max();
        let preference = preference.unwrap_or(Preference::None);
        room.for_gpus = preference == Preference::Gpus;
        if room.for_gpus {
            let others = groups.iter().filter(|((_, _, kind, ..), _)| *kind != "cuda").map(|(_, group)| group.free());
            room.instead = others.filter(|free| *free >= want.need).max().unwrap_or(0);
        }
        groups.retain(|key, group| want.prefers(key, group) == preference);
        let large = groups.values().filter(|g| g.all.len() >= want.need);
        room.usable = large.flat_map(|g| &g.all).copied().collect();
        if let Some((_, best)) = groups.into_iter().max_by_key(|((_, _, kind, ..), g)| g.merit(kind, want.need)) {
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
