//! AMX: a separate unit of the CPU multiplies whole tiles of bf16. Linux on x86-64.
//!
//! ```text
//!                     panel: 32 columns
//!                   ┌─ tmm6 ──┬─ tmm7 ──┐
//!                   │         │         │ 16 units a step
//!                   └─────────┴─────────┘
//!  a ┌─ tmm4 ──┐    ┌─ tmm0 ──┬─ tmm1 ──┐
//!    │         │    │         │         │ 16 rows
//!    ├─ tmm5 ──┤    ├─ tmm2 ──┼─ tmm3 ──┤
//!    │         │    │         │         │ 16 rows
//!    └─────────┘    └─────────┴─────────┘ c
//! ```
//!
//! The eight tile registers have 16 rows of 64 bytes each. They hold 2×2 tiles of sums and two tiles of each operand.
//! Every loaded tile is used twice, and four independent sums hide the latency of a product. A product takes less time
//! with fewer rows, down to about nine, so a block of 17 to 31 rows is divided evenly.
//!
//! Four things keep the unit busy, as measured in loops of single instructions on one server with AMX (docs/engine.md has
//! the figures): panels that other rows use again pass by the first-level cache (TILELOADDT1), where the rows stay; what is
//! multiplied later is prefetched meanwhile; eight other instructions follow each tile instruction, because a longer queue
//! of tile instructions blocks the loads of the next step; and the epilogue of the tile before runs between steps ([`Overlap`]).
//!
//! A panel has the same layout as for vector registers: a row of 32 units is two rows of 16, and a unit, two bf16 that
//! are adjacent along the sum, is what TDPBF16PS multiplies. A tile of the panel is 16 of its rows, half as wide.
//!
//! A single row runs the same instructions in a shorter tile, so the result of a row does not depend on other rows.

#[cfg(test)]
pub(crate) mod emulator;
mod side_by_side;

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;

use super::tile::{Overlap, Tile};

/// Rows of a block of tiles.
pub(crate) const ROWS: usize = 2 * TILE;

/// Units of a step.
pub(crate) const DEPTH: usize = TILE;

/// Rows of a tile register, and four-byte units of its rows.
const TILE: usize = 16;

/// Bytes of a panel that a step multiplies.
const STEP_BYTES: usize = TILE * WIDTH * 4;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Other instructions after each tile instruction, at least.
const OTHERS: usize = 8;

/// Columns of a panel.
const WIDTH: usize = 2 * TILE;

/// Rows of the upper tiles of a block of `rows` rows.
fn upper_rows(rows: usize) -> usize {
    if rows > TILE { rows.div_ceil(2) } else { rows }
}

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
    /// Tiles for 1 to 32 rows and `units` units a step. Instructions access no memory beyond them.
    fn new(rows: usize, units: usize) -> Self {
        let mut all = Self { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        let upper = upper_rows(rows);
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
            // A tile without rows has no columns either.
            all.bytes[tile] = if rows > 0 { 4 * columns as u16 } else { 0 };
        }
        all
    }
}

/// The shape of this thread's tiles: rows of a block, and units a step.
type TileShape = (usize, usize);

/// The configuration of a thread's tiles.
#[derive(Clone, Copy)]
enum Configured {
    /// Each block configures the tiles and releases them.
    PerBlock,
    /// The tiles keep this shape, if any, until the outermost [`TileGuard`] is dropped.
    Kept(Option<TileShape>),
}

thread_local! {
    static CONFIGURED: Cell<Configured> = const { Cell::new(Configured::PerBlock) };
}

/// Keeps the tiles of this thread configured from one block to the next, because LDTILECFG takes longer than several
/// steps of a sum. While it lives, the thread runs no other code that could configure tiles. Dropping the outermost one
/// releases the tiles: an idle thread with tiles in use keeps its core out of deep sleep, and the kernel saves them at
/// each context switch.
pub(crate) struct TileGuard {
    /// Whether no other one exists on this thread.
    outermost: bool,
    /// Tiles belong to one thread, so the type is neither `Send` nor `Sync`.
    _thread: PhantomData<*mut ()>,
}

impl TileGuard {
    pub(crate) fn new() -> Self {
        let outermost = matches!(CONFIGURED.get(), Configured::PerBlock);
        if outermost {
            CONFIGURED.set(Configured::Kept(None));
        }
        Self { outermost, _thread: PhantomData }
    }
}

