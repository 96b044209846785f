//! The operations of a model on packed rows, on the CPU.

use std::ops::Range;

use super::attention::{Attention, Span};
use super::matrix::{Matrix, Workspace};
use super::parallelism::Parallelism;
use super::{Cpu, Norm, Rms, Table};
use crate::compute::decoder::gemm::Epilogue;
use crate::compute::decoder::{Linear, RopeStyle};
use crate::compute::kernels::rowwise::{RmsRow, RopeRow};
use crate::compute::{Activation, DType, Heads, Packed, Pass, Positions, RopeTable, Row, Rows};
use crate::sync::Mutex;
use crate::{Error, Result};

/// Rows of a window: enough that packing the keys and values of all windows before it costs little beside attending
/// to them, few enough that the activations of a text of any length stay small.
const WINDOW: usize = 1024;

/// A pass of [`Cpu`] over one part of a batch.
#[derive(Debug)]
pub struct CpuPass<'a> {
    cpu: &'a Cpu,
    batch: Packed<'a>,
    workspace: &'a mut Workspace,
    team: Parallelism<'a>,
    /// The rows that pre-norm blocks work on.
    window: Range<usize>,
    /// Keys and values of one layer, of all windows so far; only where there are several.
    seen: Option<Matrix>,
}

/// One row for each token: in f32 for sums and norms, in bf16 for products, or both.
#[derive(Debug)]
pub struct States {
    wide: Option<Matrix>,
    narrow: Option<Matrix>,
    /// Whether there is one row for each sequence instead.
    picked: bool,
}

impl States {
    /// The operand of a product in `format`.
    fn operand(&self, format: DType) -> Result<&Matrix> {
        let matrix = match format {
            DType::F32 => self.wide.as_ref(),
            DType::Bf16 => self.narrow.as_ref(),
        };
        matrix.ok_or_else(|| misuse("states were not made for a product"))
    }

    fn residual(&mut self) -> Result<&mut Matrix> {
        self.wide.as_mut().ok_or_else(|| misuse("states of a residual must be in f32"))
    }
}

/// A model description that combines operations in a way that no backend supports.
fn misuse(reason: &str) -> Error {
    Error::Internal { place: "model description".into(), reason: reason.into() }
}

impl<'a> CpuPass<'a> {
    pub(super) fn new(
        cpu: &'a Cpu,
        batch: Packed<'a>,
        workspace: &'a mut Workspace,
        team: Parallelism<'a>,
    ) -> Self {
        Self { cpu, batch, workspace, team, window: 0..batch.tokens(), seen: None }
    }

    /// Takes back the memory of states that no operation takes over.
    pub fn discard(&mut self, states: States) {
        for matrix in [states.wide, states.narrow].into_iter().flatten() {
            self.workspace.give(matrix);
        }
    }

    /// States that are the operand of a product.
    fn operand(&self, matrix: Matrix) -> States {
        match self.cpu.dtype {
            DType::F32 => States { wide: Some(matrix), narrow: None, picked: false },
            DType::Bf16 => States { wide: None, narrow: Some(matrix), picked: false },
        }
    }

    fn multiply(
        &mut self,
        a: &Matrix,
        linear: &Linear,
        then: Epilogue,
        out: &mut Matrix,
        first: usize,
    ) -> Result<()> {
        let mut codes = std::mem::take(&mut self.workspace.codes);
        let x = a.plain(0..a.rows());
        let done = linear.multiply(self.cpu.machine(), self.team, &mut codes, x, then, &out.target(), first);
        self.workspace.codes = codes;
        done
    }

    fn product(&mut self, a: &Matrix, linear: &Linear, activation: Activation) -> Result<Matrix> {
        let mut out = self.workspace.matrix(a.rows(), linear.outputs(), self.cpu.dtype)?;
        self.multiply(a, linear, Epilogue::Store(activation), &mut out, 0)?;
        Ok(out)
    }

    /// Remembers the window's keys and values, the last `columns` columns of `qkv`, for the windows after it.
    fn remember(&mut self, qkv: &Matrix, columns: usize) -> Result<()> {
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

    /// The part of each sequence that lies in the window. Keys are counted from the start of the batch where those of
    /// several windows lie together, else with the queries.
    fn spans(&self) -> Vec<Span> {
        let Range { start, end } = self.window;
        let parts = self.batch.ranges().filter(|range| range.start < end && range.end > start);
        parts
            .map(|range| {
                let first = range.start.max(start);
                let (queries, before) = (first - start, first - range.start);
                Span { keys: range.start, queries, before, rows: range.end.min(end) - first }
            })
            .collect()
    }
}

impl Drop for CpuPass<'_> {
    fn drop(&mut self) {
        if let Some(seen) = self.seen.take() {
            self.workspace.give(seen);
        }
    }
}

fn outside(id: u32, position: usize, rows: usize, longest: Option<usize>) -> Error {
    Error::Input(format!(
        "token {id} at position {position} lies outside the model's vocabulary ({rows}){}",
        longest.map_or_else(String::new, |longest| format!(" or longest text ({longest})"))
    ))
}

