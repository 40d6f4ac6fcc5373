//! What a stage needs before its first step: features of the frozen prefix, logits of the teacher.

use super::{Features, Loop, encode, encode::Encoded, net::Net, samples::Samples, saving, saving::Load, stage::Stage};
use crate::{Result, cache, collective::Collective, link::Link, nn};

impl Loop<'_> {
    /// How many of the teacher's units run once: all of them, or all but the last where the objective looks at what that
    /// one takes.
    pub(super) fn taught(&self, teacher: &Net) -> usize {
        let inside = (self.run.objective.looks_inside)(&self.run.spec.objective);
        teacher.network.units.len() - usize::from(inside)
    }

    /// What the teacher says, once per sample and view.
    pub(super) fn teach(&mut self, group: &mut dyn Collective, link: &mut dyn Link) -> Result<Option<Vec<Vec<f32>>>> {
        let (Some(net), true) = (self.teacher, self.cacheable()) else { return Ok(None) };
        let cut = self.taught(net);
        let mut done = self.encoded(net, &net.network.initial, &[cut], self.train, group, link)?;
        self.prefix.count(&done);
        Ok(done.by_cut.remove(&cut))
    }

    /// What the network said as it came, once per sample and view, where its old head goes on.
    pub(super) fn recall(&mut self, group: &mut dyn Collective, link: &mut dyn Link) -> Result<Option<Vec<Vec<f32>>>> {
        let remembers = !self.net.network.old.is_empty() && self.cacheable();
        let Some(origin) = self.origin.filter(|_| remembers) else { return Ok(None) };
        let (net, cut) = (&origin.net, origin.net.network.units.len());
        let mut done = self.encoded(net, &net.network.initial, &[cut], self.train, group, link)?;
        self.prefix.count(&done);
        Ok(done.by_cut.remove(&cut))
    }

    /// Whether what comes out of a frozen prefix on training samples can be used again.
    fn cacheable(&self) -> bool {
        self.load().views > 0
    }

    fn load(&self) -> Load {
        Load::of(self.train, self.val, self.other, self.run.spec)
    }

    fn encoded(
        &self,
        net: &Net,
        store: &nn::Store,
        cuts: &[usize],
        samples: &Samples,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<Encoded> {
        let root = &self.config.cache;
        cache::trim(root, self.config.cache_bytes);
        encode::encode(net, store, cuts, samples, root, group, link)
    }

    /// Makes sure that the features of this stage are there; with them those of every later stage whose prefix will not
    /// have changed by then, so that the prefix runs once.
    pub(super) fn encode(
        &mut self,
        index: usize,
        stage: &Stage,
        features: &mut Features,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<()> {
        if stage.cut == 0 || features.val.contains_key(&stage.cut) {
            return Ok(());
        }
        let mut cuts = vec![stage.cut];
        for later in &self.run.spec.stage[index + 1..] {
            cuts.push(Stage::resolve(self.net, &self.state.store, later)?.cut);
        }
        let (net, store) = (self.net, &self.state.store);
        let rows = self.load().rows() as usize;
        let bytes =
            |cut: usize| -> Result<usize> { Ok(net.shape_at(store, cut)?.iter().product::<usize>() * 4 * rows) };
        let mut fitting = Vec::new();
        for cut in saving::together(&cuts) {
            if bytes(cut)? <= encode::BUDGET {
                fitting.push(cut);
            }
        }
        if fitting.is_empty() {
            return Ok(());
        }
        let train =
            if self.cacheable() { Some(self.encoded(net, store, &fitting, self.train, group, link)?) } else { None };
        let val = self.encoded(net, store, &fitting, self.val, group, link)?;
        let mut other = [None, None, None];
        if let Some(domain) = self.other {
            let parts = [Some(&domain.train).filter(|_| self.cacheable()), domain.plain.as_ref(), domain.val.as_ref()];
            for (done, samples) in other.iter_mut().zip(parts) {
                if let Some(samples) = samples {
                    *done = Some(self.encoded(net, store, &fitting, samples, group, link)?);
                }
            }
        }
        let done = train.iter().chain([&val]).chain(other.iter().flatten());
        done.for_each(|done| self.prefix.count(done));
        let by_cut = |done: Option<Encoded>| done.map(|d| d.by_cut).unwrap_or_default();
        *features = Features { train: by_cut(train), val: val.by_cut, other: other.map(by_cut) };
        Ok(())
    }
}

impl<'a> Loop<'a> {
    /// The network as it came, for a stage in which its old head has to go on saying what it said.
    pub(super) fn remembers(&self, stage: &Stage) -> Option<&'a Net> {
        let network = &self.net.network;
        self.origin.map(|o| &o.net).filter(|_| stage.cut < network.head && !network.old.is_empty())
    }
}
