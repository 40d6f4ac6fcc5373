//! Where a rank computes: what goes there, from one thread or from many, and a whole run.

use std::{path::Path, sync::Arc};

use tl_engine::{
    Error, Result,
    collective::{Collective, Solo},
    gpu::{self, Device, Place},
    link::Deaf,
    nn::{self, Act, Activation, Builder, Gradients, Layer, Layout, Packs, Pass, Sequential, Tape},
    num::pool,
    train,
};
use tl_proto::spec::JobSpec;

use crate::{
    config,
    layers::{down, near},
    numbers, run, shared,
};

/// The GPU as a place; nothing where there is none.
fn place() -> Option<Place> {
    Some(Place::of(shared()?.clone()).unwrap())
}

#[test]
fn batches_go_up_through_memory_that_is_used_again() {
    let Some(Place::Gpu(gpu)) = place() else { return };
    // More of them than are under way at once, larger and smaller ones.
    let sizes = [12, 40, 40, 7, 90, 90, 1, 64];
    let values: Vec<Vec<f32>> = sizes.iter().zip(0..).map(|(n, seed)| numbers(seed, *n)).collect();
    let sent: Vec<_> = values.iter().map(|values| gpu.send(values, &[values.len()]).unwrap()).collect();
    for (sent, values) in sent.iter().zip(&values) {
        assert_eq!(&sent.download().unwrap(), values);
    }
    assert!(gpu.send(&[1.0], &[2]).is_err() && gpu.send(&[], &[0]).is_err());
}

#[test]
fn what_is_made_ahead_goes_up_ahead_and_what_nobody_asks_for_is_forgotten() {
    let Some(place) = place() else { return };
    let Place::Gpu(gpu) = &place else { panic!("{place:?}") };
    let tensors: Vec<_> = (0..4).map(|i| nn::tensor(numbers(i, 12), &[3, 4]).unwrap()).collect();
    let first = place.announce();
    tensors[..3].iter().for_each(|tensor| place.expect(tensor, first));
    assert_eq!(gpu.waiting(), 2, "so many may be on their way");
    // Once each, in any order, and what did not go ahead like any other.
    for (i, waiting) in [(1, 1), (2, 1), (3, 1), (1, 1), (0, 0), (0, 0)] {
        let there = nn::Array::at(tensors[i].clone(), &place).unwrap();
        assert_eq!((there.dims(), down(&there)), (&[3, 4][..], numbers(i as u32, 12)));
        assert_eq!(gpu.waiting(), waiting);
    }
    place.expect(&tensors[0], place.announce());
    let rows = nn::Array::at(tensors[0].narrow(0, 1, 2).unwrap(), &place).unwrap();
    assert_eq!((down(&rows), gpu.waiting()), (numbers(0, 12)[4..].to_vec(), 1), "a part of a tensor is another one");
    for waiting in [1, 1, 1, 0] {
        place.announce();
        assert_eq!(gpu.waiting(), waiting);
    }
    Place::Host.expect(&tensors[0], Place::Host.announce());
    assert!(matches!(nn::Array::at(tensors[0].clone(), &Place::Host), Ok(nn::Array::Host(_))));
}

#[test]
fn what_went_up_ahead_is_given_back_where_memory_is_short_and_goes_up_again() {
    if shared().is_none() {
        return;
    }
    // What is given back of it is nothing to other tests.
    let device = Arc::new(Device::open(0).unwrap());
    let place = Place::of(device.clone()).unwrap();
    let Place::Gpu(gpu) = &place else { panic!("{place:?}") };
    let tensor = nn::tensor(numbers(1, 12), &[3, 4]).unwrap();
    place.expect(&tensor, place.announce());
    assert_eq!(gpu.waiting(), 1);
    if nvlib::fake::full(0, 1).is_none() {
        eprintln!("left out: a real driver has room");
        return;
    }
    let made = device.upload(&numbers(2, 5), &[5]).unwrap();
    assert_eq!((device.download(&made).unwrap(), gpu.waiting()), (numbers(2, 5), 0));
    assert_eq!(down(&nn::Array::at(tensor.clone(), &place).unwrap()), numbers(1, 12));
    place.expect(&tensor, place.announce());
    assert_eq!(gpu.waiting(), 0, "it would have to be given back again");
}

#[test]
fn a_store_keeps_its_place_and_a_place_knows_its_numbers() {
    let Some(place) = place() else { return };
    assert_eq!(place.numbers(), gpu::fingerprint(shared().unwrap()).unwrap());
    place.wait().unwrap();
    let mut b = Builder::new(1);
    b.linear("l", (3, 2));
    b.store.place = place.clone();
    for store in [b.store.names(), b.store.without(&[]), b.store.clone()] {
        assert_eq!(store.place.numbers(), place.numbers());
    }
    assert_ne!(Place::Host.numbers(), place.numbers());
}

