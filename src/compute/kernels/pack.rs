//! Packs rows into panels, the right operand of [`super::tile`].

use crate::compute::simd::Simd;

/// Transposes rows `0..rows` of `from`, of `units` four-byte units each, into the columns of one panel, which is two
/// registers wide: `panel[unit * width + row]`. Missing rows become zeros. With `odd`, the last unit of a row has a
/// single bf16, and its upper half is cleared.
///
/// # Safety
///
/// - `from` points to `rows` rows of `units` readable units, `stride` bytes apart; it needs no alignment.
///
/// # Panics
///
/// If `panel` does not have `units` rows of two registers, or `rows` exceeds its width.
#[inline(always)]
pub(crate) unsafe fn transpose<S: Simd>(
    s: S,
    from: *const u8,
    stride: usize,
    rows: usize,
    units: usize,
    odd: bool,
    panel: &mut [u32],
) {
    let width = 2 * S::LANES;
    assert!(rows <= width && panel.len() == units * width, "panel size");
    let whole = units - units % S::LANES;
    for first in [0, S::LANES] {
        let count = rows.saturating_sub(first).min(S::LANES);
        for unit in (0..whole).step_by(S::LANES) {
            // SAFETY: `count <= LANES` rows from `first` on have `LANES` units from `unit` on, because
            // `unit + LANES <= whole <= units`. The panel has `LANES` rows from `unit` on and `LANES` columns from `first`
            // on by the assertion above, and `u32` has the alignment of `f32`.
            unsafe {
                let from = from.wrapping_add(first * stride + unit * 4);
                s.transpose(from, stride, count, panel.as_mut_ptr().add(unit * width + first).cast(), width);
            }
        }
    }
    for (unit, column) in panel.chunks_exact_mut(width).enumerate().skip(whole) {
        for (row, x) in column[..rows].iter_mut().enumerate() {
            // SAFETY: `row < rows` and `unit < units`, so the unit lies in `from`; the read is unaligned.
            *x = unsafe { from.add(row * stride + unit * 4).cast::<u32>().read_unaligned() };
        }
        column[rows..].fill(0);
    }
    if odd {
        panel[(units - 1) * width..].iter_mut().for_each(|x| *x &= 0xffff);
    }
}

/// Copies rows of `columns` f32 into the rows of a panel of `width` columns. The columns after them become zeros.
///
/// # Safety
///
/// - `from` points to `rows` rows of `columns` readable values, `stride` bytes apart; it needs no alignment.
///
/// # Panics
///
/// If the length of `panel` is not `rows * width`, or `columns > width`.
#[inline(always)]
pub(crate) unsafe fn copy_f32(
    from: *const u8,
    stride: usize,
    rows: usize,
    columns: usize,
    width: usize,
    panel: &mut [u32],
) {
    assert!(columns <= width && panel.len() == rows * width, "panel size");
    for (row, to) in panel.chunks_exact_mut(width).enumerate() {
        // SAFETY: the panel has `rows` rows by the assertion above, so row `row` of `from` has `columns` readable values;
        // `to` has `width >= columns` units, and is borrowed mutably, so it does not overlap `from`.
        unsafe { from.add(row * stride).copy_to_nonoverlapping(to.as_mut_ptr().cast(), columns * 4) };
        to[columns..].fill(0);
    }
}

/// Packs pairs of rows of `columns` bf16 into rows of units: the first row in the lower half, the second in the upper
/// half. An odd last row is paired with zeros.
///
/// # Safety
///
/// - `from` points to `rows` rows of `columns` readable values, `stride` bytes apart; it needs no alignment.
///
/// # Panics
///
/// If the length of `panel` is not `rows.div_ceil(2) * width`, or `columns > width`.
#[inline(always)]
pub(crate) unsafe fn pair_bf16(
    from: *const u8,
    stride: usize,
    rows: usize,
    columns: usize,
    width: usize,
    panel: &mut [u32],
) {
    assert!(columns <= width && panel.len() == rows.div_ceil(2) * width, "panel size");
    for (pair, to) in panel.chunks_exact_mut(width).enumerate() {
        // SAFETY: `pair < rows.div_ceil(2)` by the assertion above, so `2 * pair < rows`.
        let first = unsafe { from.add(2 * pair * stride) };
        let second = if 2 * pair + 1 < rows {
            // SAFETY: `2 * pair + 1 < rows`.
            unsafe { first.add(stride) }
        } else {
            std::ptr::null()
        };
        for (column, x) in to[..columns].iter_mut().enumerate() {
            // SAFETY: both rows are rows of `from`, and `column < columns`; the reads are unaligned.
            unsafe {
                let low = first.cast::<u16>().add(column).read_unaligned();
                let high =
                    if second.is_null() { 0 } else { second.cast::<u16>().add(column).read_unaligned() };
                *x = u32::from(low) | u32::from(high) << 16;
            }
        }
        to[columns..].fill(0);
    }
}
