//! Elementary functions on registers, with errors near the precision of f32.
//!
//! With `NARROW`, the results are about to be rounded to bf16, and the functions use shorter polynomials. Their relative
//! error of 3e-4 is a thirteenth of the rounding error of bf16.

use super::activation::{Activation, Xielu};
use crate::compute::simd::{Portable, Simd};

/// Coefficients of `2^f - 1` on -0.5..=0.5, from `f` upwards: a minimax fit with relative error 2e-9.
const EXP2: [f32; 6] =
    [std::f32::consts::LN_2, 0.240_226_48, 0.055_503_324, 0.009_618_437, 0.001_339_887_4, 0.000_153_533_72];

/// A shorter polynomial for [`EXP2`], with relative error 1.1e-4.
const EXP2_NARROW: [f32; 3] = [0.693_282_9, 0.242_210_97, 0.055_009_06];

/// log2(e) rounded to f32, and the rounding error.
pub(crate) const LOG2_E: (f32, f32) = (std::f32::consts::LOG2_E, 1.925_963e-8);

/// Coefficients of `q(t) - 1` on 0..=6, from `t` upwards, where `2^-q(t) = erfc(t / √2) / 2` is the normal tail:
/// a weighted minimax fit. `t * 2^-q(t)` is within 1e-8 of exact, below the resolution of f32 in GELU.
const TAIL: [f32; 9] = [
    1.151_109_5,
    0.459_175_32,
    0.052_583_616,
    -0.007_169_611_6,
    0.000_197_548,
    0.000_174_602_33,
    -4.249_129e-5,
    4.469_601_6e-6,
    -1.866_760_2e-7,
];

/// A shorter polynomial for [`TAIL`]: `t * 2^-q(t)` has absolute error 4e-5, and relative error 3e-4 above 0.01.
const TAIL_NARROW: [f32; 4] = [1.147_915_7, 0.469_382_76, 0.042_543_48, -0.003_502_19];

/// `c[0] * x + c[1] * x² + …` plus `constant`.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, coefficients: &[f32; N], constant: f32, x: S::V) -> S::V {
    let mut sum = s.splat(coefficients[N - 1]);
    for &c in coefficients[..N - 1].iter().rev() {
        sum = s.mul_add(sum, x, s.splat(c));
    }
    s.mul_add(sum, x, s.splat(constant))
}

/// `2^f` for `f` in -0.5..=0.5.
#[inline(always)]
fn exp2_of_fraction<S: Simd, const NARROW: bool>(s: S, f: S::V) -> S::V {
    if NARROW { polynomial(s, &EXP2_NARROW, 1.0, f) } else { polynomial(s, &EXP2, 1.0, f) }
}

/// `2^x` for `x` in -126..=127, within 2 ULP; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2<S: Simd, const NARROW: bool>(s: S, x: S::V) -> S::V {
    let n = s.round(x);
    s.scale(exp2_of_fraction::<S, NARROW>(s, s.sub(x, n)), n)
}

/// `e^x` within 2 ULP for `x` in -87..=88; below that about 1e-38, above it about 3e38; NaN stays NaN. Without a
/// fused multiply-add the relative error is up to `|x|` times 6e-8.
#[inline(always)]
pub(crate) fn exp<S: Simd, const NARROW: bool>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-87.0), s.min(s.splat(88.0), x));
    if NARROW {
        return exp2::<S, true>(s, s.mul(x, s.splat(LOG2_E.0)));
    }
    let n = s.round(s.mul(x, s.splat(LOG2_E.0)));
    let f = s.mul_add(x, s.splat(LOG2_E.0), s.sub(s.splat(0.0), n));
    let f = s.mul_add(x, s.splat(LOG2_E.1), f);
    s.scale(exp2_of_fraction::<S, false>(s, f), n)
}

/// `tanh(x) = t / (t + 2)` with `t = e^(2x) - 1`, which loses no precision near zero: within 5 ULP; NaN stays NaN.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // Beyond 10, the result is 1 in f32.
    let x = s.max(s.splat(-10.0), s.min(s.splat(10.0), x));
    let y = s.mul(x, s.splat(2.0 * LOG2_E.0));
    let n = s.round(y);
    let power = s.scale(s.splat(1.0), n);
    let t = s.mul_add(polynomial(s, &EXP2, 0.0, s.sub(y, n)), power, s.sub(power, s.splat(1.0)));
    s.div(t, s.add(t, s.splat(2.0)))
}

