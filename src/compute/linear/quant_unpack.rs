//! Unpacks panels of quantized weights into panels of bf16, which are multiplied in tiles as those of plain weights.
//!
//! A weight becomes `scale * quant + minimum` in f32 and is rounded to bf16: the bits of the dequantized weight, rounded. A
//! panel of sixteen outputs fills the columns of a panel of [`Kernels::width`](crate::compute::kernels::Kernels) outputs from
//! one on, and a pair of adjacent inputs one of its rows.

#![cfg_attr(
    not(any(test, all(target_arch = "x86_64", target_os = "linux"))),
    allow(dead_code, reason = "weights are unpacked for AMX alone")
)]

use super::blocks::{GROUP, QuantLayout, zero};
use super::quant_gemm::{PANEL, group_bytes, scale_numbers};
use crate::compute::isa::Isa;

#[cfg(test)]
#[path = "quant_unpack_portable.rs"]
mod portable;
#[cfg(target_arch = "x86_64")]
#[path = "quant_unpack_x86.rs"]
mod x86;

#[cfg(test)]
pub(crate) use portable::everywhere;

/// Pairs of inputs in a group.
const PAIRS: usize = GROUP / 2;

/// A panel to unpack, and where to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedPanel {
    /// Groups, as those of [`Product::panel`](super::quant_gemm::Product).
    pub panel: *const u8,
    /// Their number.
    pub groups: usize,
    /// Result: a row of [`PANEL`] pairs of bf16 for each two inputs.
    pub out: *mut u32,
    /// Pairs from a row of the result to the next.
    pub out_stride: usize,
}

/// The operations that unpacking needs of registers of [`PANEL`] columns. As in `simd`, a value proves that the CPU has the
/// instructions.
trait UnpackLanes: Copy {
    type I: Copy;
    type F: Copy;

    /// Creates the proof that the CPU has the instructions.
    ///
    /// # Safety
    ///
    /// - The CPU has the instructions of this set.
    unsafe fn permit() -> Self;
    /// Loads four bytes for each column.
    ///
    /// # Safety
    ///
    /// - `from` points to `4 * PANEL` readable bytes; it needs no alignment.
    unsafe fn bytes(self, from: *const u8) -> Self::I;
    /// Loads an f16 for each column.
    ///
    /// # Safety
    ///
    /// - `from` points to `PANEL` readable f16 values; it needs no alignment.
    unsafe fn halves(self, from: *const u16) -> Self::F;
    /// The bits of each lane that `mask` has, as an unsigned number.
    fn masked(self, x: Self::I, mask: u32) -> Self::F;
    /// `x * factor`.
    fn scaled(self, x: Self::F, factor: f32) -> Self::F;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Rounds to bf16 (ties to even), and stores a pair for each column, the first value in the lower half.
    ///
    /// # Safety
    ///
    /// - `to` is aligned and points to `PANEL` writable values.
    unsafe fn store_pairs(self, to: *mut u32, first: Self::F, second: Self::F);
}

/// Unpacks a panel.
///
/// # Safety
///
/// - `p.panel` points to `p.groups` readable groups of [`group_bytes`] bytes each; it needs no alignment.
/// - `p.out` is aligned and points to `p.groups * PAIRS` rows, `p.out_stride` values apart, of [`PANEL`] writable values.
///
/// # Panics
///
/// If no [`BlockFormat`](super::blocks::BlockFormat) has the layout.
#[inline(always)]
unsafe fn unpack<L: UnpackLanes>(lanes: L, p: &PackedPanel, layout: QuantLayout) {
    macro_rules! forms {
        ($($bits:literal $minimum:literal $halves:literal),*) => {
            match (layout.bits, layout.minimum, layout.halves) {
                $(($bits, $minimum, $halves) => {
                    // SAFETY: the constants are those of `layout`, and the other preconditions are the same.
                    unsafe { groups::<L, $bits, $minimum, $halves>(lanes, p) }
                })*
                _ => unreachable!("no format has the layout {layout:?}"),
            }
        };
    }
    forms!(4 false false, 4 true false, 4 false true, 4 true true, 8 false false, 8 true false, 8 false true);
}

