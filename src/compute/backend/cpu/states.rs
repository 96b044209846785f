//! States of a pass, in the formats of sums and of products.

use crate::compute::isa::DType;
use crate::compute::matrix::StateMatrix;
use crate::{Error, Result};

/// One row for each token.
#[derive(Debug)]
pub struct States {
    pub(super) rows: StateRows,
    /// Whether there is one row for each sequence instead of each token.
    pub(super) gathered: bool,
}

/// A row that was gathered.
#[derive(Debug, Clone, Copy)]
pub(super) struct GatheredRow {
    /// The sequence of the batch that it belongs to.
    pub sequence: usize,
    /// Its place in the batch; `None` where the sequence has no rows: its values are unspecified.
    pub place: Option<usize>,
}

/// Rows in f32, for sums and normalizations, in bf16, for products, or in both.
#[derive(Debug)]
pub(super) enum StateRows {
    F32(StateMatrix),
    Bf16(StateMatrix),
    Both { f32: StateMatrix, bf16: StateMatrix },
}

impl StateRows {
    pub(super) fn with_bf16(f32: StateMatrix, bf16: Option<StateMatrix>) -> Self {
        match bf16 {
            Some(bf16) => Self::Both { f32, bf16 },
            None => Self::F32(f32),
        }
    }

    /// What `make` makes of the rows, in the same formats.
    pub(super) fn map(&self, mut make: impl FnMut(&StateMatrix) -> Result<StateMatrix>) -> Result<Self> {
        Ok(match self {
            Self::F32(f32) => Self::F32(make(f32)?),
            Self::Bf16(bf16) => Self::Bf16(make(bf16)?),
            Self::Both { f32, bf16 } => Self::Both { f32: make(f32)?, bf16: make(bf16)? },
        })
    }
}

impl From<StateRows> for States {
    fn from(rows: StateRows) -> Self {
        Self { rows, gathered: false }
    }
}

impl States {
    /// The operand of a product in `format`.
    pub(super) fn operand(&self, format: DType) -> Result<&StateMatrix> {
        match (&self.rows, format) {
            (StateRows::F32(matrix) | StateRows::Both { f32: matrix, .. }, DType::F32)
            | (StateRows::Bf16(matrix) | StateRows::Both { bf16: matrix, .. }, DType::Bf16) => Ok(matrix),
            (_, format) => Err(not_in(format)),
        }
    }

    pub(super) fn operand_mut(&mut self, format: DType) -> Result<&mut StateMatrix> {
        match (&mut self.rows, format) {
            (StateRows::F32(matrix) | StateRows::Both { f32: matrix, .. }, DType::F32)
            | (StateRows::Bf16(matrix) | StateRows::Both { bf16: matrix, .. }, DType::Bf16) => Ok(matrix),
            (_, format) => Err(not_in(format)),
        }
    }

    /// The rows to which blocks add.
    pub(super) fn residual(&mut self) -> Result<&mut StateMatrix> {
        self.operand_mut(DType::F32)
    }
}

/// The error of states that an operation needs in `format`.
pub(super) fn not_in(format: DType) -> Error {
    misuse(match format {
        DType::F32 => "states are not in f32",
        DType::Bf16 => "states are not in bf16",
    })
}

/// The error of a model description that combines operations in an unsupported way.
pub(super) fn misuse(reason: &str) -> Error {
    Error::internal("model description", reason)
}