/// Exact GELU, `x Φ(x)`, as `max(x, 0) - t Φ(-t)` with `t = |x|`: no cancellation on either side of zero.
/// Within 1e-7 absolute or 2 ULP of exact, whichever is larger; PyTorch's `x (1 + erf(x / √2)) / 2` is no closer.
#[inline(always)]
pub(crate) fn gelu<S: Simd, const NARROW: bool>(s: S, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    let t = s.min(s.splat(6.0), s.max(s.sub(zero, x), x));
    let q = if NARROW { polynomial(s, &TAIL_NARROW, 1.0, t) } else { polynomial(s, &TAIL, 1.0, t) };
    let tail = exp2::<S, NARROW>(s, s.sub(zero, q));
    s.sub(s.max(zero, x), s.mul(t, tail))
}

/// The tanh form of GELU ("gelu_new"): `x / (1 + e^(-2 y))` with `y = √(2/π) (x + 0.044715 x³)`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd, const NARROW: bool>(s: S, x: S::V) -> S::V {
    const C: f32 = -2.0 * 0.797_884_6;
    let cubic = s.mul_add(s.mul(x, x), s.splat(C * 0.044_715), s.splat(C));
    s.div(x, s.add(s.splat(1.0), exp::<S, NARROW>(s, s.mul(x, cubic))))
}

/// `e^x - 1` for `x` not above 0, which loses no precision near zero; NaN stays NaN.
#[inline(always)]
fn exp_minus_one<S: Simd, const NARROW: bool>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-87.0), x);
    let n = s.round(s.mul(x, s.splat(LOG2_E.0)));
    let f = s.mul_add(x, s.splat(LOG2_E.0), s.sub(s.splat(0.0), n));
    let f = s.mul_add(x, s.splat(LOG2_E.1), f);
    let power = s.scale(s.splat(1.0), n);
    let rest = if NARROW { polynomial(s, &EXP2_NARROW, 0.0, f) } else { polynomial(s, &EXP2, 0.0, f) };
    s.mul_add(rest, power, s.sub(power, s.splat(1.0)))
}

/// [`Xielu`] without a branch: each side is zero on the other one.
#[inline(always)]
pub(crate) fn xielu<S: Simd, const NARROW: bool>(s: S, own: Xielu, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    let (above, below) = (s.max(zero, x), s.min(zero, x));
    let bent = s.sub(exp_minus_one::<S, NARROW>(s, s.min(s.splat(own.cut), below)), below);
    // 1 above 0, where `bent` is that of the cut; the least numbers need both factors.
    let large = s.splat(f32::MAX);
    let is_above = s.min(s.splat(1.0), s.mul(s.mul(above, large), large));
    let bent = s.mul(bent, s.sub(s.splat(1.0), is_above));
    let sides = s.mul_add(s.mul(above, above), s.splat(own.positive), s.mul(bent, s.splat(own.negative)));
    s.mul_add(x, s.splat(own.slope), sides)
}

/// Applies `activation` to each lane.
#[inline(always)]
pub(crate) fn activate<S: Simd, const NARROW: bool>(s: S, activation: Activation, x: S::V) -> S::V {
    match activation {
        Activation::Identity => x,
        Activation::Gelu => gelu::<S, NARROW>(s, x),
        Activation::GeluTanh => gelu_tanh::<S, NARROW>(s, x),
        Activation::Relu => s.max(s.splat(0.0), x),
        Activation::Silu => s.div(x, s.add(s.splat(1.0), exp::<S, NARROW>(s, s.sub(s.splat(0.0), x)))),
        Activation::Tanh => tanh(s, x),
        Activation::ReluSquared => {
            let x = s.max(s.splat(0.0), x);
            s.mul(x, x)
        }
        Activation::Xielu(own) => xielu::<S, NARROW>(s, own, x),
        Activation::ClampedSwish(own) => {
            let x = s.min(s.splat(own.limit), x);
            s.div(x, s.add(s.splat(1.0), exp::<S, NARROW>(s, s.mul(x, s.splat(-own.steepness)))))
        }
    }
}

impl Activation {
    /// The function of one number.
    #[must_use]
    pub fn of(self, x: f32) -> f32 {
        activate::<Portable<4>, false>(Portable, self, [x; 4])[0]
    }
}
