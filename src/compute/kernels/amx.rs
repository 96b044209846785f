//! AMX: a unit of its own multiplies whole tiles of bf16. Linux on x86-64.
//!
//! ```text
//!                     panel: 32 columns
//!                   ┌─ tmm6 ──┬─ tmm7 ──┐
//!                   │         │         │ 16 units a step
//!                   └─────────┴─────────┘
//!  a ┌─ tmm4 ──┐    ┌─ tmm0 ──┬─ tmm1 ──┐
//!    │         │    │         │         │ 16 rows
//!    ├─ tmm5 ──┤    ├─ tmm2 ──┼─ tmm3 ──┤
//!    │         │    │         │         │ 16 rows, or as many as are left
//!    └─────────┘    └─────────┴─────────┘ c
//! ```
//!
//! The eight tile registers, 16 rows of 64 bytes each, hold 2×2 tiles of sums and two tiles of each operand: every
//! tile that is loaded is used twice, and there are four sums to work on while the product before is under way.
//!
//! A panel needs no other layout than vector registers want: its row of 32 units is two rows of 16 side by side, and
//! a unit, two bf16 that are neighbours along the sum, is what TDPBF16PS multiplies. So a tile of it is 16 of its
//! rows, half as wide.
//!
//! One row alone runs the same instructions, in a shorter tile: no row's result depends on those beside it.

#[cfg(test)]
pub(crate) mod emulator;

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;

use super::tile::Tile;

/// Rows of a block of tiles.
pub(crate) const ROWS: usize = 2 * TILE;

/// Units of a step.
pub(crate) const DEPTH: usize = TILE;

/// Rows of a tile register, and four-byte units of its rows.
const TILE: usize = 16;

/// Columns of a panel.
const WIDTH: usize = 2 * TILE;

/// The 64 bytes that LDTILECFG reads: Intel's Software Developer's Manual, volume 1, "Tile configuration".
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile; the last eight are reserved.
    bytes: [u16; 16],
    /// Rows of each tile; the last eight are reserved.
    rows: [u8; 16],
}

