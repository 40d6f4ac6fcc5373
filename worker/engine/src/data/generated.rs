//! Shapes drawn on noise: a data set that needs no download, and two tasks that share what a network must learn to see.
//!
//! `source` has many samples of eight outlines; `target` has six others. Colours, places, sizes and angles carry no
//! information, so a network has to learn edges and corners, and those carry over.

use tl_proto::{
    catalog::{Entry, entry, integer, number},
    spec::Params,
};

use super::{Dataset, Format, Image};
use crate::{
    Error, Result,
    num::rng::{Philox, Stream},
};

pub(super) const FORMAT: Format = Format { entry: describe, open, bare: open };

const SIDE: usize = 32;

fn describe() -> Entry {
    Entry {
        params: vec![
            integer("train_samples", 256, 1, 100_000, "training samples per class"),
            integer("val_samples", 50, 1, 100_000, "validation samples per class"),
            number("noise", 0.25, 0.0, 1.0, "standard deviation of the noise, as a part of the range"),
        ],
        ..entry(
            "generated",
            "32-pixel images of shapes; `train` and `val` name the task: `source`, `target` with other shapes, or \
             `shifted`, the source's shapes in another domain",
        )
    }
}

/// A shape in polar form: the radius at an angle, as a part of its size, and whether it is an outline.
type Shape = (&'static str, fn(f32) -> f32, bool);

fn polygon(angle: f32, corners: f32) -> f32 {
    let sector = std::f32::consts::TAU / corners;
    let within = angle - sector * libm::floorf(angle / sector) - sector / 2.0;
    libm::cosf(sector / 2.0) / libm::cosf(within)
}

fn star(angle: f32, points: f32) -> f32 {
    0.7 + 0.3 * libm::cosf(points * angle)
}

const SOURCE: [Shape; 8] = [
    ("circle", |_| 0.85, false),
    ("ring", |_| 0.85, true),
    ("square", |a| polygon(a, 4.0), false),
    ("square-outline", |a| polygon(a, 4.0), true),
    ("triangle", |a| polygon(a, 3.0), false),
    ("triangle-outline", |a| polygon(a, 3.0), true),
    ("star-4", |a| star(a, 4.0), false),
    ("star-6", |a| star(a, 6.0), true),
];
const TARGET: [Shape; 6] = [
    ("pentagon", |a| polygon(a, 5.0), false),
    ("pentagon-outline", |a| polygon(a, 5.0), true),
    ("star-3", |a| star(a, 3.0), false),
    ("star-3-outline", |a| star(a, 3.0), true),
    ("star-5", |a| star(a, 5.0), false),
    ("star-5-outline", |a| star(a, 5.0), true),
];

struct Generated {
    shapes: &'static [Shape],
    classes: Vec<String>,
    labels: Vec<usize>,
    rng: Philox,
    noise: f32,
    /// Whether the ground is striped.
    shifted: bool,
    key: String,
}

fn open(place: &str, part: &str, params: &Params, seed: u32) -> Result<Box<dyn Dataset>> {
    let shapes: &'static [Shape] = match place {
        "source" | "shifted" => &SOURCE,
        "target" => &TARGET,
        _ => {
            return Err(Error::user(format!("there is no generated task `{place}`"), "known: source, target, shifted"));
        }
    };
    let number = |name: &str| describe().number(params, name);
    let each = number(if part == "train" { "train_samples" } else { "val_samples" }) as usize;
    let noise = number("noise") as f32;
    let key = format!("generated/1/{place}/{part}/{seed}/{noise}");
    Ok(Box::new(Generated {
        shapes,
        classes: shapes.iter().map(|s| s.0.to_owned()).collect(),
        labels: (0..shapes.len() * each).map(|i| i % shapes.len()).collect(),
        rng: Philox::new(seed, &key),
        noise,
        shifted: place == "shifted",
        key,
    }))
}

fn draw(shape: &Shape, s: &mut Stream, noise: f32, shifted: bool) -> Image {
    let (cx, cy) = (s.range(11.0, 21.0), s.range(11.0, 21.0));
    let (size, turn) = (s.range(7.0, 11.0), s.range(0.0, std::f32::consts::TAU));
    let back = [s.range(40.0, 215.0), s.range(40.0, 215.0), s.range(40.0, 215.0)];
    // The shape is lighter or darker than its ground, by chance, in every channel.
    let sign = if s.uniform() < 0.5 { -1.0 } else { 1.0 };
    let front = back.map(|b| b + sign * s.range(50.0, 110.0));
    // In the other domain the ground is striped.
    let [slope, phase, depth] = if shifted { [s.range(-1.0, 1.0), s.range(0.0, 6.0), 35.0] } else { [0.0; 3] };
    let stripe = |x: usize, y: usize| depth * libm::sinf(0.9 * (x as f32 + slope * y as f32) + phase);
    let mut bytes = Vec::with_capacity(SIDE * SIDE * 3);
    for y in 0..SIDE {
        for x in 0..SIDE {
            let (dx, dy) = (x as f32 - cx, y as f32 - cy);
            let mut angle = libm::atan2f(dy, dx) + turn;
            if angle < 0.0 {
                angle += std::f32::consts::TAU;
            }
            let edge = size * shape.1(angle) - libm::sqrtf(dx * dx + dy * dy);
            let inside = edge.clamp(-0.5, 0.5) + 0.5;
            let cover = if shape.2 { inside - ((edge - 2.5).clamp(-0.5, 0.5) + 0.5) } else { inside };
            for c in 0..3 {
                let ground = back[c] + stripe(x, y);
                let clean = ground + cover * (front[c] - ground);
                bytes.push((clean + 255.0 * noise * s.normal()).clamp(0.0, 255.0) as u8);
            }
        }
    }
    Image { width: SIDE, height: SIDE, bytes }
}

impl Dataset for Generated {
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn labels(&self) -> &[usize] {
        &self.labels
    }
    fn name(&self, index: usize) -> String {
        format!("{}/{index}", self.classes[self.labels[index]])
    }
    fn digest(&self, index: usize) -> [u8; 32] {
        *blake3::hash(format!("{}/{index}", self.key).as_bytes()).as_bytes()
    }
    fn load(&self, index: usize) -> Result<Image, String> {
        Ok(draw(&self.shapes[self.labels[index]], &mut self.rng.stream(index as u64, 0), self.noise, self.shifted))
    }
}
