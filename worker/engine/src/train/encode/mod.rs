//! Runs frozen prefixes once per sample and view, together: what one rank has, no other computes.

mod share;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};

pub(super) use self::wanted::company;
use self::{share::Holdings, wanted::Wanted};
use super::{cut::Cut, net::Net, samples::Samples};
use crate::{
    Error, Full, Result,
    cache::{self, Key, Parcel, Space},
    collective::Collective,
    link::{Link, Notice},
    nn::{Packs, Pass, Store, host},
};

/// Records of one segment: what a kill in the middle of a long encoding can cost.
const SEGMENT: usize = 256;
/// Bytes of features that one cut may take in memory; above it the prefix runs each time.
pub const BUDGET: usize = 4 << 30;

/// What was encoded.
pub struct Encoded {
    /// For each cut: features of `(sample, view)` at `sample · views + view`, as they are kept.
    pub by_cut: BTreeMap<usize, Vec<Vec<f32>>>,
    /// Samples that ran through the prefix, over all ranks.
    pub computed: u64,
    /// Samples times views whose outputs were asked for.
    pub needed: u64,
}

/// Outputs at every cut, as they are kept, by sample and view.
type Records = BTreeMap<Key, Vec<Vec<f32>>>;

/// What is kept of every sample and view at each of `cuts` (ascending).
///
/// # Errors
/// A sample that cannot be read, a number that cannot be packed, a lost peer. A cache that cannot be written is told, and costs time only.
pub fn encode(
    net: &Net,
    store: &Store,
    cuts: &[Cut],
    samples: &Samples,
    root: &std::path::Path,
    group: &mut dyn Collective,
    link: &mut dyn Link,
) -> Result<Encoded> {
    let wanted = Wanted::of(samples, &store.place);
    let keys = &wanted.keys;
    let mut disk = Disk::open(net, store, cuts, &wanted, root)?;
    let mut records = disk.read(link);
    let machine = (store.place.numbers(), cache::identity(root));
    let holdings = Holdings::learn(keys, &records, &machine, group)?;

    let (packs, mut fresh, mut done) = (Packs::default(), Vec::new(), 0);
    let pass = Pass::again(store, &packs);
    let mine = holdings.to_compute();
    let passes = wanted.passes(&mine);
    let mut chunks = passes.iter().peekable();
    while let Some(chunk) = chunks.next() {
        if link.stop_requested() {
            // Leaving alone would strand the others in the next exchange; they learn of it by our absence.
            disk.write(&records, &fresh, link);
            return Err(Error::Stopped);
        }
        let views = |chunk: &[usize]| -> Vec<_> { chunk.iter().map(|j| wanted.rows[*j]).collect() };
        let mut x = samples.batch(&views(chunk), &net.contract, true)?;
        let next = chunks.peek().map(|next| views(next)).into_iter().collect();
        samples.expect(next, &net.contract, &store.place);
        let (mut from, mut outputs) = (0, vec![Vec::new(); chunk.len()]);
        for cut in cuts {
            x = net.forward(&pass, x, from, cut.at).map_err(|e| e.full_of(Full::Samples))?;
            from = cut.at;
            let looked = cut.looked(&x)?;
            let values = host(&looked)?;
            let width = values.len() / chunk.len();
            for (output, values) in outputs.iter_mut().zip(values.chunks_exact(width)) {
                output.push(cut.packed.pack(values)?);
            }
        }
        // The others are there already, here or with another rank.
        for (j, output) in chunk.iter().zip(outputs).filter(|(j, _)| mine.binary_search(j).is_ok()) {
            records.insert(keys[*j], output);
            fresh.push(keys[*j]);
            done += 1;
        }
        if fresh.len() >= SEGMENT {
            disk.write(&records, &fresh, link);
            fresh.clear();
        }
        if group.rank() == 0 {
            let (all, missing) = ((done * group.world()) as u64, holdings.missing() as u64);
            link.activity("encode", all.min(missing), missing);
        }
    }
    disk.write(&records, &fresh, link);
    let received = holdings.exchange(&mut records, &disk.widths(), group)?;
    disk.write(&records, &received, link);
    Ok(Encoded { by_cut: by_cut(cuts, keys, records)?, computed: holdings.missing() as u64, needed: keys.len() as u64 })
}

