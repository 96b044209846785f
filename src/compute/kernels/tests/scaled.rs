//! Tiles of f16 with scales, and the rows that they multiply.

use half::f16;
use proptest::prelude::*;

use super::*;
use crate::compute::kernels::ScaledTile;
use crate::compute::kernels::scaled::{scale_column, scale_row};
use crate::compute::kernels::tile::{Ahead, Tile};

/// All kernels, and those that add in f16 by software.
fn all_scaled() -> impl Iterator<Item = &'static Kernels> {
    all().chain([Kernels::wide_f16()])
}

/// Whether the kernels add in f16.
fn adds_f16(kernels: &Kernels) -> bool {
    kernels.isa().native_f16() || std::ptr::eq(kernels, Kernels::wide_f16())
}

/// An operand: rows of `k` numbers in f16, padded to whole units, and their scales.
struct Scaled {
    numbers: Guarded<u16>,
    scales: Vec<f32>,
    values: Vec<f64>,
}

impl Scaled {
    fn new(x: &[f32], k: usize, scale: impl Fn(&[f32], &mut [u16]) -> f32) -> Self {
        let (rows, even) = (x.len() / k.max(1), k.next_multiple_of(2));
        let mut numbers = vec![0x7bff; rows * even];
        let mut scales = vec![f32::NAN; rows];
        for (row, to) in scales.iter_mut().enumerate() {
            *to = scale(&x[row * k..][..k], &mut numbers[row * even..][..even]);
        }
        let values = (0..rows * k).map(|i| {
            let number = f16::from_bits(numbers[i / k * even + i % k]);
            f64::from(number) * f64::from(scales[i / k])
        });
        let values = values.collect();
        Self { numbers: Guarded::new(&numbers), scales, values }
    }
}

/// The product of rows `left` and columns `right` of `k` numbers, rows of [`Kernels::width`]; with a gap after each row.
fn product(kernels: &Kernels, left: &Scaled, right: &Scaled, k: usize, ahead: Option<usize>) -> Vec<f32> {
    let (rows, columns, units) = (left.scales.len(), right.scales.len(), units(DType::Bf16, k));
    let mut panel = vec![0_u32; (units + 1) * kernels.width];
    let (pairs, scales) = panel.split_at_mut(units * kernels.width);
    let stride = k.next_multiple_of(2) * 2;
    // SAFETY: `right` has `columns` rows of `k` numbers, padded to whole units.
    unsafe { kernels.pack_columns(DType::Bf16, right.numbers.as_ptr().cast(), stride, columns, k, pairs) };
    scales.iter_mut().zip(&right.scales).for_each(|(to, scale)| *to = scale.to_bits());
    let panel = Guarded::new(&panel);
    let c_stride = kernels.width + 16;
    let mut c = Guarded::new(&vec![f32::NAN; (rows.max(1) - 1) * c_stride + kernels.width]);
    let from = panel.as_ptr().wrapping_add(panel.len()).cast();
    let tile = Tile {
        a: left.numbers.as_ptr().cast(),
        a_stride: stride,
        panel: panel.as_ptr().cast(),
        k: units,
        c: c.as_mut_ptr(),
        c_stride,
        rows,
        accumulate: false,
        ahead: ahead.map(|step| Ahead { from, step }),
        overlap: None,
    };
    let row_scales = Guarded::new(&left.scales);
    // SAFETY: the callers pass at most `scaled_rows` rows. Both operands have whole units, the panel has a row of scales after
    // `units` rows, and `c` has `rows` rows of `width` values.
    unsafe { kernels.tile_scaled(&ScaledTile { tile, scales: row_scales.as_ptr() }) };
    (0..rows).flat_map(|row| c[row * c_stride..][..kernels.width].to_vec()).collect()
}

fn check(kernels: &Kernels, rows: usize, k: usize, columns: usize, size: [f32; 2]) {
    let numbers =
        |n: usize, seed: u64, size: f32| random(n, seed).iter().map(|x| x * size).collect::<Vec<_>>();
    let left = Scaled::new(&numbers(rows * k, 1, size[0]), k, |x, out| kernels.scale_row(x, out));
    let right = Scaled::new(&numbers(columns * k, 2, size[1]), k, scale_column);
    let got = product(kernels, &left, &right, k, None);
    for share in [4, 1] {
        let ahead = product(kernels, &left, &right, k, Some(kernels.width * 4 / share));
        assert_eq!(got, ahead, "{kernels:?} {rows}x{k}x{columns}, a share of 1/{share}");
    }
    for (i, &got) in got.iter().enumerate() {
        let (row, column) = (i / kernels.width, i % kernels.width);
        if column >= columns {
            assert_eq!(got, 0.0, "{kernels:?} {rows}x{k}x{columns} at {row},{column}");
            continue;
        }
        let terms = (0..k).map(|u| left.values[row * k + u] * right.values[column * k + u]);
        let (sum, squares) = terms.fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
        // An addition of f16 is off by up to 2^-11 of the sum until then.
        let bound = squares.sqrt() * if adds_f16(kernels) { 8e-3 } else { 2e-6 };
        assert!(
            (f64::from(got) - sum).abs() <= bound,
            "{kernels:?} {rows}x{k}x{columns} at {row},{column}: {got} for {sum}"
        );
    }
}

#[test]
fn scaled_tiles_multiply() {
    for kernels in all_scaled() {
        for rows in 0..=kernels.scaled_rows() {
            for k in [1, 2, 3, 8, 63, 64, 65, 129, 200] {
                check(kernels, rows, k, kernels.width, [3.0, 0.05]);
            }
        }
        for columns in 0..=kernels.width {
            check(kernels, 2, 17, columns, [1.0, 1.0]);
        }
    }
}

