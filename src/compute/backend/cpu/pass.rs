//! The operations of a model on packed rows on the CPU, except attention.

use std::ops::Range;

use super::states::{GatheredRow, StateRows, States, not_in};
use super::workspace::{CrossingStates, Workspace};
use crate::Result;
use crate::compute::attention::heads::{Heads, LayerAttention};
use crate::compute::attention::kv_cache::PagedKvCache;
use crate::compute::attention::relative::RelativePanels;
use crate::compute::attention::rope::{RopeTable, Rotary};
use crate::compute::backend::cpu::device::{Cpu, Norm, Table};
use crate::compute::backend::traits::{CachedSequence, Pass, Positions, Row, Rows, TokenRows, WindowFn};
use crate::compute::batch::PackedBatch;
use crate::compute::delta_rule::DeltaRule;
use crate::compute::experts::Experts;
use crate::compute::isa::DType;
use crate::compute::kernels::activation::Activation;
use crate::compute::linear::gemm::Epilogue;
use crate::compute::linear::layer::Linear;
use crate::compute::linear::phases::{RowPhases, TokenPhase};
use crate::compute::matrix::StateMatrix;
use crate::compute::parallel::{Parallelism, Target};
use crate::compute::short_convolution::ShortConvolution;

/// Rows of a window. With so many, packing the keys and values of earlier windows takes little time compared with attention
/// over them, and with so few, the activations of a text of any length stay small.
const WINDOW: usize = 1024;

/// A pass of [`Cpu`] over one part of a batch.
#[derive(Debug)]
pub struct CpuPass<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) batch: PackedBatch<'a>,
    pub(super) workspace: &'a mut Workspace,
    pub(super) parallelism: Parallelism<'a>,
    /// The rows that pre-norm blocks work on.
    pub(super) window: Range<usize>,
    /// Keys and values of one layer, of all windows so far, if there are several windows and no caches.
    pub(super) seen: Option<StateMatrix>,
    /// The keys and values of layers whose later layers use them, of all windows so far, if there are no caches.
    pub(super) kept: Vec<(usize, StateMatrix)>,
    /// The rows that were gathered.
    pub(super) gathered: Vec<GatheredRow>,
    /// The gated rows before the window in the sequence that crosses its beginning, if there are several windows and no
    /// caches.
    pub(super) crossing: Vec<f32>,
    /// The same of the states of a delta rule.
    pub(super) crossing_states: CrossingStates,
    /// One for each sequence, or none.
    pub(super) caches: Vec<CachedSequence<'a, PagedKvCache>>,
    /// The indices of its sequences in the batch; empty if they are those of the pass.
    pub(super) sequences: &'a [usize],
    /// The phases of the batch's rows, if they matter and may differ.
    pub(super) batch_phases: Option<RowPhases>,
    /// Of the rows that operations work on: of the batch, of the window, or those that were gathered.
    pub(super) phases: RowPhases,
}

impl<'a> CpuPass<'a> {
    pub(super) fn new(
        cpu: &'a Cpu,
        batch: PackedBatch<'a>,
        workspace: &'a mut Workspace,
        parallelism: Parallelism<'a>,
        caches: Vec<CachedSequence<'a, PagedKvCache>>,
    ) -> Self {
        let window = 0..batch.tokens();
        let batch_phases = (cpu.unpacks() && !caches.is_empty()).then(|| {
            RowPhases::of(batch.ranges().zip(&caches).flat_map(|(range, sequence)| {
                let read = sequence.prompt.saturating_sub(sequence.cached).min(range.len());
                [(read, TokenPhase::Prefill), (range.len() - read, TokenPhase::Decode)]
            }))
        });
        Self {
            cpu,
            batch,
            workspace,
            parallelism,
            window,
            seen: None,
            kept: Vec::new(),
            gathered: Vec::new(),
            crossing: Vec::new(),
            crossing_states: CrossingStates::default(),
            caches,
            sequences: &[],
            phases: batch_phases.clone().unwrap_or(RowPhases::PREFILL),
            batch_phases,
        }
    }

