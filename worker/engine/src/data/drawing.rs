//! A drawing as a sequence: how far the pen goes from point to point, and where it is lifted, for networks that read
//! strokes. How is a part of the contract, which an exported model keeps.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use tl_proto::{
    catalog::{Entry, Param, choice, entry, integer},
    spec::Params,
};

use crate::{Error, Result, nn::tensor};

/// Numbers of a row: the way of the pen since the point before, to the right and down, and 1 where it is lifted.
pub const WIDTH: usize = 3;

/// The longer side of a drawing's box, once it is scaled: ways between points are then numbers about one.
const SIDE: f64 = 10.0;

/// A drawing as it was recorded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawing {
    /// Places of the pen, one after the other.
    pub points: Vec<[f32; 2]>,
    /// How many points there are up to the end of each stroke.
    pub ends: Vec<usize>,
}

impl Drawing {
    /// Digest of its points and strokes.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        self.points.as_flattened().iter().for_each(|v| {
            hasher.update(&v.to_le_bytes());
        });
        self.ends.iter().for_each(|end| {
            hasher.update(&(*end as u64).to_le_bytes());
        });
        *hasher.finalize().as_bytes()
    }
}

/// What becomes of a drawing of more points than a network takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Longer {
    /// Points are left out evenly, but for the first and, as far as there is room, the last of each stroke.
    Thin,
    /// What follows is cut off.
    Cut,
}

/// How a drawing becomes rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Strokes {
    /// Most points.
    pub points: usize,
    /// Of drawings that have more.
    pub longer: Longer,
}

/// Parameters of a format of drawings that say how they are read, with what they are where nothing is said.
pub(super) fn params() -> Vec<Param> {
    vec![
        integer("points", 100, 8, 2000, "most points that a network is shown of a drawing"),
        choice(
            "longer",
            &["thin", "cut"],
            "of drawings with more, points are left out evenly, those where the pen is lifted last, or what follows is cut \
             off; the longer side of every drawing is scaled to the same length",
        ),
    ]
}

impl Strokes {
    /// What a job says, over what its weights were trained with.
    ///
    /// # Errors
    /// A job that reads drawings otherwise than its weights do.
    pub fn agreed(known: Option<&Self>, said: &Params) -> Result<Self> {
        let entry = Entry { params: params(), ..entry("", "") };
        let strokes = Self {
            points: match known {
                Some(known) if !said.contains_key("points") => known.points,
                _ => entry.number(said, "points") as usize,
            },
            longer: match known {
                Some(known) if !said.contains_key("longer") => known.longer,
                _ if entry.word(said, "longer") == "cut" => Longer::Cut,
                _ => Longer::Thin,
            },
        };
        match known {
            Some(known) if *known != strokes => Err(Error::user(
                format!(
                    "the weights were trained on drawings of {}, and the job says {}",
                    known.sentence(),
                    strokes.sentence()
                ),
                "remove what differs from `data.params`",
            )),
            _ => strokes.check("data.params").map(|()| strokes),
        }
    }

    /// Checks the number of points, whoever has written it.
    ///
    /// # Errors
    /// Names `shown`.
    pub fn check(&self, shown: &str) -> Result<()> {
        let sane = (8..=2000).contains(&self.points);
        let why = || format!("`{shown}` wants drawings of {} points", self.points);
        if sane { Ok(()) } else { Err(Error::user(why(), "`points` must be between 8 and 2000")) }
    }

    /// The rows of a drawing, one after the other. The box around all of it keeps its shape, and its longer side becomes 10;
    /// the first way begins at the box's middle, and the pen is lifted at the end.
    ///
    /// # Errors
    /// A drawing without points.
    pub fn rows(&self, drawing: &Drawing) -> Result<Vec<f32>, String> {
        let kept = self.kept(drawing);
        let (Some(last), points) = (kept.last(), &drawing.points) else { return Err("it has no points".into()) };
        let least = |axis: usize| points.iter().map(|p| f64::from(p[axis])).fold(f64::INFINITY, f64::min);
        let most = |axis: usize| points.iter().map(|p| f64::from(p[axis])).fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = ([0, 1].map(least), [0, 1].map(most));
        let longest = (high[0] - low[0]).max(high[1] - low[1]);
        // All of it at one place has no size.
        let scale = if longest > 0.0 { SIDE / longest } else { 0.0 };
        let stroke = |point: usize| drawing.ends.partition_point(|end| *end <= point);
        let mut at = [0, 1].map(|axis| (low[axis] + high[axis]) / 2.0);
        let mut rows = Vec::with_capacity(kept.len() * WIDTH);
        for (i, point) in kept.iter().enumerate() {
            let to = points[*point].map(f64::from);
            let lifted = point == last || stroke(*point) != stroke(kept[i + 1]);
            rows.extend([0, 1].map(|axis| ((to[axis] - at[axis]) * scale) as f32));
            rows.push(f32::from(u8::from(lifted)));
            at = to;
        }
        Ok(rows)
    }

