//! From rows to panels: the right operand of [`super::tile`].

use crate::compute::simd::Simd;

/// Rows `0..rows` of `from`, each `units` four-byte units, become columns of one panel, two registers wide:
/// `panel[unit * width + row]`. Missing rows become zeros. With `odd`, the last unit holds one bf16 only, and
/// its other half is cleared.
///
/// # Safety
/// `rows` rows of `units` units can be read, `stride` bytes apart.
///
/// # Panics
/// When `panel` is not `units` times two registers long or there are more rows than that width.
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
            // SAFETY: `count` rows from `first` on have `LANES` units from `unit` on, and so has the panel rows.
            unsafe {
                let from = from.wrapping_add(first * stride + unit * 4);
                s.transpose(from, stride, count, panel.as_mut_ptr().add(unit * width + first).cast(), width);
            }
        }
    }
    for (unit, column) in panel.chunks_exact_mut(width).enumerate().skip(whole) {
        for (row, x) in column[..rows].iter_mut().enumerate() {
            // SAFETY: the caller's.
            *x = unsafe { from.add(row * stride + unit * 4).cast::<u32>().read_unaligned() };
        }
        column[rows..].fill(0);
    }
    if odd {
        panel[(units - 1) * width..].iter_mut().for_each(|x| *x &= 0xffff);
    }
}

/// Rows of `columns` f32 become the rows of a panel of `width` columns, zeros to the right.
///
/// # Safety
/// `rows` rows of `columns` values can be read, `stride` bytes apart.
///
/// # Panics
/// When `panel` is not `rows * width` long or `columns > width`.
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
        // SAFETY: the caller's for the source; `to` holds `width >= columns` units.
        unsafe { from.add(row * stride).copy_to_nonoverlapping(to.as_mut_ptr().cast(), columns * 4) };
        to[columns..].fill(0);
    }
}

/// Pairs of rows of `columns` bf16 become rows of units: the first row in the lower half, the second in the
/// upper one. An odd last row is paired with zeros.
///
/// # Safety
/// `rows` rows of `columns` values can be read, `stride` bytes apart.
///
/// # Panics
/// When `panel` is not `rows.div_ceil(2) * width` long or `columns > width`.
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
        // SAFETY: row `2 * pair` exists.
        let first = unsafe { from.add(2 * pair * stride) };
        let second = if 2 * pair + 1 < rows {
            // SAFETY: and so does the next one.
            unsafe { first.add(stride) }
        } else {
            std::ptr::null()
        };
        for (column, x) in to[..columns].iter_mut().enumerate() {
            // SAFETY: the caller's.
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