    /// Returns the memory of states that no further operation needs.
    pub fn discard(&mut self, states: States) {
        match states.rows {
            StateRows::F32(matrix) | StateRows::Bf16(matrix) => self.workspace.give(matrix),
            StateRows::Both { f32, bf16 } => {
                self.workspace.give(f32);
                self.workspace.give(bf16);
            }
        }
    }

    /// States that are the operand of a product.
    pub(super) fn operand(&self, matrix: StateMatrix) -> States {
        let rows = match self.cpu.dtype {
            DType::F32 => StateRows::F32(matrix),
            DType::Bf16 => StateRows::Bf16(matrix),
        };
        rows.into()
    }

    /// The position of the first token of sequence `index`.
    pub(super) fn first_position(&self, index: usize) -> usize {
        self.caches.get(index).map_or(0, |sequence| sequence.cached)
    }

    pub(super) fn multiply(
        &mut self,
        a: &StateMatrix,
        linear: &Linear,
        epilogue: Epilogue,
        out: &Target<'_>,
        first: usize,
    ) -> Result<()> {
        self.multiply_part((a, 0..a.rows()), linear, epilogue, out, first)
    }

    /// The product of some rows of `a`.
    pub(super) fn multiply_part(
        &mut self,
        (a, rows): (&StateMatrix, Range<usize>),
        linear: &Linear,
        epilogue: Epilogue,
        out: &Target<'_>,
        first: usize,
    ) -> Result<()> {
        let mut scratch = std::mem::take(&mut self.workspace.gemm);
        let (x, kernel_set) = (a.plain(rows), self.cpu.kernel_set());
        let done = linear.multiply(
            kernel_set,
            self.parallelism,
            &mut scratch,
            x,
            &self.phases,
            epilogue,
            out,
            first,
        );
        self.workspace.gemm = scratch;
        done
    }

    /// Selects the rows that pre-norm blocks work on.
    fn enter(&mut self, window: Range<usize>) {
        if let Some(phases) = &self.batch_phases {
            self.phases = phases.part(window.clone());
        }
        self.window = window;
    }

    pub(super) fn product(
        &mut self,
        a: &StateMatrix,
        linear: &Linear,
        activation: Activation,
    ) -> Result<StateMatrix> {
        let mut out = self.workspace.matrix(a.rows(), linear.outputs(), self.cpu.dtype)?;
        self.multiply(a, linear, Epilogue::Store(activation), &out.target(), 0)?;
        Ok(out)
    }
}

impl Drop for CpuPass<'_> {
    fn drop(&mut self) {
        let kept = self.kept.drain(..).map(|(_, rows)| rows);
        for rows in self.seen.take().into_iter().chain(kept) {
            self.workspace.give(rows);
        }
    }
}

