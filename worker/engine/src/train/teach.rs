//! What frozen teachers say, worked out before a training by whoever is idle: the estimate of that work, one unit of it,
//! and how the ranks come to what was worked out.
//!
//! A unit is a run of the samples that teachers see. Its outputs go to the cache of the node and, packed, to the blob store.
//! A rank that trains unpacks them into its own node's cache, if that has not got them from an attempt before, and computes
//! what it misses there, as it does without units.
//! Records are keyed by what is in them, and on a GPU by what went through with it: a unit that is done twice, of other samples
//! or not at all changes no bit.

use tl_proto::{spec::JobSpec, teaching::Teaching};

use super::{
    Config, begin, encode,
    net::Net,
    opened::Opened,
    samples::Samples,
    saving,
    taps::Taps,
    teacher::{self, cuts_of},
};
use crate::{
    Error, Result,
    cache::{self, Parcel},
    collective::{Solo, partition::partition},
    files,
    link::{Link, Notice},
    objective::Objective,
};

/// Fewest samples, times views, that are worth an estimate: to measure a teacher takes as long as four.
const FEWEST: usize = 64;
/// What the outputs of a unit are called.
const PARCEL: &str = "features";

/// What the teachers of a job will have to work out, as far as can be seen on this node; nothing where they have said it
/// all, run in every step, or say more than the cache may take.
///
/// # Errors
/// An input that is too small for a network.
pub(super) fn estimate(
    config: &Config,
    spec: &JobSpec,
    shown: &Samples,
    taps: &[usize],
    teachers: &[Net],
) -> Result<Option<Teaching>> {
    let rows = shown.count() * teacher::views(spec, shown).unwrap_or(0);
    let mut all = Teaching::default();
    if rows < FEWEST {
        return Ok(None);
    }
    for (which, net) in teachers.iter().enumerate() {
        let store = &net.network.initial;
        let cuts = cuts_of(spec, which, net, taps);
        let words = teacher::words(net, &cuts)?;
        let Some(last) = cuts.last().copied().filter(|_| teacher::room(words, rows).is_ok()) else { continue };
        // Units leave all that they have, also what this node had before.
        all.bytes += 4 * (words * rows) as u64;
        let missing = encode::missing(net, store, last, shown, &config.cache)?;
        if missing < FEWEST {
            continue;
        }
        let (seconds, _) = saving::measure(net, store, shown)?;
        all.rows = all.rows.max(missing as u64);
        all.seconds += missing as f64 * seconds[last.at];
    }
    Ok((all.rows > 0 && all.bytes <= config.cache_bytes).then_some(all))
}

/// Works out one of `units` parts of what the teachers of a job say; whether there was anything to leave as a parcel.
///
/// # Errors
/// Everything that would stop the training at its start.
pub fn unit(config: &Config, (unit, units): (usize, usize), link: &mut dyn Link) -> Result<bool> {
    let (spec, local) = (&config.spec, config.local()?);
    let (Some(data), Some(model)) = (&local.data, &local.model) else {
        return Err(Error::user("the job has no `[data]` or no `[model]`", "add the section"));
    };
    let objective = Objective::find(&spec.job.kind);
    let opened = Opened::new(spec, data, objective)?;
    let classes = opened.outputs.clone();
    let teachers = begin::teachers(&local, &classes, config)?;
    teachers.iter().try_for_each(|teacher| opened.fit_teacher(&teacher.contract))?;
    let mut taps = Taps::default();
    if let (Some(named), Some(first)) = ((objective.taps)(&spec.objective), teachers.first()) {
        let student = Net::build_for(model, &classes, spec, &config.inputs, &*opened.train.dataset)?;
        taps = Taps::resolve(&named, &student, first)?;
    }
    let mut samples = opened.into_shown();
    let Some(views) = teacher::views(spec, &samples) else { return Ok(false) };
    let rows = samples.count() * views;
    if unit >= units {
        return Err(Error::Internal(format!("there is no unit {unit} of {units}")));
    }
    // Whole companies: the training looks for what came out of its own.
    let (all, together) = (samples.count(), encode::company(views, &config.place).unwrap_or(1));
    let share = partition(all.div_ceil(together), units)[unit].clone();
    if share.is_empty() {
        return Ok(false);
    }
    samples = samples.only((share.start * together..all.min(share.end * together)).collect())?;
    if let Some(first) = teachers.first() {
        let all = samples.count();
        samples = samples.that_decode(&first.contract)?;
        let bad = all - samples.count();
        if bad > data.skip_bad as usize {
            let text = format!("{bad} of {all} samples of a unit cannot be decoded");
            return Err(Error::user(text, "the training gives their names"));
        }
    }
    let roles = spec.nets_of("teacher");
    let mut parcel = Parcel::default();
    cache::trim(&config.cache, config.cache_bytes);
    for (which, net) in teachers.iter().enumerate() {
        let store = &net.network.initial;
        teacher::look(net, &samples, roles.get(which).map_or("teacher", |(role, _)| *role))?;
        let cuts = cuts_of(spec, which, net, &taps.teacher);
        if teacher::room(teacher::words(net, &cuts)?, rows).is_err() {
            continue;
        }
        let done = encode::encode(net, store, &cuts, &samples, &config.cache, &mut Solo, link)?;
        encode::pack(net, store, &cuts, &samples, &config.cache, (&done, &mut parcel))?;
    }
    if !parcel.is_empty() {
        let path = config.work.join(PARCEL);
        files::write_whole(&path, &parcel.into_bytes())?;
        link.artifact(PARCEL, &path);
        return Ok(true);
    }
    Ok(false)
}

/// Puts what units have left in the cache of this node. What is not whole, or finds no room, is computed again.
pub(super) fn unpack(config: &Config, link: &mut dyn Link) {
    for path in &config.features {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let bytes = std::fs::read(path).map_err(Error::disk("read what a teacher has said"));
        match bytes.and_then(|bytes| cache::unpack(&config.cache, &name, bytes)) {
            Ok(true) => {}
            Ok(false) => link.notice(
                Notice::CacheDamaged,
                "what a teacher has said on another node did not arrive whole and is computed again",
            ),
            Err(e) => {
                link.notice(Notice::CacheUnwritten, &format!("{e}; what a teacher has said is computed again"));
                return;
            }
        }
    }
}
