//! Real photos and weights, on a GPU as on a CPU: a new head on MobileNetV2, then the top of it.

use std::{path::Path, time::Instant};

use tl_proto::spec::{JobSpec, parse};
use tl_tests::{Sandbox, alone, data};

use crate::{Gpu, gpu, log, program, report};

/// Of each class and part, where there are few.
const FEW: usize = 4;

/// A few of the photos, in a folder like theirs.
fn few(data: &Path, to: &Path) {
    for part in ["train/ants", "train/bees", "val/ants", "val/bees"] {
        let folder = to.join(part);
        std::fs::create_dir_all(&folder).unwrap();
        let all = std::fs::read_dir(data.join("hymenoptera").join(part)).unwrap();
        let mut all: Vec<_> = all.flatten().map(|e| e.path()).collect();
        all.sort();
        for photo in &all[..FEW] {
            std::fs::copy(photo, folder.join(photo.file_name().unwrap())).unwrap();
        }
    }
}

/// On the fakes, which are slow, small pictures, and a head alone.
fn job(gpu: &Gpu, device: &str, photos: &Path, data: &Path) -> JobSpec {
    let mut spec = parse(&format!(
        r#"
schema = 1
job = {{ name = "photos", kind = "finetune", seed = 42 }}
cluster = {{ device = "{device}" }}
[data]
format = "image_folder"
train = "{0}/train"
val = "{0}/val"
batch = 32
grains = 2
augment = {{ flip = true, views = 2 }}
[model]
backbone = "mobilenet_v2"
weights = "{1}/mobilenetv2/model.safetensors"
input = {2}
[[stage]]
name = "head"
epochs = 8
train = ["head"]
lr = 1e-3
[[stage]]
name = "top"
epochs = 4
train = ["head", "top:20"]
lr = 1e-4
"#,
        photos.display(),
        data.display(),
        if gpu.is_real() { 224 } else { 32 }
    ))
    .unwrap();
    if !gpu.is_real() {
        spec.stage.truncate(1);
    }
    spec
}

#[tokio::test(flavor = "current_thread")]
async fn photos_and_weights_come_to_what_they_come_to_on_a_cpu() {
    let (Some(gpu), Some(data)) = (gpu(), data::folder()) else { return };
    let _alone = alone().await;
    let mut sandbox = Sandbox::bare(&program(), None).await;
    let own = sandbox.dir().join("photos");
    let photos = if gpu.is_real() {
        data.join("hymenoptera")
    } else {
        few(&data, &own);
        own
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).to_string();
    let root = data.display().to_string();
    sandbox.environment = gpu.environment();
    for gpus in ["none", "0"] {
        sandbox.add_worker(&["--gpus", gpus, "--threads", &cores, "--data-root", &root]);
    }
    sandbox.ready(2).await;
    let mut found = Vec::new();
    for device in ["cpu", "cuda"] {
        let started = Instant::now();
        let job = sandbox.submit(&job(gpu, device, &photos, &data)).await;
        let (ended, ..) = sandbox.ends(&job).await;
        assert_eq!(ended.status, "succeeded", "{ended:#?}\n{}", log(&job).await);
        assert!(log(&job).await.contains(&format!("rank 0 of 1 on {device}")), "{}", log(&job).await);
        let report = report(&job, &sandbox.dir().join(device)).await;
        let figures = ["accuracy", "loss"].map(|figure| report["evaluation"][figure].as_f64().unwrap());
        eprintln!("{device}: accuracy and loss {figures:?}, {:.1} s", started.elapsed().as_secs_f64());
        found.push((figures, report["prefix"]["computed"].as_u64()));
    }
    let [([accuracy, loss], computed), ([right, lost], here)] = found[..] else { panic!("two jobs") };
    // Of few photos, one is much.
    let room = if gpu.is_real() { 0.02 } else { 0.15 };
    assert!((right - accuracy).abs() <= room, "{right} are right on the GPU and {accuracy} on the CPU");
    assert!((lost - loss).abs() <= 0.02 * (1.0 + loss), "{lost} is the loss on the GPU and {loss} on the CPU");
    assert_eq!(here, computed, "what is frozen is computed once for each view");
    assert!(!gpu.is_real() || right >= 0.95, "{right} of the photos are right");
}
