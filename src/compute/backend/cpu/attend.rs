//! The operations of attention: positions, caches, and the division of its work among threads.

use std::ops::Range;

use super::pass::{CpuPass, States, misuse};
use crate::Result;
use crate::compute::attention::heads::Heads;
use crate::compute::attention::kv_cache::PagedKvCache;
use crate::compute::attention::rope::{RopeStyle, RopeTable};
use crate::compute::attention::tiles::{Attention, KeyValues, Share, Span};
use crate::compute::backend::cpu::device::Norm;
use crate::compute::kernels::rowwise::RopeRow;
use crate::compute::matrix::StateMatrix;
use crate::compute::parallel::Parallelism;
use crate::sync::Mutex;

/// Parts of attention's work for each thread, so that the last one to end is not waited for long.
const PARTS: usize = 4;

impl CpuPass<'_> {
    pub(super) fn attend(&mut self, layer: usize, qkv: States, heads: Heads) -> Result<States> {
        let queries = qkv.operand(self.cpu.dtype)?;
        Attention::check(queries, heads);
        let mut out = self.workspace.matrix(queries.rows(), heads.heads * heads.width, self.cpu.dtype)?;
        let target = out.target();
        let windowed = self.window.len() < self.batch.tokens();
        let cached = !self.caches.is_empty();
        if !heads.causal && (windowed || cached) {
            return Err(misuse("windows and caches are for causal attention"));
        }
        if cached {
            self.append(layer, queries, heads)?;
        } else if windowed {
            self.remember(queries, 2 * heads.kv_heads * heads.width)?;
        }
        let spans = self.spans();
        let caches: Vec<&PagedKvCache> = self.caches.iter().map(|sequence| &*sequence.cache).collect();
        let keys = if cached {
            KeyValues::Cached { layer, caches: &caches }
        } else {
            KeyValues::Rows(self.seen.as_ref().filter(|_| windowed).unwrap_or(queries))
        };
        let kernels = self.cpu.machine().kernels;
        let attention = Attention { kernels, queries, keys, heads, out: &target };
        // Rows are packed by each part: only what lies in caches is divided further.
        let items = spans.len() * heads.kv_heads;
        let of = match self.team {
            Parallelism::All(threads) if cached && items > 0 => (PARTS * threads.count()).div_ceil(items),
            _ => 1,
        };
        let (scratch, fault) = (&self.workspace.scratch, Mutex::new(None));
        self.team.split_rows(items * of, |items| {
            let taken = scratch.lock().pop();
            let mut mine = taken.unwrap_or_default();
            for item in items {
                let (item, part) = (item / of, Share { index: item % of, of });
                let span = spans[item / heads.kv_heads];
                if let Err(error) = attention.group(&mut mine, span, item % heads.kv_heads, part) {
                    *fault.lock() = Some(error);
                    break;
                }
            }
            scratch.lock().push(mine);
        })?;
        if let Some(error) = fault.into_inner() {
            return Err(error);
        }
        self.discard(qkv);
        Ok(self.operand(out))
    }

    /// Appends the window's keys and values to the caches.
    fn append(&mut self, layer: usize, qkv: &StateMatrix, heads: Heads) -> Result<()> {
        let Heads { heads, kv_heads, width, .. } = heads;
        let spans = self.spans();
        let (kernels, bytes) = (self.cpu.machine().kernels, width * qkv.format().bytes());
        let mut pages = Vec::new();
        let sequences = self.caches.iter_mut().enumerate();
        for (sequence, span) in sequences.filter_map(|(index, sequence)| {
            spans.iter().find(|span| span.keys == index).map(|span| (sequence, span))
        }) {
            let positions = span.before..span.before + span.rows;
            let heads = sequence.cache.heads_mut(layer, positions)?;
            pages.extend(heads.into_iter().map(|head| Mutex::new((head, span.queries))));
        }
        self.team.worth(qkv.rows() * qkv.columns()).split_rows(pages.len(), |range| {
            for page in &pages[range] {
                let (page, first) = &mut *page.lock();
                let row = *first + page.offset;
                let whole = row + page.len() <= qkv.rows();
                assert!(
                    whole && qkv.columns() == (heads + 2 * kv_heads) * width,
                    "keys and values of a window"
                );
                // SAFETY: so many rows, each with queries, then keys, then values; a value follows the last key.
                unsafe {
                    let keys = qkv.row_ptr(row).add((heads + page.kv_head) * bytes);
                    page.write(kernels, keys, keys.add(kv_heads * bytes), qkv.stride());
                }
            }
        })
    }

    /// Remembers the window's keys and values, the last `columns` columns of `qkv`, for the windows after it.
    fn remember(&mut self, qkv: &StateMatrix, columns: usize) -> Result<()> {
        if self.seen.is_none() {
            self.seen = Some(self.workspace.matrix(self.batch.tokens(), columns, qkv.format())?);
        }
        let first = self.window.start;
        let Some(seen) = &mut self.seen else { return Ok(()) };
        let (bytes, skipped) =
            (columns * qkv.format().bytes(), (qkv.columns() - columns) * qkv.format().bytes());
        let target = seen.target();
        self.team.worth(qkv.rows() * columns).split_rows(qkv.rows(), |rows| {
            for row in rows {
                // SAFETY: the columns end both rows, and each task has rows of its own.
                unsafe {
                    let to = target.part(first + row..first + row + 1, 0..columns);
                    to.copy_from_nonoverlapping(qkv.row_ptr(row).add(skipped), bytes);
                }
            }
        })
    }

    /// The part of each sequence that lies in the window. Keys are in the sequence's cache; or counted from the start of
    /// the batch where those of several windows lie together, else with the queries.
    fn spans(&self) -> Vec<Span> {
        let Range { start, end } = self.window;
        let parts = self.batch.ranges().enumerate();
        parts
            .filter(|(_, range)| range.start < end && range.end > start)
            .map(|(index, range)| {
                let first = range.start.max(start);
                let keys = if self.caches.is_empty() { range.start } else { index };
                let before = self.first_position(index) + first - range.start;
                Span { keys, queries: first - start, before, rows: range.end.min(end) - first }
            })
            .collect()
    }

    pub(super) fn apply_rope(
        &mut self,
        mut qkv: States,
        heads: Heads,
        norms: Option<&(Norm, Norm)>,
        table: &RopeTable<'_>,
    ) -> Result<States> {
        Attention::check(qkv.operand(self.cpu.dtype)?, heads);
        if norms.is_some_and(|(queries, keys)| queries.shift.is_some() || keys.shift.is_some()) {
            return Err(misuse("heads are normalised by their root mean square"));
        }
        let matrix = qkv.wide.as_mut().or(qkv.narrow.as_mut()).ok_or_else(|| misuse("no states"))?;
        let (format, kernels, start) = (matrix.format(), self.cpu.machine().kernels, self.window.start);
        let norms = norms.map(|(queries, keys)| (&queries.scale[..], &keys.scale[..], queries.epsilon));
        let values = matrix.rows() * matrix.columns();
        let target = matrix.target();
        self.team.worth(values).split_rows(self.window.len(), |rows| {
            for row in rows {
                let rope = RopeRow {
                    row: target.part(row..row + 1, 0..1),
                    format,
                    heads: heads.heads + heads.kv_heads,
                    queries: heads.heads,
                    width: heads.width,
                    norms,
                    angles: table.at(start + row),
                    interleaved: table.rotary.style == RopeStyle::Interleaved,
                };
                // SAFETY: the row begins with these heads, and each task has rows of its own.
                unsafe { kernels.apply_rope(&rope) };
            }
        })?;
        Ok(qkv)
    }
}
