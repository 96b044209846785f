//! AVX2 and AVX-512 registers.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{HalfLanes, MOVED_F16, MOVED_F16_SCALE, Simd, intrinsics};

/// Proof that the CPU has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

/// Proof that the CPU has AVX-512 F, BW, DQ and VL; with `BF16`, AVX-512 BF16 as well, and with `F16`, AVX-512 FP16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512<const BF16: bool, const F16: bool = false>(());

/// Rounds to bf16 (ties to even) in the upper half of each lane, for CPUs without the instruction. A NaN whose
/// payload would overflow into the sign becomes a quiet NaN.
macro_rules! round_bf16 {
    ($bits:expr, $shift:ident, $and:ident, $add:ident, $set:ident) => {{
        let odd = $and($shift::<16>($bits), $set(1));
        $add($add($bits, $set(0x7fff)), odd)
    }};
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self(())
    }

    intrinsics! {
        splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        first(x: __m256, n: usize, rest: __m256) -> __m256 =
            _mm256_blendv_ps(rest, x, _mm256_castsi256_ps(first_of_8(n)));
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        round(x: __m256) -> __m256 = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        scale(x: __m256, n: __m256) -> __m256 = {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        };
        sum(x: __m256) -> f32 = {
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        };
        largest(x: __m256) -> f32 = {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        };
        low_bf16(x: __m256) -> __m256 = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(x)));
        high_bf16(x: __m256) -> __m256 =
            _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32.cast_signed())));
        low_f16(x: __m256) -> __m256 = upper_f16_of_8(_mm256_slli_epi32::<16>(_mm256_castps_si256(x)));
        high_f16(x: __m256) -> __m256 = upper_f16_of_8(_mm256_castps_si256(x));
    }

    #[inline(always)]
    fn prefetch(self, from: *const f32) {
        // SAFETY: `self` proves the instruction; a prefetch has no visible effect and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: `self` proves the instructions; `from` points to `LANES` = 8 readable values.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m256) {
        // SAFETY: `self` proves the instructions; `to` points to `LANES` = 8 writable values.
        unsafe { _mm256_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, n: usize) -> __m256 {
        // SAFETY: `self` proves the instructions; the mask selects the first `n` lanes, which `from` points to. Masked
        // lanes are not read and do not fault.
        unsafe { _mm256_maskload_ps(from, first_of_8(n)) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, x: __m256, n: usize) {
        // SAFETY: `self` proves the instructions; the mask selects the first `n` lanes, which `to` points to. Masked
        // lanes are not written and do not fault.
        unsafe { _mm256_maskstore_ps(to, first_of_8(n), x) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, x: __m256, n: usize) {
        // SAFETY: `self` proves the instructions; `to` points to `n` writable values. Eight are stored at once only
        // if `n` is 8; otherwise `n <= 8` are copied from `values`, which has eight.
        unsafe {
            let bits = _mm256_castps_si256(x);
            let rounded =
                round_bf16!(bits, _mm256_srli_epi32, _mm256_and_si256, _mm256_add_epi32, _mm256_set1_epi32);
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
            let kept = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan));
            let halves = _mm256_srli_epi32::<16>(kept);
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(halves, halves));
            let packed = _mm256_castsi256_si128(packed);
            if n == 8 {
                _mm_storeu_si128(to.cast(), packed);
            } else {
                let mut values = [0_u16; 8];
                _mm_storeu_si128(values.as_mut_ptr().cast(), packed);
                std::ptr::copy_nonoverlapping(values.as_ptr(), to, n);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> __m256 {
        // SAFETY: `self` proves the instructions; `from` points to `LANES` = 8 readable values.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, x: __m256) {
        // SAFETY: `self` proves the instructions; `to` points to `LANES` = 8 writable bytes. Four come from each half of
        // the register.
        unsafe {
            let x = _mm256_cvtps_epi32(x);
            let x = _mm256_packs_epi32(x, x);
            let x = _mm256_packs_epi16(x, x);
            let x = _mm_unpacklo_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            _mm_storel_epi64(to.cast(), x);
        }
    }
}

/// The finite f16 in the upper half of each lane, as f32.
///
/// # Safety
///
/// - The CPU has AVX2.
#[inline(always)]
unsafe fn upper_f16_of_8(x: __m256i) -> __m256 {
    // SAFETY: the CPU has AVX2, and the instructions access no memory.
    unsafe {
        let moved = _mm256_and_si256(_mm256_srai_epi32::<3>(x), _mm256_set1_epi32(MOVED_F16.cast_signed()));
        _mm256_mul_ps(_mm256_castsi256_ps(moved), _mm256_set1_ps(MOVED_F16_SCALE))
    }
}

/// Sets all bits of the first `n` lanes.
///
/// # Safety
///
/// - The CPU has AVX2.
#[inline(always)]
unsafe fn first_of_8(n: usize) -> __m256i {
    // SAFETY: the CPU has AVX2, and the instructions access no memory.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

impl<const BF16: bool, const F16: bool> Simd for Avx512<BF16, F16> {
    type V = __m512;
    const LANES: usize = 16;
    const ROWS: usize = 12;
    const NATIVE_BF16: bool = BF16;

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self(())
    }

    intrinsics! {
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        first(x: __m512, n: usize, rest: __m512) -> __m512 = _mm512_mask_mov_ps(rest, first_of_16(n), x);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        round(x: __m512) -> __m512 = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        scale(x: __m512, n: __m512) -> __m512 = _mm512_scalef_ps(x, n);
        sum(x: __m512) -> f32 = _mm512_reduce_add_ps(x);
        largest(x: __m512) -> f32 = _mm512_reduce_max_ps(x);
        low_bf16(x: __m512) -> __m512 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(x)));
        high_bf16(x: __m512) -> __m512 =
            _mm512_and_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(0xffff_0000_u32.cast_signed())));
        low_f16(x: __m512) -> __m512 = upper_f16_of_16(_mm512_slli_epi32::<16>(_mm512_castps_si512(x)));
        high_f16(x: __m512) -> __m512 = upper_f16_of_16(_mm512_castps_si512(x));
    }

    #[inline(always)]
    fn dot2(self, acc: __m512, a: __m512, b: __m512) -> __m512 {
        if BF16 {
            // SAFETY: `self` proves the instruction. Both types have 64 bytes, and every bit pattern is valid.
            unsafe {
                let bits = |x| std::mem::transmute::<__m512, __m512bh>(x);
                _mm512_dpbf16_ps(acc, bits(a), bits(b))
            }
        } else {
            let acc = self.mul_add(self.low_bf16(a), self.low_bf16(b), acc);
            self.mul_add(self.high_bf16(a), self.high_bf16(b), acc)
        }
    }
    #[inline(always)]
    fn prefetch(self, from: *const f32) {
        // SAFETY: `self` proves the instruction; a prefetch has no visible effect and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: `self` proves the instructions; `from` points to `LANES` = 16 readable values.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m512) {
        // SAFETY: `self` proves the instructions; `to` points to `LANES` = 16 writable values.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, n: usize) -> __m512 {
        // SAFETY: `self` proves the instructions; the mask selects the first `n` lanes, which `from` points to. Masked
        // lanes are not read and do not fault.
        unsafe { _mm512_maskz_loadu_ps(first_of_16(n), from) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, x: __m512, n: usize) {
        // SAFETY: `self` proves the instructions; the mask selects the first `n` lanes, which `to` points to. Masked
        // lanes are not written and do not fault.
        unsafe { _mm512_mask_storeu_ps(to, first_of_16(n), x) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, x: __m512, n: usize) {
        // SAFETY: `self` proves the instructions; `to` points to `n` writable values. Sixteen are stored at once only
        // if `n` is 16; otherwise the mask selects the first `n`, and masked lanes are not written.
        unsafe {
            let packed = if BF16 {
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))
            } else {
                let bits = _mm512_castps_si512(x);
                let rounded = round_bf16!(
                    bits,
                    _mm512_srli_epi32,
                    _mm512_and_si512,
                    _mm512_add_epi32,
                    _mm512_set1_epi32
                );
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
                let kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000));
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept))
            };
            if n == 16 {
                _mm256_storeu_si256(to.cast(), packed);
            } else {
                _mm256_mask_storeu_epi16(to.cast(), first_of_16(n), packed);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> __m512 {
        // SAFETY: `self` proves the instructions; `from` points to `LANES` = 16 readable values.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, x: __m512) {
        // SAFETY: `self` proves the instructions; `to` points to `LANES` = 16 writable bytes.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))) }
    }

    /// Interleaves pairs of rows, then groups of four, within quarters of a register; then permutes the quarters.
    #[inline(always)]
    unsafe fn transpose(self, from: *const u8, stride: usize, rows: usize, to: *mut f32, width: usize) {
        // SAFETY: `self` proves the instructions. Only the first `rows` rows are read, and each has 16 units. Sixteen
        // values are written at `to + u * width` for each `u < 16`.
        unsafe {
            let mut x = [_mm512_setzero_ps(); 16];
            for (row, x) in x.iter_mut().enumerate().take(rows) {
                *x = _mm512_loadu_ps(from.add(row * stride).cast());
            }
            let mut fours = [_mm512_setzero_pd(); 16];
            for i in [0, 4, 8, 12] {
                let low = |a, b| _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
                let high = |a, b| _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
                let (a, b) = (low(x[i], x[i + 1]), low(x[i + 2], x[i + 3]));
                let (c, d) = (high(x[i], x[i + 1]), high(x[i + 2], x[i + 3]));
                fours[i] = _mm512_unpacklo_pd(a, b);
                fours[i + 1] = _mm512_unpackhi_pd(a, b);
                fours[i + 2] = _mm512_unpacklo_pd(c, d);
                fours[i + 3] = _mm512_unpackhi_pd(c, d);
            }
            for unit in 0..4 {
                let [a, b, c, d] = [0, 4, 8, 12].map(|i| _mm512_castpd_ps(fours[i + unit]));
                let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
                _mm512_storeu_ps(to.add(unit * width), _mm512_shuffle_f32x4::<0x88>(ab, cd));
                _mm512_storeu_ps(to.add((unit + 4) * width), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
                let (ab, cd) = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
                _mm512_storeu_ps(to.add((unit + 8) * width), _mm512_shuffle_f32x4::<0x88>(ab, cd));
                _mm512_storeu_ps(to.add((unit + 12) * width), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            }
        }
    }
}

impl HalfLanes for Avx512<false, true> {
    intrinsics! {
        mul_add_f16(a: __m512, b: __m512, c: __m512) -> __m512 = fmadd_ph(a, b, c);
        add_pair_f16(x: __m512) -> __m512 = {
            let swapped = _mm512_castsi512_ps(_mm512_rol_epi32::<16>(_mm512_castps_si512(x)));
            _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_castps_si512(add_ph(x, swapped))))
        };
    }
}

