//! Disentangled attention: parts of a score that compare the query and the key with their relative position.
//!
//! He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", 2020. To the product of a query and a key,
//! attention adds that of the query with a row for their distance (content to position), and that of the key with another
//! row for it (position to content). Both rows come from one table of relative positions, by linear layers of their own.

use std::sync::Arc;

use super::heads::Heads;
use crate::compute::isa::{DType, Isa};
use crate::compute::kernels::{Kernels, units};
use crate::compute::linear::layer::Biased;
use crate::compute::memory::{Buffer, zeroed};
use crate::compute::narrow::to_bf16;
use crate::compute::pooling::Rows;
use crate::compute::projection::Projection;
use crate::{Error, Result};

/// The row of a table of relative positions that each distance has.
#[derive(Debug)]
pub struct DistanceRows {
    /// Of the distances `query - key` from `longest - 1` down to `1 - longest`; so they never increase.
    rows: Vec<u32>,
    longest: usize,
    count: usize,
}

impl DistanceRows {
    /// The rows `row(query - key)` of a table of `count` rows, for texts of up to `longest` tokens.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Internal`] if there is no such row, or a longer distance has an earlier one.
    pub fn new(longest: usize, count: usize, row: impl Fn(i64) -> usize) -> Result<Self> {
        let longest = longest.max(1);
        let mut rows: Vec<u32> = zeroed(2 * longest - 1)?;
        for (to, distance) in rows.iter_mut().zip((1 - longest as i64..=longest as i64 - 1).rev()) {
            *to = u32::try_from(row(distance)).unwrap_or(u32::MAX);
        }
        if rows[0] as usize >= count || !rows.is_sorted_by(|a, b| a >= b) {
            let reason = "the rows of distances are not those of a table, in its order";
            return Err(Error::internal("relative positions", reason));
        }
        Ok(Self { rows, longest, count })
    }

    /// Rows of the table.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The rows of a query and `count` keys from `key` on.
    ///
    /// # Panics
    /// If a position is not one of a text of `longest` tokens.
    pub(crate) fn of_query(&self, query: usize, key: usize, count: usize) -> &[u32] {
        assert!(query < self.longest && key + count <= self.longest, "positions of a text");
        &self.rows[key + self.longest - 1 - query..][..count]
    }

    /// The rows of a key and `count` queries, the last of them first; `query` is the first one.
    ///
    /// # Panics
    /// As [`of_query`](Self::of_query).
    pub(crate) fn of_key(&self, key: usize, query: usize, count: usize) -> &[u32] {
        assert!(key < self.longest && query + count <= self.longest, "positions of a text");
        &self.rows[key + self.longest - query - count..][..count]
    }
}

/// The table of relative positions that all layers of a model share.
#[derive(Debug)]
pub struct RelativeTable {
    /// The row of each distance.
    pub rows: Arc<DistanceRows>,
    /// Its rows, one after another.
    pub values: Vec<f32>,
}

/// What one layer makes of the table.
#[derive(Debug, Default)]
pub struct RelativeLayers {
    /// Makes the rows that queries are multiplied by, of all heads side by side.
    pub content_to_position: Option<Biased>,
    /// Makes those that keys are multiplied by.
    pub position_to_content: Option<Biased>,
}

impl RelativeTable {
    /// What `layer` makes of it, in f32: a row of all heads for each row.
    ///
    /// # Errors
    /// Errors of reading its file; [`Error::OutOfMemory`].
    pub(crate) fn made(&self, isa: Isa, (matrix, bias): &Biased) -> Result<Vec<f32>> {
        let inputs = matrix.columns();
        let bias = bias.as_ref().map(|bias| bias.to_f32()).transpose()?;
        let layer = Projection::new(isa, &matrix.to_f32()?, bias.as_deref(), inputs)?;
        layer.apply(Rows::new(&self.values, inputs, inputs))
    }
}

/// The relative positions of one layer, packed for the kernels of the CPU.
#[derive(Debug)]
pub struct RelativePanels {
    pub(super) rows: Arc<DistanceRows>,
    pub(super) content_to_position: Option<HeadPanels>,
    pub(super) position_to_content: Option<HeadPanels>,
}

