//! Maps of two networks that are compared place by place: `[n, h, w, c]`, or `[n, c]`, which has one place.

use candle_core::Tensor;

use super::super::Tap;
use crate::{Error, Result};

/// Rows, columns and channels of one sample.
pub(super) fn sides(shape: &[usize]) -> [usize; 3] {
    match *shape {
        [h, w, c] => [h, w, c],
        [c] => [1, 1, c],
        _ => [0; 3],
    }
}

/// How many times larger the one is than the other, along both sides.
fn factor(large: [usize; 3], small: [usize; 3]) -> Option<usize> {
    let f = large[0].checked_div(small[0])?;
    (f > 0 && large[0] == f * small[0] && large[1] == f * small[1]).then_some(f)
}

/// Refuses pairs of units whose maps cannot be laid on each other, and those that have but one place if `places` count.
///
/// # Errors
/// Names the units.
pub(super) fn check(taps: &[Tap], places: bool) -> Result<()> {
    for Tap { names: [own, theirs], shapes } in taps {
        let [a, b] = [sides(&shapes[0]), sides(&shapes[1])];
        let [said, other] = [a, b].map(|[h, w, _]| format!("{h}x{w}"));
        if factor(a, b).or(factor(b, a)).is_none() {
            return Err(Error::user(
                format!("the maps of `{own}` and of the teacher's `{theirs}` cannot be compared: {said} and {other}"),
                "name units of the same size in `objective.taps`, or such that one's are a whole number of times larger",
            ));
        }
        let one = |[h, w, _]: [usize; 3]| h * w == 1;
        if places && (one(a) || one(b)) {
            let unit = if one(a) { format!("`{own}`") } else { format!("the teacher's `{theirs}`") };
            return Err(Error::user(
                format!("what comes out of {unit} is one place: it has no map of attention"),
                "name units in front of the pooling in `objective.taps`",
            ));
        }
    }
    Ok(())
}

/// `[n, h, w, c]` of whatever has places.
pub(super) fn mapped(t: &Tensor) -> Result<Tensor> {
    let dims = t.dims().to_vec();
    let [h, w, c] = sides(&dims[1..]);
    Ok(t.reshape((dims[0], h, w, c))?)
}

/// Both at the size of the smaller one: the other's are averaged over squares.
pub(super) fn fitted(own: &Tensor, theirs: &Tensor) -> Result<(Tensor, Tensor)> {
    let [a, b] = [sides(&own.dims()[1..]), sides(&theirs.dims()[1..])];
    match (factor(a, b), factor(b, a)) {
        (Some(1), _) => Ok((own.clone(), theirs.clone())),
        (Some(f), _) => Ok((pooled(own, f)?, theirs.clone())),
        (None, Some(f)) => Ok((own.clone(), pooled(theirs, f)?)),
        (None, None) => Err(Error::Internal("maps that cannot be compared".into())),
    }
}

fn pooled(t: &Tensor, f: usize) -> Result<Tensor> {
    let (n, h, w, c) = t.dims4()?;
    Ok(t.contiguous()?.reshape(vec![n, h / f, f, w / f, f, c])?.mean(4)?.mean(2)?)
}
