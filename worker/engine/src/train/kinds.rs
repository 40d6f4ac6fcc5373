//! What samples are, and whether the networks of a job can be fed with them.

use tl_proto::spec::{AugmentSection, JobSpec, ModelSection};

use super::samples::Samples;
use crate::{
    Error, Result,
    backbone::{self, Backbone},
    data::{audio::Audio, drawing::Strokes},
    modifier,
    weights::Contract,
};

/// What samples can be.
pub(super) const IMAGES: &str = "images";
pub(super) const TEXT: &str = "text";
pub(super) const SOUND: &str = "sound";
pub(super) const DRAWINGS: &str = "drawings";

/// What a backbone reads; those for images see sound as well.
fn read_by(backbone: &Backbone) -> &'static str {
    match () {
        () if backbone.reads_text() => TEXT,
        () if backbone.reads_strokes() => DRAWINGS,
        () => IMAGES,
    }
}

impl Samples {
    /// What samples are, in a word.
    pub(super) fn kind(&self) -> &'static str {
        match () {
            () if self.dataset.heard().is_some() => SOUND,
            () if self.dataset.drawn().is_some() => DRAWINGS,
            () if self.count() > 0 && self.dataset.text(0).is_some() => TEXT,
            () => IMAGES,
        }
    }

    /// Whether a network of this contract can be fed with these samples.
    ///
    /// # Errors
    /// Images for a network of text, or text for one of images; sound that is to be heard otherwise, drawings that are to be
    /// read otherwise.
    pub fn fits(&self, contract: &Contract) -> Result<()> {
        let part = self.key();
        let wants = match contract {
            Contract { text: Some(_), .. } => TEXT,
            Contract { strokes: Some(_), .. } => DRAWINGS,
            Contract { audio: Some(_), .. } => SOUND,
            _ => IMAGES,
        };
        let has = self.kind();
        if has == wants {
            let heard = contract.audio.as_ref().zip(self.dataset.heard());
            heard.map_or(Ok(()), |(known, said)| Audio::agreed(Some(known), said).map(|_| ()))?;
            let drawn = contract.strokes.as_ref().zip(self.dataset.drawn());
            return drawn.map_or(Ok(()), |(known, said)| Strokes::agreed(Some(known), said).map(|_| ()));
        }
        let hint = match (wants, has) {
            (TEXT, _) => "use `format = \"text\"`, or a backbone for images; see `tlctl catalog`",
            (_, TEXT) => "use a backbone for text; see `tlctl catalog`",
            (DRAWINGS, _) => "use `format = \"strokes\"`, or a backbone for images; see `tlctl catalog`",
            (_, DRAWINGS) => "use a backbone for drawings; see `tlctl catalog`",
            _ => "give data of what the network was trained on",
        };
        Err(Error::user(format!("the network wants {wants}, and `{part}` has {has}"), hint))
    }

    /// Whether the networks that see these samples, and the transforms of a job, suit them.
    ///
    /// # Errors
    /// Says what does not.
    pub fn fits_job<'m>(&self, spec: &JobSpec, nets: impl IntoIterator<Item = &'m ModelSection>) -> Result<()> {
        let has = self.kind();
        let seen = if has == SOUND { IMAGES } else { has };
        for model in nets {
            if let Some(backbone) = backbone::find(&model.backbone).filter(|b| read_by(b) != seen) {
                let (name, part, wants) = (backbone.name, self.key(), read_by(backbone));
                return Err(Error::user(
                    format!("{name} wants {wants}, and `{part}` has {has}"),
                    format!("use a backbone for {seen}, or data of {wants}; see `tlctl catalog`"),
                ));
            }
        }
        if seen != IMAGES && (self.augment != AugmentSection::default() || modifier::mixes(&spec.modifiers)) {
            return Err(Error::user(
                format!("`data.augment` and modifiers that mix pictures say nothing of {has}"),
                "remove them",
            ));
        }
        let a = &self.augment;
        if has == SOUND && (a.flip || a.rotate != 0.0 || a.zoom != 0.0) {
            return Err(Error::user(
                "`flip`, `rotate` and `zoom` in `data.augment` make a spectrogram that no sound has",
                "use `crop`, which shifts clips in time, and `erase`",
            ));
        }
        Ok(())
    }
}
