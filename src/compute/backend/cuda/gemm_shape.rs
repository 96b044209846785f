//! The shapes of products, and what is known of them.

use std::collections::HashMap;

use candle_core::cuda_backend::cudarc::cublaslt::sys;

use crate::compute::isa::DType;

/// How products of a shape are computed.
pub(super) type Plans = HashMap<GemmShape, sys::cublasLtMatmulAlgo_t>;

/// The shape of a product `[rows, inputs] × [outputs, inputs]ᵀ`, and its formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct GemmShape {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Of both operands.
    pub(super) operand_type: DType,
    pub(super) result: DType,
    pub(super) has_bias: bool,
    /// Whether the product is added to what is there.
    pub(super) adds: bool,
}

/// Rows for which memory is allocated and products are computed. Few different numbers, so that plans are found again; at
/// most 6.3 % more from 1,024 rows on.
pub(super) fn padded(rows: usize) -> usize {
    let step = match rows {
        0..=4 => 1,
        5..=64 => 8,
        65..=1024 => 32,
        1025..=4096 => 64,
        _ => 256,
    };
    rows.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::padded;

    #[test]
    fn rows_are_padded_a_little() {
        assert_eq!([0, 1, 4, 5, 65, 1025, 5000].map(padded), [0, 1, 4, 8, 96, 1088, 5120]);
        assert!((1024..100_000).step_by(37).all(|rows| padded(rows) as f64 <= 1.0625 * rows as f64));
    }
}
