//! The quantized GEMM on AVX2, on AVX-VNNI, and on AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::{Lanes, Product, QuantLayout, four_bytes, product};
use crate::compute::simd::intrinsics;

/// [`product`] on AVX-512 with VNNI.
///
/// # Safety
///
/// - The CPU has AVX2, FMA, F16C and AVX-512 F, BW, DQ, VL and VNNI.
/// - All preconditions of [`product`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn avx512_vnni(p: &Product, layout: QuantLayout) {
    // SAFETY: the CPU has the instructions, and the caller upholds the preconditions of `product`.
    unsafe { product(Avx512Vnni::permit(), p, layout) }
}

/// [`product`] on AVX-VNNI.
///
/// # Safety
///
/// - The CPU has AVX2, FMA, F16C and AVX-VNNI.
/// - All preconditions of [`product`].
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn avx_vnni(p: &Product, layout: QuantLayout) {
    // SAFETY: the CPU has the instructions, and the caller upholds the preconditions of `product`.
    unsafe { product(AvxVnni::permit(), p, layout) }
}

/// [`product`] on AVX2.
///
/// # Safety
///
/// - The CPU has AVX2, FMA and F16C.
/// - All preconditions of [`product`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2(p: &Product, layout: QuantLayout) {
    // SAFETY: the CPU has the instructions, and the caller upholds the preconditions of `product`.
    unsafe { product(Avx2Columns::permit(), p, layout) }
}

/// Sixteen columns in one register.
#[derive(Clone, Copy)]
struct Avx512Vnni(());

/// Sixteen columns in two registers.
#[derive(Clone, Copy)]
struct AvxVnni(());

/// Eight columns in one register.
#[derive(Clone, Copy)]
struct Avx2Columns(());

impl Lanes for Avx512Vnni {
    type I = __m512i;
    type F = __m512;
    const COLUMNS: usize = 16;
    const TALLEST: usize = 8;
    const PAIRED: bool = true;
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self(())
    }
    intrinsics! {
        integers(x: i32) -> __m512i = _mm512_set1_epi32(x);
        floats(x: f32) -> __m512 = _mm512_set1_ps(x);
        low(x: __m512i) -> __m512i = _mm512_and_si512(x, _mm512_set1_epi8(15));
        high(x: __m512i) -> __m512i = _mm512_and_si512(_mm512_srli_epi16::<4>(x), _mm512_set1_epi8(15));
        to_floats(x: __m512i) -> __m512 = _mm512_cvtepi32_ps(x);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
    }
    #[inline(always)]
    unsafe fn dot<const BITS: usize, const FOUR: usize>(
        self,
        sum: __m512i,
        quants: __m512i,
        x: *const i8,
    ) -> __m512i {
        // SAFETY: `self` proves the instructions; `x` points to sixteen readable bytes.
        unsafe { _mm512_dpbusd_epi32(sum, quants, _mm512_set1_epi32(four_bytes::<FOUR>(x))) }
    }
    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> __m512i {
        // SAFETY: `self` proves the instruction; `from` points to `4 * COLUMNS` = 64 readable bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn halves(self, from: *const u16) -> __m512 {
        // SAFETY: `self` proves the instructions; `from` points to `COLUMNS` = 16 readable f16 values.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m512) {
        // SAFETY: `self` proves the instruction; `to` points to `COLUMNS` = 16 writable values.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        // SAFETY: `self` proves the instruction; a prefetch has no visible effect and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
}

