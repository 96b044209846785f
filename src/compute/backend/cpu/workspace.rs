//! The memory of passes.

use crate::Result;
use crate::compute::attention::tiles::AttentionScratch;
use crate::compute::isa::DType;
use crate::compute::linear::activations::spread;
use crate::compute::linear::gemm::GemmScratch;
use crate::compute::matrix::StateMatrix;
use crate::compute::memory::Buffer;
use crate::sync::Mutex;

/// The memory of one pass. Later passes reuse it, so that a steady state allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    spare: Vec<Buffer>,
    /// One for each thread that runs attention in parallel.
    pub scratch: Mutex<Vec<AttentionScratch>>,
    /// What products with quantized weights need.
    pub gemm: GemmScratch,
    /// The token ids of the pass's sequences, and the offset of each sequence.
    pub ids: Vec<u32>,
    pub offsets: Vec<u32>,
    /// The token of each sequence from which on tokens have type 1.
    pub second_starts: Vec<u32>,
    /// The hidden tokens of its sequences.
    pub hidden: Vec<u32>,
    /// The output row of each sequence.
    pub out: Vec<f32>,
    /// The gated rows before those of each sequence in a window.
    pub earlier: Vec<f32>,
}

/// States of the sequence that crosses the beginning of a window, and of that which crosses its end: `[heads, numbers of a
/// head]`.
#[derive(Debug, Default)]
pub(super) struct CrossingStates {
    pub before: Vec<f32>,
    pub after: Vec<f32>,
}

impl Workspace {
    /// A matrix with unspecified values.
    pub(super) fn matrix(&mut self, rows: usize, columns: usize, format: DType) -> Result<StateMatrix> {
        let stride = spread(format, columns);
        let bytes = rows * stride;
        let fitting = (0..self.spare.len())
            .filter(|&i| self.spare[i].len() >= bytes)
            .min_by_key(|&i| self.spare[i].len());
        let data = match fitting {
            Some(index) => self.spare.swap_remove(index),
            // Batches differ in size. Rounding up the rows keeps reallocations rare, and pages that are never written take
            // no memory.
            None => Buffer::zeroed(rows.next_multiple_of(256) * stride)?,
        };
        let mut matrix = StateMatrix::over(data, rows, columns, stride, format);
        if format == DType::Bf16 && columns % 2 == 1 {
            // The last unit of a row includes one more element, which is multiplied by zero. It must not be a NaN.
            for row in matrix.data_mut().as_mut_slice::<u16>()[..bytes / 2].chunks_exact_mut(stride / 2) {
                row[columns] = 0;
            }
        }
        Ok(matrix)
    }

    /// Takes back the memory of a matrix.
    pub(super) fn give(&mut self, matrix: StateMatrix) {
        self.spare.push(matrix.into_buffer());
    }

    /// Bytes of the spare buffers.
    pub(super) fn bytes(&self) -> usize {
        self.spare.iter().map(Buffer::len).sum()
    }
}
