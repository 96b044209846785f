//! What happens to a row between matrix products: bias and activation, layer normalisation, softmax.

use super::math::{activate, exp};
use super::simd::Simd;
use crate::compute::{Activation, DType};

/// A tile's way into its output matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finish {
    /// The product: rows of two registers, one after another.
    pub tile: *const f32,
    /// Rows of the tile.
    pub rows: usize,
    /// Columns of the tile that the output has.
    pub columns: usize,
    /// `columns` values to add to every row, or null.
    pub bias: *const f32,
    /// Applied after the bias.
    pub activation: Activation,
    /// A factor for every row, or null.
    pub factors: *const f32,
    /// Where the first element goes.
    pub out: *mut u8,
    /// Bytes from a row of the output to the next.
    pub out_stride: usize,
    /// The output's number format.
    pub to: DType,
    /// Whether to add to what the output (f32) holds: the residual.
    pub accumulate: bool,
}

/// `out = activation(tile * factor + bias)`, or `out +=` it, rounded to the output's format.
///
/// # Safety
/// All that [`Finish`] names can be read, and the output written.
#[inline(always)]
pub(crate) unsafe fn finish<S: Simd>(s: S, f: &Finish) {
    macro_rules! with {
        ($($activation:path),*) => {
            match f.activation {
                // SAFETY: the caller's. One loop for each activation keeps the choice out of it.
                $($activation => unsafe { finish_with(s, f, $activation) },)*
            }
        };
    }
    with!(Activation::Identity, Activation::Gelu, Activation::GeluTanh, Activation::Relu);
}

/// # Safety
/// As for [`finish`].
#[inline(always)]
unsafe fn finish_with<S: Simd>(s: S, f: &Finish, activation: Activation) {
    for column in (0..f.columns).step_by(S::LANES) {
        let n = S::LANES.min(f.columns - column);
        // SAFETY: the first `n` of `bias` from `column` on are readable.
        let bias =
            if f.bias.is_null() { s.splat(0.0) } else { unsafe { s.load_first(f.bias.add(column), n) } };
        for row in 0..f.rows {
            // SAFETY: the tile holds two whole registers a row; the output is touched in its columns only.
            unsafe {
                let mut x = s.load(f.tile.add(row * 2 * S::LANES + column));
                if !f.factors.is_null() {
                    x = s.mul(x, s.splat(*f.factors.add(row)));
                }
                x = activate(s, activation, s.add(x, bias));
                let out = f.out.add(row * f.out_stride);
                match f.to {
                    DType::F32 => {
                        let out = out.cast::<f32>().add(column);
                        if f.accumulate {
                            x = s.add(x, s.load_first(out, n));
                        }
                        store(s, out, x, n);
                    }
                    DType::Bf16 => s.store_bf16(out.cast::<u16>().add(column), x, n),
                }
            }
        }
    }
}

/// # Safety
/// `n <= LANES` values can be written.
#[inline(always)]
unsafe fn store<S: Simd>(s: S, to: *mut f32, x: S::V, n: usize) {
    // SAFETY: the caller's.
    unsafe { if n == S::LANES { s.store(to, x) } else { s.store_first(to, x, n) } }
}

/// # Safety
/// `n <= LANES` values can be read.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, from: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's.
    unsafe { if n == S::LANES { s.load(from) } else { s.load_first(from, n) } }
}

