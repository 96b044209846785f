//! Products of coded weights and eight-bit activations: the loop where decoding spends its time.
//!
//! A panel holds sixteen rows of weights side by side. Four neighbouring codes of a row lie in one 32-bit lane, so
//! that one instruction multiplies them by four activations and adds up: VNNI where the CPU has it. A lane belongs to
//! one output, so nothing is summed across lanes. Sums of integers are exact, and each group's contribution is added
//! in order: a row's result does not depend on the rows beside it.

use std::ops::RangeInclusive;

use super::blocks::{GROUP, Layout, zero};
use crate::compute::isa::Isa;
use crate::compute::kernels::quantize::ZERO;

#[cfg(target_arch = "x86_64")]
#[path = "quant_gemm_x86.rs"]
mod x86;

/// Outputs of a panel.
pub(crate) const PANEL: usize = 16;

/// So many rows are too much work between two reads for the processor to look far ahead by itself, and so few that the
/// weights still come from memory: they are asked for early. (A single row is read faster without.)
const ASKED_FOR: RangeInclusive<usize> = 2..=4;

/// How early: bytes of the stream of weights.
const AHEAD: usize = 3072;

/// Some panels times some rows of activations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// For each group: sixteen f16 scales (twice sixteen for halves), sixteen f16 minima where there are such, and the
    /// codes. One stream without gaps is what hardware prefetchers follow best.
    pub panel: *const u8,
    /// Bytes from a panel to the next.
    pub panel_bytes: usize,
    /// Panels.
    pub panels: usize,
    /// Groups to sum over.
    pub groups: usize,
    /// Eight-bit activations, `groups * GROUP` a row.
    pub x: *const i8,
    /// Scale of each group of each row of activations.
    pub x_scales: *const f32,
    /// Sum of the codes of each half group of each row of activations; null where halves share their scale.
    pub x_sums: *const i32,
    /// Of each group of each row, what weights of code [`ZERO`] and scale 1 would add to a product, negated.
    pub x_offsets: *const f32,
    /// Rows of activations.
    pub rows: usize,
    /// Result: `rows` rows of sixteen for each panel.
    pub out: *mut f32,
    /// Elements from a row of the result to the next.
    pub out_stride: usize,
}

/// f16 numbers that a group of a panel begins with.
pub(crate) fn scale_numbers(layout: Layout) -> usize {
    PANEL * (1 + usize::from(layout.halves) + usize::from(layout.minimum))
}

/// Bytes of a group of a panel.
pub(crate) fn group_bytes(layout: Layout) -> usize {
    scale_numbers(layout) * 2 + PANEL * GROUP * layout.bits / 8
}

/// Where code `i` of output `column` lies in a group: byte, and whether it is the upper nibble.
pub(crate) fn code_place(layout: Layout, column: usize, i: usize) -> (usize, bool) {
    let first = scale_numbers(layout) * 2;
    let high = layout.bits == 4 && i >= 16;
    let i = if high { i - 16 } else { i };
    (first + i / 4 * PANEL * 4 + column * 4 + i % 4, high)
}

/// Registers of `COLUMNS` outputs, and what the product needs of them. A value is a permit, as in `kernels::simd`.
trait Lanes: Copy {
    type I: Copy;
    type F: Copy;
    const COLUMNS: usize;
    /// Whether there are registers for a tile of [`PAIRED`] size; its columns are whole panels then.
    const PAIRED: bool;

    /// # Safety
    /// The CPU has the instructions.
    unsafe fn permit() -> Self;
    fn integers(self, x: i32) -> Self::I;
    fn floats(self, x: f32) -> Self::F;
    /// # Safety
    /// Four bytes for each column can be read.
    unsafe fn bytes(self, from: *const u8) -> Self::I;
    /// The lower four bits of each byte.
    fn low(self, x: Self::I) -> Self::I;
    /// The upper four bits of each byte.
    fn high(self, x: Self::I) -> Self::I;
    /// Adds four products a lane: unsigned codes of `BITS` bits by the signed bytes of `x`.
    fn dot<const BITS: usize>(self, sum: Self::I, codes: Self::I, x: i32) -> Self::I;
    fn to_floats(self, x: Self::I) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// # Safety
    /// An f16 for each column can be read.
    unsafe fn halves(self, from: *const u16) -> Self::F;
    /// # Safety
    /// An f32 for each column can be written.
    unsafe fn store(self, to: *mut f32, x: Self::F);
    /// Brings the cache line at `from` nearer, where the CPU can be told so; no address faults.
    #[inline(always)]
    fn prefetch(self, _from: *const u8) {}
}

