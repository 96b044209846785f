//! The memory of attention.

use crate::compute::attention::kv_cache::BLOCK;
use crate::compute::kernels::TALLEST_TILE;
use crate::compute::kernels::softmax::Running;
use crate::compute::memory::Buffer;
use crate::{Error, Result};

/// Elements from a row of scores to the next. It is not a power of two, so that rows map to different cache sets.
pub(super) const STRIDE: usize = BLOCK + 32;

/// The memory of attention on one thread.
#[derive(Debug, Default)]
pub(crate) struct AttentionScratch {
    pub(super) keys: Option<Buffer>,
    pub(super) values: Option<Buffer>,
    pub(super) state: TileState,
}

/// Scores, probabilities and sums of the tiles in progress.
#[derive(Debug, Default)]
pub(super) struct TileState {
    pub sums: Option<Buffer>,
    pub running: Vec<[Running; TALLEST_TILE]>,
    pub scores: Vec<f32>,
    pub narrow: Vec<u16>,
    /// The queries of a tile with a zero after each, for bf16 heads of odd width.
    pub padded: Vec<u16>,
    /// Of a tile's queries, and of a block's keys.
    pub query_scores: PositionScores,
    pub key_scores: PositionScores,
}

/// The buffer, with at least `bytes` bytes.
pub(super) fn grown(buffer: &mut Option<Buffer>, bytes: usize) -> Result<&mut Buffer> {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < bytes) {
        *buffer = None;
        *buffer = Some(Buffer::zeroed(bytes.next_power_of_two().max(1 << 16))?);
    }
    buffer.as_mut().ok_or_else(|| Error::internal("attention", "no buffer"))
}

/// The numbers of a buffer; none without a buffer.
pub(super) fn numbers(buffer: &Option<Buffer>) -> &[f32] {
    buffer.as_ref().map_or(&[], Buffer::as_slice)
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
