//! The quantized GEMM on AVX2, on AVX-VNNI, and on AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::dots::{Dots, four_bytes, group_by_dots};
use super::{FlippedGroup, GROUP, GroupRows, Lanes, PANEL, Product, QuantLayout, product};
use crate::compute::simd::intrinsics;

/// [`product`] on AVX-512 with VNNI.
///
/// # Safety
///
/// - The CPU has AVX2, FMA, F16C and AVX-512 F, BW, DQ, VL and VNNI.
/// - All preconditions of [`product`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn avx512_vnni(p: &Product, layout: QuantLayout) {
    // SAFETY: the CPU has the features, which `permit` needs, and the pointers in `p` have the rows, lengths and alignment that
    // `product` lists: both are preconditions.
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
    // SAFETY: the CPU has the features, which `permit` needs, and the pointers in `p` have the rows, lengths and alignment that
    // `product` lists: both are preconditions.
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
    // SAFETY: the CPU has the features, which `permit` needs, and the pointers in `p` have the rows, lengths and alignment that
    // `product` lists: both are preconditions.
    unsafe { product(Avx2Columns::permit(), p, layout) }
}

/// Flips groups of activations from -127 to 127.
///
/// # Safety
///
/// - The CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn flip(quants: &[i8], flipped: &mut [FlippedGroup]) {
    for (quants, flipped) in quants.as_chunks::<GROUP>().0.iter().zip(flipped) {
        // SAFETY: `quants`, and `pairs` and `flips` of a group, have 32 bytes each.
        unsafe {
            let pairs = _mm256_loadu_si256(quants.as_ptr().cast());
            // All bits of the pairs whose signs differ.
            let differ = _mm256_srai_epi16::<15>(_mm256_xor_si256(pairs, _mm256_slli_epi16::<8>(pairs)));
            let flips = _mm256_andnot_si256(differ, _mm256_set1_epi16(0xff00_u16.cast_signed()));
            // The negative of a byte is its complement plus 1.
            let pairs = _mm256_sub_epi8(_mm256_xor_si256(pairs, flips), flips);
            let changed = _mm256_srai_epi16::<8>(_mm256_and_si256(pairs, flips));
            let sums = _mm256_madd_epi16(changed, _mm256_set1_epi16(-255));
            let sums = _mm256_hadd_epi32(sums, sums);
            let sums = _mm256_hadd_epi32(sums, sums);
            flipped.first_start = _mm256_cvtsi256_si32(sums);
            flipped.start = flipped.first_start + _mm_cvtsi128_si32(_mm256_extracti128_si256::<1>(sums));
            _mm256_storeu_si256(flipped.pairs.as_mut_ptr().cast(), pairs);
            _mm256_storeu_si256(flipped.flips.as_mut_ptr().cast(), flips);
        }
    }
}

/// Sixteen columns in one register.
#[derive(Clone, Copy)]
struct Avx512Vnni(());

/// Sixteen columns in two registers.
#[derive(Clone, Copy)]
struct AvxVnni(());

/// Sixteen columns in two registers, without dot products.
#[derive(Clone, Copy)]
struct Avx2Columns(());

impl Lanes for Avx512Vnni {
    type I = __m512i;
    type F = __m512;
    const COLUMNS: usize = 16;
    const TALLEST: usize = 8;
    const PAIRED: bool = true;
    const SIGNED: bool = false;
    const FLIPS: bool = false;

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self(())
    }
    intrinsics! {
        integers(x: i32) -> __m512i = _mm512_set1_epi32(x);
        floats(x: f32) -> __m512 = _mm512_set1_ps(x);
        to_floats(x: __m512i) -> __m512 = _mm512_cvtepi32_ps(x);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
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
    group_by_dots!();
}

impl Dots for Avx512Vnni {
    intrinsics! {
        low(x: __m512i) -> __m512i = _mm512_and_si512(x, _mm512_set1_epi8(15));
        high(x: __m512i) -> __m512i = _mm512_and_si512(_mm512_srli_epi16::<4>(x), _mm512_set1_epi8(15));
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
}

/// What both sets with sixteen columns in two registers share.
macro_rules! two_registers {
    () => {
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
            to_floats(x: Self::I) -> Self::F = [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])];
            mul(a: Self::F, b: Self::F) -> Self::F = [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])];
            mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F =
                [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])];
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
    };
}

impl Lanes for AvxVnni {
    const FLIPS: bool = false;
    two_registers!();
    group_by_dots!();
}

impl Dots for AvxVnni {
    intrinsics! {
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
}

impl Lanes for Avx2Columns {
    const FLIPS: bool = true;
    two_registers!();

