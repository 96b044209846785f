//! Quantization of activations, on every instruction set.

use super::*;
use crate::compute::kernels::quantize::{GROUP, QuantizedRow};

/// The quants, scales, sums and offsets of a row. The row and the quants end right before an inaccessible page.
fn quantized(kernels: &Kernels, x: &[f32]) -> (Vec<i8>, Vec<f32>, Vec<i32>, Vec<f32>) {
    let guarded = Guarded::new(x);
    quantized_from(kernels, DType::F32, guarded.as_ptr().cast(), x.len())
}

fn quantized_from(
    kernels: &Kernels,
    format: DType,
    x: *const u8,
    length: usize,
) -> (Vec<i8>, Vec<f32>, Vec<i32>, Vec<f32>) {
    let groups = length.div_ceil(GROUP);
    let mut quants = Guarded::new(&vec![99_u8; groups * GROUP]);
    let (mut scales, mut offsets) = (vec![f32::NAN; groups], vec![f32::NAN; groups]);
    let mut sums = vec![i32::MAX; groups * 2];
    // SAFETY: `i8` has the size and alignment of `u8`, every bit pattern is valid, and the borrow is exclusive.
    let signed = unsafe { std::slice::from_raw_parts_mut(quants.as_mut_ptr().cast::<i8>(), quants.len()) };
    let mut row = QuantizedRow {
        x,
        format,
        length,
        quants: signed,
        scales: &mut scales,
        sums: Some(&mut sums),
        offsets: &mut offsets,
    };
    // SAFETY: both callers pass the start of a guarded row of `length` values in `format`.
    unsafe { kernels.quantize(&mut row) };
    (signed.to_vec(), scales, sums, offsets)
}

#[test]
fn activations_are_rounded_to_eight_bits() {
    for kernels in all() {
        for length in [0, 1, 5, 15, 16, 17, 31, 32, 33, 50, 64, 97, 576] {
            let mut x: Vec<f32> = random(length, 19).iter().map(|x| x * 7.0).collect();
            if length > 64 {
                x[32..64].fill(0.0);
            }
            let (quants, scales, sums, offsets) = quantized(kernels, &x);
            for (group, values) in x.chunks(GROUP).enumerate() {
                let most = values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                assert_eq!(scales[group], most / 127.0, "{kernels:?} {length}");
                let quants = &quants[group * GROUP..][..GROUP];
                for (i, &quant) in quants.iter().enumerate() {
                    let value = values.get(i).map_or(0.0, |&x| f64::from(x));
                    let error = (f64::from(quant) * f64::from(scales[group]) - value).abs();
                    assert!(error <= f64::from(scales[group]) * 0.50001, "{kernels:?} {length} {i}");
                }
                let sum = |quants: &[i8]| quants.iter().map(|&quant| i32::from(quant)).sum::<i32>();
                let halves = [sum(&quants[..GROUP / 2]), sum(&quants[GROUP / 2..])];
                assert_eq!(sums[group * 2..][..2], halves, "{kernels:?} {length}");
                assert_eq!(offsets[group], -128.0 * scales[group] * (halves[0] + halves[1]) as f32);
            }
        }
    }
}

/// The factor from such values to quants would be infinite.
#[test]
fn values_next_to_zero_become_zeros() {
    for kernels in all() {
        for small in [1e-38, 1e-40, f32::from_bits(1)] {
            let mut x = random(2 * GROUP, 31);
            x[..GROUP].fill(small);
            x[3] = 0.0;
            let (quants, scales, sums, offsets) = quantized(kernels, &x);
            assert_eq!((&quants[..GROUP], &sums[..2], offsets[0]), (&[0; GROUP][..], &[0, 0][..], -0.0));
            assert!(scales[0] <= small && scales[1] > 0.0, "{kernels:?} {small:e}");
        }
    }
}

#[test]
fn values_in_bf16_are_rounded_like_the_same_in_f32() {
    for kernels in all() {
        for length in [0, 1, 31, 32, 33, 63, 384] {
            let narrow: Vec<u16> =
                random(length, 29).iter().map(|&x| half::bf16::from_f32(x * 3.0).to_bits()).collect();
            let wide: Vec<f32> = narrow.iter().map(|&x| half::bf16::from_bits(x).to_f32()).collect();
            let narrow = Guarded::new(&narrow);
            let ours = quantized_from(kernels, DType::Bf16, narrow.as_ptr().cast(), length);
            assert_eq!(ours, quantized(kernels, &wide), "{kernels:?} {length}");
        }
    }
}

#[test]
fn a_value_that_is_not_finite_makes_its_row_nan() {
    for kernels in all() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 15, 31] {
                let mut x = random(3 * GROUP, 23);
                x[GROUP + place] = bad;
                let (_, scales, _, offsets) = quantized(kernels, &x);
                assert!(scales[0].is_nan() && offsets[0].is_nan(), "{kernels:?} {bad} {place}");
            }
        }
    }
}