/// Layer normalisation of one row in place: `(x - mean) / √(variance + epsilon) * scale + shift`, and the same
/// rounded to bf16 where asked. The variance is taken about the mean, so large means cost no digits.
///
/// # Panics
/// When lengths differ.
#[inline(always)]
pub(crate) fn norm<S: Simd>(
    s: S,
    x: &mut [f32],
    scale: &[f32],
    shift: &[f32],
    epsilon: f32,
    narrow: Option<&mut [u16]>,
) {
    let n = x.len();
    let narrow = narrow.map_or(std::ptr::null_mut(), |narrow| {
        assert_eq!(narrow.len(), n, "narrow copy");
        narrow.as_mut_ptr()
    });
    assert!(scale.len() == n && shift.len() == n, "norm parameters");
    let (x, scale, shift) = (x.as_mut_ptr(), scale.as_ptr(), shift.as_ptr());
    let chunks = || (0..n).step_by(S::LANES).map(|i| (i, S::LANES.min(n - i)));
    let mut sum = s.splat(0.0);
    for (i, m) in chunks() {
        // SAFETY: `i + m <= n`, here and below.
        sum = s.add(sum, unsafe { load(s, x.add(i), m) });
    }
    let mean = s.splat(s.sum(sum) / n as f32);
    let mut squares = s.splat(0.0);
    for (i, m) in chunks() {
        // SAFETY: as above.
        let mut centred = s.sub(unsafe { load(s, x.add(i), m) }, mean);
        if m < S::LANES {
            // Lanes past the end hold -mean: out with them.
            let mut kept = [0.0; 16];
            // SAFETY: 16 values hold a register; the first `m` lanes are stored, the rest stay zero.
            centred = unsafe {
                s.store_first(kept.as_mut_ptr(), centred, m);
                s.load(kept.as_ptr())
            };
        }
        squares = s.mul_add(centred, centred, squares);
    }
    let inverse = s.splat(1.0 / (s.sum(squares) / n as f32 + epsilon).sqrt());
    for (i, m) in chunks() {
        // SAFETY: as above; `narrow` has the length of `x`.
        unsafe {
            let y = s.mul(s.sub(load(s, x.add(i), m), mean), inverse);
            let y = s.mul_add(y, load(s, scale.add(i), m), load(s, shift.add(i), m));
            store(s, x.add(i), y, m);
            if !narrow.is_null() {
                s.store_bf16(narrow.add(i), y, m);
            }
        }
    }
}

/// What a row of attention has seen so far: the largest score and the sum of `e^(score - largest)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    /// The largest scaled score.
    pub largest: f32,
    /// The sum of exponentials.
    pub sum: f32,
}

impl Default for Running {
    fn default() -> Self {
        Self { largest: f32::NEG_INFINITY, sum: 0.0 }
    }
}

/// One block of a row's softmax: turns the first `valid` scores into `e^(score * scale - largest)` and the rest
/// into zeros, as f32 in place or as bf16 in `narrow`. Returns the factor that brings what was summed up before
/// this block to the new largest score.
///
/// # Panics
/// When `valid` or the length of `narrow` exceeds that of `scores`.
#[inline(always)]
pub(crate) fn softmax<S: Simd>(
    s: S,
    scores: &mut [f32],
    valid: usize,
    scale: f32,
    running: &mut Running,
    narrow: Option<&mut [u16]>,
) -> f32 {
    let n = scores.len();
    assert!(valid <= n, "more keys than scores");
    let narrow = narrow.map_or(std::ptr::null_mut(), |narrow| {
        assert_eq!(narrow.len(), n, "narrow copy");
        narrow.as_mut_ptr()
    });
    if valid == 0 {
        scores.fill(0.0);
        // SAFETY: `narrow` is null or `n` long; bf16 zero is all bits zero.
        unsafe {
            if !narrow.is_null() {
                narrow.write_bytes(0, n)
            }
        }
        return 1.0;
    }
    let x = scores.as_mut_ptr();
    let whole = valid - valid % S::LANES;
    let mut most = s.splat(f32::NEG_INFINITY);
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `i + LANES <= valid <= n`.
        most = s.max(most, unsafe { s.load(x.add(i)) });
    }
    let mut most = s.largest(most);
    for &score in &scores[whole..valid] {
        most = most.max(score);
    }
    let x = scores.as_mut_ptr();
    let before = running.largest;
    running.largest = before.max(most * scale);
    // exp() is clamped at -87: to the sums of f32 that is nothing.
    let factor = if before == f32::NEG_INFINITY { 0.0 } else { (before - running.largest).exp() };
    let (scale, minus) = (s.splat(scale), s.splat(-running.largest));
    let mut sum = s.splat(0.0);
    for i in (0..n).step_by(S::LANES) {
        let m = S::LANES.min(n - i);
        // SAFETY: `i + m <= n`, and `narrow` is null or `n` long.
        unsafe {
            let mut p = exp(s, s.mul_add(load(s, x.add(i), m), scale, minus));
            if i + S::LANES > valid {
                let mut kept = [0.0; 16];
                s.store_first(kept.as_mut_ptr(), p, valid.saturating_sub(i));
                p = s.load(kept.as_ptr());
            }
            sum = s.add(sum, p);
            if narrow.is_null() {
                store(s, x.add(i), p, m);
            } else {
                s.store_bf16(narrow.add(i), p, m);
            }
        }
    }
    running.sum = running.sum * factor + s.sum(sum);
    factor
}
