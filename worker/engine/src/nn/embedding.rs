//! Token ids to rows: word, position and kind, added and normalised.

use rayon::prelude::*;

use super::{Array, Gradients, Layer, LayerNorm, Mask, ParamId, Pass, Ragged, Saved, Tape, array, host, rows};
#[cfg(feature = "cuda")]
use crate::gpu::{
    Fault, Placed,
    ops::{self, Columns, Groups},
};
use crate::{Error, Result};

/// Looks up `[n, t]` ids (whole numbers as f32, −1 behind the end) and gives framed `[n, 1 + t, c]`.
#[derive(Debug)]
pub struct Embedding {
    pub(super) word: ParamId,
    pub(super) words: usize,
    pub(super) c: usize,
    pub(super) position: Option<(ParamId, usize)>,
    pub(super) kind: Option<ParamId>,
    pub(super) norm: Option<LayerNorm>,
    pub(super) drop: Mask,
}

impl Embedding {
    /// Packed ids of texts with room for so many, and how they belong to samples.
    fn ids(&self, values: &[f32], room: usize) -> Result<(Ragged, Vec<u32>)> {
        let (mut lengths, mut ids) = (Vec::new(), Vec::new());
        let most = self.position.map_or(usize::MAX, |p| p.1);
        for row in values.chunks_exact(room.max(1)) {
            let length = row.iter().position(|v| *v < 0.0).unwrap_or(room);
            if length == 0 || length > most || row[length..].iter().any(|v| *v != -1.0) {
                return Err(Error::Internal(format!("a text has {length} tokens, of at most {most}")));
            }
            for value in &row[..length] {
                let id = *value as u32;
                if id as f32 != *value || id as usize >= self.words {
                    return Err(Error::user(
                        format!("the tokenizer gives id {value}, and the network knows {} tokens", self.words),
                        "`tokenizer.json` must be the one that the weights were trained with",
                    ));
                }
                ids.push(id);
            }
            lengths.push(length);
        }
        Ok((Ragged { lengths, room }, ids))
    }

    /// The ids, how they belong to samples, and for each the sum of its rows.
    fn looked_up(&self, x: &Array, pass: &Pass<'_>) -> Result<(Ragged, Vec<u32>, Array)> {
        let (_, room) = x.dims2()?;
        #[cfg(feature = "cuda")]
        if let Array::Device(x) = x {
            return self.placed(&x.full()?, room, pass);
        }
        let (ragged, ids) = self.ids(&host(x)?, room)?;
        let c = self.c;
        let mut out = Vec::with_capacity(ids.len() * c);
        let word = pass.store.param(self.word);
        ids.iter().for_each(|id| out.extend_from_slice(&word[*id as usize * c..(*id as usize + 1) * c]));
        let add = |out: &mut [f32], row: &[f32]| out.iter_mut().zip(row).for_each(|(o, v)| *o += v);
        if let Some(kind) = self.kind {
            let first = &pass.store.param(kind)[..c];
            out.par_chunks_mut(c).for_each(|row| add(row, first));
        }
        if let Some((position, _)) = self.position {
            let table = pass.store.param(position);
            let own = ragged.split(&mut out, c);
            own.into_par_iter().for_each(|rows| {
                rows.chunks_exact_mut(c).zip(table.chunks_exact(c)).for_each(|(row, place)| add(row, place));
            });
        }
        let y = array(out, &[ids.len(), c])?;
        Ok((ragged, ids, y))
    }

    /// Adds the gradients of the tables.
    fn learn(&self, dx: &Array, ids: &[u32], ragged: &Ragged, grads: &mut Gradients) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Array::Device(dx) = dx {
            return self.placed_learn(&dx.full()?, ids, ragged, grads);
        }
        let (c, g) = (self.c, host(dx)?);
        if let Some(table) = grads.slot(self.word) {
            scatter(table, &g, c, ids);
        }
        if let Some(table) = self.position.and_then(|p| grads.slot(p.0)) {
            scatter(table, &g, c, &places(ragged));
        }
        if let Some(table) = self.kind.and_then(|k| grads.slot(k)) {
            rows::add_sums(&g, c, &mut table[..c]);
        }
        Ok(())
    }
}

/// The place in its text of each packed row.
fn places(ragged: &Ragged) -> Vec<u32> {
    ragged.lengths.iter().flat_map(|length| 0..*length as u32).collect()
}