    /// Which points are shown, in order.
    fn kept(&self, drawing: &Drawing) -> Vec<usize> {
        let (n, most) = (drawing.points.len(), self.points.max(2));
        match self.longer {
            Longer::Cut => (0..n.min(most)).collect(),
            Longer::Thin if n <= most => (0..n).collect(),
            Longer::Thin => thinned(drawing, most),
        }
    }

    /// Rows of several drawings as a network takes them: framed, `[n, 1 + t, 3]`. `whole` makes room for the longest drawing
    /// that the network takes, else for the longest of these.
    ///
    /// # Errors
    /// None that can be caused from outside.
    pub fn batch(&self, drawings: &[Vec<f32>], whole: bool) -> Result<Tensor> {
        let longest = drawings.iter().map(|rows| rows.len() / WIDTH).max().unwrap_or(0).max(1);
        let room = if whole { self.points.max(longest) } else { longest };
        let mut out = vec![0.0; drawings.len() * (1 + room) * WIDTH];
        for (frame, rows) in out.chunks_exact_mut((1 + room) * WIDTH).zip(drawings) {
            frame[0] = (rows.len() / WIDTH) as f32;
            frame[WIDTH..WIDTH + rows.len()].copy_from_slice(rows);
        }
        tensor(out, &[drawings.len(), 1 + room, WIDTH])
    }

    /// For people.
    pub fn sentence(&self) -> String {
        let longer = match self.longer {
            Longer::Thin => "longer ones thinned",
            Longer::Cut => "longer ones cut off",
        };
        format!("at most {} points, {longer}", self.points)
    }

    /// What changes rows, as text: part of the key of cached features. The number is that of this code: another one where the
    /// same drawing becomes other rows.
    pub fn describe(&self) -> String {
        format!("strokes/2:{self:?}")
    }
}

