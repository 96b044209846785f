//! The memory that passes are carried out in.

use crate::Result;
use crate::compute::attention::tiles::Scratch;
use crate::compute::isa::DType;
use crate::compute::linear::activations::{Activations, spread};
use crate::compute::matrix::StateMatrix;
use crate::compute::memory::Buffer;
use crate::sync::Mutex;

/// The memory of one pass, kept from one to the next: in steady state nothing is allocated.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    spare: Vec<Buffer>,
    /// One for each thread that works on attention at the same time.
    pub scratch: Mutex<Vec<Scratch>>,
    /// Rows rounded to eight bits, where weights are coded.
    pub codes: Activations,
    /// The part that the pass works on: its sequences one after another, and where each begins.
    pub ids: Vec<u32>,
    pub offsets: Vec<u32>,
    /// A row for each of them.
    pub out: Vec<f32>,
}

impl Workspace {
    /// A matrix whose elements have any value.
    pub(super) fn matrix(&mut self, rows: usize, columns: usize, format: DType) -> Result<StateMatrix> {
        let stride = spread(format, columns);
        let bytes = rows * stride;
        let fitting = (0..self.spare.len())
            .filter(|&i| self.spare[i].len() >= bytes)
            .min_by_key(|&i| self.spare[i].len());
        let data = match fitting {
            Some(index) => self.spare.swap_remove(index),
            // Batches differ in size: whole steps of rows keep the number of growths small, and memory that is
            // never written costs nothing.
            None => Buffer::zeroed(rows.next_multiple_of(256) * stride)?,
        };
        let mut matrix = StateMatrix::over(data, rows, columns, stride, format);
        if format == DType::Bf16 && columns % 2 == 1 {
            // The last unit of a row reaches one element further, and is multiplied by zero: let it be a number.
            for row in matrix.data_mut().as_mut_slice::<u16>()[..bytes / 2].chunks_exact_mut(stride / 2) {
                row[columns] = 0;
            }
        }
        Ok(matrix)
    }

    /// Takes a matrix back.
    pub(super) fn give(&mut self, matrix: StateMatrix) {
        self.spare.push(matrix.into_buffer());
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.spare.iter().map(Buffer::len).sum()
    }
}
