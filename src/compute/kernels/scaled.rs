//! The matrix tile of f16 with scales.
//!
//! Each row of the left operand and each column of the right one has a power of two as its scale, which makes its largest number
//! a few units large. So no number and no sum is too large for f16, however large activations and weights are, and what is
//! too small for it does not matter to the sum. A row or column with a number that is not finite has the scale NaN, so its
//! results are NaN.
//!
//! Where the CPU multiplies f16, it adds in f16 as well: each lane adds [`CHAIN`] products, and these sums are added in f32.
//! Elsewhere all numbers are widened to f32.

#[cfg(any(test, target_arch = "x86_64"))]
use super::tile::Prefetches;
use super::tile::{Tile, Widened, sum_widened};
use crate::compute::narrow::f16_bits;
#[cfg(any(test, target_arch = "x86_64"))]
use crate::compute::simd::HalfLanes;
use crate::compute::simd::Simd;

/// Products that a lane adds in f16 before the sum is added in f32. More of them are faster and less exact.
const CHAIN: usize = 32;

/// The largest number of a row of activations is at least 2 to this power, and smaller than twice that.
const ROW_EXPONENT: i32 = 4;

/// The same of a column of weights.
const COLUMN_EXPONENT: i32 = 2;

/// Two lanes' sums of the largest numbers are added in f16, whose largest number is 65504.
const _: () =
    assert!((2 * CHAIN) << (ROW_EXPONENT + 1 + COLUMN_EXPONENT + 1) <= 1 << 15, "sums in f16 are finite");

/// A unit is two f16.
struct HalfPair;

impl Widened for HalfPair {
    #[inline(always)]
    fn low<S: Simd>(s: S, x: S::V) -> S::V {
        s.low_f16(x)
    }
    #[inline(always)]
    fn high<S: Simd>(s: S, x: S::V) -> S::V {
        s.high_f16(x)
    }
}

/// The operands and the result of a tile of f16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScaledTile {
    /// The operands in units of two f16, and the result. The `k` rows of the panel are followed by the scale of each column.
    /// `accumulate` and `overlap` are not used.
    pub tile: Tile,
    /// The scale of each row.
    pub scales: *const f32,
}

