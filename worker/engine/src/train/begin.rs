//! How ranks begin together: with the same numbers, from the same state.

use tl_proto::spec::{JobSpec, Reduction};

use super::{Config, RunState, net::Net, samples::Samples};
use crate::{
    Error, Result,
    collective::Collective,
    data::Dataset,
    gpu::Place,
    link::{Link, Notice},
    objective::Objective,
    optim::Optimizer,
};

/// An ordered reduction gives the same bits only among ranks that compute the same bits.
pub(super) fn same_numbers(spec: &JobSpec, place: &Place, group: &mut dyn Collective) -> Result<()> {
    let all = group.all_gather(place.numbers().to_vec())?;
    let odd = all.iter().position(|f| *f != all[0]).filter(|_| spec.cluster.reduction != Reduction::Fast);
    match odd {
        None => Ok(()),
        Some(rank) => Err(Error::user(
            format!(
                "rank {rank} computes other bits than rank 0: its node has another kind of CPU or GPU, other libraries \
                 for it, or another release"
            ),
            "use nodes of one kind, or set `cluster.reduction = \"fast\"`",
        )),
    }
}

/// Digest of the names, contents, labels and keys of all samples: another one is another data set.
pub(super) fn manifest(sets: &[&dyn Dataset]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for set in sets {
        for i in 0..set.labels().len() {
            hasher.update(set.name(i).as_bytes()).update(&set.digest(i)).update(&set.labels()[i].to_le_bytes());
            // What makes pairs, where that is no label.
            hasher.update(set.key(i).as_bytes());
        }
    }
    hasher.finalize()
}

/// Ranks on different nodes read their own copies; they must be copies of the same.
pub(super) fn same_samples<'a>(parts: impl Iterator<Item = &'a Samples>, group: &mut dyn Collective) -> Result<()> {
    for samples in parts {
        let all = group.all_gather(manifest(&[&*samples.dataset]).as_bytes().to_vec())?;
        if let Some(odd) = all.iter().position(|m| *m != all[0]) {
            return Err(Error::user(
                format!("rank {odd} sees other samples in `{}` than rank 0", samples.key()),
                "the same path must hold the same files on every node; `tlctl data push` brings them to all",
            ));
        }
    }
    Ok(())
}

/// Ranks on different nodes have fetched weights for themselves; they must be the same bytes.
pub(super) fn same_sources(config: &Config, group: &mut dyn Collective) -> Result<()> {
    let sources = config.sources();
    let all: Vec<&str> = sources.iter().flat_map(|s| &s.files).map(|f| f.sha256.as_str()).collect();
    let all = group.all_gather(blake3::hash(all.join(" ").as_bytes()).as_bytes().to_vec())?;
    match all.iter().position(|digest| *digest != all[0]) {
        None => Ok(()),
        Some(odd) => Err(Error::user(
            format!("rank {odd} has got other weights from the hub than rank 0"),
            "name the commit in `model.weights`, and see that the nodes ask the same hub (`HF_ENDPOINT`)",
        )),
    }
}

/// The teachers of a job, in their order.
///
/// # Errors
/// See [`Net::build_teacher`].
pub(super) fn teachers(spec: &JobSpec, classes: &[String], config: &Config) -> Result<Vec<Net>> {
    let all = spec.nets_of("teacher").into_iter().filter(|_| Objective::find(&spec.job.kind).has_teacher());
    all.map(|(role, section)| {
        let net = Net::build_teacher(role, section, classes, spec.job.seed, &config.inputs)?;
        Ok(config.placed(net))
    })
    .collect()
}

/// Digest of the parts of all networks, and of where they come from.
pub(super) fn parts(student: &Net, teachers: &[Net]) -> String {
    // One without adapters says nothing, as in states from before teachers were compared.
    teachers.iter().filter(|net| !net.merged.is_empty()).fold(student.parts.clone(), |all, teacher| {
        let both = format!("{all};teacher:{}", teacher.parts);
        blake3::hash(both.as_bytes()).to_hex().to_string()
    })
}

/// Ranks on different nodes have read the adapters for themselves; they must be the same, in the same places. `own` is
/// what [`parts`] says here.
pub(super) fn same_parts(own: &str, group: &mut dyn Collective) -> Result<()> {
    let all = group.all_gather(own.as_bytes().to_vec())?;
    match all.iter().position(|digest| *digest != all[0]) {
        None => Ok(()),
        Some(odd) => Err(Error::user(
            format!("rank {odd} has another adapter than rank 0, or has it elsewhere in the network"),
            "`model.adapter` and `nets.teacher.adapter` must be the same files on every node, and so must the weights below \
             them; `tlctl data push` brings them to all",
        )),
    }
}

/// The state of a run that has not begun. From here on the numbers are the state's: the network keeps their names and
/// shapes.
pub(super) fn fresh(student: &mut Net, spec: &JobSpec, optimizer: &Optimizer, parts: String) -> RunState {
    let names = student.network.initial.names();
    let initial = std::mem::replace(&mut student.network.initial, names);
    let moments = (optimizer.init)(initial.values.len());
    let mut fresh = RunState::new(initial, moments);
    fresh.progress.parts = parts;
    if let Some(several) = &Objective::find(&spec.job.kind).several {
        let others: Vec<f64> = spec.tasks.values().map(|task| task.weight).collect();
        fresh.progress.weighing.weights = (several.first)(&spec.objective, &others);
    }
    fresh
}

/// Rank 0 reads the newest checkpoint that is whole and hands it to the others.
pub(super) fn resume(
    config: &Config,
    fresh: RunState,
    group: &mut dyn Collective,
    link: &mut dyn Link,
) -> Result<RunState> {
    let mut bytes = Vec::new();
    // States from before parts were compared say nothing.
    let is_other =
        |b: &Vec<u8>| RunState::parts_of(b).is_some_and(|parts| !parts.is_empty() && parts != fresh.progress.parts);
    if group.rank() == 0 {
        for path in &config.resume {
            let found = std::fs::read(path).ok();
            // A whole state of other parts has another size: that is for all ranks to say.
            let usable = |b: &Vec<u8>| is_other(b) || RunState::from_bytes(b.clone(), &fresh.store).is_some();
            if found.as_ref().is_some_and(usable) {
                bytes = found.unwrap_or_default();
                break;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            link.notice(
                Notice::CheckpointDamaged,
                &format!("checkpoint `{name}` is not whole; the one before it is used"),
            );
        }
    }
    let bytes = group.broadcast(bytes, 0)?;
    if bytes.is_empty() {
        return Ok(fresh);
    }
    if is_other(&bytes) {
        return Err(Error::user(
            "the checkpoint is of a run with another adapter, or with the adapter elsewhere in the network",
            "put the files back that the run began with, or submit the job anew",
        ));
    }
    let mut state = RunState::from_bytes(bytes, &fresh.store)
        .ok_or_else(|| Error::Internal("the state of rank 0 is not whole".into()))?;
    if group.rank() == 0 {
        link.notice(
            Notice::Resumed,
            &format!("training goes on from step {} with {} ranks", state.progress.step, group.world()),
        );
        if state.progress.numbers != fresh.progress.numbers {
            let text = "the nodes compute other bits than those before: another kind of CPU or GPU, or release. \
                The model will not be the one of an undisturbed run, bit for bit";
            link.notice(Notice::OtherNumbers, text);
        }
    }
    (state.progress.numbers, state.progress.parts) = (fresh.progress.numbers, fresh.progress.parts);
    Ok(state)
}
