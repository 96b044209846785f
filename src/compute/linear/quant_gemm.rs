//! GEMM of quantized weights and eight-bit activations: the innermost loop of decoding.
//!
//! A panel has sixteen rows of weights side by side. Four adjacent quants of a row share one 32-bit lane, so that one
//! instruction multiplies them by four activations and adds the products (VNNI), or a few do. A lane belongs to one
//! output, so no sum runs across lanes. Integer sums are exact, and the groups are added in order, so the result of a row
//! does not depend on other rows.

use std::ops::RangeInclusive;

use super::blocks::{GROUP, QuantLayout, zero};
use super::flipped::FlippedGroup;
use crate::compute::isa::Isa;
use crate::compute::kernels::quantize::ZERO;

#[path = "quant_gemm_dots.rs"]
mod dots;
#[cfg(target_arch = "aarch64")]
#[path = "quant_gemm_neon.rs"]
mod neon;
#[path = "quant_gemm_portable.rs"]
mod portable;
#[cfg(target_arch = "x86_64")]
#[path = "quant_gemm_x86.rs"]
mod x86;

/// Outputs of a panel.
pub(crate) const PANEL: usize = 16;

/// Numbers of rows for which weights are prefetched. With more than one row, the CPU does too much work between two reads
/// to start the next reads early enough; with more than four, memory is not the limit.
const PREFETCH_ROWS: RangeInclusive<usize> = 2..=4;

/// The distance of the prefetch, in bytes of the stream of weights.
const PREFETCH_DISTANCE: usize = 3072;

/// Some panels times some rows of activations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// For each group: sixteen f16 scales, as many f16 minima if groups have a minimum, and the quants; if halves have
    /// separate scales, there are thirty-two of each. Hardware prefetchers follow a stream without gaps best.
    pub panel: *const u8,
    /// Bytes from a panel to the next.
    pub panel_bytes: usize,
    /// Panels.
    pub panels: usize,
    /// Groups to sum over.
    pub groups: usize,
    /// Eight-bit activations from -127 to 127, `groups * GROUP` a row.
    pub x: *const i8,
    /// The same activations, flipped, `groups` a row; null if the set or the quants need none ([`Dot::flips`]).
    pub x_flipped: *const FlippedGroup,
    /// Scale of each group of each row of activations.
    pub x_scales: *const f32,
    /// Sum of the quants of each half group of each row of activations; null if halves share their scale.
    pub x_sums: *const i32,
    /// For each group of each row, the product with weights of quant [`ZERO`] and scale 1, negated.
    pub x_offsets: *const f32,
    /// Rows of activations.
    pub rows: usize,
    /// Result: `rows` rows of sixteen for each panel.
    pub out: *mut f32,
    /// Elements from a row of the result to the next.
    pub out_stride: usize,
}

/// The number of f16 scales and minima at the start of a group of a panel.
pub(crate) fn scale_numbers(layout: QuantLayout) -> usize {
    PANEL * (1 + usize::from(layout.halves)) * (1 + usize::from(layout.minimum))
}

/// Bytes of a group of a panel.
pub(crate) fn group_bytes(layout: QuantLayout) -> usize {
    scale_numbers(layout) * 2 + PANEL * GROUP * layout.bits / 8
}

/// The position of quant `i` of output `column` in a group: the byte, and whether it is the upper nibble.
pub(crate) fn quant_offset(layout: QuantLayout, column: usize, i: usize) -> (usize, bool) {
    let first = scale_numbers(layout) * 2;
    let high = layout.bits == 4 && i >= 16;
    let i = if high { i - 16 } else { i };
    (first + i / 4 * PANEL * 4 + column * 4 + i % 4, high)
}

/// A group of some rows of activations, in the forms of [`Product`].
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other architecture flips activations"))]
#[derive(Clone, Copy)]
struct GroupRows {
    bytes: *const i8,
    /// Bytes from a row to the next.
    bytes_stride: usize,
    flipped: *const FlippedGroup,
    /// Groups from a row to the next.
    flipped_stride: usize,
}

