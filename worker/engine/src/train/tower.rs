//! Two networks that are trained together, each for its kind of sample: one store, one optimizer, one checkpoint. The
//! tensors of the second lie behind those of the first, under names that begin with [`TOWER`].

use tl_proto::spec::{ModelSection, TOWER as ROLE};

use super::net::Net;
use crate::{
    Error, Result,
    backbone::{Asked, Inside, Network},
    weights::TOWER,
};

/// The second network. Its layers read the tensors of the first network's store.
pub struct Tower(pub Net);

impl Net {
    /// This network with `other` beside it, whose section of the job is `model`.
    ///
    /// # Errors
    /// Networks of different precisions.
    pub fn with_tower(mut self, other: Net, model: &ModelSection, seed: u32) -> Result<Self> {
        if other.network.initial.precision != self.network.initial.precision {
            return Err(Error::user(
                format!("`[model]` and `nets.{ROLE}` are trained in different precisions"),
                "set `precision` to the same in both",
            ));
        }
        let (first, buffers) = (self.network.initial.params.len(), self.network.initial.buffers.len());
        let behind = Some(&self.network.initial);
        let asked = Asked { dropout: Inside::of(model), plan: None, behind };
        let outputs = other.network.outputs;
        let mut network = Network::build_with(other.backbone, &other.contract, &model.head, outputs, seed, asked);
        let mut joined = std::mem::take(&mut network.initial);
        let own = &other.network.initial;
        for (list, from, values, theirs) in [
            (&mut joined.params, first, &mut joined.values, &own.values),
            (&mut joined.buffers, buffers, &mut joined.buffer_values, &own.buffer_values),
        ] {
            list[from..].iter_mut().for_each(|e| e.name = format!("{TOWER}{}", e.name));
            let start = values.len() - theirs.len();
            values[start..].copy_from_slice(theirs);
        }
        joined.precision = self.network.initial.precision;
        self.network.initial = joined;
        self.loaded.extend(other.loaded.iter().map(|name| format!("{TOWER}{name}")));
        self.tower = Some(Box::new(Tower(Net { network, ..other })));
        Ok(self)
    }

    /// This network, and the one that is trained with it.
    pub fn all(&self) -> impl Iterator<Item = &Net> {
        std::iter::once(self).chain(self.tower.iter().map(|t| &t.0))
    }

    /// Whether a network is the one that is trained with this one.
    pub fn is_tower(&self, net: &Net) -> bool {
        self.tower.as_ref().is_some_and(|t| std::ptr::eq(&t.0, net))
    }
}
