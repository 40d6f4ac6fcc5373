//! What a stage needs before its first step: features of the frozen prefix, logits of the teacher.

use super::{
    ByCut, Features, Loop,
    cut::Cut,
    encode,
    encode::Encoded,
    inputs::Inputs,
    net::Net,
    samples::Samples,
    saving,
    saving::Load,
    stage::Stage,
    teacher::{self, Teacher},
};
use crate::{
    Result, cache,
    collective::Collective,
    link::{Link, Notice},
    nn,
};

impl<'a> Loop<'a> {
    /// The teachers in a stage, with what they have said.
    pub(super) fn teachers<'k>(&self, taught: &'k [ByCut]) -> Result<Vec<Teacher<'k>>>
    where
        'a: 'k,
    {
        let (all, shown): (&'k [Net], &'k Samples) = (self.teachers, self.shown());
        let one = |(which, (net, kept)): (usize, (&'k Net, &'k ByCut))| {
            let mut cuts: Vec<(Cut, Inputs<'k>)> = Vec::new();
            for cut in self.teachers_cuts(which) {
                let inputs = self.inputs(net, shown, cut.at, kept.get(&cut.at))?.kept(&cut)?;
                let inputs = match cuts.first() {
                    Some((_, first)) => inputs.beside(first),
                    None => inputs,
                };
                cuts.push((cut, inputs));
            }
            Ok(Teacher { cuts })
        };
        all.iter().zip(taught).enumerate().map(one).collect()
    }

    /// What each teacher says, once per sample and view; nothing of one whose outputs cannot be kept.
    pub(super) fn teach(&mut self, group: &mut dyn Collective, link: &mut dyn Link) -> Result<Vec<ByCut>> {
        let mut taught = Vec::new();
        let shown = self.shown();
        let views = teacher::views(self.run.spec, shown);
        for (which, net) in self.teachers.iter().enumerate() {
            let store = &net.network.initial;
            let names = self.run.spec.nets_of("teacher");
            let name = names.get(which).map_or("teacher", |(name, _)| *name);
            teacher::look(net, shown, name)?;
            let cuts = self.teachers_cuts(which);
            let words = teacher::words(net, &cuts)?;
            let mut kept = ByCut::new();
            match views.map(|views| teacher::room(words, shown.count() * views)) {
                Some(Ok(())) => {
                    let done = self.encoded(net, store, &cuts, shown, group, link)?;
                    self.prefix.count(&done);
                    kept = done.by_cut;
                }
                Some(Err(text)) if group.rank() == 0 => {
                    link.notice(Notice::TeacherNotKept, &format!("what `nets.{name}` says {text}"));
                }
                _ => {}
            }
            taught.push(kept);
        }
        Ok(taught)
    }

    /// Where a teacher is cut.
    fn teachers_cuts(&self, which: usize) -> Vec<Cut> {
        teacher::cuts_of(self.run.spec, which, &self.teachers[which], &self.net.taps.teacher)
    }

    /// The network as it came, for a stage in which its old head has to go on saying what it said.
    pub(super) fn remembers(&self, stage: &Stage) -> Option<&'a Net> {
        let network = &self.net.network;
        self.origin.map(|o| &o.net).filter(|_| stage.cut < network.head && !network.old.is_empty())
    }

    /// What the network said as it came, once per sample and view, where its old head goes on and that can be kept.
    pub(super) fn recall(&mut self, group: &mut dyn Collective, link: &mut dyn Link) -> Result<Option<Vec<Vec<f32>>>> {
        let Some(origin) = self.origin.filter(|_| !self.net.network.old.is_empty()) else { return Ok(None) };
        let (net, cut, views) = (&origin.net, origin.net.network.units.len(), self.load().views);
        if views == 0 || net.network.outputs * 4 * self.train.count() * views > encode::BUDGET {
            return Ok(None);
        }
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
            .with_tasks(self.run.data, self.tasks.unwrap_or_default())
    }

    pub(super) fn encoded(
        &self,
        net: &Net,
        store: &nn::Store,
        cuts: &[impl Into<Cut> + Copy],
        samples: &Samples,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<Encoded> {
        let root = &self.config.cache;
        cache::trim(root, self.config.cache_bytes);
        let cuts: Vec<Cut> = cuts.iter().map(|cut| (*cut).into()).collect();
        encode::encode(net, store, &cuts, samples, root, group, link)
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
        self.encode_halves(index, stage, features, group, link)?;
        if stage.cut == 0 || features.val.contains_key(&stage.cut) {
            return Ok(());
        }
        let (net, store) = (self.net, &self.state.store);
        let fitting = self.fitting(index, net, |stage| stage.cut, self.load().rows() as usize)?;
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
        let mut tasks: Vec<[Option<Encoded>; 2]> = Vec::new();
        for task in self.tasks.unwrap_or_default() {
            let own = task.own.as_ref();
            let parts = [own.map(|own| &own.train).filter(|_| self.cacheable()), own.map(|own| &own.val)];
            let mut done = [None, None];
            for (done, samples) in done.iter_mut().zip(parts) {
                if let Some(samples) = samples {
                    *done = Some(self.encoded(net, store, &fitting, samples, group, link)?);
                }
            }
            tasks.push(done);
        }
        let done = train.iter().chain([&val]).chain(other.iter().flatten()).chain(tasks.iter().flatten().flatten());
        done.for_each(|done| self.prefix.count(done));
        let by_cut = |done: Option<Encoded>| done.map(|d| d.by_cut).unwrap_or_default();
        (features.train, features.val, features.other) = (by_cut(train), val.by_cut, other.map(by_cut));
        features.tasks = tasks.into_iter().map(|task| task.map(by_cut)).collect();
        Ok(())
    }

    /// The same for the second network and the other halves.
    fn encode_halves(
        &mut self,
        index: usize,
        stage: &Stage,
        features: &mut Features,
        group: &mut dyn Collective,
        link: &mut dyn Link,
    ) -> Result<()> {
        let (Some(tower), Some(pairs)) = (&self.net.tower, self.pairs) else { return Ok(()) };
        let Some((val, _)) = &pairs.val else { return Ok(()) };
        if stage.tower_cut == 0 || features.pairs[1].contains_key(&stage.tower_cut) {
            return Ok(());
        }
        let rows = pairs.train.count() * pairs.train.views().unwrap_or(0) + val.count();
        let (net, store) = (&tower.0, &self.state.store);
        let fitting = self.fitting(index, net, |stage| stage.tower_cut, rows)?;
        if fitting.is_empty() {
            return Ok(());
        }
        let mut by_cut = |samples| self.encoded(net, store, &fitting, samples, group, link);
        let train = pairs.train.views().map(|_| by_cut(&pairs.train)).transpose()?;
        let val = by_cut(val)?;
        train.iter().chain([&val]).for_each(|done| self.prefix.count(done));
        features.pairs = [train.map(|done| done.by_cut).unwrap_or_default(), val.by_cut];
        Ok(())
    }

    /// Cuts whose features are kept with those of stage `index`: its own, and those of later stages whose prefix will not
    /// have changed by then; as far as so many rows of them have room.
    fn fitting(&self, index: usize, net: &Net, cut: impl Fn(&Stage) -> usize, rows: usize) -> Result<Vec<usize>> {
        let mut cuts = Vec::new();
        for section in &self.run.spec.stage[index..] {
            cuts.push(cut(&Stage::resolve(self.net, &self.state.store, section)?));
        }
        let mut fitting = Vec::new();
        for cut in saving::together(&cuts) {
            let width: usize = net.shape_at(&self.state.store, cut)?.iter().product();
            if width * 4 * rows <= encode::BUDGET {
                fitting.push(cut);
            }
        }
        Ok(fitting)
    }
}