impl Pass<Cpu> for CpuPass<'_> {
    type States = States;

    fn embed(
        &mut self,
        words: &Table,
        positions: Option<(&Table, Positions)>,
        token_types: Option<&Table>,
    ) -> Result<States> {
        self.embed_rows(words, positions, token_types)
    }

    fn copy(&mut self, x: &States) -> Result<States> {
        self.copied_states(x)
    }

    fn scale(&mut self, x: States, factor: f32) -> Result<States> {
        self.scaled(x, factor)
    }

    fn norm(&mut self, x: States, norm: &Norm) -> Result<States> {
        let (mut wide, mut narrow) = match x.rows {
            StateRows::F32(f32) => (f32, None),
            StateRows::Both { f32, bf16 } => (f32, Some(bf16)),
            StateRows::Bf16(_) => return Err(not_in(DType::F32)),
        };
        if narrow.is_none() && self.cpu.dtype == DType::Bf16 {
            narrow = Some(self.workspace.matrix(wide.rows(), wide.columns(), DType::Bf16)?);
        }
        let kernels = self.cpu.kernel_set().kernels;
        wide.for_each_row_and_narrow(narrow.as_mut(), self.parallelism, |wide, narrow| {
            norm.apply(kernels, wide, narrow);
        })?;
        Ok(States { rows: StateRows::with_bf16(wide, narrow), ..x })
    }

    fn linear(&mut self, x: &States, linear: &Linear, activation: Activation) -> Result<States> {
        let out = self.product(x.operand(self.cpu.dtype)?, linear, activation)?;
        Ok(self.operand(out))
    }

    fn project_embeddings(&mut self, x: States, linear: &Linear) -> Result<States> {
        let (rows, gathered) = (0..x.operand(DType::F32)?.rows(), x.gathered);
        let x = self.with_operand(x)?;
        let mut wide = self.workspace.matrix(rows.len(), linear.outputs(), DType::F32)?;
        let store = Epilogue::Store(Activation::Identity);
        self.multiply(x.operand(self.cpu.dtype)?, linear, store, &wide.target(), 0)?;
        self.discard(x);
        let narrow = match self.cpu.dtype {
            DType::F32 => None,
            DType::Bf16 => Some(self.copied(&wide, rows)?),
        };
        Ok(States { rows: StateRows::with_bf16(wide, narrow), gathered })
    }

    fn linear_add_norm(
        &mut self,
        x: States,
        linear: &Linear,
        mut residual: States,
        norm: &Norm,
    ) -> Result<States> {
        let target = residual.residual()?.target();
        self.multiply(x.operand(self.cpu.dtype)?, linear, Epilogue::Add, &target, 0)?;
        self.discard(x);
        self.norm(residual, norm)
    }

    fn attention(
        &mut self,
        layer: usize,
        qkv: States,
        heads: Heads,
        attention: &LayerAttention,
        relative: Option<&RelativePanels>,
    ) -> Result<States> {
        self.attend(layer, qkv, heads, attention, relative)
    }

    fn short_convolution(
        &mut self,
        layer: usize,
        x: States,
        convolution: &ShortConvolution,
    ) -> Result<States> {
        self.convolve_rows(layer, x, convolution)
    }

    fn delta_rule(&mut self, layer: usize, x: States, rule: &DeltaRule) -> Result<States> {
        self.apply_delta_rule(layer, x, rule)
    }

    fn gate(&mut self, x: States, gates: States) -> Result<States> {
        self.gate_rows(x, gates)
    }

    fn discard(&mut self, x: States) {
        // The method of the type, not this one.
        CpuPass::discard(self, x);
    }

    fn depthwise_convolution(&mut self, x: &States, convolution: &ShortConvolution) -> Result<States> {
        self.convolve_depthwise(x, convolution)
    }

    fn multiply(&mut self, x: States, by: &States) -> Result<States> {
        self.multiply_rows(x, by)
    }

    fn multiply_by_inputs(
        &mut self,
        x: States,
        embeddings: &States,
        (linear, norm): (&Linear, &Norm),
        tokens: Option<TokenRows<'_, Table>>,
    ) -> Result<States> {
        self.multiply_inputs(x, embeddings, (linear, norm), tokens)
    }

    fn norm_values(&mut self, qkv: States, heads: Heads, norm: &Norm) -> Result<States> {
        self.normed_values(qkv, heads, norm)
    }

    fn dynamic_convolution(
        &mut self,
        x: States,
        scores: States,
        values: States,
        heads: usize,
    ) -> Result<States> {
        self.convolve_dynamically(x, scores, values, heads)
    }

    fn im2col(&mut self, x: &States, size: usize) -> Result<States> {
        let matrix = self.im2col_rows(x.operand(self.cpu.dtype)?, size)?;
        Ok(self.operand(matrix))
    }

    fn add_norm(&mut self, x: States, mut residual: States, norm: &Norm) -> Result<States> {
        self.add(x.operand(self.cpu.dtype)?, residual.residual()?)?;
        self.discard(x);
        self.norm(residual, norm)
    }

    fn in_windows(
        &mut self,
        mut x: States,
        causal: bool,
        block: &mut WindowFn<'_, Self, States>,
    ) -> Result<States> {
        let tokens = self.batch.tokens();
        if tokens == 0 {
            return Ok(x);
        }
        // Without causality the rows of a window need those after it.
        if !causal || tokens <= WINDOW || x.gathered {
            return block(self, x, true);
        }
        for start in (0..tokens).step_by(WINDOW) {
            self.enter(start..tokens.min(start + WINDOW));
            x = block(self, x, false)?;
        }
        self.enter(0..tokens);
        Ok(x)
    }

    fn norm_linear(
        &mut self,
        x: &States,
        norm: Option<&Norm>,
        linear: &Linear,
        activation: Activation,
    ) -> Result<States> {
        let wide = x.operand(DType::F32)?;
        let rows = if x.gathered { 0..wide.rows() } else { self.window.clone() };
        let operand = match norm {
            Some(norm) => self.normed(wide, rows, norm)?,
            None => self.copied(wide, rows)?,
        };
        let out = self.product(&operand, linear, activation);
        self.workspace.give(operand);
        Ok(States { gathered: x.gathered, ..self.operand(out?) })
    }

    fn rope<'r>(&self, rotary: &'r Rotary) -> Result<RopeTable<'r>> {
        let mut rows = Vec::with_capacity(self.batch.tokens());
        for (index, range) in self.batch.ranges().enumerate() {
            let first = self.first_position(index);
            let length = self.caches.get(index).map_or(range.len(), |sequence| sequence.length);
            rows.extend((first..first + range.len()).map(|position| (position, length)));
        }
        RopeTable::new(rotary, rows.into_iter())
    }

    fn rotate(
        &mut self,
        qkv: States,
        heads: Heads,
        norms: Option<&(Norm, Norm)>,
        table: &RopeTable<'_>,
    ) -> Result<States> {
        self.apply_rope(qkv, heads, norms, table)
    }

    fn linear_add(
        &mut self,
        x: States,
        linear: &Linear,
        norm: Option<&Norm>,
        factor: f32,
        residual: &mut States,
    ) -> Result<()> {
        let first = if residual.gathered { 0 } else { self.window.start };
        let (a, target) = (x.operand(self.cpu.dtype)?, residual.residual()?.target());
        if norm.is_none() && factor == 1.0 {
            self.multiply(a, linear, Epilogue::Add, &target, first)?;
        } else {
            let (rows, columns) = (a.rows(), linear.outputs());
            let mut product = self.workspace.matrix(rows, columns, DType::F32)?;
            let out = product.target();
            self.multiply(a, linear, Epilogue::Store(Activation::Identity), &out, 0)?;
            let kernels = self.cpu.kernel_set().kernels;
            self.parallelism.worth(rows * columns).split_rows(rows, |rows| {
                for row in rows {
                    // SAFETY: `out` and `target` are different matrices, and each row belongs to one task.
                    let (y, x) = unsafe { (out.row_f32(row), target.row_f32(first + row)) };
                    if let Some(norm) = norm {
                        norm.apply(kernels, y, None);
                    }
                    x.iter_mut().zip(y).for_each(|(x, y)| *x += factor * *y);
                }
            })?;
            self.workspace.give(product);
        }
        self.discard(x);
        Ok(())
    }

    fn add_experts(
        &mut self,
        norm: Option<&Norm>,
        experts: &Experts<Linear, Norm>,
        activation: Activation,
        down: (Option<&Norm>, f32),
        residual: &mut States,
    ) -> Result<()> {
        self.add_expert_rows(norm, experts, activation, down, residual)
    }

    fn gather_rows(&mut self, x: States, row: Row) -> Result<States> {
        let of = |(index, range): (usize, Range<usize>)| {
            let count = self.caches.get(index).map_or(1, |sequence| sequence.logits);
            let first = match row {
                Row::First => range.start,
                Row::Last => range.end.saturating_sub(count),
            };
            // An empty text has a row too.
            let place = move |row| (!range.is_empty()).then_some(row);
            (first..first + count).map(move |row| GatheredRow { sequence: index, place: place(row) })
        };
        let rows: Vec<_> = self.batch.ranges().enumerate().flat_map(of).collect();
        if let Some(phases) = &self.batch_phases {
            // Empty texts have no phases, and no caches.
            self.phases = phases.gathered(rows.iter().filter_map(|row| row.place));
        }
        let gathered = x.rows.map(|matrix| self.gather(matrix, &rows))?;
        self.discard(x);
        self.gathered = rows;
        Ok(States { rows: gathered, gathered: true })
    }

    fn sequence_indices(&self) -> Vec<usize> {
        if self.sequences.is_empty() {
            (0..self.batch.sequences()).collect()
        } else {
            self.sequences.to_vec()
        }
    }

    fn for_each_sequence(
        &mut self,
        mut x: States,
        norm: Option<&Norm>,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()> {
        if let Some(norm) = norm {
            let kernels = self.cpu.kernel_set().kernels;
            x.residual()?.for_each_row(self.parallelism, |_, row| norm.apply(kernels, row, None))?;
        }
        let wide = x.operand(DType::F32)?;
        for (index, mut range) in self.batch.ranges().enumerate() {
            if x.gathered {
                range = index..index + range.len().min(1);
            }
            each(index, Rows::new(wide.values(range), wide.stride() / 4, wide.columns()));
        }
        self.discard(x);
        Ok(())
    }

    fn linear_norm(
        &mut self,
        x: States,
        linear: &Linear,
        activation: Activation,
        norm: &Norm,
    ) -> Result<States> {
        let rows = x.operand(self.cpu.dtype)?.rows();
        let mut wide = self.workspace.matrix(rows, linear.outputs(), DType::F32)?;
        self.multiply(x.operand(self.cpu.dtype)?, linear, Epilogue::Store(activation), &wide.target(), 0)?;
        self.discard(x);
        self.norm(StateRows::F32(wide).into(), norm)
    }

    fn for_each_logits(
        &mut self,
        x: &States,
        linear: &Linear,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()> {
        let operand = x.operand(self.cpu.dtype)?;
        let mut wide = self.workspace.matrix(operand.rows(), linear.outputs(), DType::F32)?;
        let store = Epilogue::Store(Activation::Identity);
        self.multiply(operand, linear, store, &wide.target(), 0)?;
        for (index, range) in self.batch.ranges().enumerate() {
            each(index, Rows::new(wide.values(range), wide.stride() / 4, wide.columns()));
        }
        self.workspace.give(wide);
        Ok(())
    }

    fn logits(&mut self, x: States, norm: Option<&Norm>, linear: &Linear, out: &mut [f32]) -> Result<()> {
        // One row for each sequence, after a prompt too: unpacking all weights for so few would take longer.
        self.phases = RowPhases::DECODE;
        let wide = x.operand(DType::F32)?;
        assert_eq!(out.len(), wide.rows() * linear.outputs(), "rows of logits");
        let target = Target::over(out, linear.outputs());
        let store = Epilogue::Store(Activation::Identity);
        match norm {
            Some(norm) => {
                let normed = self.normed(wide, 0..wide.rows(), norm)?;
                let done = self.multiply(&normed, linear, store, &target, 0);
                self.workspace.give(normed);
                done?;
            }
            None => self.multiply(x.operand(self.cpu.dtype)?, linear, store, &target, 0)?,
        }
        self.discard(x);
        Ok(())
    }
}
