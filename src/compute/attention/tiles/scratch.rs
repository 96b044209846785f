//! The memory of attention.

use crate::Result;
use crate::compute::attention::kv_cache::BLOCK;
use crate::compute::kernels::TALLEST_TILE;
use crate::compute::kernels::softmax::Running;
use crate::compute::memory::{Buffer, PlainNumber};

/// Elements from a row of scores to the next. It is not a power of two, so that rows map to different cache sets.
pub(super) const STRIDE: usize = BLOCK + 32;

/// The memory of attention on one thread.
#[derive(Debug, Default)]
pub(crate) struct AttentionScratch {
    pub(super) keys: GrowingBuffer,
    pub(super) values: GrowingBuffer,
    pub(super) state: TileState,
}

/// Scores, probabilities and sums of the tiles in progress.
#[derive(Debug, Default)]
pub(super) struct TileState {
    pub sums: GrowingBuffer,
    pub running: Vec<[Running; TALLEST_TILE]>,
    pub scores: Vec<f32>,
    pub narrow: Vec<u16>,
    /// The queries of a tile with a zero after each, for bf16 heads of odd width.
    pub padded: Vec<u16>,
    /// Of a tile's queries, and of a block's keys.
    pub query_scores: PositionScores,
    pub key_scores: PositionScores,
}

/// Numbers whose memory grows. At first there are none.
#[derive(Debug, Default)]
pub(super) struct GrowingBuffer(Option<Buffer>);

impl GrowingBuffer {
    /// Has at least `bytes` bytes from now on. Those that were there are lost if it grows.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<()> {
        if self.0.as_ref().is_none_or(|buffer| buffer.len() < bytes) {
            self.0 = None;
            self.0 = Some(Buffer::zeroed(bytes.next_power_of_two().max(1 << 16))?);
        }
        Ok(())
    }

    pub(super) fn numbers<T: PlainNumber>(&self) -> &[T] {
        self.0.as_ref().map_or(&[], Buffer::as_slice)
    }

    pub(super) fn numbers_mut<T: PlainNumber>(&mut self) -> &mut [T] {
        self.0.as_mut().map_or(&mut [], Buffer::as_mut_slice)
    }
}

/// Products of some queries or keys with rows of relative positions.
#[derive(Debug, Default)]
pub(super) struct PositionScores {
    pub values: Vec<f32>,
    /// Values of one query or key.
    pub stride: usize,
    /// The row of relative positions of the first value.
    pub first: usize,
}