#[cfg(feature = "cuda")]
impl Embedding {
    /// Ids come down to be checked, and stay on the host, which sorts them for the gradient: they are a pass's first input, so
    /// that little waits for them.
    fn placed(&self, x: &Placed, room: usize, pass: &Pass<'_>) -> Result<(Ragged, Vec<u32>, Array)> {
        let (ragged, ids) = self.ids(&x.download()?, room)?;
        let table = |id: ParamId| pass.placed_exact(id, &pass.store.params[id.0].shape, x.device());
        let (word, kind) = (table(self.word)?, self.kind.map(&table).transpose()?);
        let position = self.position.map(|p| table(p.0)).transpose()?;
        let y = x.made(|device, _| {
            let up = |rows: &[u32]| device.upload(rows, &[rows.len()]);
            let places = position.as_ref().map(|table| Ok::<_, Fault>((table.array(), up(&places(&ragged))?)));
            let places = places.transpose()?;
            let position = places.as_ref().map(|(table, places)| (*table, places));
            ops::embed(device, word.array(), &up(&ids)?, kind.as_ref().map(Placed::array), position)
        })?;
        Ok((ragged, ids, y.into()))
    }

    fn placed_learn(&self, dx: &Placed, ids: &[u32], ragged: &Ragged, grads: &mut Gradients) -> Result<()> {
        let c = self.c;
        let mut scatter = |id: ParamId, of: &[u32], rows: usize| {
            grads.add_placed(id, &[rows, c], dx.device(), |device, table| {
                ops::embed_back(device, dx.array(), &Groups::of(device, of, rows)?, table)
            })
        };
        scatter(self.word, ids, self.words)?;
        if let Some((table, positions)) = self.position {
            scatter(table, &places(ragged), positions)?;
        }
        let kind = self.kind.and_then(|kind| Some((kind, grads.layout.slot(kind)?.len())));
        let Some((kind, all)) = kind else { return Ok(()) };
        // All kinds in one line, of which the first learns.
        grads.add_placed(kind, &[1, all], dx.device(), |device, table| {
            let mut first = device.zeros(&[1, c])?;
            ops::add_sums(device, dx.array(), &mut first)?;
            ops::copy_columns(device, &first, table, Columns { from: 0, to: 0, width: c }, true)
        })
    }
}

/// Adds rows of `dy` to the rows of `table` that `of` names, each row's in the order of `dy`, in parallel over rows.
fn scatter(table: &mut [f32], dy: &[f32], c: usize, of: &[u32]) {
    let mut order: Vec<(u32, usize)> = of.iter().copied().zip(0..).collect();
    order.sort_unstable();
    let mut tasks = Vec::new();
    let (mut rest, mut skipped) = (table, 0);
    for group in order.chunk_by(|a, b| a.0 == b.0) {
        let row = group[0].0 as usize;
        let (own, behind) = std::mem::take(&mut rest)[(row - skipped) * c..].split_at_mut(c);
        (rest, skipped) = (behind, row + 1);
        tasks.push((own, group));
    }
    tasks.into_par_iter().with_min_len(16).for_each(|(own, group)| {
        for (_, at) in group {
            own.iter_mut().zip(&dy[at * c..(at + 1) * c]).for_each(|(o, g)| *o += g);
        }
    });
}

impl Layer for Embedding {
    fn forward(&self, x: &Array, pass: &Pass<'_>, tape: &mut Tape) -> Result<Array> {
        let (ragged, ids, mut y) = self.looked_up(x, pass)?;
        ragged.save(pass, tape);
        if pass.records() {
            tape.push(Saved::Indices(ids));
        }
        if let Some(norm) = &self.norm {
            y = norm.forward(&y, pass, tape)?;
        }
        ragged.frame(&self.drop.rows(y, &ragged, pass)?, true)
    }

