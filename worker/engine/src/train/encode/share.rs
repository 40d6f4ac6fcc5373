//! Who has which features, who computes the rest, and how everybody gets all of them.

use std::collections::{BTreeMap, BTreeSet};

use super::Records;
use crate::{
    Error, Result,
    cache::Key,
    collective::{self, Collective},
};

/// Bytes that a rank sends in one round: what is under way at once is bounded.
const ROUND: usize = 64 << 20;

/// What every rank knows of all.
pub struct Holdings<'a> {
    keys: &'a [Key],
    /// By rank: which keys it had.
    have: Vec<Vec<bool>>,
    /// By rank: which numbers it computes, and its machine's cache folder.
    machines: Vec<(Vec<u8>, Vec<u8>)>,
    /// Keys that nobody had, each content once, as indices; and the run of each rank.
    missing: Vec<usize>,
    shares: Vec<std::ops::Range<usize>>,
    rank: usize,
}

impl<'a> Holdings<'a> {
    /// Tells the others what is here, which numbers this rank computes and for which machine, and hears the same of them.
    ///
    /// # Errors
    /// A lost peer, or one that speaks of another number of samples.
    pub fn learn(
        keys: &'a [Key],
        records: &Records,
        (numbers, machine): &([u8; 32], String),
        group: &mut dyn Collective,
    ) -> Result<Self> {
        // One byte per key, which numbers the rank computes, and which machine's folder it uses.
        let mut said: Vec<u8> = keys.iter().map(|k| u8::from(records.contains_key(k))).collect();
        said.extend(numbers);
        said.extend(machine.as_bytes());
        let (mut have, mut machines) = (Vec::new(), Vec::new());
        for bytes in group.all_gather(said)? {
            let bad = || Error::Internal("a peer lists other samples".into());
            let (flags, rest) = bytes.split_at_checked(keys.len()).ok_or_else(bad)?;
            let (numbers, machine) = rest.split_at_checked(32).ok_or_else(bad)?;
            have.push(flags.iter().map(|b| *b == 1).collect::<Vec<bool>>());
            machines.push((numbers.to_vec(), machine.to_vec()));
        }
        let mut seen = BTreeSet::new();
        let missing: Vec<usize> =
            (0..keys.len()).filter(|j| !have.iter().any(|h| h[*j]) && seen.insert(keys[*j])).collect();
        let shares = group.shares(missing.len());
        Ok(Self { keys, have, machines, missing, shares, rank: group.rank() })
    }

    /// How many nobody had.
    pub fn missing(&self) -> usize {
        self.missing.len()
    }

    /// What this rank computes, as indices of keys.
    pub fn to_compute(&self) -> Vec<usize> {
        self.missing[self.shares[self.rank].clone()].to_vec()
    }

    /// Brings everybody everything; returns what this rank should keep for its machine.
    ///
    /// # Errors
    /// A lost peer, or one that sends less than it has announced.
    pub fn exchange(&self, records: &mut Records, widths: &[usize], group: &mut dyn Collective) -> Result<Vec<Key>> {
        let world = self.machines.len();
        // The lowest rank that has a record sends it, to those who lack it.
        let mut owner: BTreeMap<Key, usize> = BTreeMap::new();
        for (r, share) in self.shares.iter().enumerate() {
            owner.extend(self.missing[share.clone()].iter().map(|j| (self.keys[*j], r)));
        }
        let mut lacks: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
        for (j, key) in self.keys.iter().enumerate() {
            let first = self.have.iter().position(|h| h[j]);
            let from = *owner.entry(*key).or_insert(first.unwrap_or(0));
            let without: Vec<usize> = (0..world).filter(|r| *r != from && !self.have[*r][j]).collect();
            if !without.is_empty() {
                lacks.insert(*key, without);
            }
        }
        let sends = |from: usize, to: usize| -> Vec<Key> {
            lacks.iter().filter(|(k, without)| owner[*k] == from && without.contains(&to)).map(|(k, _)| *k).collect()
        };
        let bytes_each = 4 * widths.iter().sum::<usize>().max(1);
        let per_round = (ROUND / bytes_each).max(1);
        let others: Vec<usize> = (1..world).map(|step| (self.rank + step) % world).collect();
        let outgoing: Vec<(usize, Vec<Key>)> = others.iter().map(|to| (*to, sends(self.rank, *to))).collect();
        let incoming: Vec<(usize, Vec<Key>)> = others.iter().map(|from| (*from, sends(*from, self.rank))).collect();
        // All ranks go through all rounds together: who has nothing to receive would else queue everything at once.
        let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for (key, without) in &lacks {
            without.iter().for_each(|to| *counts.entry((owner[key], *to)).or_default() += 1);
        }
        let rounds = counts.values().map(|n| n.div_ceil(per_round)).max().unwrap_or(0);
        let mut kept = Vec::new();
        for round in 0..rounds {
            for (to, list) in &outgoing {
                if let Some(part) = list.chunks(per_round).nth(round) {
                    let values = part.iter().flat_map(|k| &records[k]);
                    group.send_parts(*to, &values.map(|v| bytemuck::cast_slice(v)).collect::<Vec<&[u8]>>())?;
                }
            }
            for (from, list) in &incoming {
                let Some(part) = list.chunks(per_round).nth(round) else { continue };
                let received = collective::from_bytes(&group.receive(*from)?)?;
                if received.len() != part.len() * bytes_each / 4 {
                    return Err(Error::Internal(format!("rank {from} sent fewer features than it announced")));
                }
                let mut values = received.into_iter();
                for key in part {
                    let record = widths.iter().map(|w| values.by_ref().take(*w).collect()).collect();
                    records.entry(*key).or_insert(record);
                    if self.keeps(*from, &lacks[key]) {
                        kept.push(*key);
                    }
                }
            }
            if round + 1 < rounds {
                group.barrier()?;
            }
        }
        Ok(kept)
    }

    /// One rank of each machine keeps what its machine did not have, if it could have computed the same.
    fn keeps(&self, from: usize, lacks: &[usize]) -> bool {
        let here = |r: usize| self.machines[r] == self.machines[self.rank];
        let had = here(from) || (0..self.machines.len()).any(|r| here(r) && !lacks.contains(&r));
        let same = self.machines[from].0 == self.machines[self.rank].0;
        same && !had && (0..self.machines.len()).find(|r| here(*r)) == Some(self.rank)
    }
}