/// The operations that the product needs of registers of `COLUMNS` outputs. As in `simd`, a value proves that the CPU has
/// the instructions.
trait Lanes: Copy {
    type I: Copy;
    type F: Copy;
    const COLUMNS: usize;
    /// Rows of the tallest tile of one panel: 8, 4, 2 or 1, as many as have their integer sums in the register file.
    const TALLEST: usize;
    /// Whether the register file is large enough for a tile of [`PAIRED`] size. If so, `COLUMNS` is [`PANEL`].
    const PAIRED: bool;
    /// Whether the CPU multiplies signed bytes only. If so, [`group`](Self::group) subtracts [`zero`] from eight-bit quants,
    /// and sums start with the product of the zero and the activations.
    const SIGNED: bool;
    /// Whether eight-bit quants are multiplied by [flipped activations](FlippedGroup).
    const FLIPS: bool;

    /// Creates the proof that the CPU has the instructions.
    ///
    /// # Safety
    ///
    /// - The CPU has the instructions of this set.
    unsafe fn permit() -> Self;
    fn integers(self, x: i32) -> Self::I;
    fn floats(self, x: f32) -> Self::F;
    /// Loads four bytes for each column.
    ///
    /// # Safety
    ///
    /// - `from` points to `4 * COLUMNS` readable bytes; it needs no alignment.
    unsafe fn bytes(self, from: *const u8) -> Self::I;
    /// Adds the products of a group to `sums`: those of the first half to the first sums, those of the second half to the
    /// second sums if `HALVES`, else to the first as well. Quants have `BITS` bits.
    ///
    /// # Safety
    ///
    /// - `quants` points to the quants of a group of `COLUMNS` columns in each of `PANELS` panels, `panel_bytes` bytes apart.
    /// - `x.bytes` points to `ROWS` rows of [`GROUP`] readable bytes, `x.bytes_stride` bytes apart.
    /// - If `FLIPS` and `BITS` is 8, `x.flipped` is aligned and points to `ROWS` readable groups, `x.flipped_stride` groups
    ///   apart.
    unsafe fn group<const BITS: usize, const HALVES: bool, const ROWS: usize, const PANELS: usize>(
        self,
        sums: &mut [[[Self::I; PANELS]; ROWS]; 2],
        quants: *const u8,
        panel_bytes: usize,
        x: GroupRows,
    );
    fn to_floats(self, x: Self::I) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Loads an f16 for each column.
    ///
    /// # Safety
    ///
    /// - `from` points to `COLUMNS` readable f16 values; it needs no alignment.
    unsafe fn halves(self, from: *const u16) -> Self::F;
    /// Stores an f32 for each column.
    ///
    /// # Safety
    ///
    /// - `to` points to `COLUMNS` writable values; it needs no alignment.
    unsafe fn store(self, to: *mut f32, x: Self::F);
    /// Prefetches the cache line at `from`, if the CPU has an instruction for it. No address faults.
    #[inline(always)]
    fn prefetch(self, _from: *const u8) {}
}

/// Computes a product.
///
/// # Safety
///
/// - `p.panel` points to `p.panels` panels, `p.panel_bytes` bytes apart, of `p.groups` readable groups of
///   [`group_bytes`] bytes each; it needs no alignment.
/// - `p.x` points to `p.rows` rows of `p.groups * GROUP` readable bytes.
/// - `p.x_scales` and `p.x_offsets` are aligned and point to `p.rows` rows of `p.groups` readable values.
/// - If `L::FLIPS` and `layout.bits` is 8, `p.x_flipped` is aligned and points to `p.rows` rows of `p.groups` readable groups.
/// - If `layout.halves`, `p.x_sums` is aligned and points to `p.rows` rows of `2 * p.groups` readable values.
/// - `p.out` points to `p.rows` rows, `p.out_stride` values apart, of `p.panels * PANEL` writable values.
///
/// # Panics
///
/// If no [`BlockFormat`](super::blocks::BlockFormat) has the layout.
#[inline(always)]
unsafe fn product<L: Lanes>(lanes: L, p: &Product, layout: QuantLayout) {
    debug_assert!(!L::FLIPS || layout.bits != 8 || !p.x_flipped.is_null(), "flipped activations");
    macro_rules! forms {
        ($($bits:literal $minimum:literal $halves:literal),*) => {
            match (layout.bits, layout.minimum, layout.halves) {
                $(($bits, $minimum, $halves) => {
                    // SAFETY: the constants are those of `layout`, and the other preconditions are the same.
                    unsafe { tiles::<L, $bits, $minimum, $halves>(lanes, p) }
                })*
                _ => unreachable!("no format has the layout {layout:?}"),
            }
        };
    }
    forms!(4 false false, 4 true false, 4 false true, 4 true true, 8 false false, 8 true false, 8 false true);
}