impl Drop for TileGuard {
    fn drop(&mut self) {
        if !self.outermost {
            return;
        }
        if let Configured::Kept(Some(_)) = CONFIGURED.replace(Configured::PerBlock) {
            // SAFETY: this thread has configured tiles, so the CPU has AMX and the process may use it. All registers
            // that change are named, and no code reads them before it configures them again.
            unsafe {
                asm!(
                    "tilerelease",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nomem, nostack, preserves_flags),
                );
            };
        }
    }
}

/// [`tile::tile`](super::tile::tile) for pairs of bf16. In each step of sixteen units the CPU sums even and odd elements
/// separately, and adds both sums to `c`; it treats denormals as zero.
///
/// # Safety
///
/// - The CPU has AMX, and the process may use it: [`Isa::Amx`](crate::compute::Isa::Amx) is available.
/// - `t.rows <= ROWS`.
/// - `t.a` points to `t.rows` rows of `t.k` readable units, `t.a_stride` bytes apart.
/// - `t.panel` points to `t.k` readable rows of 32 units.
/// - `t.c` points to `t.rows` writable rows of 32 values, `t.c_stride` values apart; they are initialized if
///   `t.accumulate`.
/// - The preconditions of `t.overlap`, if any, hold for a call at each step, and it neither unwinds nor uses AMX.
pub(crate) unsafe fn tile(t: &Tile) {
    debug_assert!(t.rows <= ROWS, "tile height");
    if t.rows == 0 {
        return;
    }
    let _tiles = TileGuard::new();
    let (steps, rest) = (t.k / TILE, t.k % TILE);
    // SAFETY: the CPU has AMX, `1 <= t.rows <= ROWS = 32`, and `_tiles` lives. The first block reads `steps * TILE` units
    // of each row, the second one the `rest` units after them: `k` in total. The first block initializes `c`, to which
    // the second one adds.
    unsafe {
        // A sum of no units stores zeros.
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

/// [`tile`] of the same rows with `panels` panels, one behind the other. The sums of each begin 32 values after those of the
/// one before.
///
/// # Safety
///
/// - All preconditions of [`tile`] for each panel and its sums.
pub(crate) unsafe fn tiles(t: &Tile, panels: usize) {
    // SAFETY: AMX is available, by the first precondition. `side_by_side` needs 1 to 32 rows, which are above zero here and at
    // most `ROWS` by the second one, and 1 to 16 units, which are compared here. Panel `index` begins `index * t.k` rows of 32
    // units behind the first, and its sums `32 * index` values on, where the other preconditions hold for it.
    unsafe {
        if t.rows > 0 && (1..=TILE).contains(&t.k) && !t.accumulate && t.overlap.is_none() {
            return side_by_side::tiles(t, panels);
        }
        for index in 0..panels {
            tile(&Tile { panel: t.panel.add(index * t.k * WIDTH), c: t.c.add(index * WIDTH), ..*t });
        }
    }
}

/// Configures the tiles for `shape`, unless they have that shape.
///
/// # Safety
///
/// - The CPU has AMX, and the process may use it.
/// - `shape` has 1 to 32 rows and 1 to 16 units.
/// - A [`TileGuard`] of this thread lives.
unsafe fn configure(shape: TileShape) {
    if matches!(CONFIGURED.get(), Configured::Kept(Some(kept)) if kept == shape) {
        return;
    }
    let configuration = Configuration::new(shape.0, shape.1);
    // SAFETY: the CPU has AMX. `configuration` has the 64 bytes that the instruction reads, and is valid for 1 to 32 rows
    // and 1 to 16 units. All registers that change are named. While a `TileGuard` lives, only this module uses tiles.
    unsafe {
        asm!(
            "ldtilecfg [{}]",
            in(reg) &raw const configuration,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(readonly, nostack, preserves_flags),
        );
    }
    CONFIGURED.set(Configured::Kept(Some(shape)));
}

/// Multiplies `steps` steps of `units` units.
///
/// # Safety
///
/// - The CPU has AMX, and the process may use it.
/// - `1 <= t.rows <= 32` and `1 <= units <= 16`.
/// - A [`TileGuard`] of this thread lives.
/// - `t.a` points to `t.rows` rows of `steps * units` readable units, `t.a_stride` bytes apart.
/// - `t.panel` points to `steps * units` readable rows of 32 units.
/// - `t.c` points to `t.rows` writable rows of 32 values, `t.c_stride` values apart; they are initialized if
///   `t.accumulate`.
/// - If `units < 16`, `steps <= 1`: a step advances the operands by 16 units.
/// - The preconditions of `t.overlap`, if any, hold for `steps` calls, and it neither unwinds nor uses AMX.
unsafe fn block(t: &Tile, units: usize, steps: usize) {
    let lower = t.rows > TILE;
    // SAFETY: the CPU has AMX, a guard lives, and there are 1 to 32 rows and 1 to 16 units, by the preconditions: the tiles are
    // configured for them first. `a` and `panel` have `steps` steps of these units, and `c` has `t.rows` rows, as `multiply`
    // needs. The match compares `t.rows > 16` with `LOWER`, and whether there is an overlap with `OVERLAPS`.
    unsafe {
        configure((t.rows, units));
        // Cache lines to prefetch a step. After each of a step's eight tile instructions, or five without lower tiles, come
        // as many prefetches as the last constant says.
        let lines = t.ahead.map_or(0, |ahead| (ahead.step * TILE).div_ceil(LINE));
        match (lower, t.overlap.is_some(), lines) {
            (true, false, 0) => multiply::<true, false, false, 0>(t, steps),
            (true, false, 1..=8) => multiply::<true, false, false, 1>(t, steps),
            (true, false, 9..=16) => multiply::<true, false, false, 2>(t, steps),
            (true, false, 17..) => multiply::<true, false, true, 4>(t, steps),
            (true, true, 0) => multiply::<true, true, false, 0>(t, steps),
            (true, true, 1..=8) => multiply::<true, true, false, 1>(t, steps),
            (true, true, 9..=16) => multiply::<true, true, false, 2>(t, steps),
            (true, true, 17..) => multiply::<true, true, true, 4>(t, steps),
            (false, false, 0) => multiply::<false, false, false, 0>(t, steps),
            (false, false, 1..=8) => multiply::<false, false, false, 2>(t, steps),
            (false, false, 9..=16) => multiply::<false, false, false, 4>(t, steps),
            (false, false, 17..) => multiply::<false, false, true, 7>(t, steps),
            (false, true, 0) => multiply::<false, true, false, 0>(t, steps),
            (false, true, 1..=8) => multiply::<false, true, false, 2>(t, steps),
            (false, true, 9..=16) => multiply::<false, true, false, 4>(t, steps),
            (false, true, 17..) => multiply::<false, true, true, 7>(t, steps),
        }
    }
}

/// The loop of [`block`]. If `STREAMED`, these rows are all that use the panel: it is loaded and prefetched as usual.
/// Otherwise it stays in the second-level cache, as does what is prefetched. If `OVERLAPS`, a step ends with a call of
/// `t.overlap`, whose vector instructions the CPU carries out while its tile instructions wait for each other.
///
/// # Safety
///
/// - All preconditions of [`block`] for `steps`.
/// - The tiles are configured for `t.rows` rows and `units` units.
/// - `LOWER == (t.rows > 16)`, and `OVERLAPS == t.overlap.is_some()`.
unsafe fn multiply<const LOWER: bool, const OVERLAPS: bool, const STREAMED: bool, const PREFETCHES: usize>(
    t: &Tile,
    steps: usize,
) {
    let upper = upper_rows(t.rows);
    let overlap = t.overlap.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the upper tiles have `upper` rows, and the lower ones, which are used only if `LOWER`, have the other rows; so
    // each instruction accesses only the rows and units that the preconditions name. A prefetch may use any address. All
    // registers that change are named. The called function follows the C calling convention: it preserves the general
    // registers that are not saved around the call, and `overlap`, in R12, is one of these; the vector and mask registers that
    // it may change are named; the stack, aligned to 16 bytes at the start of the block, is so again after ten pushes; it
    // does not unwind. It has no tile instruction, so the tile registers keep their sums.
    unsafe {
        asm!(
            // What follows each tile instruction.
            ".macro model_manager_between",
            ".rept {prefetches}",
            ".if {streamed}",
            "prefetcht0 [{ahead}]",
            ".else",
            "prefetcht1 [{ahead}]",
            ".endif",
            "add {ahead}, {line}",
            ".endr",
            ".rept {fillers}",
            "nop",
            ".endr",
            ".endm",
            "test {accumulate}, {accumulate}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {c_stride}*1]",
            "tileloadd tmm1, [{c} + {c_stride}*1 + 64]",
            ".if {lower}",
            "tileloadd tmm2, [{c_lower} + {c_stride}*1]",
            "tileloadd tmm3, [{c_lower} + {c_stride}*1 + 64]",
            ".endif",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            ".if {lower}",
            "tilezero tmm2",
            "tilezero tmm3",
            ".endif",
            "3:",
            "sub {steps}, 1",
            "jb 5f",
            "4:",
            ".if {streamed}",
            "tileloadd tmm6, [{panel} + {panel_stride}*1]",
            "model_manager_between",
            "tileloadd tmm7, [{panel} + {panel_stride}*1 + 64]",
            ".else",
            "tileloaddt1 tmm6, [{panel} + {panel_stride}*1]",
            "model_manager_between",
            "tileloaddt1 tmm7, [{panel} + {panel_stride}*1 + 64]",
            ".endif",
            "model_manager_between",
            "tileloadd tmm4, [{a} + {a_stride}*1]",
            "model_manager_between",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "model_manager_between",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "model_manager_between",
            ".if {lower}",
            "tileloadd tmm5, [{a_lower} + {a_stride}*1]",
            "model_manager_between",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "model_manager_between",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "model_manager_between",
            ".endif",
            ".if {overlaps}",
            "push rax",
            "push rcx",
            "push rdx",
            "push rsi",
            "push rdi",
            "push r8",
            "push r9",
            "push r10",
            "push r11",
            "push r11",
            "mov rdi, [r12 + {state}]",
            "call [r12 + {run}]",
            "pop r11",
            "pop r11",
            "pop r10",
            "pop r9",
            "pop r8",
            "pop rdi",
            "pop rsi",
            "pop rdx",
            "pop rcx",
            "pop rax",
            ".endif",
            "add {a}, 64",
            "add {a_lower}, 64",
            "add {panel}, {step_bytes}",
            "sub {steps}, 1",
            "jae 4b",
            "5:",
            "tilestored [{c} + {c_stride}*1], tmm0",
            "tilestored [{c} + {c_stride}*1 + 64], tmm1",
            ".if {lower}",
            "tilestored [{c_lower} + {c_stride}*1], tmm2",
            "tilestored [{c_lower} + {c_stride}*1 + 64], tmm3",
            ".endif",
            ".purgem model_manager_between",
            prefetches = const PREFETCHES,
            fillers = const OTHERS.saturating_sub(2 * PREFETCHES),
            streamed = const STREAMED as usize,
            lower = const LOWER as usize,
            overlaps = const OVERLAPS as usize,
            run = const std::mem::offset_of!(Overlap, run),
            state = const std::mem::offset_of!(Overlap, state),
            line = const LINE,
            step_bytes = const STEP_BYTES,
            accumulate = in(reg) usize::from(t.accumulate),
            c = in(reg) t.c,
            c_lower = in(reg) t.c.wrapping_add(upper * t.c_stride),
            c_stride = in(reg) t.c_stride * 4,
            steps = inout(reg) steps => _,
            panel = inout(reg) t.panel => _,
            panel_stride = in(reg) WIDTH * 4,
            a = inout(reg) t.a => _,
            a_lower = inout(reg) t.a.wrapping_add(upper * t.a_stride) => _,
            a_stride = in(reg) t.a_stride,
            ahead = inout(reg) t.ahead.map_or(std::ptr::null(), |ahead| ahead.from) => _,
            in("r12") overlap,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("xmm16") _, out("xmm17") _, out("xmm18") _, out("xmm19") _, out("xmm20") _, out("xmm21") _, out("xmm22") _, out("xmm23") _,
            out("xmm24") _, out("xmm25") _, out("xmm26") _, out("xmm27") _, out("xmm28") _, out("xmm29") _, out("xmm30") _, out("xmm31") _,
            out("k0") _, out("k1") _, out("k2") _, out("k3") _, out("k4") _, out("k5") _, out("k6") _, out("k7") _,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::isa::{Isa, amx_is_granted};

    #[test]
    fn tiles_are_released_when_the_outermost_guard_is_dropped() {
        if !Isa::Amx.is_available() || amx_is_granted() {
            return; // The test cannot read the tile state of a real CPU.
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
                overlap: None,
            };
            // SAFETY: AMX is available; `a` has one row of 16 units, `panel` 16 rows of 32 units, and `c` one row of 32.
            unsafe { super::tile(&tile) }
        };
        multiply(false);
        assert!(!emulator::configured());
        let outer = TileGuard::new();
        let inner = TileGuard::new();
        multiply(true);
        drop(inner);
        assert!(emulator::configured());
        multiply(true);
        drop(outer);
        assert!(!emulator::configured());
        // An f32 of 1.0 is a pair of bf16: 0.0 and 1.0.
        assert_eq!(c, [48.0; 32]);
    }
}
