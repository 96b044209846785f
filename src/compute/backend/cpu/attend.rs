//! The operations of attention: positions, caches, and the division of its work among threads.

use std::ops::Range;

use super::pass::CpuPass;
use super::states::{GatheredRow, States, misuse};
use crate::Result;
use crate::compute::attention::heads::{Heads, KeySource, LayerAttention};
use crate::compute::attention::kv_cache::PagedKvCache;
use crate::compute::attention::relative::RelativePanels;
use crate::compute::attention::rope::{RopeStyle, RopeTable};
use crate::compute::attention::tiles::{Attention, KeyValues, Span};
use crate::compute::backend::cpu::device::Norm;
use crate::compute::kernels::rowwise::RopeRow;
use crate::compute::matrix::StateMatrix;
use crate::compute::parallel::{Parallelism, Share};
use crate::sync::Mutex;

/// Parts of attention's work for each thread. Small parts keep the wait for the last thread short.
const PARTS: usize = 4;

impl CpuPass<'_> {
    pub(super) fn attend(
        &mut self,
        layer: usize,
        qkv: States,
        heads: Heads,
        attention: &LayerAttention,
        relative: Option<&RelativePanels>,
    ) -> Result<States> {
        let queries = qkv.operand(self.cpu.dtype)?;
        Attention::check(queries, attention.input_heads(heads));
        let mut out = self.workspace.matrix(queries.rows(), heads.heads * heads.width, self.cpu.dtype)?;
        let target = out.target();
        let windowed = self.window.len() < self.batch.tokens();
        let cached = !self.caches.is_empty();
        if !attention.mask.is_causal() && (windowed || cached) {
            return Err(misuse("windows and caches are for causal attention"));
        }
        if relative.is_some() && (windowed || cached) {
            return Err(misuse("relative positions are for whole sequences"));
        }
        if self.hides_rows() && cached {
            return Err(misuse("hidden keys are for whole sequences"));
        }
        if qkv.gathered && !(attention.reuses_keys() && attention.mask.is_causal()) {
            return Err(misuse("gathered rows attend to earlier keys of an earlier layer"));
        }
        let spans = if qkv.gathered { self.gathered_spans() } else { self.spans() };
        let columns = 2 * heads.kv_heads * heads.width;
        match attention.keys {
            KeySource::Layer(_) => {}
            _ if cached => self.append(layer, queries, heads, &spans)?,
            KeySource::Kept => {
                let place = self.kept.iter().position(|(kept, _)| *kept == layer);
                let rows = place.map(|place| self.kept.swap_remove(place).1);
                let rows = self.keep_keys_and_values(rows, queries, columns)?;
                self.kept.push((layer, rows));
            }
            KeySource::Own if windowed => {
                let seen = self.seen.take();
                self.seen = Some(self.keep_keys_and_values(seen, queries, columns)?);
            }
            KeySource::Own => {}
        }
        let caches: Vec<&PagedKvCache> = self.caches.iter().map(|sequence| &*sequence.cache).collect();
        let kept = self.kept.iter().find(|(kept, _)| *kept == layer).map(|(_, rows)| rows);
        let keys = match attention.keys {
            _ if cached => KeyValues::Cached { layer, caches: &caches },
            KeySource::Own => KeyValues::Rows(self.seen.as_ref().filter(|_| windowed).unwrap_or(queries)),
            _ => KeyValues::Rows(kept.ok_or_else(|| misuse("keys of a layer that has none"))?),
        };
        let kernels = self.cpu.kernel_set().kernels;
        let attention = Attention::new(kernels, queries, keys, heads, attention, &target);
        let attention = attention.with_relative(relative);
        // Each part packs its rows, so only keys and values in caches are divided further.
        let items = spans.len() * heads.kv_heads;
        let of = match self.parallelism {
            Parallelism::All(threads) if cached && items > 0 => (PARTS * threads.count()).div_ceil(items),
            _ => 1,
        };
        let (scratch, fault) = (&self.workspace.scratch, Mutex::new(None));
        self.parallelism.split_rows(items * of, |items| {
            let pooled = scratch.lock().pop();
            let mut own = pooled.unwrap_or_default();
            for item in items {
                let (item, part) = (item / of, Share { index: item % of, of });
                let span = spans[item / heads.kv_heads];
                if let Err(error) = attention.group(&mut own, span, item % heads.kv_heads, part) {
                    *fault.lock() = Some(error);
                    break;
                }
            }
            scratch.lock().push(own);
        })?;
        if let Some(error) = fault.into_inner() {
            return Err(error);
        }
        let gathered = qkv.gathered;
        self.discard(qkv);
        Ok(States { gathered, ..self.operand(out) })
    }

    /// Appends the window's keys and values to the caches.
    fn append(&mut self, layer: usize, qkv: &StateMatrix, heads: Heads, spans: &[Span]) -> Result<()> {
        let Heads { heads, kv_heads, width } = heads;
        let (kernels, bytes) = (self.cpu.kernel_set().kernels, width * qkv.format().bytes());
        let mut pages = Vec::new();
        // Spans are in the order of their sequences, of which a window may have some only.
        let mut spans = spans.iter().peekable();
        for (index, sequence) in self.caches.iter_mut().enumerate() {
            let Some(span) = spans.next_if(|span| span.keys == index) else { continue };
            let positions = span.before..span.before + span.rows;
            let heads = sequence.cache.heads_mut(layer, positions)?;
            pages.extend(heads.into_iter().map(|head| Mutex::new((head, span.queries))));
        }
        self.parallelism.worth(qkv.rows() * qkv.columns()).split_rows(pages.len(), |range| {
            for page in &pages[range] {
                let (page, first) = &mut *page.lock();
                let row = *first + page.offset;
                let whole = row + page.len() <= qkv.rows() && page.has_shape(kv_heads, width);
                assert!(
                    whole && qkv.columns() == (heads + 2 * kv_heads) * width,
                    "keys and values of a window"
                );
                // SAFETY: by the assertion above, `qkv` has `page.len()` rows from `row` on, each with the queries of `heads`
                // heads, then the keys and then the values of `kv_heads` heads of `width`, which is also the shape of the
                // cache, so `page.kv_head < kv_heads`. Values follow the keys, so one more element is readable after each key.
                // The cache has the format of the CPU's activations, as `qkv` does.
                unsafe {
                    let keys = qkv.row_ptr(row).add((heads + page.kv_head) * bytes);
                    page.write(kernels, keys, keys.add(kv_heads * bytes), qkv.stride());
                }
            }
        })
    }

    /// Copies the window's keys and values, the last `columns` columns of `qkv`, to rows of the whole batch: those of earlier
    /// windows, if there were some.
    fn keep_keys_and_values(
        &mut self,
        rows: Option<StateMatrix>,
        qkv: &StateMatrix,
        columns: usize,
    ) -> Result<StateMatrix> {
        let mut seen = match rows {
            Some(rows) if rows.columns() == columns => rows,
            rows => {
                if let Some(rows) = rows {
                    self.workspace.give(rows);
                }
                self.workspace.matrix(self.batch.tokens(), columns, qkv.format())?
            }
        };
        let first = self.window.start;
        let (bytes, skipped) =
            (columns * qkv.format().bytes(), (qkv.columns() - columns) * qkv.format().bytes());
        let target = seen.target();
        self.parallelism.worth(qkv.rows() * columns).split_rows(qkv.rows(), |rows| {
            for row in rows {
                // SAFETY: `row < qkv.rows()`, and `skipped + bytes` is the size of its columns. `Target::part` checks the
                // other row, which has the same format. The matrices do not overlap, and each row belongs to one task.
                unsafe {
                    let to = target.part(first + row..first + row + 1, 0..columns);
                    to.copy_from_nonoverlapping(qkv.row_ptr(row).add(skipped), bytes);
                }
            }
        })?;
        Ok(seen)
    }

    /// Whether some rows are hidden from the others of their sequence.
    pub(super) fn hides_rows(&self) -> bool {
        self.batch.hidden.iter().any(|&hidden| hidden > 0)
    }

    /// The part of each sequence in the window. Its keys are in the sequence's cache, or in rows from the start of the
    /// sequence on.
    pub(super) fn spans(&self) -> Vec<Span> {
        let Range { start, end } = self.window;
        let parts = self.batch.ranges().enumerate();
        parts
            .filter(|(_, range)| range.start < end && range.end > start)
            .map(|(index, range)| {
                let first = range.start.max(start);
                let keys = if self.caches.is_empty() { range.start } else { index };
                let before = self.first_position(index) + first - range.start;
                let hidden = self.batch.hidden.get(index).map_or(0, |&hidden| hidden as usize);
                let rows = range.end.min(end) - first;
                // Of those at the end of the sequence, as many as this window or an earlier one has.
                let hidden = hidden.saturating_sub(range.end.saturating_sub(end));
                Span { keys, queries: first - start, before, rows, hidden }
            })
            .collect()
    }

    /// The drafts at the end of a span of the window, which its cache may take back. Where a window divides them, there are none.
    pub(super) fn drafted(&self, span: &Span) -> usize {
        let Some(sequence) = self.caches.get(span.keys) else { return 0 };
        let is_last = self.window.start + span.queries + span.rows == self.batch.range(span.keys).end;
        Some(sequence.logits.saturating_sub(1)).filter(|&drafted| is_last && drafted < span.rows).unwrap_or(0)
    }

    /// The same of the rows that were gathered, each alone.
    fn gathered_spans(&self) -> Vec<Span> {
        let span = |(queries, row): (usize, &GatheredRow)| {
            let (index, place) = (row.sequence, row.place?);
            let range = self.batch.range(index);
            let keys = if self.caches.is_empty() { range.start } else { index };
            let hidden = self.batch.hidden.get(index).map_or(0, |&hidden| hidden as usize);
            let before = self.first_position(index) + place - range.start;
            let hidden = hidden.saturating_sub(range.end - place - 1);
            Some(Span { keys, queries, before, rows: 1, hidden })
        };
        self.gathered.iter().enumerate().filter_map(span).collect()
    }

    /// The place in the batch of row `row` of a window, or of the rows that were gathered, if it has one.
    pub(super) fn place_of(&self, row: usize, gathered: bool) -> Option<usize> {
        if gathered { self.gathered[row].place } else { Some(self.window.start + row) }
    }

    pub(super) fn apply_rope(
        &mut self,
        mut qkv: States,
        heads: Heads,
        norms: Option<&(Norm, Norm)>,
        table: &RopeTable<'_>,
    ) -> Result<States> {
        Attention::check(qkv.operand(self.cpu.dtype)?, heads);
        let shifts = norms.map(|(queries, keys)| (queries.shift.as_deref(), keys.shift.as_deref()));
        let shifts = match shifts {
            None | Some((None, None)) => None,
            Some((Some(queries), Some(keys))) => Some((queries, keys)),
            Some(_) => return Err(misuse("queries and keys are normalized in the same way")),
        };
        let gathered = qkv.gathered;
        let matrix = qkv.operand_mut(self.cpu.dtype)?;
        let (format, kernels) = (matrix.format(), self.cpu.kernel_set().kernels);
        let norms = norms.map(|(queries, keys)| (&queries.scale[..], &keys.scale[..], queries.epsilon));
        let (count, values) = (matrix.rows(), matrix.rows() * matrix.columns());
        let target = matrix.target();
        self.parallelism.worth(values).split_rows(count, |rows| {
            for row in rows {
                let Some(place) = self.place_of(row, gathered) else { continue };
                let rope = RopeRow {
                    row: target.part(row..row + 1, 0..1),
                    format,
                    heads: heads.heads + heads.kv_heads,
                    queries: heads.heads,
                    width: heads.width,
                    norms,
                    shifts,
                    angles: table.at(place),
                    query_factor: table.query_factor(place),
                    interleaved: table.rotary.style == RopeStyle::Interleaved,
                };
                // SAFETY: `Attention::check` asserted that a row has the queries and keys of these heads in `format`. `part`
                // returns its start, which is aligned, and each row belongs to one task.
                unsafe { kernels.apply_rope(&rope) };
            }
        })?;
        Ok(qkv)
    }
}
