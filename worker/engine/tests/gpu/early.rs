//! Gradients that go to the other ranks while backward goes on: sums and whole runs with the bits that they have without.

use std::{
    cell::Cell,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, Sender},
    },
    time::Duration,
};

use tl_engine::{
    Error, Full, Result,
    collective::{Buckets, Collective, NcclGroup, reduce_flat, tree::Node},
    gpu::{self, Device, Place},
    link::{Link, Notice, Row},
    nn::{
        Array, BatchNorm, Builder, Fill, Flat, Gradients, Layer, Layout, Linear, Own, ParamId, Pass, Store, Taker, Tape,
    },
    train::{self, export::Report},
};
use tl_proto::spec::JobSpec;

use crate::{config, layers::placed, nccl, numbers, shared};

/// How long a rank waits for word of the other one.
const PATIENCE: Duration = Duration::from_secs(20);

/// Goes forward, and back unless it is broken.
enum Way {
    Whole,
    /// Lets the other rank know that this one has come as far.
    Tells(Sender<()>),
    /// Breaks once it has heard that the other one has.
    Broken(Mutex<Receiver<()>>),
}

impl Layer for Way {
    fn forward(&self, x: &Array, _: &Pass<'_>, _: &mut Tape) -> Result<Array> {
        Ok(x.clone())
    }

    fn backward(&self, dy: &Array, _: &Pass<'_>, _: &mut Tape, _: &mut Gradients, _: bool) -> Result<Option<Array>> {
        match self {
            Self::Whole => {}
            Self::Tells(other) => other.send(()).unwrap(),
            Self::Broken(other) => {
                other.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                return Err(Error::Internal("a way is broken".into()));
            }
        }
        Ok(Some(dy.clone()))
    }

    fn describe(&self, _: &mut String) {}
}

/// Layers in a line, of which one comes again behind a norm and does not train its bias; a tensor of an objective's own.
struct Net {
    first: Linear,
    shared: Linear,
    norm: BatchNorm,
    way: Way,
    last: Linear,
    own: ParamId,
    store: Store,
    layout: Layout,
}

fn net(way: Way) -> Net {
    let mut b = Builder::new(3);
    let (first, shared) = (b.linear("first", (7, 8)), b.linear("shared", (8, 8)));
    let (norm, last) = (b.norm("norm", 8), b.linear("last", (8, 8)));
    let own = b.own(&Own { name: "own".into(), shape: vec![3], fill: Fill::Constant(1.0), span: None });
    let mut norms = Vec::new();
    norm.norms(&mut norms);
    let trained: Vec<ParamId> = (0..=own.0).filter(|id| *id != 3).map(ParamId).collect();
    let layout = Layout::new(&b.store, &trained, &[norms[0].0]);
    Net { first, shared, norm, way, last, own, store: b.store, layout }
}

fn params(unit: &dyn Layer) -> Vec<ParamId> {
    let mut out = Vec::new();
    unit.params(&mut out);
    out
}

impl Net {
    fn units(&self) -> [&dyn Layer; 6] {
        [&self.first, &self.shared, &self.norm, &self.shared, &self.way, &self.last]
    }

    fn uses(&self) -> Vec<ParamId> {
        self.units().into_iter().flat_map(params).chain([self.own]).collect()
    }

    /// One grain, forward and backward.
    fn grain(&self, seed: u32, mut grads: Gradients<'_>) -> Result<(Flat, Vec<bool>)> {
        let pass = Pass { layout: Some(&self.layout), ..Pass::eval(&self.store) };
        let (mut tape, mut x) = (Tape::default(), placed(&numbers(seed, 4 * 7), &[4, 7]).unwrap());
        for unit in self.units() {
            x = unit.forward(&x, &pass, &mut tape)?;
        }
        // Numbers of the host, one of them for what gathers on the GPU too.
        for id in [self.own, ParamId(7)] {
            let slot = grads.slot(id).unwrap();
            let more = numbers(90 + seed, slot.len());
            slot.copy_from_slice(&more);
        }
        grads.passed(|| vec![self.own])?;
        for unit in self.units().into_iter().rev() {
            x = unit.backward(&x, &pass, &mut tape, &mut grads, true)?.unwrap();
            grads.passed(|| params(unit))?;
        }
        grads.finish()
    }
}

