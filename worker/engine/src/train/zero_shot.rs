//! A job that trains nothing: samples judged by sentences that name their classes.

use tl_proto::spec::{JobSpec, TOWER};

use super::{
    Config,
    begin::{same_numbers, same_samples, same_sources},
    clipped,
    evaluate::embed,
    export::{self, Report},
    inputs::Inputs,
    net::{self, Net, weights_path},
    samples::Samples,
};
use crate::{
    Error, Result,
    collective::Collective,
    data::classes,
    eval::{self, Evaluation, Outcome, retrieval},
    link::{Link, Notice},
    nn::{Packs, Pass, tensor},
    objective::{SCALE, sentences, unit},
    weights::{self, Which},
};

/// Sentences of one pass through the network.
const BATCH: usize = 32;

/// The samples that such a job judges.
///
/// # Errors
/// Data that is not there, or that is not for the network.
pub(super) fn samples(spec: &JobSpec) -> Result<Samples> {
    let missing = |what: &str| Error::user(format!("the job has no `[{what}]`"), format!("add a `[{what}]` section"));
    let data = spec.data.as_ref().ok_or_else(|| missing("data"))?;
    let val = Samples::open(data, "val", spec.job.seed)?;
    val.fits_job(spec, spec.model.as_ref())?;
    if val.dataset.classes().len() < 2 {
        return Err(Error::user(
            format!("`data.val` has only one class, {}", classes::listed(val.dataset.classes())),
            "there is nothing to tell it from: give samples of others too",
        ));
    }
    Ok(val)
}

/// What such a job judges, and by which networks.
pub(super) struct Opened {
    pub val: Samples,
    pub net: Net,
    tower: Net,
}

impl Opened {
    /// Opens the samples and both networks.
    ///
    /// # Errors
    /// Data that is not there, networks without weights, or that do not embed in as many numbers; a second one that does
    /// not read text.
    pub fn new(config: &Config, spec: &JobSpec) -> Result<Self> {
        let missing =
            |what: &str| Error::user(format!("the job has no `[{what}]`"), format!("add a `[{what}]` section"));
        let model = spec.model.as_ref().ok_or_else(|| missing("model"))?;
        let section = spec.nets.get(TOWER).ok_or_else(|| missing("nets.tower"))?;
        let val = samples(spec)?;
        let build = |section: &tl_proto::spec::ModelSection, which: Which, key: &str| {
            let path = weights_path(section, &config.inputs)?.ok_or_else(|| {
                Error::user(format!("`{key}` has no weights"), "give those that a job of `kind = \"contrastive\"` left")
            })?;
            let outputs = weights::outputs(&path, which).map_err(|e| e.of_section(key))?;
            Net::build_kept(section, &outputs, &config.inputs, which).map(|net| config.placed(net))
        };
        let (net, tower) = (build(model, Which::Model, "model")?, build(section, Which::Tower, "nets.tower")?);
        if tower.contract.text.is_none() {
            return Err(Error::user(
                format!("{} does not read text, and classes are named in sentences", tower.backbone.name),
                "`nets.tower` must be the network that learned from texts",
            ));
        }
        let (a, b) = (net.network.outputs, tower.network.outputs);
        if a != b {
            return Err(Error::user(
                format!("`[model]` embeds in {a} numbers, and `nets.tower` in {b}"),
                "both must come from one job",
            ));
        }
        Ok(Self { val, net, tower })
    }

    /// The mean embedding of the sentences of each class.
    fn prototypes(&self, spec: &JobSpec) -> Result<Vec<Vec<f32>>> {
        let text =
            self.tower.contract.text.as_ref().ok_or_else(|| Error::Internal("sentences for no reader".into()))?;
        let (units, packs) = (self.tower.network.units.len(), Packs::default());
        let pass = Pass::again(&self.tower.network.initial, &packs);
        let of = |class: &String| -> Result<Vec<f32>> {
            let said = sentences(&spec.objective, class);
            let ids = said.iter().map(|s| {
                text.ids(s)
                    .map_err(|e| Error::user(format!("`{s}` cannot be read: {e}"), "change `objective.templates`"))
            });
            let ids: Vec<Vec<f32>> = ids.collect::<Result<_>>()?;
            let mut rows = Vec::new();
            for batch in ids.chunks(BATCH) {
                let given = self.tower.forward(&pass, text.batch(batch, true)?, 0, units)?;
                rows.extend(net::rows(&unit(&given)?)?);
            }
            let keys = vec![0; rows.len()];
            let mean = retrieval::prototypes(&rows, &keys, 1).pop().flatten();
            mean.ok_or_else(|| {
                Error::user(format!("the sentences of `{class}` cancel out"), "change `objective.templates`")
            })
        };
        self.val.dataset.classes().iter().map(of).collect()
    }
}

/// Judges the validation samples. Every rank of the group calls it with the same job; rank 0 reports.
///
/// # Errors
/// As [`super::run`].
pub(super) fn run(config: &Config, group: &mut dyn Collective, link: &mut dyn Link) -> Result<Report> {
    let (spec, local) = (&config.spec, config.local()?);
    same_numbers(spec, &config.place, group)?;
    same_sources(config, group)?;
    let opened = Opened::new(config, &local)?;
    same_samples(std::iter::once(&opened.val), group)?;
    if let (Some(text), 0) = (opened.val.passed_over(), group.rank()) {
        link.notice(Notice::FilesPassedOver, &text);
    }
    let mut clipped = None;
    if group.rank() == 0 {
        clipped = clipped::warning(&opened.val, &opened.net.contract);
        clipped.iter().for_each(|cut| link.notice(cut.notice, &cut.text));
    }
    let prototypes = opened.prototypes(spec)?;
    let Opened { val, net, .. } = opened;
    let skip = local.data.as_ref().map_or(0, |d| d.skip_bad);
    let val = val.leave_out_bad(&net.contract, skip, group, link)?;
    let store = &net.network.initial;
    if group.rank() == 0 {
        link.activity("evaluate", 0, val.count() as u64);
    }
    let shape = net.shape_at(store, 0)?;
    let inputs = Inputs::raw(&net, &val, shape);
    let rows = embed(store, &inputs, net.network.units.len(), group)?;
    let rows = net::rows(&unit(&tensor(rows.concat(), &[rows.len(), net.network.outputs])?)?)?;
    let classes = val.dataset.classes().to_vec();
    let judge = |(row, label): (&Vec<f32>, &usize)| -> Outcome {
        let near = |p: &Vec<f32>| SCALE * retrieval::cosine(row, p) as f32;
        eval::judge(&prototypes.iter().map(near).collect::<Vec<_>>(), *label)
    };
    let outcomes: Vec<Outcome> = rows.iter().zip(val.dataset.labels()).map(judge).collect();
    let report = Report {
        job: spec.job.name.clone(),
        kind: spec.job.kind.clone(),
        samples: [0, val.count()],
        sources: config.sources(),
        evaluation: Evaluation::new(&classes, &outcomes),
        clipped: clipped.into_iter().map(|cut| cut.text).collect(),
        ..Report::default()
    };
    if group.rank() == 0 {
        for (name, path) in export::write_report(&config.work.join("model"), spec, &report)? {
            link.artifact(name, &path);
        }
    }
    // Nobody leaves while another may still need an answer.
    group.barrier()?;
    Ok(report)
}
