//! The gated delta rule on rows: what it knows of earlier windows and of caches, and its division among threads. And gates.

use std::ops::Range;

use super::pass::CpuPass;
use super::sequence_convolution::store;
use super::states::{States, misuse};
use crate::Result;
use crate::compute::attention::tiles::Span;
use crate::compute::delta_rule::{
    DeltaHeads, DeltaLayer, DeltaRows, DeltaRule, SpanState, StateBlock, StateDrafts,
};
use crate::compute::isa::DType;
use crate::compute::kernels::Kernels;
use crate::compute::kernels::delta::DeltaStep;
use crate::compute::matrix::StateMatrix;
use crate::compute::parallel::{Parallelism, Target};

/// Numbers that are read at a time.
const PART: usize = 256;

/// What the steps of a delta rule read, for each row.
struct StepRows<'a> {
    kernels: &'a Kernels,
    heads: DeltaHeads,
    /// Queries, keys and values.
    qkv: &'a StateMatrix,
    /// Of each head of values, the part of its state that is kept, and that of its value that is stored.
    parts: &'a StateMatrix,
    /// The outputs of all heads.
    out: &'a Target<'a>,
}

impl CpuPass<'_> {
    pub(super) fn apply_delta_rule(&mut self, layer: usize, x: States, rule: &DeltaRule) -> Result<States> {
        let (heads, columns, format) = (rule.heads, rule.heads.columns(), self.cpu.dtype);
        let (rows, kernels) = (x.operand(format)?.rows(), self.cpu.kernel_set().kernels);
        if x.operand(format)?.columns() != heads.inputs() {
            return Err(misuse(
                "a row of a delta rule has queries, keys, values, gates and two numbers a head",
            ));
        }
        let (cached, spans) = (!self.caches.is_empty(), self.spans());
        if cached && self.hides_rows() {
            return Err(misuse("hidden rows are for whole sequences"));
        }
        let windowed = !cached && self.window.len() < self.batch.tokens();
        let mut layers = Vec::new();
        let drafted: Vec<usize> = spans.iter().map(|span| self.drafted(span)).collect();
        let mut with_cache = spans.iter().zip(drafted).peekable();
        for (index, sequence) in self.caches.iter_mut().enumerate() {
            if let Some((span, drafted)) = with_cache.next_if(|(span, _)| span.keys == index) {
                let positions = span.before..span.before + span.rows;
                layers.push(sequence.cache.delta_layer(layer, positions, drafted, sequence.prompt)?);
            }
        }
        let before = rule.convolution.before();
        let mut earlier = std::mem::take(&mut self.workspace.earlier);
        earlier.clear();
        earlier.resize(spans.len() * before * columns, 0.0);
        for index in (0..spans.len()).filter(|&index| spans[index].before > 0) {
            let from = layers.get(index).map_or(&self.crossing[..], |own| &*own.rows);
            let to = &mut earlier[index * before * columns..(index + 1) * before * columns];
            if from.len() != to.len() {
                return Err(misuse("a window follows one of another layer"));
            }
            to.copy_from_slice(from);
        }
        let matrix = x.operand(format)?;
        let of_span = |index: usize| DeltaRows {
            earlier: &earlier[index * before * columns..(index + 1) * before * columns],
            x: matrix,
            first: spans[index].queries,
            count: spans[index].rows.saturating_sub(spans[index].hidden),
            columns,
        };
        let mut qkv = self.workspace.matrix(rows, columns, DType::F32)?;
        let mut parts = self.workspace.matrix(rows, 2 * heads.values, DType::F32)?;
        let mut out = self.workspace.matrix(rows, heads.all_values(), DType::F32)?;
        prepare(self.parallelism, kernels, rule, (&spans, &of_span), &qkv.target(), &parts.target())?;
        if let Some(last) = spans.len().checked_sub(1).filter(|_| windowed) {
            self.crossing.resize(before * columns, 0.0);
            of_span(last).read_before(spans[last].rows, &mut self.crossing);
        }
        let numbers = heads.padded_head();
        let (first_states, last_states) = (&mut self.crossing_states.before, &mut self.crossing_states.after);
        if windowed {
            first_states.resize(heads.values * numbers, 0.0);
            last_states.resize(heads.values * numbers, 0.0);
        }
        let mut last_states = windowed.then(|| Target::over(last_states, numbers));
        let mut layers = layers.into_iter();
        let mut states = Vec::with_capacity(spans.len());
        for (index, span) in spans.iter().enumerate() {
            let (rows, last) = (of_span(index), index + 1 == spans.len());
            states.push(match layers.next() {
                Some(DeltaLayer { rows: own, heads, window, drafts, points }) => {
                    rows.read_before(span.rows, own);
                    if drafts.drafted > 0 {
                        rows.read_before(span.rows - drafts.drafted, window);
                    }
                    let points = points.into_iter().map(|(position, own, heads)| {
                        rows.read_before(position - span.before, own);
                        (position, Target::over(heads, numbers))
                    });
                    SpanState {
                        before: None,
                        states: Some(Target::over(heads, numbers)),
                        points: points.collect(),
                        drafts,
                    }
                }
                None => SpanState {
                    before: (span.before > 0).then_some(&**first_states),
                    states: if last { last_states.take() } else { None },
                    points: Vec::new(),
                    drafts: StateDrafts::default(),
                },
            });
        }
        let target = out.target();
        let steps = StepRows { kernels, heads, qkv: &qkv, parts: &parts, out: &target };
        let blocks = rule.blocks();
        let work = rows * heads.all_values() * heads.key_width;
        self.parallelism.worth(work).split_rows(spans.len() * heads.values * blocks, |items| {
            let mut own = Vec::new();
            for item in items {
                let (span, head) = (item / (heads.values * blocks), item / blocks % heads.values);
                let block = StateBlock::new(&heads, item % blocks);
                // SAFETY: each block of a head of a span is one item, and each item belongs to one task.
                unsafe { steps.run(&spans[span], &states[span], (head, block), cached, &mut own) };
            }
        })?;
        for (span, StateDrafts { steps, drafted, .. }) in
            spans.iter().zip(states.into_iter().map(|of| of.drafts))
        {
            let first = span.queries + span.rows - drafted;
            for (row, step) in steps.chunks_exact_mut(heads.step()).take(drafted).enumerate() {
                let (numbers, own_parts) = step.split_at_mut(columns);
                qkv.read(first + row, 0..columns, numbers);
                parts.read(first + row, 0..own_parts.len(), own_parts);
            }
        }
        if windowed {
            std::mem::swap(&mut self.crossing_states.before, &mut self.crossing_states.after);
        }
        self.workspace.earlier = earlier;
        self.workspace.give(qkv);
        self.workspace.give(parts);
        let result = self.finish_rows(&x, rule, out)?;
        self.discard(x);
        Ok(self.operand(result))
    }

    /// The outputs of all heads, normalized and gated, in the format of products.
    fn finish_rows(&mut self, x: &States, rule: &DeltaRule, mut out: StateMatrix) -> Result<StateMatrix> {
        let (format, kernels) = (self.cpu.dtype, self.cpu.kernel_set().kernels);
        let (matrix, rows, columns) = (x.operand(format)?, out.rows(), out.columns());
        let mut gated = match format {
            DType::F32 => None,
            DType::Bf16 => Some(self.workspace.matrix(rows, columns, format)?),
        };
        let (target, narrow) = (out.target(), gated.as_mut().map(StateMatrix::target));
        let first = rule.heads.columns();
        self.parallelism.worth(rows * columns).split_rows(rows, |rows| {
            let mut gates = vec![0.0; columns];
            for row in rows {
                matrix.read(row, first..first + columns, &mut gates);
                // SAFETY: each row of `target` and of `narrow` belongs to one task.
                unsafe {
                    let values = target.row_f32(row);
                    rule.finish(kernels, values, &gates);
                    if let Some(narrow) = &narrow {
                        store(narrow, row, 0, values);
                    }
                }
            }
        })?;
        Ok(match gated {
            Some(gated) => {
                self.workspace.give(out);
                gated
            }
            None => out,
        })
    }

    pub(super) fn gate_rows(&mut self, x: States, gates: States) -> Result<States> {
        let (format, kernels) = (self.cpu.dtype, self.cpu.kernel_set().kernels);
        let (from, by) = (x.operand(format)?, gates.operand(format)?);
        let (rows, columns, count) = (from.rows(), from.columns(), by.columns());
        if by.rows() != rows || count == 0 || !columns.is_multiple_of(count) {
            return Err(misuse("a gate for each number, or for each of equal parts"));
        }
        // Numbers with the same gate.
        let part = columns / count;
        let mut out = self.workspace.matrix(rows, columns, format)?;
        let target = out.target();
        self.parallelism.worth(rows * columns).split_rows(rows, |rows| {
            let mut both = [0.0; 2 * PART];
            for (row, first) in rows.flat_map(|row| (0..columns).step_by(PART).map(move |first| (row, first)))
            {
                let place = first..columns.min(first + PART);
                let (values, factors) = both.split_at_mut(PART);
                let (values, factors) = (&mut values[..place.len()], &mut factors[..place.len()]);
                from.read(row, place.clone(), values);
                if part == 1 {
                    by.read(row, place, factors);
                } else {
                    spread(by, row, place, part, factors);
                }
                kernels.multiply_sigmoid(values, factors);
                // SAFETY: each row belongs to one task.
                unsafe { store(&target, row, first, values) };
            }
        })?;
        self.discard(x);
        self.discard(gates);
        Ok(self.operand(out))
    }
}

