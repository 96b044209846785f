//! From rows to panels: the right operand of [`super::tile`].

/// Rows `0..rows` of `from`, each `units` four-byte units, become columns of one panel, `width` columns wide:
/// `panel[unit * width + row]`. Missing rows become zeros. With `odd`, the last unit holds one bf16 only, and
/// its other half is cleared.
///
/// # Safety
/// `rows` rows of `units` units can be read, `stride` bytes apart.
///
/// # Panics
/// When `panel` is not `units * width` long or there are more rows than `width`.
#[inline(always)]
pub(crate) unsafe fn transpose(
    from: *const u8,
    stride: usize,
    rows: usize,
    units: usize,
    odd: bool,
    width: usize,
    panel: &mut [u32],
) {
    assert!(rows <= width && panel.len() == units * width, "panel size");
    for (unit, column) in panel.chunks_exact_mut(width).enumerate() {
        let mask = if odd && unit + 1 == units { 0xffff } else { u32::MAX };
        for (row, x) in column[..rows].iter_mut().enumerate() {
            // SAFETY: the caller's.
            *x = unsafe { from.add(row * stride + unit * 4).cast::<u32>().read_unaligned() } & mask;
        }
        column[rows..].fill(0);
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