    #[inline(always)]
    unsafe fn group<const BITS: usize, const HALVES: bool, const ROWS: usize, const PANELS: usize>(
        self,
        sums: &mut [[[Self::I; PANELS]; ROWS]; 2],
        quants: *const u8,
        panel_bytes: usize,
        x: GroupRows,
    ) {
        // SAFETY: the preconditions are the same.
        unsafe {
            if BITS == 4 {
                self.four_bits::<HALVES, ROWS, PANELS>(sums, quants, panel_bytes, x);
            } else if HALVES {
                self.eight_bits::<4, ROWS, PANELS>(&mut sums[0], quants, panel_bytes, x, 0);
                self.eight_bits::<4, ROWS, PANELS>(&mut sums[1], quants, panel_bytes, x, 4);
            } else {
                self.eight_bits::<8, ROWS, PANELS>(&mut sums[0], quants, panel_bytes, x, 0);
            }
        }
    }
}

/// The end of a loop that the compiler must not unroll if there are several rows: it would reorder the sums, and keep
/// weights in memory.
#[inline(always)]
fn rolled<const ROWS: usize>(end: usize) -> usize {
    if ROWS == 1 { end } else { std::hint::black_box(end) }
}

impl Avx2Columns {
    /// [`Lanes::group`] for four bits. A sum of two products is at most 2 · 15 · 127, so eight of them fit sixteen bits.
    ///
    /// # Safety
    ///
    /// - All preconditions of [`Lanes::group`].
    #[inline(always)]
    unsafe fn four_bits<const HALVES: bool, const ROWS: usize, const PANELS: usize>(
        self,
        sums: &mut [[[[__m256i; 2]; PANELS]; ROWS]; 2],
        quants: *const u8,
        panel_bytes: usize,
        x: GroupRows,
    ) {
        let mut narrow = [[self.integers(0); PANELS]; ROWS];
        for half in 0..2 {
            for four in 0..rolled::<ROWS>(4) {
                for panel in 0..PANELS {
                    // SAFETY: `self` proves the instructions. Each of `PANELS` panels has four times `PANEL * 4` bytes of
                    // quants, and `x.bytes` points to `ROWS` rows of `GROUP` bytes, where `half * 16 + four * 4 + 4` is at
                    // most `GROUP`.
                    unsafe {
                        let mut weights = self.bytes(quants.add(panel * panel_bytes + four * PANEL * 4));
                        for weights in &mut weights {
                            let right = if half == 0 { *weights } else { _mm256_srli_epi16::<4>(*weights) };
                            *weights = _mm256_and_si256(right, _mm256_set1_epi8(15));
                        }
                        for (i, sums) in narrow.iter_mut().enumerate() {
                            let x = x.bytes.add(i * x.bytes_stride + half * 16 + four * 4);
                            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                            for (sum, weights) in sums[panel].iter_mut().zip(weights) {
                                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(weights, x));
                            }
                        }
                    }
                }
            }
            if HALVES || half == 1 {
                let sums = sums[if HALVES { half } else { 0 }].as_flattened_mut().as_flattened_mut();
                let narrow = narrow.as_flattened_mut().as_flattened_mut();
                for (sum, narrow) in sums.iter_mut().zip(narrow) {
                    // SAFETY: `self` proves the instructions, which access no memory.
                    unsafe {
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*narrow, _mm256_set1_epi16(1)));
                        *narrow = _mm256_setzero_si256();
                    }
                }
            }
        }
    }

    /// Adds the products of `FOURS` times four eight-bit quants, from `4 * first` on: those of the whole group, or of a half.
    ///
    /// # Safety
    ///
    /// - All preconditions of [`Lanes::group`] for eight bits, except that `sums` are those of the group or of the half.
    /// - `FOURS` is 8 and `first` is 0, or `FOURS` is 4 and `first` is 0 or 4.
    #[inline(always)]
    unsafe fn eight_bits<const FOURS: usize, const ROWS: usize, const PANELS: usize>(
        self,
        sums: &mut [[[__m256i; 2]; PANELS]; ROWS],
        quants: *const u8,
        panel_bytes: usize,
        x: GroupRows,
        first: usize,
    ) {
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `x.flipped` is aligned and points to `ROWS` groups.
            let group = unsafe { &*x.flipped.add(i * x.flipped_stride) };
            let start = match (FOURS, first) {
                (8, _) => group.start,
                (_, 0) => group.first_start,
                _ => group.start - group.first_start,
            };
            for sum in sums.as_flattened_mut() {
                // SAFETY: `self` proves the instructions, which access no memory.
                *sum = unsafe { _mm256_add_epi32(*sum, _mm256_set1_epi32(start)) };
            }
        }
        for four in first..rolled::<ROWS>(first + FOURS) {
            for panel in 0..PANELS {
                // SAFETY: `self` proves the instructions. Each of `PANELS` panels has eight times `PANEL * 4` bytes of quants,
                // `x.flipped` points to `ROWS` groups, each with eight fours of pairs and of flips, and `four < 8`.
                unsafe {
                    let weights = self.bytes(quants.add(panel * panel_bytes + four * PANEL * 4));
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let group = x.flipped.add(i * x.flipped_stride);
                        let pairs = (&raw const (*group).pairs).cast::<i32>().add(four);
                        let flips = (&raw const (*group).flips).cast::<i32>().add(four);
                        let (pairs, flips) = (_mm256_set1_epi32(*pairs), _mm256_set1_epi32(*flips));
                        for (sum, weights) in sums[panel].iter_mut().zip(weights) {
                            let products = _mm256_maddubs_epi16(_mm256_xor_si256(weights, flips), pairs);
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
                        }
                    }
                }
            }
        }
    }
}
