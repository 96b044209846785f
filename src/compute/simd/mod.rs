//! A vector register of f32 lanes. Kernels are generic over it and are written once for all instruction sets.
//!
//! A value of a [`Simd`] type proves that the CPU has the instructions: `Kernels::of` detects them before a kernel
//! creates one. So arithmetic is safe. Every method is `inline(always)`, so that it compiles inside the
//! `target_feature` function of the dispatch table.

#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

use half::bf16;
#[cfg(test)]
use half::f16;

/// The operations that kernels need of a register of f32.
///
/// Pointers of type `f32` and `u16` are aligned for their type.
pub(crate) trait Simd: Copy {
    /// A register.
    type V: Copy;
    /// f32 lanes of a register.
    const LANES: usize;
    /// Rows of a matrix tile, which is two registers wide: as tall as the register file allows.
    const ROWS: usize;
    /// Whether [`dot2`](Self::dot2) is one instruction.
    const NATIVE_BF16: bool = false;

    /// Creates the proof that the CPU has the instructions.
    ///
    /// # Safety
    ///
    /// - The CPU has the instructions of this set.
    unsafe fn permit() -> Self;

    /// Sets all lanes to `x`.
    fn splat(self, x: f32) -> Self::V;

    /// Loads `LANES` values.
    ///
    /// # Safety
    ///
    /// - `from` is aligned and points to `LANES` readable values.
    unsafe fn load(self, from: *const f32) -> Self::V;

    /// Stores all lanes.
    ///
    /// # Safety
    ///
    /// - `to` is aligned and points to `LANES` writable values.
    unsafe fn store(self, to: *mut f32, x: Self::V);

    /// Loads the first `n` values and zeroes the other lanes.
    ///
    /// # Safety
    ///
    /// - `n <= LANES`.
    /// - `from` is aligned and points to `n` readable values.
    unsafe fn load_first(self, from: *const f32, n: usize) -> Self::V;

    /// Stores the first `n` lanes.
    ///
    /// # Safety
    ///
    /// - `n <= LANES`.
    /// - `to` is aligned and points to `n` writable values.
    unsafe fn store_first(self, to: *mut f32, x: Self::V, n: usize);

    /// Stores the first `n` lanes, rounded to bf16 (ties to even, NaN stays NaN).
    ///
    /// # Safety
    ///
    /// - `n <= LANES`.
    /// - `to` is aligned and points to `n` writable values.
    unsafe fn store_bf16(self, to: *mut u16, x: Self::V, n: usize);

    /// Loads `LANES` bf16 values.
    ///
    /// # Safety
    ///
    /// - `from` is aligned and points to `LANES` readable values.
    unsafe fn load_bf16(self, from: *const u16) -> Self::V;

    /// Stores whole numbers from -128 to 127, one byte each.
    ///
    /// # Safety
    ///
    /// - `to` points to `LANES` writable bytes.
    unsafe fn store_bytes(self, to: *mut i8, x: Self::V);

    /// Takes the first `n` lanes of `x` and the other lanes of `rest`.
    fn first(self, x: Self::V, n: usize, rest: Self::V) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger value per lane; NaN where `b` is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller value per lane; NaN where `b` is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, with one rounding where the CPU has a fused multiply-add.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The nearest integer.
    fn round(self, x: Self::V) -> Self::V;
    /// `x * 2^n` for an integer `n` in -126..=127.
    fn scale(self, x: Self::V, n: Self::V) -> Self::V;
    /// The sum of all lanes, always in the same order.
    fn sum(self, x: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, x: Self::V) -> f32;
    /// The first of the two bf16 in each lane, as f32.
    fn low_bf16(self, x: Self::V) -> Self::V;
    /// The second of the two bf16 in each lane, as f32.
    fn high_bf16(self, x: Self::V) -> Self::V;

    /// The first of the two f16 in each lane, as f32; both are finite.
    fn low_f16(self, x: Self::V) -> Self::V;
    /// The second of the two f16 in each lane, as f32; both are finite.
    fn high_f16(self, x: Self::V) -> Self::V;

