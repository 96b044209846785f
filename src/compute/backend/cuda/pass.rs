//! One pass over the sequences of a batch.

use std::cell::RefCell;
use std::convert::Infallible;
use std::sync::Arc;

use super::attention::Sequences;
use super::cache::CudaCache;
use super::card::LaneLease;
use super::device::Cuda;
use super::launch::{self, Angles, TableRows};
use super::memory::DeviceMemory;
use super::tensors::{CudaLinear, CudaNorm, CudaStates, CudaTable, RowIndices};
use crate::compute::attention::heads::{Heads, KeySource, LayerAttention};
use crate::compute::attention::rope::{RopeTable, Rotary};
use crate::compute::backend::rows::{PassRows, TableOf};
use crate::compute::backend::traits::{Pass, Positions, Row, Rows, lacking};
use crate::compute::isa::DType;
use crate::compute::kernels::activation::Activation;
use crate::compute::pooling::Pooling;
use crate::{Error, Result};

/// A pass of [`Cuda`] over sequences, or over the new tokens of sequences with caches.
pub struct CudaPass<'a> {
    pub(super) backend: &'a Cuda,
    pub(super) lane: LaneLease,
    pub(super) rows: PassRows<'a>,
    sequences: Sequences<'a>,
    /// Whether a sequence's results were read: then the pass cannot begin again.
    pub(super) delivered: bool,
    ropes: RefCell<Vec<Rope>>,
}

/// Rotary positions of the rows, and the angles of all positions.
struct Rope {
    rotary: Rotary,
    table: Arc<DeviceMemory>,
    /// Of each row.
    places: Vec<u32>,
    query_factors: Option<Vec<f32>>,
    /// Both on the card, once they are needed.
    uploaded: Option<(RowIndices, Option<DeviceMemory>)>,
}

impl<'a> CudaPass<'a> {
    /// A pass over these rows. With caches, there is one for each sequence.
    pub(super) fn new(
        backend: &'a Cuda,
        rows: PassRows<'a>,
        caches: Option<Vec<&'a mut CudaCache>>,
    ) -> Result<Self> {
        let mut lane = backend.card.lane()?;
        let sequences = Sequences::new(&mut lane, &rows, caches)?;
        Ok(Self { backend, lane, rows, sequences, delivered: false, ropes: RefCell::default() })
    }

    fn format(&self) -> DType {
        self.backend.format
    }

    /// `x` in the format of matrices.
    fn operand<'x>(&self, x: &'x CudaStates) -> Result<CudaOperand<'x>> {
        if x.format == self.format() {
            return Ok(CudaOperand::Borrowed(x));
        }
        x.converted(&self.lane, self.format(), 1.0).map(CudaOperand::Owned)
    }

    /// Copies `x`, of float32, to memory, and calls `each` with the rows of each sequence.
    fn deliver(&mut self, x: &CudaStates, each: &mut dyn FnMut(usize, Rows<'_>)) -> Result<()> {
        let mut values = vec![0.0; x.rows * x.width];
        self.lane.download(&x.memory, &mut values)?;
        self.delivered = true;
        let width = x.width;
        for (number, range) in self.rows.rows_in(x.rows).into_iter().enumerate() {
            each(number, Rows::new(&values[range.start * width..range.end * width], width, width));
        }
        Ok(())
    }

    /// `x`, normalized if there is a norm, in `format`.
    fn normed(&self, x: CudaStates, norm: Option<&CudaNorm>, format: DType) -> Result<CudaStates> {
        match norm {
            Some(norm) => x.normalized(&self.lane, norm, format),
            None if x.format == format => Ok(x),
            None => x.converted(&self.lane, format, 1.0),
        }
    }

    /// Checks the numbers of rows of a table, and copies them to the card.
    fn look_up<'t>(
        &mut self,
        of: TableOf,
        table: &'t CudaTable,
        numbers: &[u32],
    ) -> Result<(&'t CudaTable, RowIndices)> {
        of.check(numbers, table.rows)?;
        Ok((table, RowIndices::new(&mut self.lane, numbers)?))
    }
}

/// The rows of a table, for a kernel.
fn lookup<'a>(of: Option<&'a (&'a CudaTable, RowIndices)>) -> Option<TableRows<'a>> {
    of.map(|(table, rows)| (*table, rows))
}

/// States that were there, or that were made of them.
enum CudaOperand<'a> {
    Borrowed(&'a CudaStates),
    Owned(CudaStates),
}

impl std::ops::Deref for CudaOperand<'_> {
    type Target = CudaStates;

    fn deref(&self) -> &CudaStates {
        match self {
            Self::Borrowed(states) => states,
            Self::Owned(states) => states,
        }
    }
}

