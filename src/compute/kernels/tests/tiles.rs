//! Matrix tiles: any height, depth and width, with and without accumulation and prefetching.

use std::ffi::c_void;

use proptest::prelude::*;

use super::*;
use crate::compute::kernels::tile::{Ahead, Overlap, Tile};

/// Packs a panel of `columns` rows of `k` elements, and compares its product with the definition.
fn check_tile(kernels: &Kernels, format: DType, rows: usize, k: usize, columns: usize, accumulate: bool) {
    let even = if format == DType::Bf16 { k.next_multiple_of(2) } else { k };
    let mut left = random(rows * even, 1);
    let mut right = random(columns * even, 2);
    // The element after an odd row: on the left it may be any number, on the right packing must clear it.
    for (i, x) in left.iter_mut().chain(&mut right).enumerate() {
        *x = if i % even.max(1) >= k { 3.0 } else { *x };
    }
    let ((a, a_values), (b, b_values)) = (operand(format, &left), operand(format, &right));
    let mut panel = Guarded::new(&vec![u32::MAX; units(format, k) * kernels.width]);
    // SAFETY: `b` has `columns` rows of `even` elements, which is `k`, or `k + 1` if `format` is bf16 and `k` is odd.
    unsafe { kernels.pack_columns(format, b.as_ptr(), even * format.bytes(), columns, k, &mut panel) };
    let before = random(rows * kernels.width, 3);
    let mut c = Guarded::new(&before);
    let t = Tile {
        a: a.as_ptr(),
        a_stride: even * format.bytes(),
        panel: panel.as_ptr().cast(),
        k: units(format, k),
        c: c.as_mut_ptr(),
        c_stride: kernels.width,
        rows,
        accumulate,
        ahead: None,
        overlap: None,
    };
    // SAFETY: `rows` is at most `kernels.rows(format)`; `a` has `rows` rows of `even` elements, which is whole units, the
    // panel has `units(format, k)` rows of `width` units, and `c` has `rows` rows of `width` initialized values.
    unsafe { kernels.tile(format, &t) };
    // Prefetching changes no result, even from an inaccessible page: right behind the panel. Of a panel's row, the share of
    // each of many, four, two and one row tiles is prefetched.
    for share in [32, 4, 2, 1] {
        let mut again = Guarded::new(&before);
        let from = panel.as_ptr().wrapping_add(panel.len()).cast();
        let ahead = Some(Ahead { from, step: kernels.width * 4 / share });
        // SAFETY: the operands are those of the call above, and `again` has the size of `c`.
        unsafe { kernels.tile(format, &Tile { c: again.as_mut_ptr(), ahead, ..t }) };
        assert_eq!(again[..], c[..], "{kernels:?} {format:?} {rows}x{k}, a share of 1/{share}");
    }
    for (i, &got) in c.iter().enumerate() {
        let (row, column) = (i / kernels.width, i % kernels.width);
        let mut expected = if accumulate { f64::from(before[i]) } else { 0.0 };
        if column < columns {
            expected += (0..k).map(|u| a_values[row * even + u] * b_values[column * even + u]).sum::<f64>();
        }
        let error = (f64::from(got) - expected).abs();
        assert!(
            error <= 1e-6 * (k as f64).sqrt().max(1.0),
            "{kernels:?} {format:?} {rows}x{k}x{columns} at {row},{column}: {got} for {expected}"
        );
    }
}