/// The finite f16 in the upper half of each lane, as f32.
///
/// # Safety
///
/// - The CPU has AVX-512 F.
#[inline(always)]
unsafe fn upper_f16_of_16(x: __m512i) -> __m512 {
    // SAFETY: the CPU has AVX-512 F, and the instructions access no memory.
    unsafe {
        let moved = _mm512_and_si512(_mm512_srai_epi32::<3>(x), _mm512_set1_epi32(MOVED_F16.cast_signed()));
        _mm512_mul_ps(_mm512_castsi512_ps(moved), _mm512_set1_ps(MOVED_F16_SCALE))
    }
}

/// `a * b + c` for each of 32 f16. The compiler has no stable intrinsic for it yet.
///
/// # Safety
///
/// - The CPU has AVX-512 FP16.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn fmadd_ph(a: __m512, b: __m512, c: __m512) -> __m512 {
    let mut sum = c;
    // SAFETY: the CPU has the instruction, which accesses registers alone.
    unsafe {
        asm!("vfmadd231ph {sum}, {a}, {b}", sum = inout(zmm_reg) sum, a = in(zmm_reg) a, b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// `a + b` for each of 32 f16.
///
/// # Safety
///
/// - The CPU has AVX-512 FP16.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn add_ph(a: __m512, b: __m512) -> __m512 {
    let sum;
    // SAFETY: the CPU has the instruction, which accesses registers alone.
    unsafe {
        asm!("vaddph {sum}, {a}, {b}", sum = out(zmm_reg) sum, a = in(zmm_reg) a, b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// The mask of the first `n` lanes.
#[inline(always)]
fn first_of_16(n: usize) -> __mmask16 {
    ((1_u32 << n) - 1) as __mmask16
}