    fn backward(
        &self,
        dy: &Array,
        pass: &Pass<'_>,
        tape: &mut Tape,
        grads: &mut Gradients,
        _: bool,
    ) -> Result<Option<Array>> {
        // The frame lies under what the normalisation has kept; its own gradient needs it first.
        let kept = self.norm.as_ref().map(|_| Ok::<_, Error>((tape.take(Some)?, tape.take(Some)?))).transpose()?;
        let ids = tape.take(|s| if let Saved::Indices(ids) = s { Some(ids) } else { None })?;
        let ragged = Ragged::saved(tape)?;
        let mut dx = self.drop.rows(ragged.pack(dy)?, &ragged, pass)?;
        if let (Some(norm), Some((inverse, hat))) = (&self.norm, kept) {
            tape.push(hat);
            tape.push(inverse);
            match norm.backward(&dx, pass, tape, grads, true)? {
                Some(d) => dx = d,
                None => return Err(Error::Internal("a layer gave no gradient".into())),
            }
        }
        self.learn(&dx, &ids, &ragged, grads)?;
        // Ids have no gradient.
        Ok(None)
    }

    fn describe(&self, out: &mut String) {
        out.push_str(&format!("embedding:{}:{};", self.words, self.position.is_some()));
        self.norm.iter().for_each(|n| n.describe(out));
    }

    fn params(&self, out: &mut Vec<ParamId>) {
        out.push(self.word);
        out.extend(self.position.map(|p| p.0));
        out.extend(self.kind);
        self.norm.iter().for_each(|n| n.params(out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nn::{Builder, DropoutDraw, Layout, Store, testing},
        num::rng::Philox,
    };

    const IDS: [f32; 12] = [4.0, 1.0, 4.0, -1.0, 0.0, -1.0, -1.0, -1.0, 2.0, 4.0, 0.0, 1.0];

    fn layer(b: &mut Builder, p: f32) -> Embedding {
        b.embedding("e", ["word", "position", "kind"], (6, 5), (4, 2), Some(1e-5), Mask { p, site: 1 })
    }

    #[test]
    fn gradients_are_those_of_finite_differences_also_under_dropout() {
        [0.0, 0.3].into_iter().for_each(check);
    }

    fn check(p: f32) {
        let mut b = Builder::new(1);
        let layer = layer(&mut b, p);
        let draw = DropoutDraw { rng: Philox::new(5, "dropout"), draws: &[7, 8, 9] };
        b.store.values.iter_mut().enumerate().for_each(|(i, v)| *v = *v * 20.0 + (i % 3) as f32 / 3.0);
        let mut params = Vec::new();
        layer.params(&mut params);
        assert_eq!(params.len(), b.store.params.len());
        let layout = Layout::new(&b.store, &params, &[]);
        let x = array(IDS.to_vec(), &[3, 4]).unwrap();
        let run = |store: &Store, tape: &mut Tape| {
            let pass = Pass { layout: Some(&layout), dropout: Some(draw), ..Pass::eval(store) };
            layer.forward(&x, &pass, tape).unwrap()
        };
        let mut tape = Tape::default();
        let y = run(&b.store, &mut tape);
        let dy = testing::array(y.dims());
        let pass = Pass { layout: Some(&layout), dropout: Some(draw), ..Pass::eval(&b.store) };
        let mut grads = Gradients::new(&layout);
        assert!(layer.backward(&dy, &pass, &mut tape, &mut grads, true).unwrap().is_none());
        for i in 0..b.store.values.len() {
            let moved = |by: f32| -> f64 {
                let mut store = b.store.clone();
                store.values[i] += by;
                let y = run(&store, &mut Tape::default());
                let (y, dy) = (host(&y).unwrap(), host(&dy).unwrap());
                y.iter().zip(dy.iter()).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum()
            };
            let numeric = (moved(5e-3) - moved(-5e-3)) / 1e-2;
            let ours = f64::from(grads.flat[i]);
            assert!((ours - numeric).abs() < 2e-2 * (1.0 + numeric.abs()), "{i}: {ours} against {numeric}");
        }
    }

    #[test]
    fn ids_that_the_table_does_not_have_and_empty_texts_are_refused() {
        let mut b = Builder::new(1);
        let layer = layer(&mut b, 0.0);
        let bad = |ids: [f32; 4]| {
            let x = array(ids.to_vec(), &[1, 4]).unwrap();
            layer.forward(&x, &Pass::eval(&b.store), &mut Tape::default()).is_err()
        };
        assert!(
            bad([6.0, 0.0, 0.0, 0.0]) && bad([-1.0; 4]) && bad([0.5, 0.0, 0.0, 0.0]) && bad([1.0, -1.0, 1.0, -1.0])
        );
        assert!(bad([f32::NAN, 0.0, 0.0, 0.0]) && !bad([5.0, -1.0, -1.0, -1.0]));
    }
}