/// The first panel, column and row of a tile.
#[derive(Clone, Copy)]
struct TileOrigin {
    panel: usize,
    column: usize,
    row: usize,
}

/// Rows and panels of the largest tile: both panels use each load of activations, and the integer and float sums fit in
/// the register file.
const PAIRED: (usize, usize) = (6, 2);

/// Divides a product into tiles.
///
/// # Safety
///
/// - All preconditions of [`product`], for the layout that the constants name.
#[inline(always)]
unsafe fn tiles<L: Lanes, const BITS: usize, const MINIMUM: bool, const HALVES: bool>(lanes: L, p: &Product) {
    for first in (0..p.panels).step_by(PAIRED.1) {
        let mut done = 0;
        // Separate sums for halves need twice the registers.
        if L::PAIRED && !HALVES && first + 1 < p.panels {
            while p.rows - done >= PAIRED.0 {
                let at = TileOrigin { panel: first, column: 0, row: done };
                // SAFETY: `first + 1 < p.panels` and `done + 6 <= p.rows`, so the tile lies inside the product; `COLUMNS` is
                // `PANEL`, so column 0 starts whole registers.
                unsafe { tile::<L, BITS, MINIMUM, HALVES, { PAIRED.0 }, { PAIRED.1 }>(lanes, p, at) };
                done += PAIRED.0;
            }
        }
        for panel in first..p.panels.min(first + PAIRED.1) {
            for column in (0..PANEL).step_by(L::COLUMNS) {
                let mut row = done;
                while row < p.rows {
                    macro_rules! heights {
                        ($($rows:literal)*) => {
                            match p.rows - row {
                                // SAFETY: `panel < p.panels`, `row + $rows <= p.rows`, and `COLUMNS` divides `PANEL`.
                                $(left if left >= $rows && $rows <= L::TALLEST => unsafe {
                                    let at = TileOrigin { panel, column, row };
                                    tile::<L, BITS, MINIMUM, HALVES, $rows, 1>(lanes, p, at);
                                    row += $rows;
                                },)*
                                _ => break,
                            }
                        };
                    }
                    heights!(8 4 2 1);
                }
            }
        }
    }
}

/// Computes one tile of `ROWS` rows and `PANELS` panels.
///
/// # Safety
///
/// - All preconditions of [`product`], for the layout that the constants name.
/// - `at.row + ROWS <= p.rows` and `at.panel + PANELS <= p.panels`.
/// - `at.column + COLUMNS <= PANEL`.
#[inline(always)]
unsafe fn tile<
    L: Lanes,
    const BITS: usize,
    const MINIMUM: bool,
    const HALVES: bool,
    const ROWS: usize,
    const PANELS: usize,
