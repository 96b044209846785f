//! Products of coded weights and eight-bit activations: the loop where decoding spends its time.
//!
//! A panel holds sixteen rows of weights side by side. Four neighbouring codes of a row lie in one 32-bit lane, so
//! that one instruction multiplies them by four activations and adds up: VNNI where the CPU has it. A lane belongs to
//! one output, so nothing is summed across lanes. Sums of integers are exact, and each group's contribution is added
//! in order: a row's result does not depend on the rows beside it.

use std::ops::RangeInclusive;

use super::blocks::{GROUP, Layout};
use crate::compute::Isa;

#[cfg(target_arch = "x86_64")]
#[path = "dot_x86.rs"]
mod x86;

/// Outputs of a panel.
pub(crate) const PANEL: usize = 16;

/// So many rows are too much work between two reads for the processor to look far ahead by itself, and so few that the
/// weights still come from memory: they are asked for early. (A single row is read faster without.)
const ASKED_FOR: RangeInclusive<usize> = 2..=4;

/// How early: bytes of the stream of weights.
const AHEAD: usize = 3072;

/// One panel times some rows of activations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// For each group: sixteen f16 scales (twice sixteen for halves), sixteen f16 minima where there are such, and the
    /// codes. One stream without gaps is what hardware prefetchers follow best.
    pub panel: *const u8,
    /// Groups to sum over.
    pub groups: usize,
    /// Eight-bit activations, `groups * GROUP` a row.
    pub x: *const i8,
    /// Scale of each group of each row of activations.
    pub x_scales: *const f32,
    /// Sum of the codes of each half group of each row of activations.
    pub x_sums: *const i32,
    /// Sum of the activations of each group of each row, as the codes have it.
    pub x_totals: *const f32,
    /// Rows of activations.
    pub rows: usize,
    /// Result: `rows` rows of sixteen.
    pub out: *mut f32,
    /// Elements from a row of the result to the next.
    pub out_stride: usize,
}

/// f16 numbers that a group of a panel begins with.
pub(crate) fn scale_numbers(layout: Layout) -> usize {
    PANEL * (1 + usize::from(layout.halves) + usize::from(layout.zero.is_none()))
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
            match (layout.bits, layout.zero.is_none(), layout.halves) {
                $(($bits, $minimum, $halves) => {
                    // SAFETY: the caller's.
                    unsafe { tiles::<L, $bits, $minimum, $halves>(lanes, p, layout.zero.map_or(0, i32::from)) }
                })*
                _ => unreachable!("no format has the layout {layout:?}"),
            }
        };
    }
    forms!(4 false false, 4 true false, 8 false false, 8 true false, 8 false true);
}

/// # Safety
/// As for [`product`].
#[inline(always)]
unsafe fn tiles<L: Lanes, const BITS: usize, const MINIMUM: bool, const HALVES: bool>(
    lanes: L,
    p: &Product,
    zero: i32,
) {
    for column in (0..PANEL).step_by(L::COLUMNS) {
        let mut row = 0;
        while row < p.rows {
            macro_rules! heights {
                ($($rows:literal)*) => {
                    match p.rows - row {
                        // SAFETY: the caller's; rows from `row` on exist.
                        $(left if left >= $rows => unsafe {
                            tile::<L, BITS, MINIMUM, HALVES, $rows>(lanes, p, zero, column, row);
                            row += $rows;
                        },)*
                        _ => return,
                    }
                };
            }
            heights!(12 8 4 2 1);
        }
    }
}

/// # Safety
/// As for [`product`], with `ROWS` rows from `row` on.
#[inline(always)]
unsafe fn tile<L: Lanes, const BITS: usize, const MINIMUM: bool, const HALVES: bool, const ROWS: usize>(
    lanes: L,
    p: &Product,
    zero: i32,
    column: usize,
    row: usize,
) {
    let numbers = PANEL * (1 + HALVES as usize + MINIMUM as usize);
    let bytes = numbers * 2 + PANEL * GROUP * BITS / 8;
    let stride = p.groups * GROUP;
    let mut out = [lanes.floats(0.0); ROWS];
    for group in 0..p.groups {
        // SAFETY: all offsets stay inside the group's scales and codes, and inside the rows of activations.
        unsafe {
            let scales = p.panel.add(group * bytes).cast::<u16>().add(column);
            let codes = p.panel.add(group * bytes + numbers * 2 + column * 4);
            let x = p.x.add(row * stride + group * GROUP);
            if ASKED_FOR.contains(&ROWS) && column == 0 {
                for line in (0..bytes).step_by(64) {
                    lanes.prefetch(p.panel.wrapping_add(group * bytes + AHEAD + line));
                }
            }
            let mut sums = [[lanes.integers(0); 2]; ROWS];
            for (i, sums) in sums.iter_mut().enumerate().filter(|_| !MINIMUM) {
                let halves = p.x_sums.add(((row + i) * p.groups + group) * 2);
                let (first, second) = (*halves, *halves.add(1));
                if HALVES {
                    *sums = [lanes.integers(-zero * first), lanes.integers(-zero * second)];
                } else {
                    sums[0] = lanes.integers(-zero * (first + second));
                }
            }
            for step in 0..GROUP / 4 {
                let weights = if BITS == 4 {
                    let both = lanes.bytes(codes.add(step % 4 * PANEL * 4));
                    if step < 4 { lanes.low(both) } else { lanes.high(both) }
                } else {
                    lanes.bytes(codes.add(step * PANEL * 4))
                };
                let half = if HALVES { step / 4 } else { 0 };
                for (i, sums) in sums.iter_mut().enumerate() {
                    let four = x.add(i * stride + step * 4).cast::<i32>().read_unaligned();
                    sums[half] = lanes.dot::<BITS>(sums[half], weights, four);
                }
            }
            let scale = lanes.halves(scales);
            for (i, out) in out.iter_mut().enumerate() {
                let factor = lanes.floats(*p.x_scales.add((row + i) * p.groups + group));
                *out = lanes.mul_add(lanes.mul(lanes.to_floats(sums[i][0]), factor), scale, *out);
                if HALVES {
                    let scale = lanes.halves(scales.add(PANEL));
                    *out = lanes.mul_add(lanes.mul(lanes.to_floats(sums[i][1]), factor), scale, *out);
                }
                if MINIMUM {
                    let minimum = lanes.halves(scales.add(PANEL));
                    let total = lanes.floats(*p.x_totals.add((row + i) * p.groups + group));
                    *out = lanes.mul_add(total, minimum, *out);
                }
            }
        }
    }
    for (i, out) in out.iter().enumerate() {
        // SAFETY: row `row + i` of the result holds a panel.
        unsafe { lanes.store(p.out.add((row + i) * p.out_stride + column), *out) };
    }
}

/// Sixteen columns in arrays, which the compiler vectorises for the target's baseline.
#[derive(Clone, Copy)]
struct Array;

impl Lanes for Array {
    type I = [i32; PANEL];
    type F = [f32; PANEL];
    const COLUMNS: usize = PANEL;

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
