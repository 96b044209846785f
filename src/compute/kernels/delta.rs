//! One step of a gated delta rule, and gates.

use super::math::exp;
use super::rowwise::{load, store};
use crate::compute::simd::Simd;

/// Columns of a block of a state: with keys of 128 numbers, it fits into the first-level cache.
pub(crate) const BLOCK: usize = 64;

/// The most registers of a row of a state that are computed at a time.
const MOST_REGISTERS: usize = 4;

/// Numbers from a row of a block of `columns` to the next: whole registers of any instruction set.
pub(crate) const fn stride_of(columns: usize) -> usize {
    columns.next_multiple_of(16)
}

/// One token and a block of columns of one head's state.
#[derive(Debug)]
pub(crate) struct DeltaStep<'a> {
    /// `[key width, stride_of(columns)]`; the columns after those of `value` are zero.
    pub state: &'a mut [f32],
    pub query: &'a [f32],
    pub key: &'a [f32],
    pub value: &'a [f32],
    /// The part of the state that is kept.
    pub kept: f32,
    /// The part of the value that is stored.
    pub stored: f32,
    /// As many numbers as `value`.
    pub out: &'a mut [f32],
}

/// `state = kept * state + stored * key (value - kept * stateᵀ key)ᵀ` and `out = stateᵀ query`.
///
/// # Panics
///
/// If lengths do not fit together.
#[inline(always)]
pub(crate) fn delta_step<S: Simd>(s: S, step: &mut DeltaStep<'_>) {
    let stride = stride_of(step.value.len());
    let keys = step.key.len();
    assert!(
        step.query.len() == keys && step.out.len() == step.value.len() && step.state.len() == keys * stride,
        "shapes of a delta rule"
    );
    let mut first = 0;
    while first < stride {
        let left = (stride - first) / S::LANES;
        // SAFETY: the lengths are those of the assertion, and the columns from `first` on have so many whole registers, because
        // `stride` is a multiple of 16, and registers have 4, 8 or 16 lanes.
        unsafe {
            match left {
                1 => columns::<S, 1>(s, step, first, stride),
                2 => columns::<S, 2>(s, step, first, stride),
                3 => columns::<S, 3>(s, step, first, stride),
                _ => columns::<S, MOST_REGISTERS>(s, step, first, stride),
            }
        }
        first += left.min(MOST_REGISTERS) * S::LANES;
    }
}

/// The columns of `N` registers from `first` on. Sums over keys have two parts, of even and odd keys, so that one addition need
/// not wait for the other.
///
/// # Safety
///
/// - `step.state` has `step.key.len()` rows of `stride` numbers, and `first + N * LANES <= stride`.
/// - `step.query` is as long as `step.key`, and `step.out` as `step.value`.
#[inline(always)]
unsafe fn columns<S: Simd, const N: usize>(s: S, step: &mut DeltaStep<'_>, first: usize, stride: usize) {
    let keys = step.key.len();
    let zero = s.splat(0.0);
    let (kept, stored) = (s.splat(step.kept), s.splat(step.stored));
    // Of the registers, those that have values: lanes past the end are zero, and stay so.
    let lanes = |register: usize| {
        let column = first + register * S::LANES;
        (column, step.value.len().saturating_sub(column).min(S::LANES))
    };
    let state = step.state.as_mut_ptr();
    let mut sums = [[zero; N]; 2];
    for key in 0..keys {
        let x = s.splat(step.key[key]);
        for (register, sum) in sums[key % 2].iter_mut().enumerate() {
            // SAFETY: row `key` has whole registers up to `first + N * LANES`, by the precondition.
            let row = unsafe { s.load(state.add(key * stride + first + register * S::LANES)) };
            *sum = s.mul_add(row, x, *sum);
        }
    }
    let mut changes = [zero; N];
    for (register, change) in changes.iter_mut().enumerate() {
        let (column, n) = lanes(register);
        let known = s.mul(kept, s.add(sums[0][register], sums[1][register]));
        if n > 0 {
            // SAFETY: `column + n <= step.value.len()` and `n <= LANES`.
            let value = unsafe { load(s, step.value.as_ptr().add(column), n) };
            *change = s.mul(stored, s.sub(value, known));
        }
    }
    let mut sums = [[zero; N]; 2];
    for key in 0..keys {
        let (x, y) = (s.splat(step.key[key]), s.splat(step.query[key]));
        for (register, sum) in sums[key % 2].iter_mut().enumerate() {
            // SAFETY: as in the first loop; the row is written where it was read.
            unsafe {
                let place = state.add(key * stride + first + register * S::LANES);
                let row = s.mul_add(x, changes[register], s.mul(kept, s.load(place)));
                s.store(place, row);
                *sum = s.mul_add(row, y, *sum);
            }
        }
    }
    for (register, (&even, &odd)) in sums[0].iter().zip(&sums[1]).enumerate() {
        let (column, n) = lanes(register);
        if n > 0 {
            let sum = s.add(even, odd);
            // SAFETY: `step.out` is as long as `step.value`, so `column + n` lies in it; `n <= LANES`.
            unsafe { store(s, step.out.as_mut_ptr().add(column), sum, n) };
        }
    }
}

/// `x *= sigmoid(by)`.
///
/// # Panics
///
/// If lengths differ.
#[inline(always)]
pub(crate) fn multiply_sigmoid<S: Simd>(s: S, x: &mut [f32], by: &[f32]) {
    let n = x.len();
    assert_eq!(by.len(), n, "gates");
    let (x, by, one) = (x.as_mut_ptr(), by.as_ptr(), s.splat(1.0));
    for i in (0..n).step_by(S::LANES) {
        let m = S::LANES.min(n - i);
        // SAFETY: `x` and `by` have `n` values, and `i + m <= n`; `m <= LANES`.
        unsafe {
            let gate = s.sub(s.splat(0.0), load(s, by.add(i), m));
            let gate = s.add(one, exp::<S, false>(s, gate));
            store(s, x.add(i), s.div(load(s, x.add(i), m), gate), m);
        }
    }
}