/// `most` of more points, two or more: the first, those where the pen is lifted, so that no short stroke is gone, and between
/// them others, evenly. If there are too many of the former, of those alone.
fn thinned(drawing: &Drawing, most: usize) -> Vec<usize> {
    let ends = drawing.ends.iter().map(|end| end - 1).filter(|last| *last > 0);
    let stay: Vec<usize> = std::iter::once(0).chain(ends).collect();
    let Some(room) = most.checked_sub(stay.len()) else {
        let evenly = |i: usize| (i * (stay.len() - 1) + (most - 1) / 2) / (most - 1);
        return (0..most).map(|i| stay[evenly(i)]).collect();
    };
    let others: Vec<usize> = (0..drawing.points.len()).filter(|i| stay.binary_search(i).is_err()).collect();
    let evenly = |i: usize| (i * (others.len() + 1) + room.div_ceil(2)) / (room + 1) - 1;
    let mut kept: Vec<usize> = (1..=room).map(|i| others[evenly(i)]).chain(stay).collect();
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::nn::Ragged;

    fn said(params: serde_json::Value) -> Params {
        serde_json::from_value(params).unwrap()
    }

    fn drawing(strokes: &[&[[f32; 2]]]) -> Drawing {
        let mut out = Drawing::default();
        for stroke in strokes {
            out.points.extend_from_slice(stroke);
            out.ends.push(out.points.len());
        }
        out
    }

    fn strokes(points: usize, longer: Longer) -> Strokes {
        Strokes { points, longer }
    }

    #[test]
    fn a_box_keeps_its_shape_and_neither_its_size_nor_its_place() {
        let shape: [&[[f32; 2]]; 2] = [&[[0.0, 0.0], [4.0, 0.0]], &[[4.0, 2.0]]];
        let rows = strokes(8, Longer::Thin).rows(&drawing(&shape)).unwrap();
        // The middle of 4 by 2, then the ways times 10/4.
        assert_eq!(rows, [-5.0, -2.5, 0.0, 10.0, 0.0, 1.0, 0.0, 5.0, 1.0]);
        let moved: Vec<Vec<[f32; 2]>> =
            shape.iter().map(|s| s.iter().map(|p| [100.0 + 64.0 * p[0], 64.0 * p[1] - 7.0]).collect()).collect();
        let moved: Vec<&[[f32; 2]]> = moved.iter().map(Vec::as_slice).collect();
        assert_eq!(strokes(8, Longer::Thin).rows(&drawing(&moved)).unwrap(), rows);
        let dot = strokes(8, Longer::Thin).rows(&drawing(&[&[[3.0, 3.0]]])).unwrap();
        assert_eq!(dot, [0.0, 0.0, 1.0]);
        assert!(strokes(8, Longer::Thin).rows(&Drawing::default()).unwrap_err().contains("no points"));
        let tiny = strokes(8, Longer::Thin).rows(&drawing(&[&[[0.0, 0.0], [1e-45, 0.0]]])).unwrap();
        assert_eq!(tiny, [-5.0, 0.0, 0.0, 10.0, 0.0, 1.0]);
    }

    #[test]
    fn what_is_too_long_is_thinned_evenly_or_cut_and_every_lifting_of_the_pen_stays() {
        let line: Vec<[f32; 2]> = (0..50u8).map(|i| [f32::from(i), 0.0]).collect();
        let long = drawing(&[&line[..25], &line[25..27], &line[27..]]);
        let thin = strokes(8, Longer::Thin);
        assert_eq!(thin.kept(&drawing(&[&line[..]])), [0, 7, 14, 21, 28, 35, 42, 49]);
        assert_eq!(thin.kept(&long), [0, 9, 19, 24, 26, 30, 40, 49]);
        let rows = thin.rows(&long).unwrap();
        let pen: Vec<f32> = rows.chunks_exact(WIDTH).map(|r| r[2]).collect();
        assert_eq!(pen, [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
        let way: f32 = rows.chunks_exact(WIDTH).map(|r| r[0]).sum();
        assert!((way - 5.0).abs() < 1e-5, "{way}");
        let cut = strokes(30, Longer::Cut).rows(&long).unwrap();
        let lifted: Vec<usize> = (0..30).filter(|i| cut[i * WIDTH + 2] == 1.0).collect();
        assert_eq!((cut.len(), lifted), (30 * WIDTH, vec![24, 26, 29]));
        for (n, each) in (1..200).flat_map(|n| [1, 2, 9, 200].map(|each| (n, each))) {
            let ends: Vec<usize> = (1..=n).filter(|end: &usize| end.is_multiple_of(each) || *end == n).collect();
            let long = Drawing { points: vec![[0.0; 2]; n], ends };
            for most in [8, 9, 100] {
                let kept = strokes(most, Longer::Thin).kept(&long);
                let about = format!("{n}, {each}, {most}: {kept:?}");
                assert!(kept.len() == n.min(most) && kept[0] == 0 && kept[kept.len() - 1] == n - 1, "{about}");
                assert!(kept.windows(2).all(|w| w[0] < w[1]), "{about}");
                let stay = long.ends.iter().filter(|end| kept.contains(&(*end - 1))).count();
                assert!(stay == long.ends.len() || long.ends.len() >= most, "{about}");
            }
        }
    }

    #[test]
    fn drawings_of_a_batch_are_framed_for_the_longest_of_them_or_of_all() {
        let rows = [vec![1.0; 2 * WIDTH], vec![2.0; WIDTH]];
        let thin = strokes(8, Longer::Thin);
        let (short, whole) = (thin.batch(&rows, false).unwrap(), thin.batch(&rows, true).unwrap());
        assert_eq!((short.dims(), whole.dims()), (&[2, 3, 3][..], &[2, 9, 3][..]));
        for framed in [short, whole] {
            let (ragged, packed) = Ragged::unpack(&framed.into()).unwrap();
            assert_eq!((ragged.lengths, packed.dims()), (vec![2, 1], &[3, 3][..]));
        }
    }

    #[test]
    fn how_weights_read_stays_unless_the_job_says_the_same() {
        let known = Strokes::agreed(None, &said(json!({ "points": 20, "longer": "cut" }))).unwrap();
        assert_eq!(known, strokes(20, Longer::Cut));
        assert_eq!(Strokes::agreed(Some(&known), &Params::new()).unwrap(), known);
        assert_eq!(Strokes::agreed(Some(&known), &said(json!({ "points": 20 }))).unwrap(), known);
        for other in [json!({ "points": 21 }), json!({ "longer": "thin" })] {
            let error = Strokes::agreed(Some(&known), &said(other)).unwrap_err().to_string();
            assert!(error.contains("at most 20 points, longer ones cut off"), "{error}");
        }
        assert!(strokes(7, Longer::Cut).check("p.json").unwrap_err().to_string().contains("`p.json`"));
        let text = serde_json::to_string(&known).unwrap();
        assert_eq!(serde_json::from_str::<Strokes>(&text).unwrap(), known);
    }

    #[test]
    fn a_digest_tells_drawings_apart_by_their_points_and_by_their_strokes() {
        let line = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]];
        let other = [[1.0, 2.0], [3.0, 4.5], [5.0, 6.0]];
        let cut = |at: usize| drawing(&[&line[..at], &line[at..]]);
        let all = [drawing(&[&line]), cut(1), cut(2), drawing(&[&other])];
        let digests: std::collections::BTreeSet<_> = all.iter().map(Drawing::digest).collect();
        assert_eq!(digests.len(), 4);
        assert_eq!(all[0].digest(), all[0].clone().digest());
    }
}