/// Runs a function for the height of a tile, as a constant, and whether memory is prefetched.
macro_rules! for_height {
    ($simd:ident, $tile:expr, $function:ident($($x:expr),*)) => {
        for_height!(@ $simd, $tile, $function, ($($x),*), 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    (@ $simd:ident, $tile:expr, $function:ident, $x:tt, $($rows:literal)*) => {
        match $tile.rows {
            $($rows if $simd::ROWS >= $rows => {
                if $tile.ahead.is_some() {
                    for_height!(@@ $function::<$simd, $rows, true> $x)
                } else {
                    for_height!(@@ $function::<$simd, $rows, false> $x)
                }
            })*
            _ => {
                const { assert!($simd::ROWS <= 12, "a height is missing in this macro") };
                debug_assert_eq!($tile.rows, 0, "tile height");
            }
        }
    };
    (@@ $function:ident::<$simd:ident, $rows:literal, $ahead:literal> ($($x:expr),*)) => {
        $function::<$simd, $rows, $ahead>($($x),*)
    };
}

/// `c = a · panel`, times the scales, by the arithmetic of f32. The result of a row does not depend on other rows.
///
/// # Safety
///
/// - All preconditions of [`tile`](super::tile::tile) for `t.tile`; its panel has a readable row of f32 after the others.
/// - `t.scales` is aligned and points to `t.tile.rows` readable values.
#[inline(always)]
pub(crate) unsafe fn widened<S: Simd>(s: S, t: &ScaledTile) {
    // SAFETY: `t.tile.rows` is the constant, and the other preconditions are those of this function.
    unsafe { for_height!(S, t.tile, widened_rows(s, t)) }
}

/// [`widened`], by the arithmetic of f16.
///
/// # Safety
///
/// - All preconditions of [`widened`].
#[cfg(any(test, target_arch = "x86_64"))]
#[inline(always)]
pub(crate) unsafe fn native<S: HalfLanes>(s: S, t: &ScaledTile) {
    // SAFETY: `t.tile.rows` is the constant, and the other preconditions are those of this function.
    unsafe { for_height!(S, t.tile, native_rows(s, t)) }
}

/// [`widened`] for a constant number of rows.
///
/// # Safety
///
/// - All preconditions of [`widened`].
/// - `t.tile.rows == ROWS`.
#[inline(always)]
unsafe fn widened_rows<S: Simd, const ROWS: usize, const AHEAD: bool>(s: S, t: &ScaledTile) {
    let mut acc = [[s.splat(0.0); 2]; ROWS];
    // SAFETY: the operands are those of this function. Row `i < ROWS` of `c` has two writable registers.
    unsafe {
        sum_widened::<S, HalfPair, ROWS, AHEAD>(s, &mut acc, &t.tile);
        for (i, acc) in acc.iter().enumerate() {
            let c = t.tile.c.add(i * t.tile.c_stride);
            s.store(c, acc[0]);
            s.store(c.add(S::LANES), acc[1]);
        }
        scale_result::<S, ROWS>(s, t);
    }
}

/// [`native`] for a constant number of rows.
///
/// # Safety
///
/// - All preconditions of [`native`].
/// - `t.tile.rows == ROWS`.
#[cfg(any(test, target_arch = "x86_64"))]
#[inline(always)]
unsafe fn native_rows<S: HalfLanes, const ROWS: usize, const AHEAD: bool>(s: S, t: &ScaledTile) {
    let zero = s.splat(0.0);
    let Tile { k, c, c_stride, a_stride, .. } = t.tile;
    let (mut panel, mut a) = (t.tile.panel, t.tile.a);
    let mut ahead = Prefetches::<AHEAD>::new(&t.tile);
    let mut from = 0;
    loop {
        let units = CHAIN.min(k - from);
        let mut acc = [[zero; 2]; ROWS];
        for _ in 0..units {
            // SAFETY: iteration `n < k` of all loops reads row `n` of the panel, two registers, and unit `n` of each of the
            // `ROWS` rows of `a`. Both pointers advance by one row or unit, and end at most one past the operands.
            unsafe {
                let b = [s.load(panel), s.load(panel.add(S::LANES))];
                ahead.prefetch(s);
                for (i, acc) in acc.iter_mut().enumerate() {
                    let a = s.splat_bytes(a.add(i * a_stride));
                    acc[0] = s.mul_add_f16(a, b[0], acc[0]);
                    acc[1] = s.mul_add_f16(a, b[1], acc[1]);
                }
                panel = panel.add(2 * S::LANES);
                a = a.add(4);
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (half, &acc) in acc.iter().enumerate() {
                // SAFETY: `i < ROWS`, and row `i` of `c` has two writable registers, which the first iteration initialized.
                unsafe {
                    let c = c.add(i * c_stride + half * S::LANES);
                    let before = if from == 0 { zero } else { s.load(c) };
                    s.store(c, s.add(before, s.add_pair_f16(acc)));
                }
            }
        }
        from += units;
        if from == k {
            break;
        }
    }
    // SAFETY: the preconditions are those of this function, and the loop wrote two registers of each row of `c`.
    unsafe { scale_result::<S, ROWS>(s, t) }
}

/// Multiplies the result by the scales of its rows and columns.
///
/// # Safety
///
/// - All preconditions of [`widened`], and the result is initialized.
/// - `t.tile.rows == ROWS`.
#[inline(always)]
unsafe fn scale_result<S: Simd, const ROWS: usize>(s: S, t: &ScaledTile) {
    // SAFETY: the panel has a row of two registers after its `k` rows. `i < ROWS`, so row `i` has a scale, and two initialized
    // registers of `c`.
    unsafe {
        let columns = t.tile.panel.add(t.tile.k * 2 * S::LANES);
        let columns = [s.load(columns), s.load(columns.add(S::LANES))];
        for i in 0..ROWS {
            let row = s.splat(*t.scales.add(i));
            for (half, &column) in columns.iter().enumerate() {
                let c = t.tile.c.add(i * t.tile.c_stride + half * S::LANES);
                // The product of both scales alone may be infinite or zero.
                s.store(c, s.mul(s.mul(s.load(c), row), column));
            }
        }
    }
}

/// Rounds a row of activations to f16, and fills the rest of `out` with zeros. Returns its scale.
///
/// # Panics
///
/// If `out` is shorter than `x`.
#[inline(always)]
pub(crate) fn scale_row(x: &[f32], out: &mut [u16]) -> f32 {
    to_scaled(x, ROW_EXPONENT, out)
}

/// Rounds the weights of an output to f16, and returns their scale.
///
/// # Panics
///
/// If `out` is shorter than `x`.
pub(crate) fn scale_column(x: &[f32], out: &mut [u16]) -> f32 {
    to_scaled(x, COLUMN_EXPONENT, out)
}

/// Divides `x` by the power of two that gives its largest number the exponent `largest`, and rounds it to f16. The rest of `out`
/// becomes zero. Returns the power of two, or NaN if a number is not finite.
#[inline(always)]
fn to_scaled(x: &[f32], largest: i32, out: &mut [u16]) -> f32 {
    let (out, rest) = out.split_at_mut(x.len());
    rest.fill(0);
    let most = x.iter().fold(0, |most: u32, x| most.max(x.to_bits() & !(1 << 31)));
    if most >= f32::INFINITY.to_bits() {
        out.fill(0);
        return f32::NAN;
    }
    let exponent = (most >> 23).cast_signed() - 127;
    // Both powers are normal numbers: an exponent is at most 127.
    let power = (largest - exponent).min(126);
    let [inverse, scale] = [power, -power].map(|power| f32::from_bits((power + 127).cast_unsigned() << 23));
    out.iter_mut().zip(x).for_each(|(to, &x)| *to = f16_bits(x * inverse));
    scale
}
