//! The quantized GEMM on NEON: with dot products of mixed signs (I8MM), with signed ones, and without.
//!
//! The dot products are written in assembly, because their intrinsics are not stable. Their speed on hardware has not been
//! measured; the results are tested on hardware and under emulation, and are the same to the bit.

use std::arch::aarch64::*;
use std::arch::asm;

use super::dots::{Dots, group_by_dots};
use super::{Lanes, Product, QuantLayout, product};
use crate::compute::simd::intrinsics;

/// [`product`] on NEON with I8MM.
///
/// # Safety
///
/// - The CPU has NEON and I8MM.
/// - All preconditions of [`product`].
#[target_feature(enable = "neon,i8mm")]
pub(super) unsafe fn i8mm(p: &Product, layout: QuantLayout) {
    // SAFETY: the CPU has the features, which `permit` needs, and the pointers in `p` have the rows, lengths and alignment that
    // `product` lists: both are preconditions.
    unsafe { product(NeonProducts::<MIXED>::permit(), p, layout) }
}

/// [`product`] on NEON with dot products.
///
/// # Safety
///
/// - The CPU has NEON and its dot products.
/// - All preconditions of [`product`].
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn dotprod(p: &Product, layout: QuantLayout) {
    // SAFETY: the CPU has the features, which `permit` needs, and the pointers in `p` have the rows, lengths and alignment that
    // `product` lists: both are preconditions.
    unsafe { product(NeonProducts::<SIGNED>::permit(), p, layout) }
}

/// [`product`] on NEON without dot products.
///
/// # Safety
///
/// - All preconditions of [`product`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn neon(p: &Product, layout: QuantLayout) {
    // SAFETY: every aarch64 CPU has NEON, which `permit` needs. The pointers in `p` have the rows, lengths and alignment that
    // `product` lists, by the precondition.
    unsafe { product(NeonProducts::<WIDENING>::permit(), p, layout) }
}

/// Sums by `smull`, which every CPU has.
const WIDENING: u8 = 0;
/// Sums by `sdot`.
const SIGNED: u8 = 1;
/// Sums by `usdot`.
const MIXED: u8 = 2;

/// Sixteen columns in four registers. `DOT` names the instruction of their sums.
#[derive(Clone, Copy)]
struct NeonProducts<const DOT: u8>(());

/// The dot products of four columns by the four bytes of `x` in its 32-bit lane `FOUR`, added to `sum`.
macro_rules! dot_lane {
    ($instruction:literal, $sum:expr, $quants:expr, $x:expr) => {{
        let mut sum: int32x4_t = $sum;
        asm!(
            concat!($instruction, " {sum:v}.4s, {quants:v}.16b, {x:v}.4b[{lane}]"),
            sum = inout(vreg) sum,
            quants = in(vreg) $quants,
            x = in(vreg) $x,
            lane = const FOUR,
            options(pure, nomem, nostack, preserves_flags),
        );
        sum
    }};
}

/// An expression for each of the four registers. A closure would not be compiled with the features of its caller.
macro_rules! each {
    ($i:ident => $value:expr) => {
        [
            {
                const $i: usize = 0;
                $value
            },
            {
                const $i: usize = 1;
                $value
            },
            {
                const $i: usize = 2;
                $value
            },
            {
                const $i: usize = 3;
                $value
            },
        ]
    };
}

impl<const DOT: u8> Lanes for NeonProducts<DOT> {
    type I = [int32x4_t; 4];
    type F = [float32x4_t; 4];
    const COLUMNS: usize = 16;
    const TALLEST: usize = 4;
    const PAIRED: bool = false;
    const SIGNED: bool = DOT != MIXED;
    const FLIPS: bool = false;

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self(())
    }
    intrinsics! {
        integers(x: i32) -> Self::I = [vdupq_n_s32(x); 4];
        floats(x: f32) -> Self::F = [vdupq_n_f32(x); 4];
        to_floats(x: Self::I) -> Self::F = each!(I => vcvtq_f32_s32(x[I]));
        mul(a: Self::F, b: Self::F) -> Self::F = each!(I => vmulq_f32(a[I], b[I]));
        mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F =
            each!(I => vfmaq_f32(c[I], a[I], b[I]));
    }
    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> Self::I {
        // SAFETY: `self` proves the instruction; `from` points to `4 * COLUMNS` = 64 readable bytes.
        unsafe { each!(I => vreinterpretq_s32_u8(vld1q_u8(from.add(I * 16)))) }
    }
    #[inline(always)]
    unsafe fn halves(self, from: *const u16) -> Self::F {
        // SAFETY: `self` proves the instructions; `from` points to `COLUMNS` = 16 readable f16 values. The conversion is an
        // instruction of every NEON and accesses no memory.
        unsafe {
            each!(I => {
                let narrow = vld1_u16(from.add(I * 4));
                let wide: float32x4_t;
                asm!(
                    "fcvtl {wide:v}.4s, {narrow:v}.4h",
                    wide = lateout(vreg) wide,
                    narrow = in(vreg) narrow,
                    options(pure, nomem, nostack, preserves_flags),
                );
                wide
            })
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::F) {
        // SAFETY: `self` proves the instruction; `to` points to `COLUMNS` = 16 writable values.
        unsafe { each!(I => vst1q_f32(to.add(I * 4), x[I])) };
    }
    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        // SAFETY: a prefetch has no visible effect and never faults.
        unsafe {
            asm!("prfm pldl1keep, [{from}]", from = in(reg) from, options(readonly, nostack, preserves_flags));
        }
    }
    group_by_dots!();
}

impl<const DOT: u8> Dots for NeonProducts<DOT> {
    intrinsics! {
        low(x: Self::I) -> Self::I = each!(I => vandq_s32(x[I], vdupq_n_s32(0x0f0f_0f0f)));
        high(x: Self::I) -> Self::I =
            each!(I => vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(x[I]))));
    }
    #[inline(always)]
    fn signed(self, x: Self::I) -> Self::I {
        if Self::SIGNED {
            // SAFETY: `self` proves the instructions, and they access no memory.
            unsafe { each!(I => veorq_s32(x[I], vdupq_n_s32(0x8080_8080_u32.cast_signed()))) }
        } else {
            x
        }
    }
    #[inline(always)]
    unsafe fn dot<const BITS: usize, const FOUR: usize>(
        self,
        sum: Self::I,
        quants: Self::I,
        x: *const i8,
    ) -> Self::I {
        // SAFETY: `self` proves the instructions of `DOT`, which access no memory; `x` points to sixteen readable bytes.
        unsafe {
            let x = vld1q_s8(x);
            each!(I => {
                let quants = vreinterpretq_s8_s32(quants[I]);
                match DOT {
                    MIXED => dot_lane!("usdot", sum[I], quants, x),
                    SIGNED => dot_lane!("sdot", sum[I], quants, x),
                    _ => {
                        let x = vreinterpretq_s32_s8(x);
                        let x = match FOUR {
                            0 => vdupq_laneq_s32::<0>(x),
                            1 => vdupq_laneq_s32::<1>(x),
                            2 => vdupq_laneq_s32::<2>(x),
                            _ => vdupq_laneq_s32::<3>(x),
                        };
                        let x = vreinterpretq_s8_s32(x);
                        let low = vmull_s8(vget_low_s8(quants), vget_low_s8(x));
                        // The sum of a pair is at most 2 · 128 · 127, so the 16-bit sums cannot overflow.
                        vpadalq_s16(sum[I], vpaddq_s16(low, vmull_high_s8(quants, x)))
                    }
                }
            })
        }
    }
}
