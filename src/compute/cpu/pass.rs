//! The operations of a model on packed rows, on the CPU.

use std::ops::Range;

use super::attention::Attention;
use super::matrix::{Matrix, Workspace};
use super::team::Team;
use super::{Cpu, Linear, Norm, Table};
use crate::compute::{Activation, DType, Heads, Packed, Pass, Positions, Rows};
use crate::sync::Mutex;
use crate::{Error, Result};

/// A pass of [`Cpu`] over one part of a batch.
#[derive(Debug)]
pub struct CpuPass<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) batch: Packed<'a>,
    pub(super) workspace: &'a mut Workspace,
    pub(super) team: Team<'a>,
}

/// One row for each token: in f32 for sums and norms, in bf16 for products, or both.
#[derive(Debug)]
pub struct States {
    wide: Option<Matrix>,
    narrow: Option<Matrix>,
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

impl CpuPass<'_> {
    /// Takes back the memory of states that no operation takes over.
    pub fn discard(&mut self, states: States) {
        for matrix in [states.wide, states.narrow].into_iter().flatten() {
            self.workspace.give(matrix);
        }
    }

    fn product(&mut self, columns: usize) -> Result<Matrix> {
        self.workspace.matrix(self.batch.tokens(), columns, self.cpu.dtype)
    }
}

impl Pass<Cpu> for CpuPass<'_> {
    type States = States;

    fn embed(
        &mut self,
        words: &Table,
        positions: (&Table, Positions),
        kinds: Option<&Table>,
    ) -> Result<States> {
        let (positions, numbering) = positions;
        let batch = self.batch;
        let fault = Mutex::new(None);
        let mut wide = self.workspace.matrix(batch.tokens(), words.columns(), DType::F32)?;
        let out = wide.target();
        self.team.split_rows(batch.sequences(), |sequences| {
            for range in sequences.map(|index| batch.range(index)) {
                let ids = &batch.ids[range.clone()];
                for ((row, &id), position) in range.zip(ids).zip(numbering.of(ids)) {
                    if id as usize >= words.rows() || position >= positions.rows() {
                        *fault.lock() = Some((id, position));
                        return;
                    }
                    // SAFETY: each task has sequences, and so rows, of its own.
                    let out = unsafe { out.row_f32(row) };
                    words.row_f32(id as usize, out);
                    positions.add_row_f32(position, out);
                    if let Some(kinds) = kinds {
                        kinds.add_row_f32(0, out);
                    }
                }
            }
        })?;
        if let Some((id, position)) = fault.into_inner() {
            self.workspace.give(wide);
            return Err(Error::Input(format!(
                "token {id} at position {position} lies outside the model's vocabulary ({}) or longest text ({})",
                words.rows(),
                positions.rows()
            )));
        }
        Ok(States { wide: Some(wide), narrow: None })
    }

    fn norm(&mut self, mut x: States, norm: &Norm) -> Result<States> {
        let wide = x.residual()?;
        let (rows, columns) = (wide.rows(), wide.columns());
        if x.narrow.is_none() && self.cpu.dtype == DType::Bf16 {
            x.narrow = Some(self.workspace.matrix(rows, columns, DType::Bf16)?);
        }
        let narrow = x.narrow.as_mut().map(Matrix::target);
        let wide = x.wide.as_mut().ok_or_else(|| misuse("states of a norm must be in f32"))?.target();
        let kernels = self.cpu.kernels;
        self.team.split_rows(rows, |range: Range<usize>| {
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
        let format = self.cpu.dtype;
        let mut out = self.product(linear.outputs())?;
        let a = x.operand(format)?;
        linear.multiply(self.cpu.kernels, self.team, a, activation, &out.target(), false)?;
        Ok(match format {
            DType::F32 => States { wide: Some(out), narrow: None },
            DType::Bf16 => States { wide: None, narrow: Some(out) },
        })
    }

    fn linear_add_norm(
        &mut self,
        x: States,
        linear: &Linear,
        mut residual: States,
        norm: &Norm,
    ) -> Result<States> {
        let sum = residual.residual()?.target();
        let a = x.operand(self.cpu.dtype)?;
        linear.multiply(self.cpu.kernels, self.team, a, Activation::Identity, &sum, true)?;
        self.discard(x);
        self.norm(residual, norm)
    }

    fn attention(&mut self, qkv: States, heads: Heads) -> Result<States> {
        let format = self.cpu.dtype;
        let mut out = self.product(heads.heads * heads.width)?;
        let target = out.target();
        let input = qkv.operand(format)?;
        Attention::check(input, heads);
        let attention = Attention { kernels: self.cpu.kernels, qkv: input, heads, out: &target };
        let (batch, scratch, fault) = (self.batch, &self.workspace.scratch, Mutex::new(None));
        self.team.split_rows(batch.sequences() * heads.kv_heads, |items| {
            let taken = scratch.lock().pop();
            let mut mine = taken.unwrap_or_default();
            for item in items {
                let rows = batch.range(item / heads.kv_heads);
                if let Err(error) = attention.group(&mut mine, rows, item % heads.kv_heads) {
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
        Ok(match format {
            DType::F32 => States { wide: Some(out), narrow: None },
            DType::Bf16 => States { wide: None, narrow: Some(out) },
        })
    }

    fn read(&mut self, x: States, each: &mut dyn FnMut(usize, Rows<'_>)) -> Result<()> {
        let wide = x.wide.as_ref().ok_or_else(|| misuse("states to read must be in f32"))?;
        for (index, range) in self.batch.ranges().enumerate() {
            each(index, Rows::new(wide.values(range), wide.stride() / 4, wide.columns()));
        }
        self.discard(x);
        Ok(())
    }
}
