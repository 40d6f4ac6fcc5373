//! Runs frozen prefixes once per sample and view, together: what one rank has, no other computes.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::{net::Net, samples::Samples};
use crate::{
    Error, Result,
    cache::{self, Key, Space},
    collective::{self, Collective},
    data::{augment::View, pixels},
    link::{Link, Notice},
    nn::{Store, host},
};

/// Samples of one forward pass; row-stable layers make any other number give the same bits.
const CHUNK: usize = 8;
/// Bytes of features that one cut may take in memory; above it the prefix runs each time.
pub const BUDGET: usize = 4 << 30;

/// What was encoded.
pub struct Encoded {
    /// For each cut: features of `(sample, view)` at `sample · views + view`.
    pub by_cut: BTreeMap<usize, Vec<Vec<f32>>>,
    /// Samples that ran through the prefix, over all ranks.
    pub computed: u64,
    /// Samples times views whose outputs were asked for.
    pub needed: u64,
}

type Records = BTreeMap<Key, Vec<Vec<f32>>>;

/// Features of every sample and view in front of each of `cuts` (ascending).
///
/// # Errors
/// A sample that cannot be read, a lost peer, a full disk.
pub fn encode(
    net: &Net,
    store: &Store,
    cuts: &[usize],
    samples: &Samples,
    root: &std::path::Path,
    group: &mut dyn Collective,
    link: &mut dyn Link,
) -> Result<Encoded> {
    let views = samples.views().unwrap_or(1);
    let wanted: Vec<(usize, View, Key)> = (0..samples.count() * views)
        .map(|at| {
            let (index, view) = (at / views, samples.view(at / views, (at % views) as u64));
            (index, view, cache::key(&samples.dataset.digest(index), &view.describe()))
        })
        .collect();
    let spaces: Vec<Space> = cuts
        .iter()
        .map(|cut| Ok(Space::new(root, &net.prefix_digest(store, *cut), net.shape_at(store, *cut)?.iter().product())))
        .collect::<Result<_>>()?;
    let mut records = read(&spaces, link);

    // Who has what: one bit per wanted record, and which machine's folder the rank uses.
    let identity = cache::identity(root)?;
    let mut said = wanted.iter().map(|w| u8::from(records.contains_key(&w.2))).collect::<Vec<_>>();
    said.extend(identity.as_bytes());
    let mut have: Vec<Vec<bool>> = Vec::new();
    let mut identities: Vec<Vec<u8>> = Vec::new();
    for bytes in group.all_gather(said)? {
        if bytes.len() < wanted.len() {
            return Err(Error::Internal("a peer lists other samples".into()));
        }
        have.push(bytes[..wanted.len()].iter().map(|b| *b == 1).collect());
        identities.push(bytes[wanted.len()..].to_vec());
    }

    // What nobody has is divided, each content once.
    let mut seen = BTreeSet::new();
    let missing: Vec<usize> =
        (0..wanted.len()).filter(|j| !have.iter().any(|h| h[*j]) && seen.insert(wanted[*j].2)).collect();
    let shares = collective::partition::partition(missing.len(), group.world());
    let mine = &missing[shares[group.rank()].clone()];
    let mut fresh: Vec<Key> = Vec::new();
    for (done, chunk) in mine.chunks(CHUNK).enumerate() {
        if link.stop_requested() {
            // Leaving alone would strand the others in the next exchange; they learn of it by our absence.
            return Err(Error::Stopped);
        }
        let rows: Vec<Vec<f32>> = chunk
            .par_iter()
            .map(|j| samples.input(wanted[*j].0, wanted[*j].1, &net.contract))
            .collect::<Result<_>>()?;
        let mut x = pixels::batch(rows.concat(), chunk.len(), net.contract.side())?;
        let (mut from, mut outputs) = (0, vec![Vec::new(); chunk.len()]);
        for cut in cuts {
            x = net.forward(store, x, from, *cut)?;
            from = *cut;
            let values = host(&x)?;
            let width = values.len() / chunk.len();
            outputs.iter_mut().zip(values.chunks_exact(width)).for_each(|(o, v)| o.push(v.to_vec()));
        }
        for (j, output) in chunk.iter().zip(outputs) {
            records.insert(wanted[*j].2, output);
            fresh.push(wanted[*j].2);
        }
        if group.rank() == 0 {
            link.activity(
                "encode",
                ((done * CHUNK + chunk.len()) * group.world()).min(missing.len()) as u64,
                missing.len() as u64,
            );
        }
    }
    write(&spaces, &records, &fresh)?;

    // The lowest rank that has a record sends it if anybody lacks it.
    let mut owner: BTreeMap<Key, usize> = BTreeMap::new();
    let mut lacks: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
    for (r, share) in shares.iter().enumerate() {
        missing[share.clone()].iter().for_each(|j| {
            owner.insert(wanted[*j].2, r);
        });
    }
    for (j, w) in wanted.iter().enumerate() {
        let first = have.iter().position(|h| h[j]);
        let from = *owner.entry(w.2).or_insert_with(|| first.unwrap_or(0));
        let without: Vec<usize> = (0..group.world()).filter(|r| *r != from && !have[*r][j]).collect();
        if !without.is_empty() {
            lacks.insert(w.2, without);
        }
    }
    let sent_by = |rank: usize| lacks.keys().filter(|k| owner[*k] == rank).copied().collect::<Vec<Key>>();
    let own = sent_by(group.rank());
    let bytes = own.iter().flat_map(|k| records[k].iter().flat_map(|v| collective::to_bytes(v))).collect();
    let mut received = Vec::new();
    for (from, bytes) in group.all_gather(bytes)?.into_iter().enumerate() {
        let mut values = collective::from_bytes(&bytes)?.into_iter();
        for key in sent_by(from) {
            let record: Vec<Vec<f32>> = spaces.iter().map(|s| values.by_ref().take(s.width()).collect()).collect();
            if record.iter().zip(&spaces).any(|(r, s)| r.len() != s.width()) {
                return Err(Error::Internal(format!("rank {from} sent fewer features than it announced")));
            }
            // One rank of each machine keeps what its machine did not have.
            let here = |r: &usize| identities[*r] == identities[group.rank()];
            let machine_has = here(&from) || (0..group.world()).any(|r| here(&r) && !lacks[&key].contains(&r));
            let first_here = (0..group.world()).find(here) == Some(group.rank());
            if first_here && !machine_has {
                received.push(key);
            }
            records.entry(key).or_insert(record);
        }
    }
    write(&spaces, &records, &received)?;

    let mut by_cut = BTreeMap::new();
    for (c, cut) in cuts.iter().enumerate() {
        let rows = wanted.iter().map(|w| records.get(&w.2).map(|r| r[c].clone()));
        let rows: Option<Vec<_>> = rows.collect();
        by_cut.insert(*cut, rows.ok_or_else(|| Error::Internal("an encoded sample is missing".into()))?);
    }
    Ok(Encoded { by_cut, computed: missing.len() as u64, needed: wanted.len() as u64 })
}

/// Records that are whole in every space.
fn read(spaces: &[Space], link: &mut dyn Link) -> Records {
    let mut records = Records::new();
    for (i, space) in spaces.iter().enumerate() {
        let (found, damaged) = space.read();
        if damaged > 0 {
            link.notice(
                Notice::CacheDamaged,
                &format!("{damaged} segments of the feature cache were not whole and are computed again"),
            );
        }
        for (key, values) in found {
            let record = records.entry(key).or_default();
            if record.len() == i {
                record.push(values);
            }
        }
    }
    records.retain(|_, r| r.len() == spaces.len());
    records
}

fn write(spaces: &[Space], records: &Records, keys: &[Key]) -> Result<()> {
    for (i, space) in spaces.iter().enumerate() {
        let segment: Vec<(Key, &[f32])> = keys.iter().map(|k| (*k, &records[k][i][..])).collect();
        space.write(&segment)?;
    }
    Ok(())
}
