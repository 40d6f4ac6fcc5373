//! Rows of tables, by id.

use crate::gpu::{
    Array, Device, Fault,
    launch::{each, launch, small},
};

/// Which rows a table's gradient gathers, sorted on the host, where ids come from.
pub struct Groups {
    ids: Array<u32>,
    order: Array<u32>,
    starts: Array<u32>,
    table: usize,
}

impl Groups {
    /// Of the id of each row, all below `table`.
    ///
    /// # Errors
    /// An id that the table does not have, or a full memory.
    pub fn of(device: &Device, ids: &[u32], table: usize) -> Result<Self, Fault> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= table) {
            return Err(Fault::shape(format!("row {id} of a table of {table}")));
        }
        let mut order: Vec<u32> = (0..small(ids.len())?).collect();
        // Rows of one id stay in their order: it is that of their sum.
        order.sort_by_key(|row| ids[*row as usize]);
        let starts = (0..order.len()).filter(|k| *k == 0 || ids[order[*k] as usize] != ids[order[*k - 1] as usize]);
        let mut starts = starts.map(small).collect::<Result<Vec<_>, _>>()?;
        starts.push(small(ids.len())?);
        let up = |values: &[u32]| device.upload(values, &[values.len()]);
        Ok(Self { ids: up(ids)?, order: up(&order)?, starts: up(&starts)?, table })
    }
}

/// `word[id]` of each row, plus the first row of `kind`, plus `position[place]`, where they are given.
///
/// The host has checked the ids and places, as `nn::Embedding` does; here a row that a table does not have is NaN.
///
/// # Errors
/// Tables of other widths, a full memory, or a GPU that has failed.
pub fn embed(
    device: &Device,
    word: &Array,
    ids: &Array<u32>,
    kind: Option<&Array>,
    position: Option<(&Array, &Array<u32>)>,
) -> Result<Array, Fault> {
    let (c, rows) = (word.width(), ids.count());
    let other = kind.into_iter().chain(position.map(|p| p.0)).find(|table| table.width() != c);
    if let Some(table) = other {
        return Err(Fault::shape(format!("tables of {:?} and {:?}", word.shape(), table.shape())));
    }
    if let Some((_, places)) = position {
        places.expect_count(rows)?;
    }
    let parts = i32::from(kind.is_some()) + 2 * i32::from(position.is_some());
    // What is not there is not read.
    let (position, places) = position.unwrap_or((word, ids));
    let kind = kind.unwrap_or(word);
    let mut y = device.fresh::<f32>(&[rows, c])?;
    let n = y.count();
    launch!(
        device,
        Embedding,
        "embed",
        each(n),
        &mut y.data,
        &word.data,
        &kind.data,
        &position.data,
        &ids.data,
        &places.data,
        &(n as u64),
        &small(c)?,
        &small(word.rows())?,
        &small(position.rows())?,
        &parts
    );
    Ok(y)
}

/// Adds each row of `dy` to that of its id.
///
/// # Errors
/// Other shapes.
pub fn embed_back(device: &Device, dy: &Array, groups: &Groups, table: &mut Array) -> Result<(), Fault> {
    let (c, count) = (dy.width(), groups.starts.count() - 1);
    groups.ids.expect_count(dy.rows())?;
    if table.width() != c || table.rows() < groups.table {
        return Err(Fault::shape(format!("rows of {:?} for a table of {:?}", dy.shape(), table.shape())));
    }
    launch!(
        device,
        Embedding,
        "embed_back",
        each(count * c),
        &mut table.data,
        &dy.data,
        &groups.ids.data,
        &groups.order.data,
        &groups.starts.data,
        &small(count)?,
        &small(c)?
    );
    Ok(())
}