impl Lanes for AvxVnni {
    type I = [__m256i; 2];
    type F = [__m256; 2];
    const COLUMNS: usize = 16;
    const TALLEST: usize = 4;
    const PAIRED: bool = false;
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self(())
    }
    intrinsics! {
        integers(x: i32) -> Self::I = [_mm256_set1_epi32(x); 2];
        floats(x: f32) -> Self::F = [_mm256_set1_ps(x); 2];
        low(x: Self::I) -> Self::I = {
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask)]
        };
        high(x: Self::I) -> Self::I = {
            let mask = _mm256_set1_epi8(15);
            [
                _mm256_and_si256(_mm256_srli_epi16::<4>(x[0]), mask),
                _mm256_and_si256(_mm256_srli_epi16::<4>(x[1]), mask),
            ]
        };
        to_floats(x: Self::I) -> Self::F = [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])];
        mul(a: Self::F, b: Self::F) -> Self::F = [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])];
        mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F =
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])];
    }
    #[inline(always)]
    unsafe fn dot<const BITS: usize, const FOUR: usize>(
        self,
        sum: Self::I,
        quants: Self::I,
        x: *const i8,
    ) -> Self::I {
        // SAFETY: `self` proves the instructions; `x` points to sixteen readable bytes.
        unsafe {
            let x = _mm256_set1_epi32(four_bytes::<FOUR>(x));
            [_mm256_dpbusd_avx_epi32(sum[0], quants[0], x), _mm256_dpbusd_avx_epi32(sum[1], quants[1], x)]
        }
    }
    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> Self::I {
        // SAFETY: `self` proves the instruction; `from` points to `4 * COLUMNS` = 64 readable bytes.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn halves(self, from: *const u16) -> Self::F {
        // SAFETY: `self` proves the instructions; `from` points to `COLUMNS` = 16 readable f16 values.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::F) {
        // SAFETY: `self` proves the instruction; `to` points to `COLUMNS` = 16 writable values.
        unsafe {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
    }
    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        // SAFETY: `self` proves the instruction; a prefetch has no visible effect and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
}

impl Lanes for Avx2Columns {
    type I = __m256i;
    type F = __m256;
    const COLUMNS: usize = 8;
    const TALLEST: usize = 8;
    const PAIRED: bool = false;
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self(())
    }
    intrinsics! {
        integers(x: i32) -> __m256i = _mm256_set1_epi32(x);
        floats(x: f32) -> __m256 = _mm256_set1_ps(x);
        low(x: __m256i) -> __m256i = _mm256_and_si256(x, _mm256_set1_epi8(15));
        high(x: __m256i) -> __m256i = _mm256_and_si256(_mm256_srli_epi16::<4>(x), _mm256_set1_epi8(15));
        to_floats(x: __m256i) -> __m256 = _mm256_cvtepi32_ps(x);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
    }
    #[inline(always)]
    unsafe fn dot<const BITS: usize, const FOUR: usize>(
        self,
        sum: __m256i,
        quants: __m256i,
        x: *const i8,
    ) -> __m256i {
        // SAFETY: `self` proves the instructions; `x` points to sixteen readable bytes.
        unsafe {
            let x = _mm256_set1_epi32(four_bytes::<FOUR>(x));
            if BITS == 4 {
                // The sum of a pair is at most 2 · 15 · 127, so the 16-bit sums cannot saturate.
                let pairs = _mm256_maddubs_epi16(quants, x);
                return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
            // Pairs of 8-bit quants could saturate, so even and odd bytes are widened and multiplied separately.
            let even = _mm256_and_si256(quants, _mm256_set1_epi16(255));
            let odd = _mm256_srli_epi16::<8>(quants);
            let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            let x_odd = _mm256_srai_epi16::<8>(x);
            let both = _mm256_add_epi32(_mm256_madd_epi16(even, x_even), _mm256_madd_epi16(odd, x_odd));
            _mm256_add_epi32(sum, both)
        }
    }
    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> __m256i {
        // SAFETY: `self` proves the instruction; `from` points to `4 * COLUMNS` = 32 readable bytes.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn halves(self, from: *const u16) -> __m256 {
        // SAFETY: `self` proves the instructions; `from` points to `COLUMNS` = 8 readable f16 values.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m256) {
        // SAFETY: `self` proves the instruction; `to` points to `COLUMNS` = 8 writable values.
        unsafe { _mm256_storeu_ps(to, x) }
    }
    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        // SAFETY: `self` proves the instruction; a prefetch has no visible effect and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
}
