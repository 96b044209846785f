//! Softmax of the scores of attention, block by block.

use std::ops::Range;

use super::math::{LOG2_E, exp2, tanh};
use super::rowwise::{load, store};
use crate::compute::simd::Simd;

/// The state of online softmax for one row of attention: the largest score of the blocks so far, and the sum of
/// `e^(score - largest)`. It is computed as a power of two, with scores in units of `ln 2`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    /// The largest scaled score, times log2(e).
    pub largest: f32,
    /// The sum of exponentials.
    pub sum: f32,
}

impl Default for Running {
    fn default() -> Self {
        Self { largest: f32::NEG_INFINITY, sum: 0.0 }
    }
}

/// A tile of scores against a block of keys.
#[derive(Debug)]
pub(crate) struct Softmax<'a> {
    /// Scores, which become unnormalized probabilities.
    pub scores: &'a mut [f32],
    /// The output in bf16, if requested; the contents of `scores` are then unspecified.
    pub narrow: Option<&'a mut [u16]>,
    /// Elements from a row to the next, in both.
    pub stride: usize,
    /// Keys of the block.
    pub keys: usize,
    /// Columns that are written: the keys and the zeros after them.
    pub padded: usize,
    /// The attention mask: the keys that the first row attends to, where the block's first key is 0. The probabilities of
    /// other keys are zero.
    pub visible: Range<isize>,
    /// How far the visible keys move from one row to the next.
    pub step: isize,
    /// The factor of the scores.
    pub scale: f32,
    /// The state of each row.
    pub running: &'a mut [Running],
    /// The factor by which each row's sum of earlier blocks must be multiplied.
    pub factors: &'a mut [f32],
}

/// Computes one block of online softmax: `e^(score * scale - largest)` of each score.
///
/// # Panics
///
/// If a slice is too short for the rows.
#[inline(always)]
pub(crate) fn softmax<S: Simd>(s: S, block: &mut Softmax<'_>) {
    let rows = block.running.len();
    let n = block.padded;
    let needed = if rows == 0 { 0 } else { (rows - 1) * block.stride + n };
    let narrow = block.narrow.as_mut().map_or(std::ptr::null_mut(), |narrow| {
        assert!(narrow.len() >= needed, "narrow scores");
        narrow.as_mut_ptr()
    });
    assert!(
        block.keys <= n && n <= block.stride && block.scores.len() >= needed && block.factors.len() == rows,
        "scores"
    );
    let scores = block.scores.as_mut_ptr();
    for (row, (running, factor)) in block.running.iter_mut().zip(&mut *block.factors).enumerate() {
        let moved = row as isize * block.step;
        let limit = |key: isize| block.keys.min(key.saturating_add(moved).max(0).cast_unsigned());
        let (first, end) = (limit(block.visible.start), limit(block.visible.end));
        let first = first.min(end);
        // SAFETY: row `row` has `n` elements from `row * stride` on in `scores`, and in `narrow` unless it is null, by the
        // assertions above. `first <= end <= keys <= n`, so `n - first` of them are left from `first` on. All bits zero is
        // 0.0 in both formats. `NARROW` is true if and only if `narrow` is not null.
        *factor = unsafe {
            let (x, scale) = (scores.add(row * block.stride), block.scale);
            let (n, valid) = (n - first, end - first);
            if narrow.is_null() {
                x.write_bytes(0, first);
                softmax_row::<S, false>(s, x.add(first), n, valid, scale, running, narrow)
            } else {
                let narrow = narrow.add(row * block.stride);
                narrow.write_bytes(0, first);
                softmax_row::<S, true>(s, x.add(first), n, valid, scale, running, narrow.add(first))
            }
        };
    }
}