impl RelativePanels {
    /// Packs what `layers` make of `table` for `kernels` and activations in `format`.
    ///
    /// # Errors
    /// Errors of reading files; [`Error::OutOfMemory`].
    pub(crate) fn new(
        kernels: &Kernels,
        format: DType,
        heads: Heads,
        table: &RelativeTable,
        layers: &RelativeLayers,
    ) -> Result<Self> {
        let pack = |layer: &Option<Biased>| {
            let made = |layer| {
                let values = table.made(kernels.isa(), layer)?;
                HeadPanels::pack(kernels, format, heads, &values)
            };
            layer.as_ref().map(made).transpose()
        };
        Ok(Self {
            content_to_position: pack(&layers.content_to_position)?,
            position_to_content: pack(&layers.position_to_content)?,
            rows: Arc::clone(&table.rows),
        })
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> u64 {
        let parts = [&self.content_to_position, &self.position_to_content];
        parts.into_iter().flatten().map(|panels| panels.data.len() as u64).sum()
    }
}

/// For each head, a matrix whose rows are the columns of panels.
#[derive(Debug)]
pub(super) struct HeadPanels {
    data: Buffer,
    /// Units of the panels of one head.
    each: usize,
    /// Units of one panel.
    panel: usize,
}

impl HeadPanels {
    /// `values` has a row of all heads for each row of the matrices.
    fn pack(kernels: &Kernels, format: DType, heads: Heads, values: &[f32]) -> Result<Self> {
        let Heads { heads, width, .. } = heads;
        let (columns, panel) = (heads * width, units(format, width) * kernels.width);
        assert!(columns > 0 && values.len().is_multiple_of(columns), "rows of relative positions");
        let rows = values.len() / columns;
        let each = rows.div_ceil(kernels.width) * panel;
        let mut data = Buffer::zeroed(4 * heads * each)?;
        // One more element, for heads of an odd width.
        let mut narrow: Vec<u16> = Vec::new();
        let start: *const u8 = match format {
            DType::F32 => values.as_ptr().cast(),
            DType::Bf16 => {
                narrow = zeroed(values.len() + 1)?;
                to_bf16(values, &mut narrow);
                narrow.as_ptr().cast()
            }
        };
        for (head, panels) in data.as_mut_slice::<u32>().chunks_exact_mut(each.max(1)).enumerate() {
            for (index, to) in panels.chunks_exact_mut(panel).enumerate() {
                let first = index * kernels.width;
                let count = kernels.width.min(rows - first);
                // SAFETY: the values, which outlive this loop, are `rows` rows of `columns` elements in `format`, and in bf16
                // one more. `first + count <= rows`, and a head has `width` columns from `head * width` on.
                unsafe {
                    let from = start.add((first * columns + head * width) * format.bytes());
                    kernels.pack_columns(format, from, columns * format.bytes(), count, width, to);
                }
            }
        }
        drop(narrow);
        Ok(Self { data, each, panel })
    }

    /// Some panels of a head.
    ///
    /// # Panics
    /// If it has fewer.
    pub(super) fn panels(&self, head: usize, first: usize, count: usize) -> &[f32] {
        &self.data.as_slice()[head * self.each..][..self.each][first * self.panel..][..count * self.panel]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_queries_and_keys_are_those_of_their_distances() {
        let rows = DistanceRows::new(6, 7, |distance| (distance.clamp(-3, 3) + 3) as usize).unwrap();
        let of = |query: usize, key: usize| ((query as i64 - key as i64).clamp(-3, 3) + 3) as u32;
        for (first, count) in [(0, 6), (0, 1), (2, 3), (5, 1), (3, 0)] {
            for other in 0..6 {
                let keys: Vec<u32> = (first..first + count).map(|key| of(other, key)).collect();
                assert_eq!(rows.of_query(other, first, count), keys);
                let queries: Vec<u32> = (first..first + count).rev().map(|query| of(query, other)).collect();
                assert_eq!(rows.of_key(other, first, count), queries);
            }
        }
    }

    #[test]
    fn rows_outside_the_table_or_its_order_are_refused() {
        for row in [|distance: i64| (distance + 9) as usize, |distance: i64| (9 - distance) as usize] {
            let error = DistanceRows::new(5, 12, row).unwrap_err();
            assert!(matches!(error, Error::Internal { .. }), "{error}");
        }
    }
}
