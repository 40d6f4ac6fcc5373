//! Sequences on the GPU that they lie on. Their lengths are known on the host too, so that kernels can be started without
//! waiting for those before.

use super::{Pool, Ragged};
use crate::{
    Error, Result,
    gpu::{
        Placed,
        ops::{self, Spans},
    },
};

impl Ragged {
    /// How the packed rows of frames belong to samples. What a layer has framed says so; of what comes from the host, at the
    /// beginning of a pass, headers come down.
    ///
    /// # Errors
    /// Something that is no frame.
    pub(in crate::nn) fn of(x: &Placed) -> Result<Self> {
        let &[n, rows, _] = x.array().shape() else {
            return Err(Error::Internal(format!("frames are expected, given {:?}", x.array().shape())));
        };
        let room = rows - 1;
        if let Some(lengths) = x.lengths().filter(|lengths| lengths.len() == n) {
            return Ok(Self { lengths: lengths.to_vec(), room });
        }
        let which: Vec<Option<usize>> = (0..n).map(|sample| Some(sample * rows)).collect();
        let headers = x.made(|device, x| ops::take_rows(device, x, &which))?;
        let values = headers.download()?;
        Self::said(values.chunks_exact(headers.array().width()).map(|header| header[0]), room)
    }

    pub(super) fn pack_placed(&self, framed: &Placed) -> Result<Placed> {
        Ok(framed.made(|device, x| {
            let spans = Spans::of(device, &self.lengths)?;
            ops::unframe(device, x, &spans)
        })?)
    }

    pub(in crate::nn) fn frame_placed(&self, packed: &Placed, header: bool) -> Result<Placed> {
        let framed = packed.made(|device, x| {
            let spans = Spans::of(device, &self.lengths)?;
            ops::frame(device, x, &spans, self.room, header)
        })?;
        Ok(if header { framed.with_lengths(&self.lengths) } else { framed })
    }
}

impl Pool {
    pub(super) fn placed(self, x: &Placed, ragged: &Ragged) -> Result<Placed> {
        Ok(x.made(|device, x| {
            let spans = Spans::of(device, &ragged.lengths)?;
            ops::pool_rows(device, x, &spans, self == Self::Mean)
        })?)
    }

    pub(super) fn placed_backward(self, dy: &Placed, ragged: &Ragged) -> Result<Placed> {
        Ok(dy.made(|device, dy| {
            let spans = Spans::of(device, &ragged.lengths)?;
            ops::pool_rows_back(device, dy, &spans, ragged.room, self == Self::Mean)
        })?)
    }
}
