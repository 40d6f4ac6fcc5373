//! Training as a job does it: the engine's own loop, paced by the harness.

use std::{path::Path, process::Child};

use tl_engine::{
    Error,
    collective::{Collective, Solo},
    gpu::Place,
    link::{Link, Notice, Row},
    num::{pool, rng::Philox},
    train::{self, Config},
};
use tl_proto::{hardware::Device, spec::JobSpec};

use crate::{Options, harness::Harness, reduce};

/// Tokens of a text; what a text has more is cut off.
const LENGTH: usize = 128;
/// Classes, of which one sample each is validated.
const CLASSES: usize = 8;

/// Steps on generated samples, all of the network trained, batch-norms with the statistics of the grain. Both ranks of a
/// pair come here; only the first is told when to go on, the other waits for it in the reduction.
pub fn steps(options: &Options, harness: Harness) -> anyhow::Result<()> {
    let on_gpu = options.device != Device::Cpu;
    if on_gpu && options.world > 1 {
        return harness.missing("ranks of the benchmark share a CPU");
    }
    let place = match Place::open(options.device) {
        Ok(place) => place,
        Err(e) => return harness.missing(&e.to_string()),
    };
    let harness = if on_gpu { harness.on(place.clone()) } else { harness };
    let folder = tempfile::tempdir()?;
    let text = tl_engine::backbone::find(&options.backbone).is_some_and(|b| b.reads_text());
    // Decoded pictures are kept, so a step begins with bytes. Few of them: they are part of the memory that is compared.
    let data = if text {
        let files = ["train", "val"].map(|name| folder.path().join(name));
        std::fs::write(&files[0], texts(options.samples))?;
        std::fs::write(&files[1], texts(1))?;
        format!("format = \"text\"\ntrain = \"{}\"\nval = \"{}\"", files[0].display(), files[1].display())
    } else {
        format!(
            "format = \"generated\"\ntrain = \"source\"\nval = \"source\"\n\
             params = {{ train_samples = {}, val_samples = 1 }}",
            options.samples
        )
    };
    let input = options.input.map(|side| format!("input = {side}")).unwrap_or_default();
    let job = format!(
        r#"
schema = 1
job = {{ name = "bench", kind = "finetune", seed = 1 }}
checkpoint = {{ every = 1000000 }}
[data]
{data}
batch = {}
grains = {}
[model]
backbone = "{}"
precision = "{}"
{}
[[stage]]
name = "all"
epochs = 100000
train = ["*"]
lr = 1e-4
bn = "train"
"#,
        options.batch, options.grains, options.backbone, options.precision, input
    );
    let first = options.join.is_none();
    let warm = options.warm as usize;
    let mut link = Paced { harness: first.then_some(harness), warm, ..Paced::new(options.batch) };
    let (mut group, peer): (Box<dyn Collective>, Option<Child>) = if options.world > 1 {
        let (mesh, peer) = reduce::meet(options)?;
        (Box::new(mesh), peer)
    } else {
        (Box::new(Solo), None)
    };
    let ended = run(&job, place, &mut *group, &mut link);
    drop(group);
    if let Some(mut peer) = peer {
        peer.wait()?;
    }
    match ended {
        Ok(()) | Err(Error::Stopped) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// So many texts of each class, of words drawn from 20 000, all longer than the network reads.
fn texts(each: usize) -> String {
    let mut draw = Philox::new(1, "texts").stream(0, 0);
    let mut word = || format!(" w{}", draw.range(0.0, 20_000.0) as u32);
    let mut text = || (0..LENGTH).map(|_| word()).collect::<String>();
    (0..each * CLASSES).map(|i| format!("{}\t{}\n", i % CLASSES, text().trim())).collect()
}

/// Ten epochs of a head on photos without augmentation, from nothing: decoding, the frozen part, training, evaluation after
/// each epoch, export. The cache is cold each time, and thrown away.
pub fn head_only(options: &Options, harness: &mut Harness) -> anyhow::Result<()> {
    let data = options.data()?.display();
    let job = format!(
        r#"
schema = 1
job = {{ name = "bench", kind = "finetune", seed = 1 }}
[data]
format = "image_folder"
train = "{data}/hymenoptera/train"
val = "{data}/hymenoptera/val"
batch = 32
[model]
backbone = "mobilenet_v2"
weights = "{data}/mobilenetv2/model.safetensors"
[[stage]]
name = "head"
epochs = 10
train = ["head"]
lr = 1e-3
"#
    );
    harness.serve(|| Ok(run(&job, Place::Host, &mut Solo, &mut Paced::new(32))?))
}

fn run(job: &str, place: Place, group: &mut dyn Collective, link: &mut dyn Link) -> tl_engine::Result<()> {
    let spec = JobSpec::from_toml(job, &[]).map_err(|e| Error::Internal(e.to_string()))?;
    tl_proto::spec::check(&spec, &tl_engine::catalog()).map_err(|e| Error::Internal(e.to_string()))?;
    let folder = tempfile::tempdir().map_err(Error::disk("make a folder"))?;
    let config = Config {
        spec,
        inputs: [].into(),
        pushed: [].into(),
        hub: Default::default(),
        absent: Default::default(),
        look: false,
        work: folder.path().join("work"),
        cache: folder.path().join("cache"),
        cache_bytes: 1 << 30,
        features: Vec::new(),
        resume: Vec::new(),
        place,
    };
    pool::run(|| train::run(&config, group, link)).map(|_| ())
}

/// A link that holds the run between two steps until the harness wants more of them. What a step takes is what the run
/// itself reports; evaluations between epochs are not steps. What the last one has left a GPU to do is part of it.
struct Paced {
    harness: Option<Harness>,
    batch: f64,
    warm: usize,
    asked: usize,
    left: usize,
    spent: f64,
    over: bool,
}

impl Paced {
    fn new(batch: usize) -> Self {
        Self { harness: None, batch: batch as f64, warm: 0, asked: 0, left: 0, spent: 0.0, over: false }
    }
}

impl Link for Paced {
    fn row(&mut self, row: &Row) {
        let (Some(harness), Some(rate)) = (&self.harness, row.values.get("samples_per_s")) else { return };
        if self.warm > 0 {
            self.warm -= 1;
            if self.warm > 0 {
                return;
            }
            harness.wait();
            harness.ready();
        } else {
            self.spent += self.batch / rate;
            self.left = self.left.saturating_sub(1);
            if self.left == 0 || row.epoch.fract() == 0.0 {
                self.spent += harness.wait();
            }
            if self.left > 0 {
                return;
            }
            harness.answer(self.spent / self.asked.max(1) as f64);
        }
        match harness.next() {
            Some(n) => (self.asked, self.left, self.spent) = (n, n, 0.0),
            None => {
                self.over = true;
                self.harness = None;
            }
        }
    }
    fn activity(&mut self, _: &str, _: u64, _: u64) {}
    fn checkpoint(&mut self, _: u64, _: &Path) {}
    fn artifact(&mut self, _: &str, _: &Path) {}
    fn notice(&mut self, _: Notice, text: &str) {
        eprintln!("{text}");
    }
    fn stop_requested(&self) -> bool {
        self.over
    }
}
