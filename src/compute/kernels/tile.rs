//! The matrix tile: the one loop where nearly all time goes.
//!
//! Operands come in units of four bytes: one f32, or a pair of neighbouring bf16 along the sum. The left operand
//! is plain rows; the right one is a *panel*, `k` rows of two registers, made once per weight by `pack`.

use crate::compute::simd::Simd;

/// A number format of a tile's operands.
pub(crate) trait Unit {
    /// Adds the product of a unit of each operand per lane.
    fn step<S: Simd>(s: S, acc: S::V, a: S::V, b: S::V) -> S::V;
}

/// A unit is one f32.
pub(crate) struct One;

/// A unit is two bf16.
pub(crate) struct Pair;

impl Unit for One {
    #[inline(always)]
    fn step<S: Simd>(s: S, acc: S::V, a: S::V, b: S::V) -> S::V {
        s.mul_add(a, b, acc)
    }
}

impl Unit for Pair {
    #[inline(always)]
    fn step<S: Simd>(s: S, acc: S::V, a: S::V, b: S::V) -> S::V {
        s.dot2(acc, a, b)
    }
}

/// What a tile multiplies. Strides are in bytes for `a` and in elements for `c`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    /// Left operand: `rows` rows of `k` units.
    pub a: *const u8,
    /// Bytes from a row of `a` to the next.
    pub a_stride: usize,
    /// Right operand: `k` rows of two registers.
    pub panel: *const f32,
    /// Units to sum over.
    pub k: usize,
    /// Result: `rows` rows of two registers.
    pub c: *mut f32,
    /// Elements from a row of `c` to the next.
    pub c_stride: usize,
    /// Rows, at most `Simd::ROWS`.
    pub rows: usize,
    /// Whether to add to what `c` holds.
    pub accumulate: bool,
    /// What is multiplied next.
    pub ahead: Option<Ahead>,
}

/// Memory that is brought nearer while a tile is multiplied: `step` bytes from `from` on for each of its units.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    /// Any address: nothing is read.
    pub from: *const u8,
    /// Bytes, at most those of a panel's row.
    pub step: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// `c = a · panel` or `c += a · panel`. An element's sum runs over `k` in order, whatever the number of rows: a
/// row's result does not depend on the rows beside it.
///
/// # Safety
/// All that [`Tile`] names can be read, and `c` written.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, U: Unit>(s: S, t: &Tile) {
    macro_rules! heights {
        ($($rows:literal)*) => {
            match t.rows {
                // SAFETY: the caller's. The condition is constant: heights beyond ROWS are not compiled.
                $($rows if S::ROWS >= $rows => unsafe {
                    if t.ahead.is_some() {
                        rows::<S, U, $rows, true>(s, t);
                    } else {
                        rows::<S, U, $rows, false>(s, t);
                    }
                },)*
                _ => debug_assert_eq!(t.rows, 0, "tile height"),
            }
        };
    }
    heights!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// # Safety
/// As for [`tile`], with `t.rows == ROWS`.
#[inline(always)]
unsafe fn rows<S: Simd, U: Unit, const ROWS: usize, const AHEAD: bool>(s: S, t: &Tile) {
    let mut acc = [[s.splat(0.0); 2]; ROWS];
    if t.accumulate {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: row `i` of `c` holds two registers.
            unsafe {
                let c = t.c.add(i * t.c_stride);
                *acc = [s.load(c), s.load(c.add(S::LANES))];
            }
        }
    }
    let mut panel = t.panel;
    let mut a = t.a;
    let (mut ahead, step) = t.ahead.map_or((std::ptr::null(), 0), |ahead| (ahead.from, ahead.step));
    for _ in 0..t.k {
        // SAFETY: `panel` and `a` walk over the `k` units of their rows.
        unsafe {
            let b = [s.load(panel), s.load(panel.add(S::LANES))];
            if AHEAD {
                for line in (0..2 * S::LANES).step_by(LINE / 4) {
                    s.prefetch(ahead.cast::<f32>().wrapping_add(line));
                }
                ahead = ahead.wrapping_add(step);
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = s.splat_bytes(a.add(i * t.a_stride));
                acc[0] = U::step(s, acc[0], a, b[0]);
                acc[1] = U::step(s, acc[1], a, b[1]);
            }
            panel = panel.add(2 * S::LANES);
            a = a.add(4);
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: row `i` of `c` holds two registers.
        unsafe {
            let c = t.c.add(i * t.c_stride);
            s.store(c, acc[0]);
            s.store(c.add(S::LANES), acc[1]);
        }
    }
}
