//! What a teacher says on a GPU, worked out in units: photos go through it in companies, which all have to cut alike.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tl_engine::{collective::Solo, gpu::Place, link::Deaf, num::pool, train};
use tl_proto::spec::JobSpec;

use crate::{config, shared};

const JOB: &str = r#"
schema = 1
job = { name = "t", kind = "distill", seed = 3 }
data = { format = "image_folder", train = "DIR/train", val = "DIR/val", batch = 13, grains = 1, skip_bad = 1 }
model = { backbone = "small_cnn", input = 8 }
objective = { method = "logits", soft_weight = 0.5 }
[nets.teacher]
backbone = "small_cnn"
input = 8
[[stage]]
name = "all"
epochs = 1
train = ["*"]
lr = 0.01
bn = "train"
"#;

/// So many photos of each of two classes, no two of them alike.
fn photos(dir: &Path, each: u8) {
    for (class, shade) in [("a", 40), ("b", 200)] {
        fs::create_dir_all(dir.join(class)).unwrap();
        for i in 0..each {
            let pixel = |x: u32, y: u32| image::Rgb([shade, x as u8 * i, y as u8 * 9]);
            image::RgbImage::from_fn(12, 12, pixel).save(dir.join(format!("{class}/{i:02}.png"))).unwrap();
        }
    }
}

#[test]
fn a_photo_that_will_not_decode_takes_nothing_from_what_units_have_worked_out() {
    let Some(device) = shared() else { return };
    let dir = tempfile::tempdir().unwrap();
    photos(&dir.path().join("train"), 20);
    photos(&dir.path().join("val"), 2);
    // In the first of two companies: 32 go together.
    fs::write(dir.path().join("train/a/03.png"), "no photo").unwrap();
    let place = Place::of(device.clone()).unwrap();
    let job = JOB.replace("DIR", &dir.path().display().to_string());
    let config = |name: &str, features: Vec<PathBuf>| {
        let spec = JobSpec::from_toml(&job, &[]).unwrap();
        train::Config { features, ..config(spec, dir.path().join(name), place.clone()) }
    };
    let ran = |config: train::Config| {
        let report = pool::run(|| train::run(&config, &mut Solo, &mut Deaf)).unwrap();
        (report.prefix.computed, fs::read(config.work.join("model/model.safetensors")).unwrap())
    };
    let (computed, model) = ran(config("alone", Vec::new()));
    assert_eq!(computed, 39);
    let unit = |unit: usize| {
        let config = config(&format!("unit{unit}"), Vec::new());
        assert!(pool::run(|| train::teach::unit(&config, (unit, 2), &mut Deaf)).unwrap());
        config.work.join("features")
    };
    let (again, same) = ran(config("taught", vec![unit(0), unit(1)]));
    assert_eq!((again, same == model), (0, true), "what was worked out elsewhere is all there, and comes to the same");
}