/// Has the other ranks take part in what it takes; and how many buckets were left each time.
struct Shared<'a> {
    buckets: Buckets<'a>,
    left: Vec<usize>,
}

impl Taker for Shared<'_> {
    fn take(&mut self, run: Range<usize>, part: Option<Flat>) -> Result<()> {
        let device = shared().unwrap();
        if let Some(part) = part {
            self.buckets.add(device, run.clone(), part.placed(device)?.array())?;
        }
        self.buckets.ready(run)?;
        self.left.push(self.buckets.left().len());
        Ok(())
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn ranks_add_up_what_is_final_while_they_go_backward() {
    for world in [2, 3] {
        nccl::group(world, |mut group| {
            let (net, rank) = (net(Way::Whole), group.rank());
            let len = net.layout.total_len();
            let (seed, grains) = (2 * rank as u32, if world == 3 && rank == 1 { 0 } else { 1 + rank % 2 });
            let whole = |grain: usize| net.grain(seed + grain as u32, Gradients::unmade(&net.layout)).unwrap();
            let sum = |grains: Range<usize>| grains.map(|g| whole(g).0).reduce(|a, b| a.plus(b).unwrap());
            let pieces = sum(0..grains).map(|flat| Node::leaf(rank, flat)).into_iter().collect();
            let want = reduce_flat(&mut group, pieces, true, world, len).unwrap().into_host().unwrap();

            // All but the last grain are there already.
            let device = shared().unwrap();
            let zeros = Flat::Host(vec![0.0; len]);
            let before = sum(0..grains.saturating_sub(1)).unwrap_or(zeros).placed(device).unwrap();
            let flat = before.into_array().unwrap();
            let flat = {
                let mut to = Shared { buckets: group.open(flat, net.layout.params_len()), left: Vec::new() };
                assert_eq!((to.buckets.left().len(), nccl::BUCKET), (5, 64));
                match grains.checked_sub(1) {
                    Some(last) => {
                        let grads = Gradients::unmade(&net.layout).taken_by(&mut to, net.uses());
                        let (left, touched) = net.grain(seed + last as u32, grads).unwrap();
                        assert_eq!((left.count(), touched), (0, whole(last).1));
                        // Its own tensor, the last layer, the norm, the shared layer, the first one, sums of the norm.
                        assert_eq!(to.left, [5, 5, 4, 4, 3, 2, 2, 1, 0]);
                    }
                    None => to.take(0..len, None).unwrap(),
                }
                to.buckets.finish().unwrap()
            };
            assert_eq!(bits(&device.download(&flat).unwrap()), bits(&want), "rank {rank} of {world}");
            group.barrier().unwrap();
        });
    }
}

#[test]
fn a_rank_that_fails_on_its_way_back_is_a_lost_peer_to_who_adds_up_with_it() {
    let (tells, hears) = mpsc::channel();
    let ways = [Way::Tells(tells), Way::Broken(Mutex::new(hears))].map(|way| Mutex::new(Some(way)));
    let outcomes = nccl::group(2, |mut group| {
        let net = net(ways[group.rank()].lock().unwrap().take().unwrap());
        let len = net.layout.total_len();
        let outcome = {
            let flat = shared().unwrap().zeros(&[len]).unwrap();
            let mut to = Shared { buckets: group.open(flat, net.layout.params_len()), left: Vec::new() };
            let grads = Gradients::unmade(&net.layout).taken_by(&mut to, net.uses());
            let back = net.grain(1, grads);
            // Both have begun.
            assert_eq!(to.left[..3], [5, 5, 4]);
            back.and_then(|_| to.buckets.finish())
        };
        let error = outcome.unwrap_err();
        if group.rank() == 1 {
            group.abort(&error.to_string());
        }
        error.to_string()
    });
    let Some(errors) = outcomes else { return };
    let own = "internal error: a way is broken";
    assert_eq!(errors, [format!("rank 1 was lost: it gave up: {own}"), own.to_owned()]);
}

/// Ranks of one group, which may add up early, or not.
struct Ranks {
    group: NcclGroup,
    early: bool,
    /// How often that was asked.
    asked: usize,
    /// Sums so far, of those that are not early.
    sums: usize,
    /// The sum for which there is no room, and whether the others have heard of the step by then.
    short: Option<(usize, bool)>,
}

impl Ranks {
    fn of(group: NcclGroup, early: bool) -> Self {
        Self { group, early, asked: 0, sums: 0, short: None }
    }
}

impl Collective for Ranks {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn weights(&self) -> &[u32] {
        self.group.weights()
    }

    fn messages(&self) -> u64 {
        self.group.messages()
    }

    fn send_parts(&mut self, to: usize, parts: &[&[u8]]) -> Result<()> {
        self.group.send_parts(to, parts)
    }

    fn receive(&mut self, from: usize) -> Result<Vec<u8>> {
        self.group.receive(from)
    }

    fn reuse(&mut self, from: usize, bytes: Vec<u8>) {
        self.group.reuse(from, bytes);
    }

    fn abort(&mut self, why: &str) {
        self.group.abort(why);
    }

    fn sum(&mut self, own: &mut [f32]) -> Result<bool> {
        self.group.sum(own)
    }

    fn sum_placed(&mut self, own: gpu::Array) -> Result<(gpu::Array, bool)> {
        self.sums += 1;
        let short = self.short.filter(|(sum, _)| *sum == self.sums);
        let own = if short.is_none_or(|(_, heard)| heard) { self.group.sum_placed(own)?.0 } else { own };
        if short.is_some() { Err(Error::GpuMemory(Full::Grain)) } else { Ok((own, true)) }
    }

    fn on_gpus(&mut self) -> Option<&mut NcclGroup> {
        self.asked += 1;
        self.early.then_some(&mut self.group)
    }
}

/// Four grains a step, but for the last of an epoch, which has one: there, one of two ranks has none. Batch-norms learn.
const JOB: &str = r#"
schema = 1
job = { name = "t", kind = "KIND", seed = 3 }
cluster = { reduction = "fast" }
data = { format = "generated", train = "target", val = "target", batch = 8, grains = 4, params = { train_samples = 7, val_samples = 2 } }
model = { backbone = "small_cnn", input = 16, head = { dropout = 0.2 } }
optimizer = { name = "sgd", clip_norm = 1.0 }
MORE
[[stage]]
name = "all"
epochs = 1
train = ["*"]
lr = 0.05
bn = "train"
"#;

/// Numbers of a bucket: a step of the job has several.
const SMALL: usize = 1 << 13;

/// Looks inside a teacher, through a tensor of its own.
const HINT: &str = r#"
objective = { method = "hint", taps = ["block1:block1"], soft_weight = 0.5 }
[nets.teacher]
backbone = "small_cnn"
input = 16
"#;

/// Hears nothing; it may want to know the norms of grains.
#[derive(Default)]
struct Ear {
    compares: bool,
    /// Steps that have begun.
    steps: Cell<usize>,
    /// In which step the driver finds no room, and after how many arrays.
    short: Option<(usize, u64)>,
}

impl Link for Ear {
    fn row(&mut self, _: &Row) {}
    fn activity(&mut self, _: &str, _: u64, _: u64) {}
    fn checkpoint(&mut self, _: u64, _: &Path) {}
    fn artifact(&mut self, _: &str, _: &Path) {}
    fn notice(&mut self, _: Notice, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.steps.set(self.steps.get() + 1);
        if let Some((_, after)) = self.short.filter(|(step, _)| *step == self.steps.get()) {
            // Neither at once nor when what was freed has gone back.
            let _ = nvlib::fake::full(after, 3);
        }
        false
    }
    fn compares(&self) -> bool {
        self.compares
    }
}

/// Runs a rank to its end: where its model lies, if it has one, and what it reports.
fn one(job: &str, work: PathBuf, device: &Arc<Device>, ranks: &mut Ranks, link: &mut Ear) -> Result<(PathBuf, Report)> {
    let model = work.join("model/model.safetensors");
    let config = config(JobSpec::from_toml(job, &[]).unwrap(), work, Place::of(device.clone()).unwrap());
    let done = train::run(&config, ranks, link);
    if let Err(e) = &done {
        ranks.abort(&e.to_string());
    }
    Ok((model, done?))
}

/// The model of the first of two ranks, and the losses; the second may compare.
fn trained(job: &str, dir: &Path, early: bool, compares: bool) -> Option<(Vec<u8>, String)> {
    let ranks = nccl::group_with(2, SMALL, |group| {
        let mut ranks = Ranks::of(group, early);
        let mut link = Ear { compares: compares && ranks.rank() == 1, ..Ear::default() };
        let work = dir.join(format!("{early}-{compares}-{}", ranks.rank()));
        let (model, report) = one(job, work, shared().unwrap(), &mut ranks, &mut link).unwrap();
        // Once in each step, and again where the answer was yes.
        assert_eq!(ranks.asked as u64, report.steps * if early { 2 } else { 1 });
        (model, format!("{} {:?}", report.steps, report.history))
    });
    let (model, history) = ranks?.swap_remove(0);
    Some((std::fs::read(model).unwrap(), history))
}

#[test]
fn runs_that_add_up_while_they_go_backward_come_to_the_same_bits() {
    for (kind, more) in [("finetune", ""), ("distill", HINT)] {
        let job = JOB.replace("KIND", kind).replace("MORE", more);
        let dir = tempfile::tempdir().unwrap();
        let late = trained(&job, dir.path(), false, false);
        // Who wants to know each grain hands in all at once, and the other one does not.
        for compares in [false, true].into_iter().take(1 + usize::from(more.is_empty())) {
            let early = trained(&job, dir.path(), true, compares);
            assert!(early == late, "{kind} comes to something else, compared: {compares}");
        }
    }
}

/// The model that two ranks come to, or nothing where the second one has no room and the first hears of it.
fn come_to(first: Result<(PathBuf, Report)>, second: Result<(PathBuf, Report)>) -> Option<Vec<u8>> {
    match (first, second) {
        (Ok((model, _)), Ok(_)) => Some(std::fs::read(model).unwrap()),
        (Err(told), Err(Error::GpuMemory(_))) => {
            assert_eq!(told.to_string(), "rank 1 was lost: it gave up: the memory of the GPU is full");
            None
        }
        (first, second) => panic!("{first:?} and {second:?}"),
    }
}

#[test]
fn a_rank_without_room_takes_its_step_again_unless_others_have_heard_of_it() {
    let (job, dir) = (JOB.replace("KIND", "finetune").replace("MORE", ""), tempfile::tempdir().unwrap());
    let Some((whole, _)) = trained(&job, dir.path(), false, false) else { return };
    for heard in [false, true] {
        let outcomes = nccl::group_with(2, SMALL, |group| {
            let mut ranks = Ranks::of(group, false);
            // What is trained stays on the GPU from the first step on.
            ranks.short = (ranks.rank() == 1).then_some((3, heard));
            let work = dir.path().join(format!("{heard}-{}", ranks.rank()));
            (one(&job, work, shared().unwrap(), &mut ranks, &mut Ear::default()), ranks.asked)
        });
        let mut outcomes = outcomes.unwrap().into_iter();
        let ((first, steps), (second, asked)) = (outcomes.next().unwrap(), outcomes.next().unwrap());
        let model = come_to(first, second);
        assert!(model == (!heard).then(|| whole.clone()), "it comes to something else");
        assert_eq!(asked, if heard { 3 } else { steps + 1 });
    }
}

#[test]
fn wherever_in_a_step_a_rank_has_no_room_it_comes_to_the_same_or_says_so() {
    let (job, dir) = (JOB.replace("KIND", "finetune").replace("MORE", ""), tempfile::tempdir().unwrap());
    let Some((whole, _)) = trained(&job, dir.path(), true, false) else { return };
    // What is given back of it is nothing to other tests.
    let device = &Arc::new(Device::open(0).unwrap());
    for after in [0, 20, 100, 250] {
        let outcomes = nccl::group_on(2, SMALL, device, |group| {
            let mut ranks = Ranks::of(group, true);
            let mut link = Ear { short: (ranks.rank() == 1).then_some((3, after)), ..Ear::default() };
            let work = dir.path().join(format!("{after}-{}", ranks.rank()));
            let done = one(&job, work, device, &mut ranks, &mut link);
            let _ = nvlib::fake::full(0, 0);
            (done, ranks.asked)
        });
        let mut outcomes = outcomes.unwrap().into_iter();
        let ((first, steps), (second, asked)) = (outcomes.next().unwrap(), outcomes.next().unwrap());
        let model = come_to(first, second);
        assert!(model.as_ref().is_none_or(|model| *model == whole), "after {after} arrays: something else");
        if after == 0 {
            // It has begun the step twice.
            assert!(model.is_some() && asked > steps, "it was asked {asked} times, and the other one {steps}");
        }
    }
}
