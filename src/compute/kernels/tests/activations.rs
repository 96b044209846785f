//! Activations and exponentials, and the rounding to bf16.

use candle_core::cpu::erf::erfc_f64;

use super::*;
use crate::compute::kernels::math::{activate, exp};
use crate::compute::kernels::rowwise::TileEpilogue;
use crate::compute::simd::{Portable, Simd};

pub(super) fn reference(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Gelu => x * 0.5 * erfc_f64(-x / 2.0_f64.sqrt()),
        Activation::GeluTanh => {
            let y = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x / (1.0 + (-2.0 * y).exp())
        }
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::ReluSquared => x.max(0.0).powi(2),
        Activation::ClampedSwish(own) => {
            let x = x.min(f64::from(own.limit));
            x / (1.0 + (-f64::from(own.steepness) * x).exp())
        }
        Activation::Xielu(own) => {
            let [positive, negative, slope, cut] =
                [own.positive, own.negative, own.slope, own.cut].map(f64::from);
            if x > 0.0 {
                positive * x * x + slope * x
            } else {
                negative * (x.min(cut).exp_m1() - x) + slope * x
            }
        }
    }
}

/// Distance in units of the last place of `expected`, as f32.
fn ulps(got: f32, expected: f64) -> f64 {
    let exponent = (expected.abs().max(f64::from(f32::MIN_POSITIVE))).log2().floor();
    (f64::from(got) - expected).abs() / 2.0_f64.powf(exponent - 23.0)
}

/// `activation` of each value, in f32.
pub(super) fn activated(kernels: &Kernels, activation: Activation, values: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (x, y) in values.chunks(kernels.width).zip(out.chunks_mut(kernels.width)) {
        finish_row(kernels, activation, x, y.as_mut_ptr().cast(), DType::F32);
    }
    out
}

/// `activation` of each value, rounded to bf16.
pub(super) fn activated_narrow(kernels: &Kernels, activation: Activation, values: &[f32]) -> Vec<bf16> {
    let mut out = vec![bf16::ZERO; values.len()];
    for (x, y) in values.chunks(kernels.width).zip(out.chunks_mut(kernels.width)) {
        finish_row(kernels, activation, x, y.as_mut_ptr().cast(), DType::Bf16);
    }
    out
}

/// `activation` of one row of at most a tile's width. `out` points to as many writable values in the format `to`.
fn finish_row(kernels: &Kernels, activation: Activation, x: &[f32], out: *mut u8, to: DType) {
    let mut tile = vec![0.0; kernels.width];
    tile[..x.len()].copy_from_slice(x);
    let f = TileEpilogue {
        tile: tile.as_ptr(),
        tile_stride: kernels.width,
        gated: std::ptr::null(),
        gated_bias: std::ptr::null(),
        rows: 1,
        columns: x.len(),
        bias: std::ptr::null(),
        activation,
        factors: std::ptr::null(),
        out,
        out_stride: 0,
        store: to.into(),
    };
    // SAFETY: `tile` has one row of whole registers, and `out` points to `x.len()` writable values; the other pointers are
    // null.
    unsafe { kernels.finish(&f) };
}

#[test]
fn activations_are_exact_to_the_precision_of_bf16() {
    let values: Vec<f32> = (-20_000..20_000).map(|i| i as f32 * 5e-4).chain([-80.0, 80.0, 1e30]).collect();
    for kernels in all() {
        for activation in ACTIVATIONS {
            for (&x, got) in values.iter().zip(activated_narrow(kernels, activation, &values)) {
                let exact = reference(activation, f64::from(x));
                // Half a unit in the last place, and a tenth of that; near zero, 4e-5.
                let allowed = (exact.abs() * 4.3e-3).max(4e-5);
                let error = (f64::from(got.to_f32()) - exact).abs();
                assert!(error <= allowed, "{kernels:?} {activation:?}({x}) = {got}, not {exact}");
            }
            assert!(activated_narrow(kernels, activation, &[f32::NAN])[0].is_nan());
        }
    }
}

#[test]
fn gelu_is_exact_to_the_last_places() {
    let values: Vec<f32> =
        (-1_000_000..1_000_000).map(|i| i as f32 * 1e-5).chain([-100.0, 100.0, 1e30]).collect();
    for kernels in all() {
        for (&x, got) in values.iter().zip(activated(kernels, Activation::Gelu, &values)) {
            let expected = reference(Activation::Gelu, f64::from(x));
            let error = (f64::from(got) - expected).abs();
            assert!(
                error < 1e-7 || ulps(got, expected) < 2.0,
                "{kernels:?} gelu({x}) = {got}, not {expected}"
            );
        }
        for activation in ACTIVATIONS {
            assert!(activated(kernels, activation, &[f32::NAN])[0].is_nan(), "{kernels:?} {activation:?}");
        }
    }
}

#[test]
fn tanh_gelu_is_close() {
    let values: Vec<f32> = (-10_000..10_000).map(|i| i as f32 * 1e-3).collect();
    for kernels in all() {
        for (&x, got) in values.iter().zip(activated(kernels, Activation::GeluTanh, &values)) {
            assert!(
                (f64::from(got) - reference(Activation::GeluTanh, f64::from(x))).abs()
                    < 5e-7 + 2e-7 * f64::from(x.abs())
            );
        }
    }
}

#[test]
fn tanh_is_exact_to_the_last_places() {
    let values: Vec<f32> =
        (-100_000..100_000).map(|i| i as f32 * 1.3e-4).chain([1e-20, -100.0, 100.0, 1e30]).collect();
    for kernels in all() {
        for (&x, got) in values.iter().zip(activated(kernels, Activation::Tanh, &values)) {
            let expected = reference(Activation::Tanh, f64::from(x));
            assert!(ulps(got, expected) < 5.0, "{kernels:?} tanh({x}) = {got}, not {expected}");
        }
    }
}

#[test]
fn exponentials_are_exact() {
    // The test of softmax covers the other instruction sets.
    for i in -86_999..88_000 {
        let x = i as f32 * 1e-3;
        let got = exp::<Portable<4>, false>(Portable, [x; 4])[0];
        // Without a fused multiply-add, two roundings add to the error of the exponent.
        assert!(ulps(got, f64::from(x).exp()) < 2.0 + f64::from(x.abs()), "exp({x}) = {got}");
        let narrow = exp::<Portable<4>, true>(Portable, [x; 4])[0];
        assert!((narrow / got - 1.0).abs() < 1.3e-4, "exp({x}) = {narrow} for bf16");
    }
    let s = Portable::<4>;
    for wrong in [exp::<Portable<4>, false>, exp::<Portable<4>, true>] {
        assert!(wrong(s, s.splat(f32::NAN))[0].is_nan());
        assert!(wrong(s, s.splat(f32::NEG_INFINITY))[0] < 2e-38);
    }
    assert_eq!(activate::<_, false>(s, Activation::Relu, s.splat(-1.0))[0], 0.0);
}

#[test]
fn bf16_rounds_as_the_reference_does() {
    let mut values = random(1000, 15);
    values.extend([
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::from_bits(0x7fff_ffff),
        f32::MAX,
    ]);
    values.extend([1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.0 - 1.0 / 256.0]);
    for kernels in all() {
        for (&x, got) in values.iter().zip(activated_narrow(kernels, Activation::Identity, &values)) {
            let expected = bf16::from_f32(x + 0.0);
            assert!(got == expected || (got.is_nan() && x.is_nan()), "{kernels:?} {x}: {got} for {expected}");
        }
    }
}
