//! The rounding of activations to eight bits, on every instruction set.

use super::*;
use crate::compute::kernels::quantize::{GROUP, QuantizedRow};

/// The codes, scales, sums and offsets of a row, all of which end right before a page that cannot be touched.
fn encoded(kernels: &Kernels, x: &[f32]) -> (Vec<i8>, Vec<f32>, Vec<i32>, Vec<f32>) {
    let guarded = Guarded::new(x);
    encoded_from(kernels, DType::F32, guarded.as_ptr().cast(), x.len())
}

fn encoded_from(
    kernels: &Kernels,
    format: DType,
    x: *const u8,
    length: usize,
) -> (Vec<i8>, Vec<f32>, Vec<i32>, Vec<f32>) {
    let groups = length.div_ceil(GROUP);
    let mut codes = Guarded::new(&vec![99_u8; groups * GROUP]);
    let (mut scales, mut offsets) = (vec![f32::NAN; groups], vec![f32::NAN; groups]);
    let mut sums = vec![i32::MAX; groups * 2];
    // SAFETY: bytes of either sign are bytes.
    let signed = unsafe { std::slice::from_raw_parts_mut(codes.as_mut_ptr().cast::<i8>(), codes.len()) };
    let mut row = QuantizedRow {
        x,
        format,
        length,
        codes: signed,
        scales: &mut scales,
        sums: Some(&mut sums),
        offsets: &mut offsets,
    };
    // SAFETY: the caller's row holds so many values.
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
            let (codes, scales, sums, offsets) = encoded(kernels, &x);
            for (group, values) in x.chunks(GROUP).enumerate() {
                let most = values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                assert_eq!(scales[group], most / 127.0, "{kernels:?} {length}");
                let codes = &codes[group * GROUP..][..GROUP];
                for (i, &code) in codes.iter().enumerate() {
                    let value = values.get(i).map_or(0.0, |&x| f64::from(x));
                    let error = (f64::from(code) * f64::from(scales[group]) - value).abs();
                    assert!(error <= f64::from(scales[group]) * 0.50001, "{kernels:?} {length} {i}");
                }
                let sum = |codes: &[i8]| codes.iter().map(|&code| i32::from(code)).sum::<i32>();
                let halves = [sum(&codes[..GROUP / 2]), sum(&codes[GROUP / 2..])];
                assert_eq!(sums[group * 2..][..2], halves, "{kernels:?} {length}");
                assert_eq!(offsets[group], -128.0 * scales[group] * (halves[0] + halves[1]) as f32);
            }
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
            let ours = encoded_from(kernels, DType::Bf16, narrow.as_ptr().cast(), length);
            assert_eq!(ours, encoded(kernels, &wide), "{kernels:?} {length}");
        }
    }
}

#[test]
fn what_is_not_finite_taints_its_row() {
    for kernels in all() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 15, 31] {
                let mut x = random(3 * GROUP, 23);
                x[GROUP + place] = bad;
                let (_, scales, _, offsets) = encoded(kernels, &x);
                assert!(scales[0].is_nan() && offsets[0].is_nan(), "{kernels:?} {bad} {place}");
            }
        }
    }
}
