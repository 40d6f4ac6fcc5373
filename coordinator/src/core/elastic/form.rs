//! Who goes into the next generation.

use tl_proto::elastic::{RankProcess, Saved, Stamp};

use super::{Elastic, machine::At};
use crate::core::state::Millis;

/// The first pause of a rank that others could not reach; doubles with every time.
const BENCH_MS: Millis = 2_000;

/// Ranks at rest that may be taken in, newest state first.
fn candidates(gang: &Elastic, now: Millis) -> Vec<(RankProcess, Stamp)> {
    let mut found: Vec<_> = gang
        .peers
        .iter()
        .filter(|(p, peer)| peer.gone.is_none() && peer.benched <= now && !gang.draining.contains(p))
        .filter_map(|(p, peer)| match peer.at {
            At::Rest(stamp) => Some((*p, stamp)),
            At::Unknown | At::Work => None,
        })
        .collect();
    found.sort_by_key(|(p, stamp)| (std::cmp::Reverse(*stamp), *p));
    found
}

/// Members of the next generation after a loss, and the state to restore if nobody holds the newest one any more.
/// `patient`: rather wait for somebody who may hold it.
pub(super) fn next(gang: &Elastic, patient: bool, now: Millis) -> Option<(Vec<RankProcess>, Option<Saved>)> {
    let mut found = candidates(gang, now);
    found.truncate(gang.limits.max);
    let newest = found.first()?.1;
    if found.len() < gang.limits.min {
        return None;
    }
    let mut members: Vec<RankProcess> = found.into_iter().map(|(p, _)| p).collect();
    members.sort_unstable();
    if newest.generation >= gang.ledger.active {
        return Some((members, None));
    }
    let start = Saved { step: 0, samples: 0, digest: 0 };
    (!patient).then(|| (members, Some(gang.ledger.published.last().copied().unwrap_or(start))))
}

/// Members for a planned change: without those to be drained, and (`grow`) with those who wait. `None` if that changes
/// nothing, or leaves too few.
pub(super) fn better(gang: &Elastic, grow: bool, now: Millis) -> Option<Vec<RankProcess>> {
    let members = gang.ledger.members();
    let kept = members.iter().copied().filter(|m| !gang.draining.contains(m));
    let mut wanted: Vec<RankProcess> = kept.collect();
    let drains = wanted.len() < members.len();
    if !grow && !drains {
        return None;
    }
    // Somebody who trains now has to stay: the newcomers take the state from them.
    if wanted.is_empty() {
        return None;
    }
    for (spare, _) in candidates(gang, now) {
        if wanted.len() < gang.limits.max && !wanted.contains(&spare) {
            wanted.push(spare);
        }
    }
    wanted.sort_unstable();
    (wanted.len() >= gang.limits.min && wanted != members).then_some(wanted)
}

/// If a generation came to nothing although all of its members live, the one that most others could not reach has to
/// wait for a while.
pub(super) fn bench(gang: &mut Elastic, now: Millis) {
    let generation = gang.ledger.generation();
    let unexplained = generation > gang.ledger.active && gang.ledger.members().iter().all(|m| !gang.exited.contains(m));
    let worst = gang.suspects.iter().max_by_key(|(p, by)| (by.len(), **p)).map(|(p, _)| *p);
    let rest = candidates(gang, now).into_iter().filter(|(p, _)| Some(*p) != worst);
    let enough = rest.clone().count() >= gang.limits.min;
    let holds = rest.map(|(_, stamp)| stamp.generation).max().is_some_and(|g| g >= gang.ledger.active);
    gang.suspects.clear();
    if !(unexplained && enough && holds) {
        return;
    }
    if let Some(peer) = worst.and_then(|p| gang.peers.get_mut(&p)) {
        peer.benched = now + (BENCH_MS << peer.strikes.min(5));
        peer.strikes += 1;
    }
}