impl Configuration {
    /// Tiles for 1 to 32 rows, and so many units a step. Nothing beyond them is read or written.
    fn new(rows: usize, units: usize) -> Self {
        let mut all = Self { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        let upper = rows.min(TILE);
        let lower = rows - upper;
        for (tile, rows, columns) in [
            (0, upper, TILE),
            (1, upper, TILE),
            (2, lower, TILE),
            (3, lower, TILE),
            (4, upper, units),
            (5, lower, units),
            (6, units, TILE),
            (7, units, TILE),
        ] {
            all.rows[tile] = rows as u8;
            // A tile has rows and columns, or neither.
            all.bytes[tile] = if rows > 0 { 4 * columns as u16 } else { 0 };
        }
        all
    }
}

/// The shape that this thread's tiles have: rows of a block, and units a step.
type Shape = (usize, usize);

/// What a thread's tiles are kept in.
#[derive(Clone, Copy)]
enum Kept {
    /// Nothing: each block configures and releases them.
    No,
    /// A shape, or none yet, until the [`Held`] that was taken first is dropped.
    Held(Option<Shape>),
}

thread_local! {
    static KEPT: Cell<Kept> = const { Cell::new(Kept::No) };
}

/// Keeps the tiles of this thread configured from one block to the next: LDTILECFG takes longer
/// than several steps of a sum. For spans in which no code but ours runs, since
/// any other may configure tiles as well. When the last one goes, tiles are released: a thread that rests with tiles
/// in use keeps its core awake, and the kernel saves them at each switch.
pub(crate) struct Held {
    /// Whether this is the outermost one.
    outermost: bool,
    /// It belongs to its thread.
    _thread: PhantomData<*mut ()>,
}

impl Held {
    pub(crate) fn new() -> Self {
        let outermost = matches!(KEPT.get(), Kept::No);
        if outermost {
            KEPT.set(Kept::Held(None));
        }
        Self { outermost, _thread: PhantomData }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.outermost {
            return;
        }
        if let Kept::Held(Some(_)) = KEPT.replace(Kept::No) {
            // SAFETY: tiles were configured, so there is AMX; nobody reads them any more.
            unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }
}

/// As [`tile::tile`](super::tile::tile) for pairs of bf16. Within sixteen units the manual sums up even and odd
/// elements apart, and adds both to what was there; denormals count as zero.
///
/// # Safety
/// The CPU and the process may use AMX ([`is_available`]); all that [`Tile`] names can be read, and `c` written.
pub(crate) unsafe fn tile(t: &Tile) {
    debug_assert!(t.rows <= ROWS, "tile height");
    if t.rows == 0 {
        return;
    }
    let _held = Held::new();
    let (steps, rest) = (t.k / TILE, t.k % TILE);
    // SAFETY: the caller's; `steps` whole steps and the rest are all `k` units.
    unsafe {
        // With nothing to sum up, zeros are stored.
        if steps > 0 || rest == 0 {
            block(t, TILE, steps);
        }
        if rest > 0 {
            let a = t.a.add(steps * TILE * 4);
            let panel = t.panel.add(steps * TILE * WIDTH);
            block(&Tile { a, panel, accumulate: t.accumulate || steps > 0, ..*t }, rest, 1);
        }
    }
}

/// Gives the tiles a shape, unless they have it.
///
/// # Safety
/// The CPU and the process may use AMX, and a [`Held`] of this thread lives.
unsafe fn configure(shape: Shape) {
    if matches!(KEPT.get(), Kept::Held(Some(kept)) if kept == shape) {
        return;
    }
    let configuration = Configuration::new(shape.0, shape.1);
    // SAFETY: the configuration is valid. Tiles are this room's alone while `Held` lives.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(readonly, nostack, preserves_flags));
    }
    KEPT.set(Kept::Held(Some(shape)));
}

/// `steps` times `units` units.
///
/// # Safety
/// As for [`tile`], with `1 <= t.rows <= 32`, `1 <= units <= 16`, and `steps * units` units instead of `t.k`; a
/// [`Held`] of this thread lives.
unsafe fn block(t: &Tile, units: usize, steps: usize) {
    let lower = t.rows > TILE;
    // SAFETY: the tiles get the rows and units that the caller says exist, and the lower ones are used only if they
    // have rows. All registers changed are named.
    unsafe {
        configure((t.rows, units));
        asm!(
            "test {accumulate}, {accumulate}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {c_stride}*1]",
            "tileloadd tmm1, [{c} + {c_stride}*1 + 64]",
            "test {c_lower}, {c_lower}",
            "jz 3f",
            "tileloadd tmm2, [{c_lower} + {c_stride}*1]",
            "tileloadd tmm3, [{c_lower} + {c_stride}*1 + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "test {c_lower}, {c_lower}",
            "jz 3f",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "sub {steps}, 1",
            "jb 5f",
            "tileloadd tmm6, [{panel} + {panel_stride}*1]",
            "tileloadd tmm7, [{panel} + {panel_stride}*1 + 64]",
            "tileloadd tmm4, [{a} + {a_stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "test {c_lower}, {c_lower}",
            "jz 4f",
            "tileloadd tmm5, [{a_lower} + {a_stride}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "4:",
            "add {a}, 64",
            "add {a_lower}, 64",
            "add {panel}, 2048",
            "jmp 3b",
            "5:",
            "tilestored [{c} + {c_stride}*1], tmm0",
            "tilestored [{c} + {c_stride}*1 + 64], tmm1",
            "test {c_lower}, {c_lower}",
            "jz 6f",
            "tilestored [{c_lower} + {c_stride}*1], tmm2",
            "tilestored [{c_lower} + {c_stride}*1 + 64], tmm3",
            "6:",
            accumulate = in(reg) usize::from(t.accumulate),
            c = in(reg) t.c,
            c_lower = in(reg) if lower { t.c.add(TILE * t.c_stride) } else { std::ptr::null_mut() },
            c_stride = in(reg) t.c_stride * 4,
            steps = inout(reg) steps => _,
            panel = inout(reg) t.panel => _,
            panel_stride = in(reg) WIDTH * 4,
            a = inout(reg) t.a => _,
            a_lower = inout(reg) t.a.wrapping_add(TILE * t.a_stride) => _,
            a_stride = in(reg) t.a_stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::isa::{Isa, amx_is_granted};

    #[test]
    fn tiles_are_released_with_the_last_hold() {
        if !Isa::Amx.is_available() || amx_is_granted() {
            return; // A CPU's own tiles are not to be seen here.
        }
        let (a, panel, mut c) = ([0x3f80_3f80_u32; 16], [1.0_f32; 16 * 32], [0.0_f32; 32]);
        let mut multiply = |accumulate| {
            let (a, c) = (a.as_ptr().cast(), c.as_mut_ptr());
            let tile = Tile {
                a,
                a_stride: 64,
                panel: panel.as_ptr(),
                k: 16,
                c,
                c_stride: 32,
                rows: 1,
                accumulate,
                ahead: None,
            };
            // SAFETY: one row of sixteen units, a whole panel, and room for its row.
            unsafe { super::tile(&tile) }
        };
        multiply(false);
        assert!(!emulator::configured());
        let outer = Held::new();
        let inner = Held::new();
        multiply(true);
        drop(inner);
        assert!(emulator::configured());
        multiply(true);
        drop(outer);
        assert!(!emulator::configured());
        // Each f32 one is a pair of bf16, zero and one.
        assert_eq!(c, [48.0; 32]);
    }
}