impl Pass<Cpu> for CpuPass<'_> {
    type States = States;

    fn embed(
        &mut self,
        words: &Table,
        positions: Option<(&Table, Positions)>,
        kinds: Option<&Table>,
    ) -> Result<States> {
        let numbering = positions.map_or(Positions::FromZero, |(_, numbering)| numbering);
        let (positions, longest) =
            (positions.map(|(table, _)| table), positions.map(|(table, _)| table.rows()));
        let batch = self.batch;
        let fault = Mutex::new(None);
        let mut wide = self.workspace.matrix(batch.tokens(), words.columns(), DType::F32)?;
        let out = wide.target();
        self.team.worth(batch.tokens() * words.columns()).split_rows(batch.sequences(), |sequences| {
            for range in sequences.map(|index| batch.range(index)) {
                let ids = &batch.ids[range.clone()];
                for ((row, &id), position) in range.zip(ids).zip(numbering.of(ids)) {
                    if id as usize >= words.rows() || longest.is_some_and(|longest| position >= longest) {
                        *fault.lock() = Some(outside(id, position, words.rows(), longest));
                        return;
                    }
                    // SAFETY: each task has sequences, and so rows, of its own.
                    let out = unsafe { out.row_f32(row) };
                    let added = positions.map(|table| (table, position));
                    let mut added = added.into_iter().chain(kinds.map(|table| (table, 0)));
                    let read = words
                        .row_f32(id as usize, out)
                        .and_then(|()| added.try_for_each(|(table, row)| table.add_row_f32(row, out)));
                    if let Err(error) = read {
                        *fault.lock() = Some(error);
                        return;
                    }
                }
            }
        })?;
        if let Some(error) = fault.into_inner() {
            self.workspace.give(wide);
            return Err(error);
        }
        Ok(States { wide: Some(wide), narrow: None, picked: false })
    }

    fn norm(&mut self, mut x: States, norm: &Norm) -> Result<States> {
        let wide = x.residual()?;
        let (rows, columns) = (wide.rows(), wide.columns());
        if x.narrow.is_none() && self.cpu.dtype == DType::Bf16 {
            x.narrow = Some(self.workspace.matrix(rows, columns, DType::Bf16)?);
        }
        let narrow = x.narrow.as_mut().map(Matrix::target);
        let wide = x.wide.as_mut().ok_or_else(|| misuse("states of a norm must be in f32"))?.target();
        let kernels = self.cpu.machine().kernels;
        self.team.worth(rows * columns).split_rows(rows, |range: Range<usize>| {
            for row in range {
                // SAFETY: each task has rows of its own.
                let (wide, narrow) =
                    unsafe { (wide.row_f32(row), narrow.as_ref().map(|narrow| narrow.row_bf16(row))) };
                kernels.norm(wide, &norm.scale, &norm.shift, norm.epsilon, narrow);
            }
        })?;
        Ok(x)
    }

    fn linear(&mut self, x: &States, linear: &Linear, activation: Activation) -> Result<States> {
        let out = self.product(x.operand(self.cpu.dtype)?, linear, activation)?;
        Ok(self.operand(out))
    }

    fn linear_add_norm(
        &mut self,
        x: States,
        linear: &Linear,
        mut residual: States,
        norm: &Norm,
    ) -> Result<States> {
        self.multiply(x.operand(self.cpu.dtype)?, linear, Epilogue::Add, residual.residual()?, 0)?;
        self.discard(x);
        self.norm(residual, norm)
    }

    fn attention(&mut self, qkv: States, heads: Heads) -> Result<States> {
        let queries = qkv.operand(self.cpu.dtype)?;
        Attention::check(queries, heads);
        let mut out = self.workspace.matrix(queries.rows(), heads.heads * heads.width, self.cpu.dtype)?;
        let target = out.target();
        let whole = self.window.len() == self.batch.tokens();
        if !whole {
            if !heads.causal {
                return Err(misuse("windows are for causal attention"));
            }
            self.remember(queries, 2 * heads.kv_heads * heads.width)?;
        }
        let keys = self.seen.as_ref().filter(|_| !whole).unwrap_or(queries);
        let kernels = self.cpu.machine().kernels;
        let attention = Attention { kernels, queries, keys, heads, out: &target };
        let (spans, scratch, fault) = (self.spans(), &self.workspace.scratch, Mutex::new(None));
        self.team.split_rows(spans.len() * heads.kv_heads, |items| {
            let taken = scratch.lock().pop();
            let mut mine = taken.unwrap_or_default();
            for item in items {
                let span = spans[item / heads.kv_heads];
                if let Err(error) = attention.group(&mut mine, span, item % heads.kv_heads) {
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

    fn windows(&self) -> usize {
        self.batch.tokens().div_ceil(WINDOW)
    }

    fn enter(&mut self, index: usize) {
        self.window = index * WINDOW..self.batch.tokens().min((index + 1) * WINDOW);
    }

    fn norm_linear(
        &mut self,
        x: &States,
        norm: &Rms,
        linear: &Linear,
        activation: Activation,
    ) -> Result<States> {
        let wide = x.operand(DType::F32)?;
        assert_eq!(wide.columns(), norm.scale.len(), "norm parameters");
        let rows = if x.picked { 0..wide.rows() } else { self.window.clone() };
        let (to, kernels) = (self.cpu.dtype, self.cpu.machine().kernels);
        let mut normed = self.workspace.matrix(rows.len(), wide.columns(), to)?;
        let target = normed.target();
        self.team.worth(rows.len() * wide.columns()).split_rows(rows.len(), |task| {
            for row in task {
                let (x, out) =
                    (wide.row_ptr(rows.start + row).cast(), target.part(row..row + 1, 0..wide.columns()));
                let row = RmsRow { x, scale: &norm.scale, epsilon: norm.epsilon, out, to };
                // SAFETY: both rows have as many values as the norm, and each task has rows of its own.
                unsafe { kernels.rms(&row) };
            }
        })?;
        let out = self.product(&normed, linear, activation);
        self.workspace.give(normed);
        Ok(self.operand(out?))
    }

    fn rotate(
        &mut self,
        mut qkv: States,
        heads: Heads,
        norms: Option<&(Rms, Rms)>,
        turns: &RopeTable<'_>,
    ) -> Result<States> {
        Attention::check(qkv.operand(self.cpu.dtype)?, heads);
        let matrix = qkv.wide.as_mut().or(qkv.narrow.as_mut()).ok_or_else(|| misuse("no states"))?;
        let (format, kernels, start, batch) =
            (matrix.format(), self.cpu.machine().kernels, self.window.start, self.batch);
        let norms = norms.map(|(queries, keys)| (&queries.scale[..], &keys.scale[..], queries.epsilon));
        let values = matrix.rows() * matrix.columns();
        let target = matrix.target();
        self.team.worth(values).split_rows(self.window.len(), |rows| {
            for row in rows {
                let sequence = batch.offsets.partition_point(|&offset| offset as usize <= start + row) - 1;
                let position = start + row - batch.offsets[sequence] as usize;
                let turn = RopeRow {
                    row: target.part(row..row + 1, 0..1),
                    format,
                    heads: heads.heads + heads.kv_heads,
                    queries: heads.heads,
                    width: heads.width,
                    norms,
                    angles: turns.at(position),
                    interleaved: turns.rotary.pairing == RopeStyle::Interleaved,
                };
                // SAFETY: the row begins with these heads, and each task has rows of its own.
                unsafe { kernels.apply_rope(&turn) };
            }
        })?;
        Ok(qkv)
    }

    fn linear_add(&mut self, x: States, linear: &Linear, residual: &mut States) -> Result<()> {
        let first = if residual.picked { 0 } else { self.window.start };
        self.multiply(x.operand(self.cpu.dtype)?, linear, Epilogue::Add, residual.residual()?, first)?;
        self.discard(x);
        Ok(())
    }

    fn pick(&mut self, x: States, row: Row) -> Result<States> {
        let mut pick = |matrix: &Option<Matrix>| {
            let Some(matrix) = matrix else { return Ok(None) };
            let (columns, format) = (matrix.columns(), matrix.format());
            let mut out = self.workspace.matrix(self.batch.sequences(), columns, format)?;
            let target = out.target();
            for (index, range) in self.batch.ranges().enumerate().filter(|(_, range)| !range.is_empty()) {
                let from = matrix.row_ptr(if row == Row::First { range.start } else { range.end - 1 });
                // SAFETY: both rows have so many columns, and this is the only thread.
                unsafe {
                    let to = target.part(index..index + 1, 0..columns);
                    to.copy_from_nonoverlapping(from, columns * format.bytes());
                }
            }
            Ok(Some(out))
        };
        let picked = States { wide: pick(&x.wide)?, narrow: pick(&x.narrow)?, picked: true };
        self.discard(x);
        Ok(picked)
    }

    fn rms(&mut self, mut x: States, norm: &Rms) -> Result<States> {
        let (kernels, wide) = (self.cpu.machine().kernels, x.residual()?);
        let (rows, columns, target) = (wide.rows(), wide.columns(), wide.target());
        self.team.worth(rows * columns).split_rows(rows, |rows| {
            for row in rows {
                // SAFETY: each task has rows of its own.
                kernels.rms_in_place(unsafe { target.row_f32(row) }, &norm.scale, norm.epsilon);
            }
        })?;
        Ok(x)
    }

    fn longest(&self) -> usize {
        self.batch.ranges().map(|range| range.len()).max().unwrap_or(0)
    }

    fn read(&mut self, x: States, each: &mut dyn FnMut(usize, Rows<'_>)) -> Result<()> {
        let wide = x.wide.as_ref().ok_or_else(|| misuse("states to read must be in f32"))?;
        for (index, mut range) in self.batch.ranges().enumerate() {
            if x.picked {
                range = index..index + range.len().min(1);
            }
            each(index, Rows::new(wide.values(range), wide.stride() / 4, wide.columns()));
        }
        self.discard(x);
        Ok(())
    }
}
