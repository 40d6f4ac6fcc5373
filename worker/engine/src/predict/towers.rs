//! Two networks that learned from pairs, at work: how many halves of other pairs find each other.

use std::{collections::BTreeMap, path::Path};

use tl_proto::spec::{ModelSection, PairedBy};

use super::{Asked, file_of, finished, section};
use crate::{
    Error, Result,
    collective::Solo,
    eval::{Evaluation, retrieval::Retrieval},
    gpu::Place,
    link::Notice,
    train::{
        evaluate::embed, export::About, inputs::Inputs, net::Net, pairs::whole, retrieval::compared, samples::Samples,
    },
    weights::{self, Which},
};

/// Both networks of a finished model, ready to run; in f32.
pub struct Towers {
    /// That of `[model]`, and that of `[nets.tower]`.
    nets: [Net; 2],
}

/// What two networks come to on pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Samples that have their other half, and such halves.
    pub pairs: [usize; 2],
    /// How many find each other.
    pub retrieval: Retrieval,
    /// Where pairs go by class: each sample by the nearest mean of the other halves of a class. Its loss is that of cosines.
    pub by_class: Option<Evaluation>,
    /// What is to be said of samples and halves that have no other.
    pub left_out: Vec<String>,
}

impl Towers {
    /// Opens both networks of an exported file, or of the folder that it lies in.
    ///
    /// # Errors
    /// A file that does not hold two networks.
    pub fn open(path: &Path) -> Result<Self> {
        let file = file_of(path)?;
        let about = serde_json::from_value::<About>(weights::about(&file)?).ok();
        let both = about.and_then(|about| {
            let tower = *about.tower?;
            Some([(about.backbone, about.model?), (tower.backbone, tower.model?)])
        });
        let Some([first, second]) = both else {
            return Err(Error::user(
                format!("`{}` does not hold two networks that have learned from pairs", file.display()),
                "give the model that a job of `kind = \"contrastive\"` left, or leave out `--pairs`",
            ));
        };
        let net = |(backbone, model): (String, ModelSection), which: Which| {
            let outputs = weights::outputs(&file, which)?;
            Net::build_kept(&finished(backbone, model, &file), &outputs, &BTreeMap::new(), which)
        };
        Ok(Self { nets: [net(first, Which::Model)?, net(second, Which::Tower)?] })
    }

    /// The formats of files for them.
    pub fn formats(&self) -> [&'static str; 2] {
        self.nets.each_ref().map(|net| net.contract.format())
    }

    /// The same, run in another place than the host.
    #[must_use]
    pub fn at(mut self, place: &Place) -> Self {
        self.nets.iter_mut().for_each(|net| net.network.initial.place = place.clone());
        self
    }

    /// Looks how many of the samples that are `asked` for and of their other halves find each other; what has no other half is
    /// left out. Of both, format, place, parameters, seed and classes count.
    ///
    /// # Errors
    /// Data that is not there, that will not decode, or that is not for the networks; no pair at all.
    pub fn evaluate(&self, asked: [&Asked; 2], by: PairedBy) -> Result<Found> {
        let open = |asked: &Asked| {
            let spec = section(&asked.format, &asked.place, asked.params.clone(), &asked.classes)?;
            Samples::open_paired(&spec, "val", by, asked.seed)
        };
        let both = [open(asked[0])?, open(asked[1])?.called("pairs.val")];
        both.iter().zip(&self.nets).try_for_each(|(samples, net)| samples.fits(&net.contract))?;
        let mut left_out = Vec::new();
        let both = whole(both, by, &mut |_: Notice, text: &str| left_out.push(text.to_owned()))?;
        let rows = |(samples, net): (&Samples, &Net)| {
            let store = &net.network.initial;
            let inputs = Inputs::raw(net, samples, net.shape_at(store, 0)?);
            embed(store, &inputs, net.network.units.len(), &mut Solo)
        };
        let [ours, theirs] = [0, 1].map(|i| rows((&both[i], &self.nets[i])));
        let (evaluation, retrieval) = compared([&ours?, &theirs?], both.each_ref(), by)?;
        let by_class = Some(evaluation).filter(|_| by == PairedBy::Label);
        Ok(Found { pairs: both.each_ref().map(Samples::count), retrieval, by_class, left_out })
    }
}
