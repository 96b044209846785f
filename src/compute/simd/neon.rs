//! NEON registers, which every aarch64 CPU has. They are tested under emulation (`make test-aarch64`), not timed on hardware.

use std::arch::aarch64::*;

use super::{MOVED_F16, MOVED_F16_SCALE, Simd, intrinsics};

/// Proof that the CPU has NEON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const ROWS: usize = 12;

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self(())
    }
    intrinsics! {
        splat(x: f32) -> float32x4_t = vdupq_n_f32(x);
        first(x: float32x4_t, n: usize, rest: float32x4_t) -> float32x4_t = {
            const LANES: [u32; 4] = [0, 1, 2, 3];
            let lanes = vld1q_u32(LANES.as_ptr());
            vbslq_f32(vcltq_u32(lanes, vdupq_n_u32(n as u32)), x, rest)
        };
        add(a: float32x4_t, b: float32x4_t) -> float32x4_t = vaddq_f32(a, b);
        sub(a: float32x4_t, b: float32x4_t) -> float32x4_t = vsubq_f32(a, b);
        mul(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmulq_f32(a, b);
        div(a: float32x4_t, b: float32x4_t) -> float32x4_t = vdivq_f32(a, b);
        max(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmaxq_f32(a, b);
        min(a: float32x4_t, b: float32x4_t) -> float32x4_t = vminq_f32(a, b);
        mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t = vfmaq_f32(c, a, b);
        round(x: float32x4_t) -> float32x4_t = vrndnq_f32(x);
        scale(x: float32x4_t, n: float32x4_t) -> float32x4_t = {
            let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        };
        sum(x: float32x4_t) -> f32 = vaddvq_f32(x);
        largest(x: float32x4_t) -> f32 = vmaxvq_f32(x);
        low_bf16(x: float32x4_t) -> float32x4_t =
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(x)));
        high_bf16(x: float32x4_t) -> float32x4_t =
            vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0xffff_0000)));
        low_f16(x: float32x4_t) -> float32x4_t = upper_f16(vshlq_n_u32::<16>(vreinterpretq_u32_f32(x)));
        high_f16(x: float32x4_t) -> float32x4_t = upper_f16(vreinterpretq_u32_f32(x));
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> float32x4_t {
        // SAFETY: `self` proves the instructions; `from` points to `LANES` = 4 readable values.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: float32x4_t) {
        // SAFETY: `self` proves the instructions; `to` points to `LANES` = 4 writable values.
        unsafe { vst1q_f32(to, x) }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, n: usize) -> float32x4_t {
        let mut values = [0.0; 4];
        // SAFETY: `self` proves the instructions; `from` points to `n` readable values, and `values` has `4 >= n`.
        unsafe {
            from.copy_to_nonoverlapping(values.as_mut_ptr(), n);
            vld1q_f32(values.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, x: float32x4_t, n: usize) {
        let mut values = [0.0; 4];
        // SAFETY: `self` proves the instructions; `to` points to `n` writable values, and `values` has `4 >= n`.
        unsafe {
            vst1q_f32(values.as_mut_ptr(), x);
            to.copy_from_nonoverlapping(values.as_ptr(), n);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> float32x4_t {
        // SAFETY: `self` proves the instructions; `from` points to `LANES` = 4 readable values.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from))) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, x: float32x4_t) {
        // SAFETY: `self` proves the instructions; `to` points to `LANES` = 4 writable bytes, and the first four of the
        // eight bytes in `bytes` are written.
        unsafe {
            let halves = vmovn_s32(vcvtnq_s32_f32(x));
            let bytes = vmovn_s16(vcombine_s16(halves, halves));
            to.cast::<i32>().write_unaligned(vget_lane_s32::<0>(vreinterpret_s32_s8(bytes)));
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, x: float32x4_t, n: usize) {
        let mut values = [0; 4];
        // SAFETY: `self` proves the instructions; `to` points to `n` writable values, and `values` has `4 >= n`.
        unsafe {
            let bits = vreinterpretq_u32_f32(x);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
            let kept = vbslq_u32(vceqq_f32(x, x), rounded, quiet);
            let packed = vshrn_n_u32::<16>(kept);
            vst1_u16(values.as_mut_ptr(), packed);
            to.copy_from_nonoverlapping(values.as_ptr(), n);
        }
    }
}

/// The finite f16 in the upper half of each lane, as f32.
///
/// # Safety
///
/// - The CPU has NEON.
#[inline(always)]
unsafe fn upper_f16(x: uint32x4_t) -> float32x4_t {
    // SAFETY: the CPU has NEON, and the instructions access no memory.
    unsafe {
        let moved = vreinterpretq_u32_s32(vshrq_n_s32::<3>(vreinterpretq_s32_u32(x)));
        let moved = vandq_u32(moved, vdupq_n_u32(MOVED_F16));
        vmulq_f32(vreinterpretq_f32_u32(moved), vdupq_n_f32(MOVED_F16_SCALE))
    }
}