>(
    lanes: L,
    p: &Product,
    at: TileOrigin,
) {
    let TileOrigin { panel, column, row } = at;
    let numbers = PANEL * (1 + HALVES as usize) * (1 + MINIMUM as usize);
    let bytes = numbers * 2 + PANEL * GROUP * BITS / 8;
    let (stride, zero) = (p.groups * GROUP, i32::from(zero(BITS)));
    let mut out = [[lanes.floats(0.0); PANELS]; ROWS];
    for group in 0..p.groups {
        // SAFETY: `group < p.groups`, the panels from `at.panel` on exist, and `at.column + COLUMNS <= PANEL`. So scales and
        // minima are read from the first `numbers * 2` bytes of a group, and quants from the `bytes - numbers * 2` after
        // them. The rows from `at.row` on exist, and have a scale, an offset, `GROUP` quants and, if `HALVES`, two sums for
        // each group, and, if `FLIPS` and quants have eight bits, a flipped group. Prefetches may use any address.
        unsafe {
            let start = p.panel.add(panel * p.panel_bytes + group * bytes);
            let scales = start.cast::<u16>().add(column);
            let quants = start.add(numbers * 2 + column * 4);
            let x = p.x.add(row * stride + group * GROUP);
            if PREFETCH_ROWS.contains(&ROWS) && ROWS == p.rows && column == 0 {
                for line in (0..bytes).step_by(64) {
                    lanes.prefetch(start.wrapping_add(PREFETCH_DISTANCE + line));
                }
            }
            // One sum for the group, or one for each half group.
            let mut sums = [[[lanes.integers(0); PANELS]; ROWS]; 2];
            let signed = BITS == 8 && L::SIGNED;
            // Scales multiply sums of quants, and, where halves have no minimum, sums of quants less their zero. `group` adds
            // quants, and, if they are signed, quants less their zero. Sums start with the difference.
            let start_with = if signed { zero } else { 0 } - if HALVES && !MINIMUM { zero } else { 0 };
            for i in (0..ROWS).filter(|_| start_with != 0) {
                if HALVES {
                    let halves = p.x_sums.add(((row + i) * p.groups + group) * 2);
                    sums[0][i] = [lanes.integers(start_with * *halves); PANELS];
                    sums[1][i] = [lanes.integers(start_with * *halves.add(1)); PANELS];
                } else {
                    let x = x.add(i * stride);
                    let sum: i32 = (0..GROUP).map(|at| i32::from(*x.add(at))).sum();
                    sums[0][i] = [lanes.integers(start_with * sum); PANELS];
                }
            }
            let flipped = p.x_flipped.wrapping_add(row * p.groups + group);
            let rows = GroupRows { bytes: x, bytes_stride: stride, flipped, flipped_stride: p.groups };
            lanes.group::<BITS, HALVES, ROWS, PANELS>(&mut sums, quants, p.panel_bytes, rows);
            let mut numbers = [[lanes.floats(0.0); 4]; PANELS];
            for (panel, numbers) in numbers.iter_mut().enumerate() {
                let scales = scales.byte_add(panel * p.panel_bytes);
                numbers[0] = lanes.halves(scales);
                if HALVES || MINIMUM {
                    numbers[1] = lanes.halves(scales.add(PANEL));
                }
                if HALVES && MINIMUM {
                    numbers[2] = lanes.halves(scales.add(2 * PANEL));
                    numbers[3] = lanes.halves(scales.add(3 * PANEL));
                } else if MINIMUM {
                    // Turns an offset into the sum of the activations.
                    numbers[1] = lanes.mul(numbers[1], lanes.floats(-1.0 / ZERO));
                }
            }
            for i in 0..ROWS {
                let factor = lanes.floats(*p.x_scales.add((row + i) * p.groups + group));
                // With minima of halves, the sum of the activations of each half.
                let mut half_sums = [lanes.floats(0.0); 2];
                if HALVES && MINIMUM {
                    let sums = p.x_sums.add(((row + i) * p.groups + group) * 2);
                    let scale = *p.x_scales.add((row + i) * p.groups + group);
                    half_sums = [*sums, *sums.add(1)].map(|sum| lanes.floats(scale * sum as f32));
                }
                let offset = *p.x_offsets.add((row + i) * p.groups + group);
                let offset = lanes.floats(if MINIMUM { offset } else { offset * (zero as f32 / ZERO) });
                for panel in 0..PANELS {
                    let sum = lanes.to_floats(sums[0][i][panel]);
                    let [scale, second, ..] = numbers[panel];
                    let out = &mut out[i][panel];
                    if HALVES {
                        *out = lanes.mul_add(lanes.mul(sum, factor), scale, *out);
                        let sum = lanes.to_floats(sums[1][i][panel]);
                        *out = lanes.mul_add(lanes.mul(sum, factor), second, *out);
                        if MINIMUM {
                            *out = lanes.mul_add(half_sums[0], numbers[panel][2], *out);
                            *out = lanes.mul_add(half_sums[1], numbers[panel][3], *out);
                        }
                    } else if MINIMUM {
                        *out = lanes.mul_add(lanes.mul(sum, factor), scale, *out);
                        *out = lanes.mul_add(offset, second, *out);
                    } else {
                        *out = lanes.mul_add(lanes.mul_add(sum, factor, offset), scale, *out);
                    }
                }
            }
        }
    }
    for (i, out) in out.iter().enumerate() {
        for (panel, out) in (panel..).zip(out) {
            // SAFETY: `row + i < p.rows` and `panel < p.panels`, and each row of the result has `PANEL` values for each
            // panel; `column + COLUMNS <= PANEL`.
            unsafe { lanes.store(p.out.add((row + i) * p.out_stride + panel * PANEL + column), *out) };
        }
    }
}