#[test]
fn threads_share_a_gpu_and_what_was_sent_to_it() {
    let Some(place) = place() else { return };
    let mut b = Builder::new(3);
    let layers =
        Sequential::default().with(b.linear("in", (7, 5))).with(Activation(Act::Silu)).with(b.linear("out", (5, 4)));
    let (store, mut params) = (b.store, Vec::new());
    layers.params(&mut params);
    let (layout, packs) = (Layout::new(&store, &params, &[]), Packs::default());
    packs.begin(&layout, 8);
    let grain = &|seed: u32| {
        let (x, shape) = (numbers(seed, 6 * 7), [6, 7]);
        let want = run(&layers, &store, (&x, &shape), None, false);
        let up = |values: &[f32], shape: &[usize]| {
            nn::Array::at(nn::tensor(values.to_vec(), shape).unwrap(), &place).unwrap()
        };
        let pass = Pass { layout: Some(&layout), ..Pass::again(&store, &packs) };
        let (mut tape, mut grads) = (Tape::default(), Gradients::new(&layout));
        let y = layers.forward(&up(&x, &shape), &pass, &mut tape).unwrap();
        let dx = layers.backward(&up(&want.dy, &want.shape), &pass, &mut tape, &mut grads, true).unwrap().unwrap();
        grads.come_down().unwrap();
        for (got, want) in [(&down(&y), &want.y), (&down(&dx), &want.dx), (&grads.flat, &want.flat)] {
            near(got, want, 3e-5);
        }
    };
    std::thread::scope(|scope| {
        for seed in 0..8 {
            scope.spawn(move || grain(seed));
        }
    });
}

/// A head on features that are kept, then everything.
const JOB: &str = r#"
schema = 1
job = { name = "t", kind = "finetune", seed = 3 }
data = { format = "generated", train = "target", val = "target", batch = 9, grains = 3, params = { train_samples = 3, val_samples = 2 } }
model = { backbone = "small_cnn", input = 16 }
optimizer = { name = "sgd", clip_norm = 1.0 }
[[stage]]
name = "head"
epochs = 1
train = ["head"]
lr = 0.05
[[stage]]
name = "all"
epochs = 1
train = ["*"]
lr = 0.05
bn = "train"
"#;

/// Its first stage alone, in several steps an epoch.
fn head_alone() -> String {
    let (head, _) = JOB.split_once("[[stage]]\nname = \"all\"").unwrap();
    head.replace("batch = 9, grains = 3", "batch = 4, grains = 2").replace("epochs = 1", "epochs = 2")
}

fn trained(place: Place, dir: &Path, work: &str) -> train::export::Report {
    run_of(JOB, &mut Solo, place, dir, work).unwrap()
}

fn run_of(
    job: &str,
    group: &mut dyn Collective,
    place: Place,
    dir: &Path,
    work: &str,
) -> Result<train::export::Report> {
    let config = config(JobSpec::from_toml(job, &[]).unwrap(), dir.join(work), place);
    let config = train::Config { cache: dir.join("cache"), ..config };
    pool::run(|| train::run(&config, group, &mut Deaf))
}

fn all_near(got: &train::export::Report, want: &train::export::Report) {
    assert_eq!((got.history.len(), got.steps), (want.history.len(), want.steps));
    for (got, want) in got.history.iter().zip(&want.history) {
        assert_eq!(got.values.keys().collect::<Vec<_>>(), want.values.keys().collect::<Vec<_>>());
        for ((name, got), want) in got.values.iter().zip(want.values.values()) {
            // A sample between two classes may fall to either.
            let room = if name.contains("accuracy") { 0.15 } else { 1e-3 * (1.0 + want.abs()) };
            assert!((got - want).abs() <= room, "{name}: {got} instead of {want}");
        }
    }
}

#[test]
fn a_run_on_a_gpu_comes_to_what_one_on_the_host_comes_to() {
    let Some(place) = place() else { return };
    let dir = tempfile::tempdir().unwrap();
    let host = trained(Place::Host, dir.path(), "host");
    let [first, again] = ["first", "again"].map(|work| trained(place.clone(), dir.path(), work));
    assert_eq!(first.history.len(), 2);
    all_near(&first, &host);
    assert_eq!((&again.history, &again.evaluation), (&first.history, &first.evaluation), "the same bits each time");
    // Features of the host are none of the GPU's.
    let computed = [&host, &first, &again].map(|report| report.prefix.computed);
    assert_eq!(computed, [30, 30, 0]);
}

/// A rank alone, which is told at the last of some tallies that it has lost the others.
struct Lost {
    tallies: usize,
}

impl Collective for Lost {
    fn rank(&self) -> usize {
        Solo.rank()
    }

    fn weights(&self) -> &[u32] {
        &[1]
    }

    fn messages(&self) -> u64 {
        Solo.messages()
    }

    fn send_parts(&mut self, to: usize, parts: &[&[u8]]) -> Result<()> {
        Solo.send_parts(to, parts)
    }

    fn receive(&mut self, from: usize) -> Result<Vec<u8>> {
        Solo.receive(from)
    }

    fn all_gather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        // A word on stopping, and a line of 32 bytes for each grain.
        if bytes.len() > 32 && bytes.len() % 32 == 1 {
            self.tallies -= 1;
            if self.tallies == 0 {
                return Err(Error::LostGroup("for a test".into()));
            }
        }
        Ok(vec![bytes])
    }
}

#[test]
fn what_stays_between_steps_comes_to_the_same_and_is_left_where_a_step_fails() {
    let Some(place) = place() else { return };
    let dir = tempfile::tempdir().unwrap();
    let job = head_alone();
    let ran =
        |group: &mut dyn Collective, place: &Place, work: &str| run_of(&job, group, place.clone(), dir.path(), work);
    let host = ran(&mut Solo, &Place::Host, "host").unwrap();
    // Five steps an epoch: fewer than four would not be worth staying for.
    assert_eq!(host.steps, 10);
    all_near(&ran(&mut Solo, &place, "gpu").unwrap(), &host);
    // In the middle of the second epoch.
    let error = ran(&mut Lost { tallies: 8 }, &place, "lost").unwrap_err();
    assert_eq!(error.to_string(), "the ranks lost each other: for a test");
    // Whoever goes on in the same process finds the GPU as it was.
    all_near(&ran(&mut Solo, &place, "again").unwrap(), &host);
}
