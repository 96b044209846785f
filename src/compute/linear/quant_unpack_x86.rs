//! Unpacking on AVX-512 with BF16, which every CPU with AMX has.

use std::arch::x86_64::*;

use super::{PackedPanel, QuantLayout, UnpackLanes, unpack};
use crate::compute::simd::intrinsics;

/// [`unpack`] on AVX-512 with BF16.
///
/// # Safety
///
/// - The CPU has AVX2, FMA and AVX-512 F, BW, DQ, VL and BF16.
/// - All preconditions of [`unpack`].
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn avx512_bf16(p: &PackedPanel, layout: QuantLayout) {
    // SAFETY: the CPU has the features, which `permit` needs; `p.panel` has its groups to read, and `p.out` is aligned and has
    // rows for them: both are preconditions.
    unsafe { unpack(Avx512Bf16::permit(), p, layout) }
}

/// Sixteen columns in one register.
#[derive(Clone, Copy)]
struct Avx512Bf16(());

impl UnpackLanes for Avx512Bf16 {
    type I = __m512i;
    type F = __m512;

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self(())
    }
    intrinsics! {
        masked(x: __m512i, mask: u32) -> __m512 =
            _mm512_cvtepu32_ps(_mm512_and_si512(x, _mm512_set1_epi32(mask.cast_signed())));
        scaled(x: __m512, factor: f32) -> __m512 = _mm512_mul_ps(x, _mm512_set1_ps(factor));
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
    }
    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> __m512i {
        // SAFETY: `self` proves the instruction; `from` points to `4 * PANEL` = 64 readable bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn halves(self, from: *const u16) -> __m512 {
        // SAFETY: `self` proves the instructions; `from` points to `PANEL` = 16 readable f16 values.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_pairs(self, to: *mut u32, first: __m512, second: __m512) {
        // SAFETY: `self` proves the instructions; `to` points to `PANEL` = 16 writable values. The types that are transmuted
        // have 64 bytes each, and every bit pattern is valid.
        unsafe {
            // The first values, rounded, in the lower half of the register, and the second ones in the upper half.
            let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            let order = std::mem::transmute::<[u16; 32], __m512i>(INTERLEAVED);
            _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(order, rounded));
        }
    }
}

/// For each sixteen-bit lane of a register, the lane that goes there, so that lanes of both halves alternate.
const INTERLEAVED: [u16; 32] = {
    let mut order = [0; 32];
    let mut lane = 0;
    while lane < 32 {
        order[lane as usize] = lane / 2 + lane % 2 * 16;
        lane += 1;
    }
    order
};
