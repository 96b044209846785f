//! The matrix tile: the innermost loop of GEMM, which takes nearly all the time.
//!
//! Operands consist of units of four bytes: one f32, or two bf16 that are adjacent along the sum. The left operand has
//! plain rows. The right operand is a *panel*: `k` rows of two registers, which `pack` makes once per weight.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use crate::compute::simd::Simd;

/// A number format of a tile's operands.
pub(crate) trait Unit {
    /// Whether a unit is two bf16.
    const IS_PAIR: bool;
}

/// A unit is one f32.
pub(crate) struct One;

/// A unit is two bf16.
pub(crate) struct Pair;

impl Unit for One {
    const IS_PAIR: bool = false;
}

impl Unit for Pair {
    const IS_PAIR: bool = true;
}

/// Two numbers of 16 bits in each lane, as f32.
pub(super) trait Widened {
    /// The first ones.
    fn low<S: Simd>(s: S, x: S::V) -> S::V;
    /// The second ones.
    fn high<S: Simd>(s: S, x: S::V) -> S::V;
}

impl Widened for Pair {
    #[inline(always)]
    fn low<S: Simd>(s: S, x: S::V) -> S::V {
        s.low_bf16(x)
    }
    #[inline(always)]
    fn high<S: Simd>(s: S, x: S::V) -> S::V {
        s.high_bf16(x)
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
    // SAFETY: the operands are those of this function.
    unsafe {
        match U::IS_PAIR {
            true if !S::NATIVE_BF16 => sum_widened::<S, Pair, ROWS, AHEAD>(s, &mut acc, t),
            true => sum::<S, ROWS, AHEAD>(s, &mut acc, t, |acc, a, b| s.dot2(acc, a, b)),
            false => sum::<S, ROWS, AHEAD>(s, &mut acc, t, |acc, a, b| s.mul_add(a, b, acc)),
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

/// Adds the products of all units. `step` adds the product of one of each operand per lane.
///
/// # Safety
///
/// - `t.a` and `t.panel` are as [`tile`] demands.
/// - `t.rows == ROWS`.
#[inline(always)]
unsafe fn sum<S: Simd, const ROWS: usize, const AHEAD: bool>(
    s: S,
    acc: &mut [[S::V; 2]; ROWS],
    t: &Tile,
    step: impl Fn(S::V, S::V, S::V) -> S::V,
) {
    let (mut panel, mut a) = (t.panel, t.a);
    let mut ahead = Prefetches::<AHEAD>::new(t);
    for _ in 0..t.k {
        // SAFETY: iteration `n < k` reads row `n` of the panel, two registers, and unit `n` of each of the `ROWS` rows of
        // `a`; both pointers advance by one row or unit, and end at most one past the operands.
        unsafe {
            let b = [s.load(panel), s.load(panel.add(S::LANES))];
            ahead.prefetch(s);
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = s.splat_bytes(a.add(i * t.a_stride));
                acc[0] = step(acc[0], a, b[0]);
                acc[1] = step(acc[1], a, b[1]);
            }
            panel = panel.add(2 * S::LANES);
            a = a.add(4);
        }
    }
}

/// Units of a row of `a` that are widened at a time: those of twelve rows take 12 kB of the first-level cache.
const WIDENED: usize = 128;

/// [`sum`] of pairs where no instruction multiplies them: of bf16, the same additions as those of [`Simd::dot2`]. Each unit
/// of `a` meets two registers of `b` only, so widening it there would take half as many instructions as the products. Here a
/// register of units is widened at once, and the products read what it became.
///
/// # Safety
///
/// As [`sum`].
#[inline(always)]
pub(super) unsafe fn sum_widened<S: Simd, P: Widened, const ROWS: usize, const AHEAD: bool>(
    s: S,
    acc: &mut [[S::V; 2]; ROWS],
    t: &Tile,
) {
    // The first and the second numbers of units, for each row.
    let mut halves = MaybeUninit::<[[[f32; WIDENED]; ROWS]; 2]>::uninit();
    let [low, high] = [0, ROWS * WIDENED].map(|from| halves.as_mut_ptr().cast::<f32>().wrapping_add(from));
    let (mut panel, mut from) = (t.panel, 0);
    let mut ahead = Prefetches::<AHEAD>::new(t);
    while from < t.k {
        let units = WIDENED.min(t.k - from);
        for i in 0..ROWS {
            // SAFETY: row `i < ROWS` of `a` has `k` units, of which `units` follow `from`. `low` and `high` have `WIDENED`
            // values for each row, and are apart.
            unsafe {
                let a = t.a.add(i * t.a_stride + 4 * from);
                widen::<S, P>(s, a, units, low.add(i * WIDENED), high.add(i * WIDENED));
            }
        }
        // One half of the panel's numbers after the other: with both, `acc` would not stay in AVX2's registers.
        for unit in 0..units {
            // SAFETY: row `from + unit < k` of the panel has two registers. `unit < units`, so the loop above has written the
            // values of all rows.
            unsafe {
                ahead.prefetch(s);
                let b = panel.add(2 * S::LANES * unit);
                let b = [P::low(s, s.load(b)), P::low(s, s.load(b.add(S::LANES)))];
                add_row(s, acc, low.add(unit), b);
            }
        }
        for unit in 0..units {
            // SAFETY: row `from + unit < k` of the panel has two registers, and the values of all rows are written.
            unsafe {
                let b = panel.add(2 * S::LANES * unit);
                let b = [P::high(s, s.load(b)), P::high(s, s.load(b.add(S::LANES)))];
                add_row(s, acc, high.add(unit), b);
            }
        }
        panel = panel.wrapping_add(2 * S::LANES * units);
        from += units;
    }
}

/// Adds the products of a number of each row, [`WIDENED`] values apart, with `b`.
///
/// # Safety
///
/// - `a` is aligned, and `a + i * WIDENED` is readable for each `i < ROWS`.
#[inline(always)]
unsafe fn add_row<S: Simd, const ROWS: usize>(
    s: S,
    acc: &mut [[S::V; 2]; ROWS],
    a: *const f32,
    b: [S::V; 2],
) {
    for (i, acc) in acc.iter_mut().enumerate() {
        // SAFETY: `i < ROWS`.
        let a = s.splat(unsafe { *a.add(i * WIDENED) });
        *acc = [s.mul_add(a, b[0], acc[0]), s.mul_add(a, b[1], acc[1])];
    }
}

/// Writes the first and the second numbers of `units` units of `a` as f32, and others after them up to a whole register.
///
/// # Safety
///
/// - `a` points to `units` readable units; it needs no alignment.
/// - `low` and `high` are aligned and point to `WIDENED` writable values each, which do not overlap.
/// - `units <= WIDENED`.
#[inline(always)]
unsafe fn widen<S: Simd, P: Widened>(s: S, a: *const u8, units: usize, low: *mut f32, high: *mut f32) {
    const { assert!(WIDENED.is_multiple_of(S::LANES)) };
    for unit in (0..units).step_by(S::LANES) {
        // SAFETY: the register is read from `LANES` units, or from a copy of those that are left and zeros. It is written to
        // `LANES` values from `unit` on, which are there because `WIDENED` is a multiple of `LANES`.
        unsafe {
            let a = a.add(4 * unit);
            let x = if units - unit >= S::LANES {
                s.load_bytes(a)
            } else {
                let mut rest = [0.0_f32; 16];
                a.copy_to_nonoverlapping(rest.as_mut_ptr().cast(), 4 * (units - unit));
                s.load(rest.as_ptr())
            };
            s.store(low.add(unit), P::low(s, x));
            s.store(high.add(unit), P::high(s, x));
        }
    }
}

/// Where the next tile's memory is prefetched from; nothing without `AHEAD`.
pub(super) struct Prefetches<const AHEAD: bool> {
    from: *const u8,
    step: usize,
}

impl<const AHEAD: bool> Prefetches<AHEAD> {
    #[inline(always)]
    pub(super) fn new(t: &Tile) -> Self {
        let (from, step) = t.ahead.map_or((std::ptr::null(), 0), |ahead| (ahead.from, ahead.step));
        Self { from, step }
    }

    /// Prefetches as many bytes as a row of a panel has.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&mut self, s: S) {
        if AHEAD {
            for line in (0..2 * S::LANES).step_by(LINE / 4) {
                s.prefetch(self.from.cast::<f32>().wrapping_add(line));
            }
            self.from = self.from.wrapping_add(self.step);
        }
    }
}