/// # Safety
/// All that [`Product`] names in `layout` can be read, and `out` written.
#[inline(always)]
unsafe fn product<L: Lanes>(lanes: L, p: &Product, layout: Layout) {
    macro_rules! forms {
        ($($bits:literal $minimum:literal $halves:literal),*) => {
            match (layout.bits, layout.minimum, layout.halves) {
                $(($bits, $minimum, $halves) => {
                    // SAFETY: the caller's.
                    unsafe { tiles::<L, $bits, $minimum, $halves>(lanes, p) }
                })*
                _ => unreachable!("no format has the layout {layout:?}"),
            }
        };
    }
    forms!(4 false false, 4 true false, 8 false false, 8 true false, 8 false true);
}

/// Where a tile lies in a product.
#[derive(Clone, Copy)]
struct Place {
    panel: usize,
    column: usize,
    row: usize,
}

/// Rows and panels of the largest tile: what is loaded of the activations serves both panels, and the sums of whole
/// numbers and of floats stay in registers together.
const PAIRED: (usize, usize) = (6, 2);

/// # Safety
/// As for [`product`].
#[inline(always)]
unsafe fn tiles<L: Lanes, const BITS: usize, const MINIMUM: bool, const HALVES: bool>(lanes: L, p: &Product) {
    for first in (0..p.panels).step_by(PAIRED.1) {
        let mut done = 0;
        // Sums of halves would need twice the registers.
        if L::PAIRED && !HALVES && first + 1 < p.panels {
            while p.rows - done >= PAIRED.0 {
                let at = Place { panel: first, column: 0, row: done };
                // SAFETY: the caller's; both panels and these rows exist. So for all below.
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
                                // SAFETY: as above.
                                $(left if left >= $rows => unsafe {
                                    let at = Place { panel, column, row };
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

/// # Safety
/// As for [`product`], with `ROWS` rows and `PANELS` panels from `at` on.
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
    at: Place,
) {
    let Place { panel, column, row } = at;
    let numbers = PANEL * (1 + HALVES as usize + MINIMUM as usize);
    let bytes = numbers * 2 + PANEL * GROUP * BITS / 8;
    let (stride, zero) = (p.groups * GROUP, i32::from(zero(BITS)));
    let mut out = [[lanes.floats(0.0); PANELS]; ROWS];
    for group in 0..p.groups {
        // SAFETY: all offsets stay inside the group's scales and codes, and inside the rows of activations.
        unsafe {
            let start = p.panel.add(panel * p.panel_bytes + group * bytes);
            let scales = start.cast::<u16>().add(column);
            let codes = start.add(numbers * 2 + column * 4);
            let x = p.x.add(row * stride + group * GROUP);
            if ASKED_FOR.contains(&ROWS) && ROWS == p.rows && column == 0 {
                for line in (0..bytes).step_by(64) {
                    lanes.prefetch(start.wrapping_add(AHEAD + line));
                }
            }
            // One sum for the group, or one for each half of it.
            let mut sums = [[[lanes.integers(0); PANELS]; ROWS]; 2];
            for i in (0..ROWS).filter(|_| HALVES) {
                let halves = p.x_sums.add(((row + i) * p.groups + group) * 2);
                sums[0][i] = [lanes.integers(-zero * *halves); PANELS];
                sums[1][i] = [lanes.integers(-zero * *halves.add(1)); PANELS];
            }
            for step in 0..GROUP / 4 {
                let mut weights = [lanes.integers(0); PANELS];
                for (panel, weights) in weights.iter_mut().enumerate() {
                    let codes = codes.add(panel * p.panel_bytes);
                    *weights = if BITS == 4 {
                        let both = lanes.bytes(codes.add(step % 4 * PANEL * 4));
                        if step < 4 { lanes.low(both) } else { lanes.high(both) }
                    } else {
                        lanes.bytes(codes.add(step * PANEL * 4))
                    };
                }
                let sums = &mut sums[if HALVES { step / 4 } else { 0 }];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let four = x.add(i * stride + step * 4).cast::<i32>().read_unaligned();
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = lanes.dot::<BITS>(*sum, weights, four);
                    }
                }
            }
            let mut numbers = [[lanes.floats(0.0); 2]; PANELS];
            for (panel, numbers) in numbers.iter_mut().enumerate() {
                let scales = scales.byte_add(panel * p.panel_bytes);
                numbers[0] = lanes.halves(scales);
                if HALVES || MINIMUM {
                    numbers[1] = lanes.halves(scales.add(PANEL));
                }
                if MINIMUM {
                    // The sum of the activations itself.
                    numbers[1] = lanes.mul(numbers[1], lanes.floats(-1.0 / ZERO));
                }
            }
            for i in 0..ROWS {
                let factor = lanes.floats(*p.x_scales.add((row + i) * p.groups + group));
                let offset = *p.x_offsets.add((row + i) * p.groups + group);
                let offset = lanes.floats(if MINIMUM { offset } else { offset * (zero as f32 / ZERO) });
                for panel in 0..PANELS {
                    let sum = lanes.to_floats(sums[0][i][panel]);
                    let [scale, second] = numbers[panel];
                    let out = &mut out[i][panel];
                    if HALVES {
                        *out = lanes.mul_add(lanes.mul(sum, factor), scale, *out);
                        let sum = lanes.to_floats(sums[1][i][panel]);
                        *out = lanes.mul_add(lanes.mul(sum, factor), second, *out);
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
            // SAFETY: row `row + i` of the result holds so many panels.
            unsafe { lanes.store(p.out.add((row + i) * p.out_stride + panel * PANEL + column), *out) };
        }
    }
}

/// Sixteen columns in arrays, which the compiler vectorises for the target's baseline.
#[derive(Clone, Copy)]
struct Array;

impl Lanes for Array {
    type I = [i32; PANEL];
    type F = [f32; PANEL];
    const COLUMNS: usize = PANEL;
    const PAIRED: bool = false;

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self
    }
    #[inline(always)]
    fn integers(self, x: i32) -> Self::I {
        [x; PANEL]
    }
    #[inline(always)]
    fn floats(self, x: f32) -> Self::F {
        [x; PANEL]
    }
    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> Self::I {
        // SAFETY: the caller's.
        unsafe { from.cast::<Self::I>().read_unaligned() }
    }
    #[inline(always)]
    fn low(self, x: Self::I) -> Self::I {
        x.map(|x| x & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn high(self, x: Self::I) -> Self::I {
        x.map(|x| x >> 4 & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn dot<const BITS: usize>(self, sum: Self::I, codes: Self::I, x: i32) -> Self::I {
        let signed = |byte: u32| i32::from((x >> (8 * byte)) as i8);
        let code = |codes: i32, byte: u32| codes >> (8 * byte) & 0xff;
        std::array::from_fn(|i| (0..4).fold(sum[i], |sum, byte| sum + code(codes[i], byte) * signed(byte)))
    }
    #[inline(always)]
    fn to_floats(self, x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn halves(self, from: *const u16) -> Self::F {
        // SAFETY: the caller's.
        let bits = unsafe { from.cast::<[u16; PANEL]>().read_unaligned() };
        bits.map(|bits| half::f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::F) {
        // SAFETY: the caller's.
        unsafe { to.cast::<Self::F>().write_unaligned(x) }
    }
}

/// The product for one instruction set; it exists only where the CPU has the instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dot(unsafe fn(&Product, Layout));

impl Dot {
    /// The fastest product that `isa` allows on this CPU.
    pub(crate) fn of(isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if isa >= Isa::Avx512 && isa.is_available() && is_x86_feature_detected!("avx512vnni") {
                return Self(x86::avx512_vnni);
            }
            if isa >= Isa::Avx2 && isa.is_available() && is_x86_feature_detected!("f16c") {
                return Self(x86::avx2);
            }
        }
        let _ = isa;
        Self(portable)
    }

    /// # Safety
    /// All that [`Product`] names in `layout` can be read, and `out` written.
    pub(crate) unsafe fn run(self, p: &Product, layout: Layout) {
        // SAFETY: `of` found the instructions; the rest is the caller's.
        unsafe { (self.0)(p, layout) }
    }
}

/// # Safety
/// As for [`product`].
unsafe fn portable(p: &Product, layout: Layout) {
    // SAFETY: no special instructions; the rest is the caller's.
    unsafe { product(Array::permit(), p, layout) }
}

#[cfg(test)]
#[cfg(unix)]
#[path = "quant_gemm_tests.rs"]
mod tests;
