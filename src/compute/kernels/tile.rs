//! The matrix tile: the innermost loop of GEMM, which takes nearly all the time.
//!
//! Operands consist of units of four bytes: one f32, or two bf16 that are adjacent along the sum. The left operand has
//! plain rows. The right operand is a *panel*: `k` rows of two registers, which `pack` makes once per weight.

use std::ffi::c_void;

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

/// The operands and the result of a tile. Strides are in bytes for `a` and in elements for `c`.
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
    /// Memory to prefetch for the next tile.
    pub ahead: Option<Ahead>,
    /// Other work, which overlaps with the product if that takes a unit of its own.
    #[cfg_attr(
        not(all(target_arch = "x86_64", target_os = "linux")),
        allow(dead_code, reason = "AMX alone runs it")
    )]
    pub overlap: Option<Overlap>,
}

/// Work in vector registers that overlaps with a product in the tile registers of AMX: `run(state)` is called after each step of
/// the sum.
/// Other instruction sets do not call it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Overlap {
    /// It neither unwinds nor uses AMX.
    pub run: unsafe extern "C" fn(*mut c_void),
    pub state: *mut c_void,
}

/// Memory to prefetch while a tile is multiplied: `step` bytes from `from` on for each unit of `k`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    /// Any address: a prefetch does not fault.
    pub from: *const u8,
    /// Bytes, at most those of a panel's row. If it is a whole row, no other rows use the panels, which need not stay in a
    /// cache.
    pub step: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// `c = a · panel` or `c += a · panel`. The sum of an element runs over `k` in order for any number of rows, so the
/// result of a row does not depend on other rows.
///
/// # Safety
///
/// - `t.rows <= S::ROWS`.
/// - `t.a` points to `t.rows` rows of `t.k` readable units, `t.a_stride` bytes apart; it needs no alignment.
/// - `t.panel` is aligned and points to `t.k` readable rows of two registers.
/// - `t.c` is aligned and points to `t.rows` writable rows of two registers, `t.c_stride` values apart; they are
///   initialized if `t.accumulate`.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, U: Unit>(s: S, t: &Tile) {
    macro_rules! heights {
        ($($rows:literal)*) => {
            match t.rows {
                // SAFETY: `t.rows` is the constant, and the preconditions of `rows` are those of this function. The
                // guard is constant, so heights above `ROWS` are not compiled.
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

/// [`tile`] for a constant number of rows.
///
/// # Safety
///
/// - All preconditions of [`tile`].
/// - `t.rows == ROWS`.
#[inline(always)]
unsafe fn rows<S: Simd, U: Unit, const ROWS: usize, const AHEAD: bool>(s: S, t: &Tile) {
    let mut acc = [[s.splat(0.0); 2]; ROWS];
    if t.accumulate {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `i < ROWS`, and row `i` of `c` has two initialized registers.
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
        // SAFETY: iteration `n < k` reads row `n` of the panel, two registers, and unit `n` of each of the `ROWS` rows of
        // `a`; both pointers advance by one row or unit, and end at most one past the operands.
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
        // SAFETY: `i < ROWS`, and row `i` of `c` has two writable registers.
        unsafe {
            let c = t.c.add(i * t.c_stride);
            s.store(c, acc[0]);
            s.store(c.add(S::LANES), acc[1]);
        }
    }
}