impl Pass<Cuda> for CudaPass<'_> {
    type States = CudaStates;

    fn sequence_indices(&self) -> Vec<usize> {
        self.rows.sequence_indices()
    }

    /// In float32: what blocks add to keeps that format until a norm ends a block.
    fn embed(
        &mut self,
        words: &CudaTable,
        positions: Option<(&CudaTable, Positions)>,
        token_types: Option<&CudaTable>,
    ) -> Result<CudaStates> {
        TableOf::Tokens.check(&self.rows.ids, words.rows)?;
        let words_of = RowIndices::new(&mut self.lane, &self.rows.ids)?;
        let positions = match positions {
            Some((table, scheme)) => {
                let numbers = self.rows.positions(scheme)?;
                Some(self.look_up(TableOf::Positions, table, &numbers)?)
            }
            None => None,
        };
        let token_types = match token_types {
            Some(table) => {
                let numbers = self.rows.token_types(table.rows);
                Some(self.look_up(TableOf::TokenTypes, table, &numbers)?)
            }
            None => None,
        };
        let out = CudaStates::new(&self.lane, DType::F32, self.rows.ids.len(), words.width)?;
        let (positions, token_types) = (lookup(positions.as_ref()), lookup(token_types.as_ref()));
        launch::embed(&self.lane, self.format(), (words, &words_of), positions, token_types, &out)?;
        Ok(out)
    }

    fn scale(&mut self, x: CudaStates, factor: f32) -> Result<CudaStates> {
        launch::convert(&self.lane, &x, factor, &x)?;
        Ok(x)
    }

    fn norm(&mut self, x: CudaStates, norm: &CudaNorm) -> Result<CudaStates> {
        x.normalized(&self.lane, norm, DType::F32)
    }

    fn linear(&mut self, x: &CudaStates, linear: &CudaLinear, activation: Activation) -> Result<CudaStates> {
        linear.activated(&self.lane, &*self.operand(x)?, activation)
    }

    fn project_embeddings(&mut self, x: CudaStates, linear: &CudaLinear) -> Result<CudaStates> {
        linear.apply(&self.lane, &*self.operand(&x)?, DType::F32)
    }

    fn linear_add_norm(
        &mut self,
        x: CudaStates,
        linear: &CudaLinear,
        residual: CudaStates,
        norm: &CudaNorm,
    ) -> Result<CudaStates> {
        linear.add_to(&self.lane, &*self.operand(&x)?, 1.0, &residual)?;
        residual.normalized(&self.lane, norm, self.format())
    }

    fn attention(
        &mut self,
        layer: usize,
        qkv: CudaStates,
        heads: Heads,
        attention: &LayerAttention,
        _relative: Option<&Infallible>,
    ) -> Result<CudaStates> {
        if attention.keys != KeySource::Own {
            return Err(lacking("attention with keys of another layer"));
        }
        self.sequences.attend(self.backend, &mut self.lane, &qkv, heads, (layer, attention))
    }

    fn norm_linear(
        &mut self,
        x: &CudaStates,
        norm: Option<&CudaNorm>,
        linear: &CudaLinear,
        activation: Activation,
    ) -> Result<CudaStates> {
        match norm {
            Some(norm) => {
                let x = x.normalized(&self.lane, norm, self.format())?;
                linear.activated(&self.lane, &x, activation)
            }
            None => linear.activated(&self.lane, &*self.operand(x)?, activation),
        }
    }

    /// Angles of all positions lie on the card already, or are put there for later passes too.
    fn rope<'r>(&self, rotary: &'r Rotary) -> Result<RopeTable<'r>> {
        let rows = self.rows.rotary_positions();
        let (table, positions) = self.backend.angles(rotary, &rows)?;
        let places = rows.iter().map(|&(position, length)| {
            let is_long = rotary.long.as_ref().is_some_and(|long| length > long.from);
            (position + if is_long { positions } else { 0 }) as u32
        });
        let made = RopeTable::without_angles(rotary, rows.iter().map(|row| row.0));
        let query_factors =
            rotary.query_growth.map(|_| (0..rows.len()).map(|row| made.query_factor(row)).collect());
        let rope =
            Rope { rotary: rotary.clone(), table, places: places.collect(), query_factors, uploaded: None };
        self.ropes.borrow_mut().push(rope);
        Ok(made)
    }

    fn rotate(
        &mut self,
        qkv: CudaStates,
        heads: Heads,
        norms: Option<&(CudaNorm, CudaNorm)>,
        table: &RopeTable<'_>,
    ) -> Result<CudaStates> {
        let mut ropes = self.ropes.borrow_mut();
        let rope = ropes.iter_mut().find(|rope| rope.rotary == *table.rotary);
        let rope = rope.ok_or_else(|| Error::internal("cuda", "rotary positions of another pass"))?;
        let (places, query_factors) = match &mut rope.uploaded {
            Some(uploaded) => &*uploaded,
            uploaded => {
                let factors = rope.query_factors.as_deref();
                let factors = factors.map(|factors| self.lane.upload(factors)).transpose()?;
                &*uploaded.insert((RowIndices::new(&mut self.lane, &rope.places)?, factors))
            }
        };
        let angles = Angles {
            table: &rope.table,
            places,
            query_factors: query_factors.as_ref(),
            pairs: rope.rotary.frequencies.len(),
            style: rope.rotary.style,
        };
        launch::rotate(&self.lane, &qkv, heads, norms, &angles)?;
        Ok(qkv)
    }

    fn linear_add(
        &mut self,
        x: CudaStates,
        linear: &CudaLinear,
        norm: Option<&CudaNorm>,
        factor: f32,
        residual: &mut CudaStates,
    ) -> Result<()> {
        let x = self.operand(&x)?;
        if let Some(norm) = norm {
            let y = linear.apply(&self.lane, &x, DType::F32)?;
            return launch::norm(&self.lane, &y, norm, residual, Some(factor));
        }
        // The factor is one of products alone: a bias would be added without it.
        if factor == 1.0 || linear.bias.is_none() {
            return linear.add_to(&self.lane, &x, factor, residual);
        }
        let y = linear.apply(&self.lane, &x, DType::F32)?;
        launch::add(&self.lane, &y, factor, residual)
    }

    fn gather_rows(&mut self, x: CudaStates, row: Row) -> Result<CudaStates> {
        let gathered = self.rows.gathered(row);
        let rows = RowIndices::new(&mut self.lane, &gathered)?;
        let out = CudaStates::new(&self.lane, x.format, gathered.len(), x.width)?;
        launch::gather_rows(&self.lane, &x, &rows, &out)?;
        Ok(out)
    }

    fn for_each_sequence(
        &mut self,
        x: CudaStates,
        norm: Option<&CudaNorm>,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()> {
        let x = self.normed(x, norm, DType::F32)?;
        self.deliver(&x, each)
    }

    /// On the card, so that one row of each sequence is copied.
    fn pool(
        &mut self,
        x: CudaStates,
        norm: Option<&CudaNorm>,
        pooling: Pooling,
        out: &mut [f32],
    ) -> Result<()> {
        let width = x.width;
        if pooling.row().is_some() {
            return self.for_each_sequence(x, norm, &mut |number, rows| {
                pooling.pool(rows, &mut out[number * width..(number + 1) * width]);
            });
        }
        let x = match norm {
            Some(norm) => x.normalized(&self.lane, norm, DType::F32)?,
            None => x,
        };
        let starts = self.rows.sequences.iter().map(|rows| rows.start as u32);
        let offsets: Vec<u32> = starts.chain([self.rows.ids.len() as u32]).collect();
        let offsets = RowIndices::new(&mut self.lane, &offsets)?;
        let pooled = CudaStates::new(&self.lane, DType::F32, self.rows.sequences.len(), width)?;
        launch::pool(&self.lane, &x, &offsets, pooling, &pooled)?;
        self.lane.download(&pooled.memory, out)?;
        self.delivered = true;
        Ok(())
    }

    fn linear_norm(
        &mut self,
        x: CudaStates,
        linear: &CudaLinear,
        activation: Activation,
        norm: &CudaNorm,
    ) -> Result<CudaStates> {
        let y = linear.activated(&self.lane, &*self.operand(&x)?, activation)?;
        y.normalized(&self.lane, norm, self.format())
    }

    fn for_each_logits(
        &mut self,
        x: &CudaStates,
        linear: &CudaLinear,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()> {
        let y = linear.apply(&self.lane, &*self.operand(x)?, DType::F32)?;
        self.deliver(&y, each)
    }

    fn logits(
        &mut self,
        x: CudaStates,
        norm: Option<&CudaNorm>,
        linear: &CudaLinear,
        out: &mut [f32],
    ) -> Result<()> {
        let x = self.normed(x, norm, self.format())?;
        let y = linear.apply(&self.lane, &x, DType::F32)?;
        self.lane.download(&y.memory, out)
    }
}
