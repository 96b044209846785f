//! What attention reads and writes, and which part of it belongs to a sequence.

use super::relative::PositionComparison;
use crate::compute::attention::heads::{Heads, LayerAttention};
use crate::compute::attention::kv_cache::PagedKvCache;
use crate::compute::attention::relative::RelativePanels;
use crate::compute::kernels::{Kernels, units};
use crate::compute::matrix::StateMatrix;
use crate::compute::parallel::Target;

/// The location of keys and values.
#[derive(Debug, Clone, Copy)]
pub(crate) enum KeyValues<'a> {
    /// Rows that end with the keys of all heads, and then their values.
    Rows(&'a StateMatrix),
    /// A layer of the caches of several sequences.
    Cached { layer: usize, caches: &'a [&'a PagedKvCache] },
}

/// The operands of attention that all heads share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(super) kernels: &'static Kernels,
    /// Rows of queries, keys and values of all heads.
    pub(super) queries: &'a StateMatrix,
    pub(super) keys: KeyValues<'a>,
    pub(super) heads: Heads,
    pub(super) layer: &'a LayerAttention,
    pub(super) relative: Option<&'a RelativePanels>,
    /// A row for each row of queries.
    pub(super) out: &'a Target<'a>,
}

/// The queries of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The first row of its keys, or the index of its cache.
    pub keys: usize,
    /// Its first row of queries.
    pub queries: usize,
    /// Keys before the first query's own: the sequence's earlier tokens.
    pub before: usize,
    /// The number of queries. The keys end with that of the last query.
    pub rows: usize,
    /// Keys at the end to which no query attends.
    pub hidden: usize,
}

impl<'a> Attention<'a> {
    /// Attention of `queries`, rows of queries, keys and values, whose output is a row of `out` for each row.
    ///
    /// # Panics
    ///
    /// If the columns of a matrix are not those of `heads`, or the formats of keys and queries differ.
    pub(crate) fn new(
        kernels: &'static Kernels,
        queries: &'a StateMatrix,
        keys: KeyValues<'a>,
        heads: Heads,
        layer: &'a LayerAttention,
        out: &'a Target<'a>,
    ) -> Self {
        Self::check(queries, layer.input_heads(heads));
        let groups = heads.kv_heads > 0 && heads.heads.is_multiple_of(heads.kv_heads);
        assert!(groups, "heads of an attention");
        let bias = layer.bias.as_ref();
        assert!(bias.is_none_or(|bias| bias.heads() == heads.heads), "heads of a bias by distance");
        if let KeyValues::Rows(rows) = keys {
            let fits =
                rows.columns() >= 2 * heads.kv_heads * heads.width && rows.format() == queries.format();
            assert!(fits, "keys and values of an attention input");
        }
        assert_eq!(out.columns(), heads.heads * heads.width, "columns of an attention output");
        Self { kernels, queries, keys, heads, layer, relative: None, out }
    }

    /// The same with these relative positions, which belong to the same kernels, heads and format.
    ///
    /// # Panics
    ///
    /// If several heads of queries share one of keys, or keys are in a cache.
    pub(crate) fn with_relative(self, relative: Option<&'a RelativePanels>) -> Self {
        let rows = self.heads.kv_heads == self.heads.heads && matches!(self.keys, KeyValues::Rows(_));
        assert!(relative.is_none() || rows, "keys of relative positions");
        Self { relative, ..self }
    }

    pub(super) fn comparison(&self) -> Option<PositionComparison<'a>> {
        let (kernels, format, width) = (self.kernels, self.queries.format(), self.heads.width);
        self.relative.map(|relative| PositionComparison { kernels, format, width, relative })
    }

    /// Checks that the columns of the input are those of `heads`, which may have none of keys.
    ///
    /// # Panics
    ///
    /// If they are not.
    pub(crate) fn check(qkv: &StateMatrix, heads: Heads) {
        let Heads { heads, kv_heads, width } = heads;
        let groups = kv_heads == 0 || heads.is_multiple_of(kv_heads);
        assert!(groups && qkv.columns() == (heads + 2 * kv_heads) * width, "columns of an attention input");
    }

    /// Units of a panel column of `length` values, padded with zeros to a whole step of a sum.
    pub(super) fn value_units(&self, length: usize) -> usize {
        let format = self.queries.format();
        units(format, length).next_multiple_of(self.kernels.depth(format))
    }
}