/// [`unpack`] for a constant layout.
///
/// # Safety
///
/// - All preconditions of [`unpack`], for the layout that the constants name.
#[inline(always)]
unsafe fn groups<L: UnpackLanes, const BITS: usize, const MINIMUM: bool, const HALVES: bool>(
    lanes: L,
    p: &PackedPanel,
) {
    let layout = QuantLayout { bits: BITS, minimum: MINIMUM, halves: HALVES };
    let (bytes, quants) = (group_bytes(layout), scale_numbers(layout) * 2);
    for group in 0..p.groups {
        // SAFETY: `group < p.groups`, so `bytes` bytes are readable from `start` on, and `PAIRS` rows are writable from `out`
        // on. The first `quants` bytes are the numbers of `PANEL` columns each: a scale for each half or one for both, then
        // as many minima if `MINIMUM`.
        unsafe {
            let start = p.panel.add(group * bytes);
            let out = p.out.add(group * PAIRS * p.out_stride);
            let number = |which: usize| lanes.halves(start.cast::<u16>().add(which * PANEL));
            let second = HALVES as usize;
            let scales = [number(0), number(second)];
            let minima = if MINIMUM {
                [number(1 + second), number(1 + 2 * second)]
            } else {
                scales.map(|scale| lanes.scaled(scale, -f32::from(zero(BITS))))
            };
            let run = start.add(quants);
            half_group::<L, BITS, 0>(lanes, run, scales[0], minima[0], out, p.out_stride);
            half_group::<L, BITS, 1>(lanes, run, scales[1], minima[1], out, p.out_stride);
        }
    }
}

/// Unpacks half `HALF` of a group.
///
/// # Safety
///
/// - `quants` points to the quants of a group of [`PANEL`] columns.
/// - `out` is aligned and points to [`PAIRS`] rows, `out_stride` values apart, of [`PANEL`] writable values.
#[inline(always)]
unsafe fn half_group<L: UnpackLanes, const BITS: usize, const HALF: usize>(
    lanes: L,
    quants: *const u8,
    scale: L::F,
    minimum: L::F,
    out: *mut u32,
    out_stride: usize,
) {
    // In four bits, the second half is the upper nibble of each byte.
    let nibble = if BITS == 4 { 4 * HALF as u32 } else { 0 };
    // A quant stays where it is in its lane, which makes it larger by a power of two, and its scale is smaller by as much.
    // Both are exact, as is their product: a scale has eleven bits.
    let scales = [0, 8, 16, 24].map(|bit| lanes.scaled(scale, 1.0 / (1_u32 << (bit + nibble)) as f32));
    for four in 0..PAIRS / 4 {
        let at = if BITS == 4 { four } else { HALF * 4 + four };
        // SAFETY: four inputs of a row have `4 * PANEL` bytes, in four bits together with those sixteen inputs later; `at < 4`
        // in four bits, and `at < 8` in eight. The half has the `PAIRS / 2` rows from `HALF * PAIRS / 2` on.
        unsafe {
            let bytes = lanes.bytes(quants.add(at * PANEL * 4));
            let weight = |byte: u32| {
                let mask = ((1_u32 << BITS) - 1) << (8 * byte + nibble);
                lanes.mul_add(lanes.masked(bytes, mask), scales[byte as usize], minimum)
            };
            let row = out.add((HALF * PAIRS / 2 + 2 * four) * out_stride);
            lanes.store_pairs(row, weight(0), weight(1));
            lanes.store_pairs(row.add(out_stride), weight(2), weight(3));
        }
    }
}

/// The unpacking of one instruction set. A value proves that the CPU has the instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unpack(unsafe fn(&PackedPanel, QuantLayout));

impl Unpack {
    /// Unpacking for an instruction set that multiplies bf16 in tiles, so much faster than bytes that unpacking pays.
    pub(crate) fn of(isa: Isa) -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if isa == Isa::Amx && isa.is_available() {
            return Some(Self(x86::avx512_bf16));
        }
        let _ = isa;
        #[cfg(test)]
        return portable::allowed(isa);
        #[cfg(not(test))]
        None
    }

    /// Unpacks a panel.
    ///
    /// # Safety
    ///
    /// - All preconditions of [`unpack`].
    ///
    /// # Panics
    ///
    /// If no [`BlockFormat`](super::blocks::BlockFormat) has the layout.
    pub(crate) unsafe fn run(self, p: &PackedPanel, layout: QuantLayout) {
        // SAFETY: `of` chose a function whose instructions this CPU has. `p.panel` has its groups to read, and `p.out` is aligned
        // and has rows for them, by the precondition.
        unsafe { (self.0)(p, layout) }
    }
}

#[cfg(test)]
#[cfg(unix)]
#[path = "quant_unpack_tests.rs"]
mod tests;
