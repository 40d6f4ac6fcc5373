//! Quick looks at what this machine computes, and how fast: for `tl-worker doctor`. Each ends within a moment of its time.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rayon::prelude::*;
use tl_proto::spec::JobSpec;

use crate::{
    Error, Result,
    collective::{Collective, Solo, on_loopback, reduce, tree::Node},
    link::Deaf,
    num::{
        gemm::{self, View},
        pool,
    },
    train,
};

/// Elements of the buffers that are copied: more than any cache holds.
const COPIED: usize = 1 << 24;
/// Rows, columns and depth of the product.
const SIDE: usize = 768;
/// Elements that ranks add up.
const REDUCED: usize = 1 << 20;

/// Runs `work` until `time` is over, once at least; seconds for each.
fn repeat(time: Duration, mut work: impl FnMut()) -> f64 {
    let (started, mut times) = (Instant::now(), 0u32);
    while times == 0 || started.elapsed() < time {
        work();
        times += 1;
    }
    started.elapsed().as_secs_f64() / f64::from(times)
}

/// Bytes a second that all threads read and write when they copy memory.
pub fn copy(time: Duration) -> f64 {
    pool::run(|| {
        let (from, mut to) = (vec![1.0f32; COPIED], vec![0.0f32; COPIED]);
        let seconds = repeat(time, || {
            to.par_chunks_mut(1 << 16).zip(from.par_chunks(1 << 16)).for_each(|(to, from)| to.copy_from_slice(from));
            std::hint::black_box(&mut to);
        });
        (2 * COPIED * size_of::<f32>()) as f64 / seconds
    })
}

/// Operations a second of a product of matrices.
///
/// # Errors
/// It comes out wrong.
pub fn multiply(time: Duration) -> Result<f64> {
    pool::run(|| {
        let a: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 7) as f32 - 3.0).collect();
        let b: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 5) as f32 - 2.0).collect();
        let mut c = vec![0.0f32; SIDE * SIDE];
        let seconds = repeat(time, || {
            let views = (View::rows(&a, SIDE), View::rows(&b, SIDE));
            gemm::gemm(&mut c, SIDE, views.0, views.1, (SIDE, SIDE, SIDE), false);
        });
        // Whole numbers, small enough to be exact in any order.
        for (i, j) in [(0, 0), (SIDE / 2, SIDE / 3), (SIDE - 1, SIDE - 1)] {
            let wanted: f32 = (0..SIDE).map(|k| a[i * SIDE + k] * b[k * SIDE + j]).sum();
            if c[i * SIDE + j] != wanted {
                let got = c[i * SIDE + j];
                return Err(Error::Internal(format!(
                    "element ({i}, {j}) of a product is {got} and should be {wanted}"
                )));
            }
        }
        Ok(2.0 * (SIDE * SIDE * SIDE) as f64 / seconds)
    })
}

/// A few steps of a small network on generated images: what all jobs go through, from data to exported model.
const JOB: &str = r#"
schema = 1
job = { name = "doctor", kind = "finetune" }
data = { format = "generated", train = "target", val = "target", batch = 16, grains = 4, params = { train_samples = 8, val_samples = 4 } }
model = { backbone = "small_cnn" }
[[stage]]
name = "all"
epochs = 2
train = ["*"]
lr = 0.001
bn = "train"
"#;

/// Seconds for a step of training, of a small network; writes below `folder`.
///
/// # Errors
/// Whatever stops it.
pub fn step(folder: &Path) -> Result<f64> {
    let spec = JobSpec::from_toml(JOB, &[]).map_err(|e| Error::Internal(e.to_string()))?;
    let work = folder.join("work");
    std::fs::create_dir_all(&work).map_err(Error::disk("make a folder"))?;
    let config = train::Config {
        spec,
        inputs: Default::default(),
        pushed: Default::default(),
        hub: Default::default(),
        absent: Default::default(),
        look: false,
        work,
        cache: folder.join("cache"),
        cache_bytes: 1 << 26,
        features: Vec::new(),
        resume: Vec::new(),
        place: Default::default(),
    };
    let started = Instant::now();
    let report = pool::run(|| train::run(&config, &mut Solo, &mut Deaf))?;
    Ok(started.elapsed().as_secs_f64() / report.steps.max(1) as f64)
}

/// Bytes a second that ranks on this machine add up over TCP, as ranks on several would; one rank alone adds nothing and
/// only goes the same way.
///
/// # Errors
/// Ranks do not meet, or the sum comes out wrong.
pub fn all_reduce(ranks: usize, time: Duration) -> Result<f64> {
    let rates = on_loopback(&vec![1; ranks], Duration::from_secs(5), |group| rank(group, time))?;
    rates.into_iter().try_fold(f64::INFINITY, |least, rate| Ok(least.min(rate?)))
}

/// One of them.
fn rank(group: &mut dyn Collective, time: Duration) -> Result<f64> {
    let (world, own) = (group.world(), group.rank());
    let started = Instant::now();
    let mut times = 0u32;
    loop {
        // Whether there is another round is rank 0's to say: all take part in it or none.
        let over = times > 0 && started.elapsed() >= time;
        if group.broadcast(vec![u8::from(over)], 0)? != [0] {
            break;
        }
        let leaf = vec![(own + 1) as f32; REDUCED];
        let sum = reduce(group, vec![Node::leaf(own, leaf)], world, REDUCED)?;
        let wanted = (world * (world + 1) / 2) as f32;
        if sum.len() != REDUCED || sum.iter().any(|s| *s != wanted) {
            return Err(Error::Internal(format!("a sum over {world} ranks came out wrong")));
        }
        times += 1;
    }
    Ok((REDUCED * size_of::<f32>()) as f64 * f64::from(times) / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_look_comes_to_a_figure() {
        let dir = tempfile::tempdir().unwrap();
        let figures = [
            copy(Duration::ZERO),
            multiply(Duration::ZERO).unwrap(),
            step(dir.path()).unwrap(),
            all_reduce(1, Duration::ZERO).unwrap(),
            all_reduce(3, Duration::ZERO).unwrap(),
        ];
        assert!(figures.iter().all(|f| f.is_finite() && *f > 0.0), "{figures:?}");
    }
}