/// Adds what was encoded to a parcel, for other machines. All that it names is as for [`encode`].
///
/// # Errors
/// An input that is too small for the network.
pub fn pack(
    net: &Net,
    store: &Store,
    cuts: &[Cut],
    samples: &Samples,
    root: &std::path::Path,
    (encoded, parcel): (&Encoded, &mut Parcel),
) -> Result<()> {
    let wanted = Wanted::of(samples, &store.place);
    let disk = Disk::open(net, store, cuts, &wanted, root)?;
    for (space, cut) in disk.spaces.iter().zip(cuts) {
        let Some(rows) = encoded.by_cut.get(&cut.at) else { continue };
        // Each content once.
        let mut seen = BTreeSet::new();
        let once = wanted.keys.iter().zip(rows).filter(|(key, _)| seen.insert(**key));
        let once: Vec<(Key, &[f32])> = once.map(|(key, row)| (disk.name(key), &row[..])).collect();
        once.chunks(SEGMENT).for_each(|segment| parcel.add(space, segment));
    }
    Ok(())
}

/// How many samples and views are not in the cache of this machine yet, by what is kept at one cut.
///
/// # Errors
/// An input that is too small for the network.
pub fn missing(net: &Net, store: &Store, cut: Cut, samples: &Samples, root: &std::path::Path) -> Result<usize> {
    let disk = Disk::open(net, store, &[cut], &Wanted::of(samples, &store.place), root)?;
    let names: BTreeSet<Key> = disk.names.values().copied().collect();
    let found: usize = disk.spaces.iter().map(|space| space.holds(&names)).sum();
    Ok(names.len() - found.min(names.len()))
}

/// Rows in the order of `keys`. What several samples share is copied, the rest is moved: features may fill the memory.
fn by_cut(cuts: &[Cut], keys: &[Key], mut records: Records) -> Result<BTreeMap<usize, Vec<Vec<f32>>>> {
    let mut uses: BTreeMap<&Key, usize> = BTreeMap::new();
    keys.iter().for_each(|k| *uses.entry(k).or_default() += 1);
    let mut out: Vec<Vec<Vec<f32>>> = cuts.iter().map(|_| Vec::with_capacity(keys.len())).collect();
    for key in keys {
        let left = uses.get_mut(key).map_or(0, |n| {
            *n -= 1;
            *n
        });
        let record = if left == 0 { records.remove(key) } else { records.get(key).cloned() };
        let record = record.ok_or_else(|| Error::Internal("an encoded sample is missing".into()))?;
        out.iter_mut().zip(record).for_each(|(rows, row)| rows.push(row));
    }
    Ok(cuts.iter().map(|cut| cut.at).zip(out).collect())
}

/// The spaces of all cuts.
struct Disk {
    spaces: Vec<Space>,
    /// What the outputs of a content are called there.
    names: BTreeMap<Key, Key>,
    /// A disk that has refused once is not tried again.
    refused: bool,
}

impl Disk {
    fn open(net: &Net, store: &Store, cuts: &[Cut], wanted: &Wanted, root: &std::path::Path) -> Result<Self> {
        let space = |cut: &Cut| {
            let digest = net.prefix_digest(store, cut.at) + &cut.describe();
            // Features belong to the numbers of this kind of machine, as the gang does.
            let name = blake3::hash(&[digest.as_bytes(), &store.place.numbers()].concat());
            Ok(Space::new(root, &name.to_hex(), cut.words(net, store)?))
        };
        Ok(Self { spaces: cuts.iter().map(space).collect::<Result<_>>()?, names: wanted.names(), refused: false })
    }

    /// What the outputs of a content that is wanted are called.
    fn name(&self, key: &Key) -> Key {
        self.names.get(key).copied().unwrap_or(*key)
    }

    fn widths(&self) -> Vec<usize> {
        self.spaces.iter().map(Space::width).collect()
    }

    /// Records that are here in every space.
    fn read(&self, link: &mut dyn Link) -> Records {
        let keys: BTreeMap<Key, Key> = self.names.iter().map(|(key, name)| (*name, *key)).collect();
        let names: BTreeSet<Key> = keys.keys().copied().collect();
        let mut records = Records::new();
        for (i, space) in self.spaces.iter().enumerate() {
            let (found, damaged) = space.read(&names);
            if damaged > 0 {
                link.notice(
                    Notice::CacheDamaged,
                    &format!("{damaged} segments of the feature cache were not whole and are computed again"),
                );
            }
            for (name, values) in found {
                let record = records.entry(keys[&name]).or_default();
                if record.len() == i {
                    record.push(values);
                }
            }
        }
        records.retain(|_, r| r.len() == self.spaces.len());
        records
    }

    fn write(&mut self, records: &Records, keys: &[Key], link: &mut dyn Link) {
        for (i, space) in self.spaces.iter().enumerate().filter(|_| !self.refused) {
            let segment: Vec<(Key, &[f32])> = keys.iter().map(|k| (self.name(k), &records[k][i][..])).collect();
            if let Err(e) = space.write(&segment) {
                self.refused = true;
                link.notice(Notice::CacheUnwritten, &format!("{e}; the next job will compute these features again"));
                return;
            }
        }
    }
}
