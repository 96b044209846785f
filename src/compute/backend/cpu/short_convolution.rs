//! The convolution of gated rows: what it sees of earlier windows and of caches, and its division among threads.

use super::pass::CpuPass;
use super::states::{States, misuse};
use crate::Result;
use crate::compute::attention::tiles::Span;
use crate::compute::short_convolution::{GatedRows, ShortConvolution};

impl CpuPass<'_> {
    pub(super) fn convolve_rows(
        &mut self,
        layer: usize,
        x: States,
        convolution: &ShortConvolution,
    ) -> Result<States> {
        let (columns, before) = (convolution.columns(), convolution.before());
        let rows = x.operand(self.cpu.dtype)?.rows();
        if x.operand(self.cpu.dtype)?.columns() != 3 * columns {
            return Err(misuse("rows of a convolution have three parts"));
        }
        let windowed = self.window.len() < self.batch.tokens();
        if !convolution.is_causal() && (windowed || !self.caches.is_empty()) {
            return Err(misuse("windows and caches are for causal convolutions"));
        }
        if self.hides_rows() && !self.caches.is_empty() {
            return Err(misuse("hidden rows are for whole sequences"));
        }
        let spans = self.spans();
        let earlier = self.earlier_rows(layer, &spans, before * columns)?;
        let mut out = self.workspace.matrix(rows, columns, self.cpu.dtype)?;
        let matrix = x.operand(self.cpu.dtype)?;
        let of_span = |index: usize| {
            let span = spans[index];
            let earlier = &earlier[index * before * columns..(index + 1) * before * columns];
            let count = span.rows.saturating_sub(span.hidden);
            GatedRows { earlier, x: matrix, first: span.queries, count, columns }
        };
        let target = out.target();
        self.parallelism.worth(rows * columns).split_rows(rows, |rows| {
            let mut index = 0;
            for row in rows {
                // Spans are in the order of their rows; some have none.
                while spans[index].queries + spans[index].rows <= row {
                    index += 1;
                }
                // SAFETY: each row belongs to one task.
                unsafe { convolution.write(&of_span(index), row - spans[index].queries, &target, row) };
            }
        })?;
        for (index, span) in spans.iter().enumerate() {
            let (rows, drafted) = (of_span(index), self.drafted(span));
            if let Some(sequence) = self.caches.get_mut(span.keys) {
                sequence.cache.keep_rows(layer, span.before..span.before + span.rows, drafted, &rows)?;
            } else if windowed && index + 1 == spans.len() {
                self.crossing.resize(before * columns, 0.0);
                rows.read_before(span.rows, &mut self.crossing);
            }
        }
        self.workspace.earlier = earlier;
        self.discard(x);
        Ok(self.operand(out))
    }

    /// The gated rows before those of each span, `size` numbers each.
    fn earlier_rows(&mut self, layer: usize, spans: &[Span], size: usize) -> Result<Vec<f32>> {
        let mut earlier = std::mem::take(&mut self.workspace.earlier);
        earlier.clear();
        earlier.resize(spans.len() * size, 0.0);
        for (span, rows) in spans.iter().zip(earlier.chunks_exact_mut(size.max(1))) {
            match self.caches.get(span.keys) {
                _ if span.before == 0 => {}
                Some(sequence) => rows.copy_from_slice(sequence.cache.rows_before(layer, span.before)?),
                None if self.crossing.len() == size => rows.copy_from_slice(&self.crossing),
                None => return Err(misuse("a window follows one of another layer")),
            }
        }
        Ok(earlier)
    }
}