    /// `acc + a.0 * b.0 + a.1 * b.1` per lane, where a lane of `a` and `b` holds two bf16.
    #[inline(always)]
    fn dot2(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let acc = self.mul_add(self.low_bf16(a), self.low_bf16(b), acc);
        self.mul_add(self.high_bf16(a), self.high_bf16(b), acc)
    }

    /// Transposes `rows` rows of `LANES` four-byte units, `stride` bytes apart: unit `u` of row `r` goes to
    /// `to[u * width + r]`. Missing rows become zeros.
    ///
    /// # Safety
    ///
    /// - `rows <= LANES`.
    /// - `from` points to `rows` rows of `LANES` readable units; it needs no alignment.
    /// - `to` is aligned, and `LANES` values are writable at `to + u * width` for each `u < LANES`.
    #[inline(always)]
    unsafe fn transpose(self, from: *const u8, stride: usize, rows: usize, to: *mut f32, width: usize) {
        for unit in 0..Self::LANES {
            for row in 0..Self::LANES {
                // SAFETY: `row < rows` and `unit < LANES`, so the unit lies in `from`; `row < LANES`, so the value
                // lies among the `LANES` writable ones at `to + unit * width`.
                unsafe {
                    let x = if row < rows {
                        from.add(row * stride + unit * 4).cast::<f32>().read_unaligned()
                    } else {
                        0.0
                    };
                    *to.add(unit * width + row) = x;
                }
            }
        }
    }

    /// Prefetches the cache line at `from` into the second-level cache, if the CPU has an instruction for it. No
    /// address faults.
    #[inline(always)]
    fn prefetch(self, _from: *const f32) {}

    /// Sets all lanes to the four bytes at `from`, of any value.
    ///
    /// # Safety
    ///
    /// - `from` points to four readable bytes; it needs no alignment.
    #[inline(always)]
    unsafe fn splat_bytes(self, from: *const u8) -> Self::V {
        // SAFETY: `from` points to four readable bytes, and the read is unaligned.
        self.splat(unsafe { from.cast::<f32>().read_unaligned() })
    }

    /// Loads `LANES` units of four bytes.
    ///
    /// # Safety
    ///
    /// - `from` points to `LANES` readable units; it needs no alignment.
    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> Self::V {
        const { assert!(size_of::<Self::V>() == 4 * Self::LANES) };
        // SAFETY: a register has the size of `LANES` units, and every bit pattern is valid for its lanes of f32. The read is
        // unaligned.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
}

/// Arithmetic on two f16 in each lane.
#[cfg(any(test, target_arch = "x86_64"))]
pub(crate) trait HalfLanes: Simd {
    /// `a * b + c` for each f16, rounded once.
    fn mul_add_f16(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The sum of the two f16 of each lane, rounded to f16, as f32.
    fn add_pair_f16(self, x: Self::V) -> Self::V;
}

/// The sign of an f16 whose bits are moved to those of an f32, its exponent and its mantissa.
const MOVED_F16: u32 = 0x8fff_e000;

/// What an f16 in [`MOVED_F16`] is smaller by, because an exponent of f16 begins at -15 and one of f32 at -127.
const MOVED_F16_SCALE: f32 = f32::from_bits((127 + 112) << 23);

/// Defines safe methods that are one expression of intrinsics.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! intrinsics {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: $type),*) -> $result {
            // SAFETY: `self` exists only on CPUs with these instructions, and they access no memory.
            unsafe { $body }
        }
    )*};
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use intrinsics;

/// Lanes in an array, an even number of them: plain Rust for every CPU. The compiler vectorizes it for the baseline of the
/// target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable<const LANES: usize>;