#[test]
fn tiles_multiply() {
    for kernels in all() {
        for format in FORMATS {
            for rows in 0..=kernels.rows(format) {
                for k in [0, 1, 2, 3, 8, 31, 32, 65, 100] {
                    check_tile(kernels, format, rows, k, kernels.width, k % 2 == 0);
                }
            }
            for columns in 0..=kernels.width {
                check_tile(kernels, format, 3, 17, columns, false);
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_other_rows() {
    for kernels in all() {
        for format in FORMATS {
            let (k, height) = (77_usize, kernels.rows(format));
            let (a, _) = operand(format, &random(height * 78, 4));
            let (panel, _) = operand(format, &random(kernels.width * k.next_multiple_of(2), 5));
            let product = |first: usize, rows: usize| {
                let mut c = vec![0.0; rows * kernels.width];
                let t = Tile {
                    a: a[first * 78 * format.bytes()..].as_ptr(),
                    a_stride: 78 * format.bytes(),
                    panel: panel.as_ptr().cast(),
                    k: units(format, k),
                    c: c.as_mut_ptr(),
                    c_stride: kernels.width,
                    rows,
                    accumulate: false,
                    ahead: None,
                    overlap: None,
                };
                // SAFETY: `first + rows <= height`; `a` has `height` rows of 78 elements, which is whole units, the panel
                // `units(format, 77)` rows of `width` units, and `c` has `rows` rows of `width` initialized values.
                unsafe { kernels.tile(format, &t) };
                c
            };
            let whole = product(0, height);
            for rows in 1..height {
                let separate = [product(0, rows), product(rows, height - rows)].concat();
                assert!(whole == separate, "{kernels:?} {format:?} {rows}");
            }
        }
    }
}

#[test]
fn panels_side_by_side_have_the_results_of_single_tiles() {
    for kernels in all() {
        for format in FORMATS {
            for (k, accumulate) in
                [(1_usize, false), (9, false), (31, false), (32, false), (33, false), (64, false), (32, true)]
            {
                let (units, even) = (units(format, k), k.next_multiple_of(2));
                let height = kernels.rows(format);
                let (a, _) = operand(format, &random(height * even, 4));
                let (panels, _) = operand(format, &random(5 * kernels.width * even, 5));
                for (rows, count) in (0..=height).flat_map(|rows| [0, 1, 2, 5].map(|count| (rows, count))) {
                    // A gap lies between the results of two rows.
                    let stride = count * kernels.width + 16;
                    let before = random(rows * stride, 6);
                    let (mut together, mut single) = (Guarded::new(&before), Guarded::new(&before));
                    let t = Tile {
                        a: a.as_ptr(),
                        a_stride: even * format.bytes(),
                        panel: panels.as_ptr().cast(),
                        k: units,
                        c: together.as_mut_ptr(),
                        c_stride: stride,
                        rows,
                        accumulate,
                        ahead: None,
                        overlap: None,
                    };
                    // SAFETY: `a` has `height` rows of whole units, `panels` `5 * units` rows of `width` units, and both results
                    // `rows` rows of `count * width` initialized values.
                    unsafe {
                        kernels.tiles(format, &t, count);
                        for index in 0..count {
                            let panel = t.panel.add(index * units * kernels.width);
                            let c = single.as_mut_ptr().add(index * kernels.width);
                            kernels.tile(format, &Tile { panel, c, ..t });
                        }
                    }
                    assert!(together[..] == single[..], "{kernels:?} {format:?} {rows}x{k}, {count} panels");
                }
            }
        }
    }
}

/// Vector and mask registers may change in work that overlaps with a product; general registers that a function preserves
/// may not.
#[test]
fn work_that_overlaps_with_a_product_is_called_once_a_step() {
    unsafe extern "C" fn count(calls: *mut c_void) {
        // SAFETY: `calls` points to a counter that nothing else accesses during the product.
        let calls = unsafe { &mut *calls.cast::<u64>() };
        // Floating-point and vector work, so that registers are used.
        let noise: Vec<f32> = (0..64).map(|i| (i as f32 + *calls as f32).sqrt()).collect();
        *calls += u64::from(noise.iter().sum::<f32>() > 0.0);
    }
    for kernels in all() {
        for format in FORMATS {
            for (rows, k) in [(1, 5_usize), (9, 32), (16, 100), (17, 64), (32, 400)] {
                let rows = usize::min(rows, kernels.rows(format));
                let (a, _) = operand(format, &random(rows * k.next_multiple_of(2), 4));
                let (panel, _) = operand(format, &random(kernels.width * k.next_multiple_of(2), 5));
                let product = |overlap| {
                    let mut c = vec![0.0; rows * kernels.width];
                    let t = Tile {
                        a: a.as_ptr(),
                        a_stride: k.next_multiple_of(2) * format.bytes(),
                        panel: panel.as_ptr().cast(),
                        k: units(format, k),
                        c: c.as_mut_ptr(),
                        c_stride: kernels.width,
                        rows,
                        accumulate: false,
                        ahead: None,
                        overlap,
                    };
                    // SAFETY: `a` has `rows` rows of whole units, the panel `units(format, k)` rows of `width` units, and `c`
                    // `rows` rows of `width` initialized values. `count` may be called with what `overlap` has.
                    unsafe { kernels.tile(format, &t) };
                    c
                };
                let mut calls = 0_u64;
                let overlap = Overlap { run: count, state: (&raw mut calls).cast() };
                let with = product(Some(overlap));
                let steps = if kernels.uses_amx(format) { units(format, k).div_ceil(16) as u64 } else { 0 };
                assert_eq!(calls, steps, "{kernels:?} {format:?} {rows}x{k}");
                assert!(with == product(None), "{kernels:?} {format:?} {rows}x{k}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn tiles_of_any_size_multiply(rows in 0_usize..=TALLEST_TILE, k in 0_usize..200, columns in 0_usize..=32, accumulate: bool) {
        for kernels in all() {
            for format in FORMATS {
                check_tile(kernels, format, rows.min(kernels.rows(format)), k, columns.min(kernels.width), accumulate);
            }
        }
    }
}