/// Flips whole groups of activations from -127 to 127.
///
/// # Safety
///
/// - The CPU has the instructions.
type Flip = unsafe fn(&[i8], &mut [FlippedGroup]);

/// The product for one instruction set. A value proves that the CPU has the instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dot {
    product: unsafe fn(&Product, QuantLayout),
    /// Flips activations, if products with eight-bit quants need [`Product::x_flipped`].
    flip: Option<Flip>,
}

impl Dot {
    /// The fastest product that `isa` allows on this CPU.
    pub(crate) fn of(isa: Isa) -> Self {
        let plain = |product| Self { product, flip: None };
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx2 && isa.is_available() && is_x86_feature_detected!("f16c") {
            if isa >= Isa::Avx512 && is_x86_feature_detected!("avx512vnni") {
                return plain(x86::avx512_vnni);
            }
            if isa >= Isa::AvxVnni && Isa::AvxVnni.is_available() {
                return plain(x86::avx_vnni);
            }
            return Self { product: x86::avx2, flip: Some(x86::flip) };
        }
        #[cfg(target_arch = "aarch64")]
        match isa {
            Isa::I8mm if isa.is_available() => return plain(neon::i8mm),
            Isa::Dotprod if isa.is_available() => return plain(neon::dotprod),
            Isa::Neon => return plain(neon::neon),
            _ => {}
        }
        let _ = isa;
        plain(portable::portable)
    }

    /// Computes a product.
    ///
    /// # Safety
    ///
    /// - All preconditions of [`product`], where `L::FLIPS` is [`flips`](Self::flips).
    ///
    /// # Panics
    ///
    /// If no [`BlockFormat`](super::blocks::BlockFormat) has the layout.
    pub(crate) unsafe fn run(self, p: &Product, layout: QuantLayout) {
        // SAFETY: `of` chose a function whose instructions this CPU has, and `flip` where its set has `FLIPS`. The pointers in
        // `p` have the rows, lengths and alignment that `product` lists for this layout, by the precondition.
        unsafe { (self.product)(p, layout) }
    }

    /// Whether products with eight-bit quants need [`Product::x_flipped`].
    pub(crate) fn flips(self) -> bool {
        self.flip.is_some()
    }

    /// Flips whole groups of activations from -127 to 127, if products need that.
    pub(crate) fn flip(self, quants: &[i8], flipped: &mut [FlippedGroup]) {
        if let Some(flip) = self.flip {
            // SAFETY: `of` chose a function whose instructions this CPU has.
            unsafe { flip(quants, flipped) }
        }
    }
}

#[cfg(test)]
#[cfg(unix)]
#[path = "quant_gemm_tests.rs"]
mod tests;
