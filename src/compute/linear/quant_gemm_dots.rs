//! Groups of quantized weights where the CPU, or the compiler, multiplies and adds four bytes at once.

use super::{GroupRows, Lanes, PANEL};

/// The operations of such a set.
pub(super) trait Dots: Lanes {
    /// The lower four bits of each byte.
    fn low(self, x: Self::I) -> Self::I;
    /// The upper four bits of each byte.
    fn high(self, x: Self::I) -> Self::I;
    /// Eight-bit quants less their zero, in place of unsigned ones, if the set is [`SIGNED`](Lanes::SIGNED).
    #[inline(always)]
    fn signed(self, x: Self::I) -> Self::I {
        x
    }
    /// Adds four products to each lane of `sum`: quants of `BITS` bits times four of the sixteen activations at `x`, from
    /// activation `4 * FOUR` on. `FOUR` is less than four.
    ///
    /// # Safety
    ///
    /// - `x` points to sixteen readable bytes; it needs no alignment.
    unsafe fn dot<const BITS: usize, const FOUR: usize>(
        self,
        sum: Self::I,
        quants: Self::I,
        x: *const i8,
    ) -> Self::I;
}

/// [`Lanes::group`] of such a set.
///
/// # Safety
///
/// - All preconditions of [`Lanes::group`].
#[inline(always)]
pub(super) unsafe fn group<
    L: Dots,
    const BITS: usize,
    const HALVES: bool,
    const ROWS: usize,
    const PANELS: usize,
>(
    lanes: L,
    sums: &mut [[[L::I; PANELS]; ROWS]; 2],
    quants: *const u8,
    panel_bytes: usize,
    x: GroupRows,
) {
    let GroupRows { bytes, bytes_stride, .. } = x;
    let second = if HALVES { 1 } else { 0 };
    // SAFETY: the preconditions are the same.
    unsafe {
        half_group::<L, BITS, 0, ROWS, PANELS>(lanes, &mut sums[0], quants, panel_bytes, bytes, bytes_stride);
        half_group::<L, BITS, 1, ROWS, PANELS>(
            lanes,
            &mut sums[second],
            quants,
            panel_bytes,
            bytes,
            bytes_stride,
        );
    }
}

/// [`Lanes::group`] by [`group`].
macro_rules! group_by_dots {
    () => {
        #[inline(always)]
        unsafe fn group<const BITS: usize, const HALVES: bool, const ROWS: usize, const PANELS: usize>(
            self,
            sums: &mut [[[Self::I; PANELS]; ROWS]; 2],
            quants: *const u8,
            panel_bytes: usize,
            x: $crate::compute::linear::quant_gemm::GroupRows,
        ) {
            use $crate::compute::linear::quant_gemm::dots::group;
            // SAFETY: the preconditions are the same.
            unsafe { group::<Self, BITS, HALVES, ROWS, PANELS>(self, sums, quants, panel_bytes, x) }
        }
    };
}
pub(super) use group_by_dots;

/// Adds the products of half `HALF` of a group to `sums`.
///
/// # Safety
///
/// - `quants` points to the quants of a group of `COLUMNS` columns in each of `PANELS` panels, `panel_bytes` bytes apart.
/// - `x` points to `ROWS` rows of `GROUP` readable bytes, `stride` bytes apart.
#[inline(always)]
unsafe fn half_group<
    L: Dots,
    const BITS: usize,
    const HALF: usize,
    const ROWS: usize,
    const PANELS: usize,
>(
    lanes: L,
    sums: &mut [[L::I; PANELS]; ROWS],
    quants: *const u8,
    panel_bytes: usize,
    x: *const i8,
    stride: usize,
) {
    macro_rules! fours {
        ($($four:literal)*) => {$(
            let mut weights = [lanes.integers(0); PANELS];
            for (panel, weights) in weights.iter_mut().enumerate() {
                // SAFETY: `quants` points to the quants of `PANELS` panels. Those of `4 * PANEL` bytes are four of a row for
                // each column; there are four of them if one byte has two quants, and eight otherwise.
                *weights = unsafe {
                    let quants = quants.add(panel * panel_bytes);
                    if BITS == 4 {
                        let both = lanes.bytes(quants.add($four * PANEL * 4));
                        if HALF == 0 { lanes.low(both) } else { lanes.high(both) }
                    } else {
                        lanes.signed(lanes.bytes(quants.add((HALF * 4 + $four) * PANEL * 4)))
                    }
                };
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    // SAFETY: `i < ROWS`, and `x` points to `ROWS` rows of `GROUP` bytes, the second sixteen of which are
                    // those of the second half.
                    *sum = unsafe { lanes.dot::<BITS, $four>(*sum, weights, x.add(i * stride + HALF * 16)) };
                }
            }
        )*};
    }
    fours!(0 1 2 3);
}

/// The bytes from `4 * FOUR` on in one number, in memory order.
///
/// # Safety
///
/// - `x` points to sixteen readable bytes; it needs no alignment.
#[inline(always)]
pub(super) unsafe fn four_bytes<const FOUR: usize>(x: *const i8) -> i32 {
    const { assert!(FOUR < 4) }
    // SAFETY: `4 * FOUR + 4 <= 16` by the assertion above, and the read is unaligned.
    unsafe { x.add(FOUR * 4).cast::<i32>().read_unaligned() }
}
