//! One step of a sum with several panels: the scores of queries against keys, in heads of up to 32 elements.
//!
//! The rows of such a product fit into the tile registers, so they are loaded once for all panels. A step with each panel is
//! then two loads instead of four.

use std::arch::asm;

use super::{OTHERS, TILE, TileGuard, WIDTH, configure, upper_rows};
use crate::compute::kernels::tile::Tile;

/// [`tile`](super::tile) of the same rows with `panels` panels, one behind the other. The sums of each begin 32 values after
/// those of the one before. Nothing is prefetched, and no other work overlaps.
///
/// # Safety
///
/// - The CPU has AMX, and the process may use it: [`Isa::Amx`](crate::compute::Isa::Amx) is available.
/// - `1 <= t.rows <= 32` and `1 <= t.k <= 16`.
/// - `t.a` points to `t.rows` rows of `t.k` readable units, `t.a_stride` bytes apart.
/// - `t.panel` points to `panels * t.k` readable rows of 32 units.
/// - `t.c` points to `t.rows` writable rows of `panels * 32` values, `t.c_stride` values apart.
pub(super) unsafe fn tiles(t: &Tile, panels: usize) {
    debug_assert!(!t.accumulate && (1..=TILE).contains(&t.k), "one step, whose sums begin at zero");
    if panels == 0 {
        return;
    }
    let _tiles = TileGuard::new();
    // SAFETY: AMX is available, there are 1 to 32 rows and 1 to 16 units, and `a`, `panel` and `c` have the rows of all panels,
    // by the preconditions. `_tiles` lives, so the tiles keep the shape that they are configured for. `panels` is not zero, and
    // `LOWER` is `t.rows > 16`.
    unsafe {
        configure((t.rows, t.k));
        if t.rows > TILE { multiply::<true>(t, panels) } else { multiply::<false>(t, panels) }
    }
}

/// The loop of [`tiles`]. Sums of one panel are stored while the next one is loaded and multiplied, as far as the CPU
/// renames tile registers. The order and the instructions between are those that were fastest on a server with AMX.
///
/// # Safety
///
/// - All preconditions of [`tiles`].
/// - The tiles are configured for `t.rows` rows and `t.k` units.
/// - `panels >= 1`.
/// - `LOWER == (t.rows > 16)`.
unsafe fn multiply<const LOWER: bool>(t: &Tile, panels: usize) {
    let upper = upper_rows(t.rows);
    // SAFETY: the upper tiles have `upper` rows, and the lower ones, which are used only if `LOWER`, have the other rows; so
    // each instruction accesses only the rows and units that the preconditions name. Each of the `panels` iterations advances
    // `panel` by its `t.k` rows, and `c` by 32 values. All registers that change are named, and the block does not use the
    // stack.
    unsafe {
        asm!(
            ".macro model_manager_between",
            ".rept {others}",
            "nop",
            ".endr",
            ".endm",
            "tileloadd tmm4, [{a} + {a_stride}*1]",
            ".if {lower}",
            "tileloadd tmm5, [{a_lower} + {a_stride}*1]",
            ".endif",
            "2:",
            "tileloadd tmm6, [{panel} + {panel_stride}*1]",
            "model_manager_between",
            "tilezero tmm0",
            "tilezero tmm1",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "model_manager_between",
            "tileloadd tmm7, [{panel} + {panel_stride}*1 + 64]",
            "model_manager_between",
            ".if {lower}",
            "tilezero tmm2",
            "tilezero tmm3",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "model_manager_between",
            ".endif",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "model_manager_between",
            ".if {lower}",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "model_manager_between",
            ".endif",
            "tilestored [{c} + {c_stride}*1], tmm0",
            "model_manager_between",
            ".if {lower}",
            "tilestored [{c_lower} + {c_stride}*1], tmm2",
            "model_manager_between",
            ".endif",
            "tilestored [{c} + {c_stride}*1 + 64], tmm1",
            "model_manager_between",
            ".if {lower}",
            "tilestored [{c_lower} + {c_stride}*1 + 64], tmm3",
            "model_manager_between",
            ".endif",
            "add {panel}, {panel_bytes}",
            "add {c}, {c_bytes}",
            "add {c_lower}, {c_bytes}",
            "sub {panels}, 1",
            "jnz 2b",
            ".purgem model_manager_between",
            others = const OTHERS,
            lower = const LOWER as usize,
            c_bytes = const WIDTH * 4,
            a = in(reg) t.a,
            a_lower = in(reg) t.a.wrapping_add(upper * t.a_stride),
            a_stride = in(reg) t.a_stride,
            panel = inout(reg) t.panel => _,
            panel_stride = in(reg) WIDTH * 4,
            panel_bytes = in(reg) t.k * WIDTH * 4,
            c = inout(reg) t.c => _,
            c_lower = inout(reg) t.c.wrapping_add(upper * t.c_stride) => _,
            c_stride = in(reg) t.c_stride * 4,
            panels = inout(reg) panels => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