/// Sums of the largest numbers of all are finite, and so are products whose scales alone are not.
#[test]
fn no_size_is_too_large_or_too_small() {
    for kernels in all_scaled() {
        for size in [[1e30, 1e-30], [1e-30, 1e30], [1e18, 1e18], [1e-20, 1e-17], [1e36, 1.0], [1.0, 1e-36]] {
            check(kernels, 2, 130, 5, size);
        }
        let (ones, k) = (vec![1.999_f32; 500], 500);
        let left = Scaled::new(&ones, k, |x, out| kernels.scale_row(x, out));
        let right = Scaled::new(&ones, k, scale_column);
        let got = product(kernels, &left, &right, k, None)[0];
        assert!((got - 1998.0).abs() < 12.0, "{kernels:?}: {got}");
    }
}

/// The instructions of the CPU, and the same by software.
#[test]
fn arithmetic_of_f16_is_that_of_the_definition() {
    let software = Kernels::wide_f16();
    for kernels in all_scaled().filter(|&kernels| adds_f16(kernels)) {
        for (rows, k) in [(1, 1), (2, 7), (3, 64), (3, 100), (4, 385)] {
            // Numbers of very different sizes: some are subnormal, and many additions end between two numbers.
            let numbers = |n: usize, seed: u64| -> Vec<f32> {
                let sizes = random(n, seed + 7).into_iter().map(|x| (x * 12.0).exp2());
                random(n, seed).into_iter().zip(sizes).map(|(x, size)| x * size).collect()
            };
            let left = Scaled::new(&numbers(rows * k, 1), k, |x, out| kernels.scale_row(x, out));
            let right = Scaled::new(&numbers(32 * k, 2), k, scale_column);
            let [ours, expected] =
                [kernels, software].map(|kernels| product(kernels, &left, &right, k, None));
            assert_eq!(ours, expected, "{kernels:?} {rows}x{k}");
        }
    }
}

#[test]
fn a_scaled_row_does_not_depend_on_other_rows() {
    for kernels in all_scaled() {
        let (k, height) = (150, kernels.scaled_rows());
        let (x, w) = (random(height * k, 4), random(kernels.width * k, 5));
        let rows = |rows: &[f32]| Scaled::new(rows, k, |x, out| kernels.scale_row(x, out));
        let right = Scaled::new(&w, k, scale_column);
        let together = product(kernels, &rows(&x), &right, k, None);
        let apart = x.chunks(k).flat_map(|x| product(kernels, &rows(x), &right, k, None));
        assert_eq!(together, apart.collect::<Vec<_>>(), "{kernels:?}");
    }
}

#[test]
fn rows_are_rounded_to_f16_with_a_power_of_two() {
    for kernels in all() {
        for length in [0, 1, 2, 15, 16, 17, 33, 384] {
            for size in [1.0, 3e-5, 7e8, 1e-38, 3e38] {
                let x: Vec<f32> = random(length, 3).iter().map(|x| x * size).collect();
                let (mut ours, mut plain) = (Guarded::new(&vec![7_u16; length + 3]), vec![7_u16; length + 3]);
                let scale = kernels.scale_row(&Guarded::new(&x), &mut ours);
                assert_eq!(
                    (scale, &ours[..]),
                    (scale_row(&x, &mut plain), &plain[..]),
                    "{kernels:?} {length}"
                );
                let most = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                assert!(length == 0 || size < 1e-30 || (16.0..32.0).contains(&(most / scale)), "{size:e}");
                assert_eq!(scale.to_bits() & 0x7f_ffff, 0, "a power of two");
                for (got, x) in ours.iter().zip(&x) {
                    assert_eq!(f16::from_bits(*got), f16::from_f32(x / scale), "{kernels:?} {x:e}");
                }
                assert!(ours[length..].iter().all(|&x| x == 0), "{kernels:?} {length}");
            }
        }
    }
}

#[test]
fn a_number_that_is_not_finite_makes_its_results_nan() {
    for kernels in all_scaled() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random(3 * 40, 23);
            let clean = Scaled::new(&x, 40, |x, out| kernels.scale_row(x, out));
            x[40 + 17] = bad;
            let tainted = Scaled::new(&x, 40, |x, out| kernels.scale_row(x, out));
            let of_row = product(kernels, &tainted, &clean, 40, None);
            for (row, values) in of_row.chunks(kernels.width).enumerate() {
                assert!(values.iter().all(|x| x.is_nan() == (row == 1)), "{kernels:?} {bad} {row}");
            }
            let tainted = Scaled::new(&x, 40, scale_column);
            for values in product(kernels, &clean, &tainted, 40, None).chunks(kernels.width) {
                assert!(values.iter().enumerate().all(|(i, x)| x.is_nan() == (i == 1)), "{kernels:?} {bad}");
            }
        }
    }
}

#[test]
fn f16_in_both_halves_of_a_lane_are_widened() {
    use crate::compute::simd::{Portable, Simd as _};
    for bits in 0..=u16::MAX {
        let number = f16::from_bits(bits);
        if number.is_finite() {
            let lane = f32::from_bits(u32::from(bits) | u32::from(!bits & 0xbbff) << 16);
            let other = f16::from_bits(!bits & 0xbbff).to_f32();
            let simd = Portable::<4>;
            assert_eq!(simd.low_f16([lane; 4]), [number.to_f32(); 4]);
            assert_eq!(simd.high_f16([lane; 4]), [other; 4]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn scaled_tiles_of_any_size_multiply(rows in 0_usize..=12, k in 1_usize..200, columns in 0_usize..=32) {
        for kernels in all_scaled() {
            check(kernels, rows.min(kernels.scaled_rows()), k, columns.min(kernels.width), [2.0, 0.3]);
        }
    }
}
