//! What a stage needs before its first step: features of the frozen prefix, logits of the teacher.

use super::{
    ByCut, Features, Loop, encode,
    encode::Encoded,
    net::{self, Net},
    samples::Samples,
    saving,
    saving::Load,
    stage::Stage,
    teacher::{self, Teacher},
};
use crate::{Result, cache, cache::Packed, collective::Collective, link::Link, nn};

/// Samples of which a teacher's outputs are looked at before anything else.
const FEW: usize = 8;

impl<'a> Loop<'a> {
    /// The teachers in a stage, with what they have said.
    pub(super) fn teachers<'k>(&self, taught: &'k [ByCut]) -> Result<Vec<Teacher<'k>>>
    where
        'a: 'k,
    {
        let (all, train): (&'k [Net], &'k Samples) = (self.teachers, self.train);
        let one = |(which, (net, kept)): (usize, (&'k Net, &'k ByCut))| {
            let cuts = self.teachers_cuts(which).into_iter();
            let cuts = cuts.map(|cut| self.inputs(net, train, cut, kept.get(&cut)));
            Ok(Teacher { cuts: cuts.collect::<Result<_>>()?, packed: self.packed() })
        };
        all.iter().zip(taught).enumerate().map(one).collect()
    }

    /// What each teacher says, once per sample and view; nothing of one whose outputs cannot be kept.
    pub(super) fn teach(&mut self, group: &mut dyn Collective, link: &mut dyn Link) -> Result<Vec<ByCut>> {
        let mut taught = Vec::new();
        for (which, net) in self.teachers.iter().enumerate() {
            let store = &net.network.initial;
            let logits = self.inputs(net, self.train, net.network.units.len(), None)?;
            let few: Vec<usize> = (0..self.train.count().min(FEW)).collect();
            let rows = net::rows(&logits.batch(store, &few, &vec![0; few.len()], None)?)?;
            let names = self.run.spec.nets_of("teacher");
            teacher::gives_logits(&rows, names.get(which).map_or("teacher", |(name, _)| *name))?;
            let cuts = self.teachers_cuts(which);
            let mut widths = 0;
            for cut in &cuts {
                widths += net.shape_at(store, *cut)?.iter().product::<usize>();
            }
            let fits = widths * 4 * self.train.count() * self.load().views <= encode::BUDGET;
            let mut kept = ByCut::new();
            if self.cacheable() && fits {
                let done = self.encoded(net, store, &cuts, self.train, group, link)?;
                self.prefix.count(&done);
                kept = done.by_cut;
            }
            taught.push(kept);
        }
        Ok(taught)
    }

    /// Where a teacher is cut: the first one where the objective looks too, the others behind their logits.
    fn teachers_cuts(&self, which: usize) -> Vec<usize> {
        let inside = (self.run.objective.looks_inside)(&self.run.spec.objective);
        match which {
            0 => teacher::cuts(&self.teachers[0], &self.net.taps.teacher, inside, self.packed()),
            _ => teacher::cuts(&self.teachers[which], &[], false, self.packed()),
        }
    }

    /// How teachers' logits are kept.
    fn packed(&self) -> Packed {
        (self.run.objective.packed)(&self.run.spec.objective)
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
        encode::encode(net, store, cuts, samples, self.packed(), root, group, link)
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