/// Reads the gates of the numbers at `place` of a row; each gate is that of `part` numbers.
fn spread(by: &StateMatrix, row: usize, place: Range<usize>, part: usize, gates: &mut [f32]) {
    let mut next = place.start;
    while next < place.end {
        let end = place.end.min((next / part + 1) * part);
        let own = &mut gates[next - place.start..end - place.start];
        by.read(row, next / part..next / part + 1, &mut own[..1]);
        let gate = own[0];
        own.fill(gate);
        next = end;
    }
}

/// Convolves the rows of all spans, and makes queries, keys, values and the parts of steps of them.
fn prepare<'a>(
    parallelism: Parallelism<'_>,
    kernels: &Kernels,
    rule: &DeltaRule,
    (spans, of_span): (&[Span], &(impl Fn(usize) -> DeltaRows<'a> + Sync)),
    qkv: &Target<'_>,
    parts: &Target<'_>,
) -> Result<()> {
    let heads = rule.heads;
    let numbers = heads.columns() + heads.all_values();
    let rows = spans.iter().map(|span| span.rows).sum();
    parallelism.worth(rows * heads.columns()).split_rows(rows, |rows| {
        let mut index = 0;
        let mut last = vec![0.0; 2 * heads.values];
        for row in rows {
            // Spans are in the order of their rows; some have none.
            while spans[index].queries + spans[index].rows <= row {
                index += 1;
            }
            let (seen, own) = (of_span(index), row - spans[index].queries);
            if own >= seen.count {
                continue;
            }
            seen.x.read(row, numbers..numbers + 2 * heads.values, &mut last);
            // SAFETY: each row of `qkv` and of `parts` belongs to one task, which has one row at a time.
            unsafe {
                rule.convolution.write(&seen, own, qkv, row);
                rule.prepare(kernels, qkv.row_f32(row));
                for (head, parts) in parts.row_f32(row).chunks_exact_mut(2).enumerate() {
                    parts.copy_from_slice(&rule.parts(head, last[head], last[heads.values + head]));
                }
            }
        }
    })
}

impl StepRows<'_> {
    /// All steps of a block of a head's state, in the order of the rows of `span`. `in_place` is whether `of` has the states
    /// before the rows; `own` is memory for others.
    ///
    /// # Safety
    ///
    /// - No other code accesses the block of the head's states in `of`, or its columns in the rows of the span in `out`.
    unsafe fn run(
        &self,
        span: &Span,
        of: &SpanState<'_>,
        (head, block): (usize, StateBlock),
        in_place: bool,
        own: &mut Vec<f32>,
    ) {
        let heads = &self.heads;
        own.resize(2 * block.len + block.columns, 0.0);
        let (own_state, rest) = own.split_at_mut(block.len);
        let (draft_state, unread) = rest.split_at_mut(block.len);
        let mut draft_state = Some(draft_state);
        let mut state = match of.states.as_ref().filter(|_| in_place) {
            // SAFETY: no other code accesses the block, by the precondition.
            Some(states) => unsafe { block.of(states, head) },
            None => own_state,
        };
        if span.before == 0 {
            state.fill(0.0);
        } else if let Some(before) = of.before {
            state.copy_from_slice(&before[head * heads.padded_head() + block.start..][..block.len]);
        }
        let key = heads.key_of(head) * heads.key_width;
        let keys = heads.keys * heads.key_width;
        let first = head * heads.value_width + block.first;
        let step = |state: &mut [f32], numbers: &[f32], parts: &[f32], out: &mut [f32]| {
            self.kernels.delta_step(&mut DeltaStep {
                state,
                query: &numbers[key..key + heads.key_width],
                key: &numbers[keys + key..keys + key + heads.key_width],
                value: &numbers[2 * keys + first..][..block.columns],
                kept: parts[2 * head],
                stored: parts[2 * head + 1],
                out,
            });
        };
        for stayed in of.drafts.steps.chunks_exact(heads.step()).take(of.drafts.stayed) {
            let (numbers, parts) = stayed.split_at(heads.columns());
            step(&mut *state, numbers, parts, &mut *unread);
        }
        let (count, settled) = (span.rows.saturating_sub(span.hidden), span.rows - of.drafts.drafted);
        for own_row in 0..span.rows {
            if own_row == settled
                && let Some(of_drafts) = draft_state.take()
            {
                of_drafts.copy_from_slice(state);
                state = of_drafts;
            }
            let row = span.queries + own_row;
            let out = self.out.part(row..row + 1, first..first + block.columns);
            // SAFETY: `part` checked the columns of the row, which are f32 and initialized; no other code accesses them, by the
            // precondition.
            let out = unsafe { std::slice::from_raw_parts_mut(out.cast::<f32>(), block.columns) };
            if own_row >= count {
                out.fill(0.0);
                continue;
            }
            let (numbers, parts) = (self.qkv.values(row..row + 1), self.parts.values(row..row + 1));
            step(&mut *state, numbers, parts, out);
            for (position, point) in &of.points {
                if *position == span.before + own_row + 1 {
                    // SAFETY: no other code accesses the block, by the precondition.
                    unsafe { block.of(point, head) }.copy_from_slice(state);
                }
            }
        }
        if let Some(states) = of.states.as_ref().filter(|_| !in_place) {
            // SAFETY: no other code accesses the block, by the precondition.
            unsafe { block.of(states, head) }.copy_from_slice(state);
        }
    }
}
