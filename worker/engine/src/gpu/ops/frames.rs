//! Sequences of different lengths: the rows of all samples packed, and frames with a header and padding, as `nn::Ragged`
//! has them.

use std::{ops::Range, sync::Arc};

use crate::gpu::{
    Array, Device, Fault,
    launch::{each, launch, small},
};

/// How packed rows belong to samples.
pub struct Spans {
    of: Vec<usize>,
    /// Which of them the others are of, but for `rows`, which are those of all.
    which: Range<usize>,
    pub(super) starts: Array<u32>,
    pub(super) lengths: Array<u32>,
    pub(super) rows: usize,
    pub(super) longest: usize,
}

/// How many a device keeps: every layer of a pass asks for those of its batch, and attention for parts of it.
const KEPT: usize = 8;

impl Spans {
    /// For samples of these lengths. They go up once for all layers of a pass.
    ///
    /// # Errors
    /// No sample or an empty one, or a full memory.
    pub fn of(device: &Device, lengths: &[usize]) -> Result<Arc<Self>, Fault> {
        Self::some(device, lengths, 0..lengths.len())
    }

    /// For some samples of these lengths.
    ///
    /// # Errors
    /// As [`Spans::of`]; samples that are not there.
    pub fn some(device: &Device, lengths: &[usize], which: Range<usize>) -> Result<Arc<Self>, Fault> {
        if let Some(known) = device.spans().iter().find(|spans| spans.which == which && spans.of == lengths) {
            return Ok(known.clone());
        }
        let made = Arc::new(Self::sent(device, lengths, which)?);
        let mut kept = device.spans();
        kept.truncate(KEPT - 1);
        kept.insert(0, made.clone());
        Ok(made)
    }

    fn sent(device: &Device, lengths: &[usize], which: Range<usize>) -> Result<Self, Fault> {
        if lengths.contains(&0) {
            return Err(Fault::shape(format!("an empty sequence among {lengths:?}")));
        }
        let (mut starts, mut rows) = (Vec::with_capacity(lengths.len()), 0);
        for length in lengths {
            starts.push(small(rows)?);
            rows += length;
        }
        small(rows)?;
        let (Some(starts), Some(own)) = (starts.get(which.clone()), lengths.get(which.clone())) else {
            return Err(Fault::shape(format!("sequences {which:?} of {lengths:?}")));
        };
        let counts = own.iter().map(|l| small(*l)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            of: lengths.to_vec(),
            which,
            starts: device.upload(starts, &[starts.len()])?,
            lengths: device.upload(&counts, &[counts.len()])?,
            rows,
            longest: own.iter().copied().max().unwrap_or(0),
        })
    }

    /// Rows and channels of frames of these samples.
    fn frames(&self, x: &Array) -> Result<(usize, usize), Fault> {
        match *x.shape() {
            [n, rows, c] if n == self.lengths.count() && rows > self.longest => Ok((rows, c)),
            _ => Err(Fault::shape(format!("frames of {:?} for sequences of {:?}", x.shape(), self.of))),
        }
    }
}

/// Packed rows as frames `[n, 1 + room, c]`; `header` is false for gradients.
///
/// # Errors
/// Other rows, too little room, a full memory, or a GPU that has failed.
pub fn frame(device: &Device, packed: &Array, spans: &Spans, room: usize, header: bool) -> Result<Array, Fault> {
    let (rows, c) = (packed.rows(), packed.width());
    if rows != spans.rows || room < spans.longest {
        return Err(Fault::shape(format!("{rows} rows and room for {room} given for sequences of {:?}", spans.of)));
    }
    let mut y = device.fresh::<f32>(&[spans.lengths.count(), room + 1, c])?;
    let n = y.count();
    launch!(
        device,
        Frames,
        "frame",
        each(n),
        &mut y.data,
        &packed.data,
        &spans.starts.data,
        &spans.lengths.data,
        &(n as u64),
        &small(room + 1)?,
        &small(c)?,
        &i32::from(header)
    );
    Ok(y)
}

/// The real rows of frames, packed: `[Σ lengths, c]`.
///
/// # Errors
/// Other shapes, a full memory, or a GPU that has failed.
pub fn unframe(device: &Device, x: &Array, spans: &Spans) -> Result<Array, Fault> {
    let (rows, c) = spans.frames(x)?;
    let (mut y, n) = (device.fresh::<f32>(&[spans.rows, c])?, x.count());
    launch!(
        device,
        Frames,
        "unframe",
        each(n),
        &mut y.data,
        &x.data,
        &spans.starts.data,
        &spans.lengths.data,
        &(n as u64),
        &small(rows)?,
        &small(c)?
    );
    Ok(y)
}

/// Of each frame the mean of its real rows, or the first one: `[n, c]`.
///
/// # Errors
/// As [`unframe`].
pub fn pool_rows(device: &Device, x: &Array, spans: &Spans, mean: bool) -> Result<Array, Fault> {
    let (rows, c) = spans.frames(x)?;
    let mut y = device.fresh::<f32>(&[spans.lengths.count(), c])?;
    let n = y.count();
    launch!(
        device,
        Frames,
        "pool_rows",
        each(n),
        &mut y.data,
        &x.data,
        &spans.lengths.data,
        &(n as u64),
        &small(rows)?,
        &small(c)?,
        &i32::from(mean)
    );
    Ok(y)
}

/// The gradient of frames `[n, 1 + room, c]`.
///
/// # Errors
/// As [`frame`].
pub fn pool_rows_back(device: &Device, dy: &Array, spans: &Spans, room: usize, mean: bool) -> Result<Array, Fault> {
    let (samples, c) = (spans.lengths.count(), dy.width());
    dy.expect(&[samples, c])?;
    let mut dx = device.fresh::<f32>(&[samples, room + 1, c])?;
    spans.frames(&dx)?;
    let n = dx.count();
    launch!(
        device,
        Frames,
        "pool_rows_back",
        each(n),
        &mut dx.data,
        &dy.data,
        &spans.lengths.data,
        &(n as u64),
        &small(room + 1)?,
        &small(c)?,
        &i32::from(mean)
    );
    Ok(dx)
}