impl<const LANES: usize> Simd for Portable<LANES> {
    type V = [f32; LANES];
    const LANES: usize = LANES;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: `from` points to `LANES` readable values.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::V) {
        // SAFETY: `to` points to `LANES` writable values.
        unsafe { to.cast::<Self::V>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, n: usize) -> Self::V {
        // SAFETY: `from` is aligned and points to `n` readable values; `i < n`.
        std::array::from_fn(|i| if i < n { unsafe { *from.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, x: Self::V, n: usize) {
        for (i, x) in x.into_iter().enumerate().take(n) {
            // SAFETY: `to` is aligned and points to `n` writable values; `i < n`.
            unsafe { *to.add(i) = x }
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, x: Self::V, n: usize) {
        for (i, x) in x.into_iter().enumerate().take(n) {
            // SAFETY: `to` is aligned and points to `n` writable values; `i < n`.
            unsafe { *to.add(i) = bf16::from_f32(x).to_bits() }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::V {
        // SAFETY: `from` points to `LANES` readable values.
        let narrow = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        narrow.map(|x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, x: Self::V) {
        // SAFETY: `to` points to `LANES` writable bytes.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(x.map(|x| x as i8)) }
    }
    #[inline(always)]
    fn first(self, x: Self::V, n: usize, rest: Self::V) -> Self::V {
        std::array::from_fn(|i| if i < n { x[i] } else { rest[i] })
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // On a CPU without the instruction, `f32::mul_add` is a slow library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn round(self, x: Self::V) -> Self::V {
        // Adding 1.5 * 2^23 leaves no bits for a fraction. It is exact for |x| < 2^22, and every target vectorizes it.
        const SHIFT: f32 = 12_582_912.0;
        std::array::from_fn(|i| (x[i] + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn scale(self, x: Self::V, n: Self::V) -> Self::V {
        // The exponent of a NaN is some power of two, and NaN times it is NaN.
        std::array::from_fn(|i| x[i] * f32::from_bits(((n[i] as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    fn sum(self, x: Self::V) -> f32 {
        let mut half = LANES / 2;
        let mut x = x;
        while half > 0 {
            (0..half).for_each(|i| x[i] += x[i + half]);
            half /= 2;
        }
        x[0]
    }
    #[inline(always)]
    fn largest(self, x: Self::V) -> f32 {
        x.into_iter().fold(x[0], f32::max)
    }
    #[inline(always)]
    fn low_bf16(self, x: Self::V) -> Self::V {
        x.map(|x| f32::from_bits(x.to_bits() << 16))
    }
    #[inline(always)]
    fn high_bf16(self, x: Self::V) -> Self::V {
        x.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000))
    }
    #[inline(always)]
    fn low_f16(self, x: Self::V) -> Self::V {
        self.high_f16(x.map(|x| f32::from_bits(x.to_bits() << 16)))
    }
    #[inline(always)]
    fn high_f16(self, x: Self::V) -> Self::V {
        let moved = |x: f32| (x.to_bits().cast_signed() >> 3).cast_unsigned() & MOVED_F16;
        x.map(|x| f32::from_bits(moved(x)) * MOVED_F16_SCALE)
    }
}

/// As the CPU's instructions do, to the bit.
#[cfg(test)]
impl<const LANES: usize> HalfLanes for Portable<LANES> {
    #[inline(always)]
    fn mul_add_f16(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| {
            let [a, b, c] = [a, b, c].map(|x| pair_f16(x[i]));
            // Exact: a product has 22 bits. The sum is rounded to 53 bits only if one of both is too small to matter.
            let [low, high] =
                [0, 1].map(|i| f16::from_f64(f64::from(a[i]) * f64::from(b[i]) + f64::from(c[i])));
            f32::from_bits(u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16)
        })
    }
    #[inline(always)]
    fn add_pair_f16(self, x: Self::V) -> Self::V {
        x.map(|x| {
            let [low, high] = pair_f16(x);
            f16::from_f64(f64::from(low) + f64::from(high)).to_f32()
        })
    }
}

/// The two f16 in a lane.
#[cfg(test)]
fn pair_f16(x: f32) -> [f16; 2] {
    [x.to_bits() as u16, (x.to_bits() >> 16) as u16].map(f16::from_bits)
}