/// `cap · tanh(score · scale / cap) + bias` of each score, without the limit if `cap` is none, and without the bias if it is
/// empty.
///
/// # Panics
///
/// If there is a bias of another length.
#[inline(always)]
pub(crate) fn adjust_scores<S: Simd>(s: S, scores: &mut [f32], scale: f32, cap: Option<f32>, bias: &[f32]) {
    let (n, x) = (scores.len(), scores.as_mut_ptr());
    assert!(bias.is_empty() || bias.len() == n, "bias of scores");
    let (inner, outer) = (s.splat(cap.map_or(scale, |cap| scale / cap)), s.splat(cap.unwrap_or(1.0)));
    for i in (0..n).step_by(S::LANES) {
        let m = S::LANES.min(n - i);
        // SAFETY: `x` and, unless it is empty, `bias` have `n` values, and `i + m <= n`; `m <= LANES`.
        unsafe {
            let mut y = s.mul(load(s, x.add(i), m), inner);
            if cap.is_some() {
                y = s.mul(tanh(s, y), outer);
            }
            if !bias.is_empty() {
                y = s.add(y, load(s, bias.as_ptr().add(i), m));
            }
            store(s, x.add(i), y, m);
        }
    }
}

/// [`softmax`] of one row.
///
/// # Safety
///
/// - `valid <= n`.
/// - `x` is aligned and points to `n` readable and writable values.
/// - If `NARROW`, `narrow` is aligned and points to `n` writable values.
#[inline(always)]
unsafe fn softmax_row<S: Simd, const NARROW: bool>(
    s: S,
    x: *mut f32,
    n: usize,
    valid: usize,
    scale: f32,
    running: &mut Running,
    narrow: *mut u16,
) -> f32 {
    let (whole, rest) = (valid - valid % S::LANES, valid % S::LANES);
    let nothing = s.splat(f32::NEG_INFINITY);
    let mut most = nothing;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `x` has `n` values, and `i + LANES <= whole <= valid <= n`.
        most = s.max(most, unsafe { s.load(x.add(i)) });
    }
    if rest > 0 {
        // SAFETY: `x` has `n` values, and `whole + rest = valid <= n`; `rest < LANES`.
        most = s.max(most, s.first(unsafe { s.load_first(x.add(whole), rest) }, rest, nothing));
    }
    let before = running.largest;
    let scale = scale * LOG2_E.0;
    running.largest = before.max(s.largest(most) * scale);
    let factor = if before == f32::NEG_INFINITY { 0.0 } else { (before - running.largest).exp2() };
    let (scale, minus, least) = (s.splat(scale), s.splat(-running.largest), s.splat(-126.0));
    let mut sum = s.splat(0.0);
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `x` and, if `NARROW`, `narrow` have `n` values, and `i + LANES <= whole <= valid <= n`.
        unsafe {
            let power = s.max(least, s.mul_add(s.load(x.add(i)), scale, minus));
            let p = exp2::<S, NARROW>(s, power);
            sum = s.add(sum, p);
            if NARROW { s.store_bf16(narrow.add(i), p, S::LANES) } else { s.store(x.add(i), p) }
        }
    }
    if rest > 0 {
        // SAFETY: `x` and, if `NARROW`, `narrow` have `n` values, and `whole + rest = valid <= n`; `rest < LANES`.
        unsafe {
            let power = s.max(least, s.mul_add(s.load_first(x.add(whole), rest), scale, minus));
            let p = s.first(exp2::<S, NARROW>(s, power), rest, s.splat(0.0));
            sum = s.add(sum, p);
            if NARROW {
                s.store_bf16(narrow.add(whole), p, rest);
            } else {
                s.store_first(x.add(whole), p, rest);
            }
        }
    }
    // SAFETY: `x` and, if `NARROW`, `narrow` have `n` writable values, and `valid <= n`. All bits zero is 0.0 in both
    // formats.
    unsafe {
        if NARROW {
            narrow.add(valid).write_bytes(0, n - valid);
        } else {
            x.add(valid).write_bytes(0, n - valid);
        }
    }
    running.sum = running.sum * factor + s.sum(sum);
    factor
}
