//! What a trained network has to beat, on the same episodes: the nearest sample by pixels, and the nearest prototype on
//! the network as it came.

use tl_proto::spec::Params;

use super::{
    super::{
        Loop,
        encode::{BUDGET, Encoded},
        evaluate,
        export::Baseline,
        inputs::Inputs,
        samples::Samples,
    },
    Few,
    adapt::Tuner,
    judge::Judged,
};
use crate::{
    Result,
    collective::Collective,
    data::{augment::View, pixels},
    link::Link,
    nn::host,
    objective::fewshot::{self, Learns, Shown},
    weights::Contract,
};

/// Largest side of the images whose pixels are compared.
const SIDE: u32 = 32;

impl Loop<'_> {
    /// Measures what there is to beat, before anything has moved.
    pub(in super::super) fn baselines(&mut self, group: &mut dyn Collective, link: &mut dyn Link) -> Result<()> {
        let p = &self.state.progress;
        let fresh = p.step == 0 && p.stage == 0 && !p.stage_open && p.baselines.is_empty();
        // Who compares gradients has no use for them.
        let Some(few) = self.run.few.as_ref().filter(|_| fresh && !link.compares()) else { return Ok(()) };
        let mut found = Vec::new();
        if self.net.contract.has_pixels() {
            let rows = pixel_rows(self.val, self.net.contract.side() as u32, group)?;
            let evaluation = few.by_rows(&rows, Judged::Test, fewshot::nearest, group)?;
            found.push(Baseline { name: "pixel nearest neighbour".into(), evaluation });
        }
        let mut done = None;
        // The same as the method itself, where that is it.
        if !(self.run.spec.stage.is_empty() && few.method.name() == fewshot::METHODS[0].name()) {
            let cut = self.net.network.embeds();
            done = self.frozen(cut, group, link)?;
            let features = done.as_ref().and_then(|done| done.by_cut.get(&cut));
            let at = if features.is_some() { cut } else { 0 };
            let inputs: Inputs<'_> = self.inputs(self.net, self.val, at, features)?;
            let rows = evaluate::embed(&self.state.store, &inputs, cut, group)?;
            let evaluation = few.by_rows(&rows, Judged::Test, by_prototype, group)?;
            let name = match self.run.spec.model.as_ref().is_some_and(|m| m.weights.is_some() && !m.random) {
                true => "nearest prototype on the weights as they came",
                false => "nearest prototype on the untrained network",
            };
            found.push(Baseline { name: name.into(), evaluation });
        }
        done.iter().for_each(|done| self.prefix.count(done));
        self.state.progress.baselines = found;
        Ok(())
    }

    /// Where the network is cut in a job that trains nothing.
    pub(in super::super) fn untrained_cut(&self, few: &Few) -> Result<usize> {
        let tuner = Tuner::judged(few, self.net, &self.state.store, self.run.spec, 0)?;
        Ok(tuner.map_or(self.net.network.embeds(), |tuner| tuner.cut))
    }

    /// Features of what is judged, in front of `cut`, of the network as it is; nothing where they would not fit.
    pub(in super::super) fn frozen(
        &self,
        cut: usize,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<Option<Encoded>> {
        let width: usize = self.net.shape_at(&self.state.store, cut)?.iter().product();
        if cut == 0 || 4 * width * self.val.count() > BUDGET {
            return Ok(None);
        }
        self.encoded(self.net, &self.state.store, &[cut], self.val, group, link).map(Some)
    }
}

fn by_prototype(shown: &Shown<'_>) -> Result<candle_core::Tensor> {
    match fewshot::METHODS[0].learns {
        Learns::Compares(scores) => scores(&Params::new(), shown),
        _ => Err(crate::Error::Internal("the first method compares".into())),
    }
}

/// The pixels of every sample, at a size at which they can be compared.
fn pixel_rows(samples: &Samples, side: u32, group: &mut dyn Collective) -> Result<Vec<Vec<f32>>> {
    let contract = Contract::named("unit", side.min(SIDE), None)?;
    evaluate::gathered(samples.count(), group, |batch, _| {
        let views: Vec<(usize, View)> = batch.iter().map(|i| (*i, View::PLAIN)).collect();
        let all = samples.inputs(&views, &contract)?;
        Ok(host(&all)?.chunks_exact(pixels::values(&contract)).map(<[f32]>::to_vec).collect())
    })
}
