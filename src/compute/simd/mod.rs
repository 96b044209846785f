//! A register of f32 lanes: what kernels are written over, once for all instruction sets.
//!
//! A value of a [`Simd`] type is a permit: it exists only where the CPU was found to have the instructions (see
//! `Kernels::of`), so arithmetic is safe. Everything is `inline(always)`, so that it compiles inside the
//! `target_feature` function that the dispatch table holds.

#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

use half::bf16;

/// Registers of f32 and what kernels need of them.
pub(crate) trait Simd: Copy {
    /// A register.
    type V: Copy;
    /// f32 lanes of a register.
    const LANES: usize;
    /// Rows of a matrix tile, which is two registers wide: as tall as the register file allows.
    const ROWS: usize;

    /// The permit.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn permit() -> Self;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `LANES` values can be read.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// # Safety
    /// `LANES` values can be written.
    unsafe fn store(self, to: *mut f32, x: Self::V);
    /// The first `n` values, zero in the other lanes.
    /// # Safety
    /// `n <= LANES` values can be read.
    unsafe fn load_first(self, from: *const f32, n: usize) -> Self::V;
    /// # Safety
    /// `n <= LANES` values can be written.
    unsafe fn store_first(self, to: *mut f32, x: Self::V, n: usize);
    /// The first `n` lanes rounded to bf16 (ties to even, NaN stays NaN).
    /// # Safety
    /// `n <= LANES` values can be written.
    unsafe fn store_bf16(self, to: *mut u16, x: Self::V, n: usize);

    /// `LANES` bf16.
    /// # Safety
    /// They can be read.
    unsafe fn load_bf16(self, from: *const u16) -> Self::V;

    /// Whole numbers from -128 to 127, a byte each.
    /// # Safety
    /// `LANES` bytes can be written.
    unsafe fn store_bytes(self, to: *mut i8, x: Self::V);

    /// The first `n` lanes of `x`, the others from `rest`.
    fn first(self, x: Self::V, n: usize, rest: Self::V) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger; NaN where `b` is.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; NaN where `b` is.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, in one rounding where the CPU has it.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The nearest integer.
    fn round(self, x: Self::V) -> Self::V;
    /// `x * 2^n` for an integer `n` in -126..=127.
    fn scale(self, x: Self::V, n: Self::V) -> Self::V;
    /// The sum of all lanes, always in the same order.
    fn sum(self, x: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, x: Self::V) -> f32;
    /// `acc + a.0 * b.0 + a.1 * b.1` per lane, where a lane of `a` and `b` holds two bf16.
    fn dot2(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V;

    /// `rows <= LANES` rows of `LANES` four-byte units, `stride` bytes apart, become columns: unit `u` of row `r` goes
    /// to `to[u * width + r]`. Missing rows become zeros.
    ///
    /// # Safety
    /// The rows can be read, and `LANES` values at each `to + u * width` written; no alignment is asked.
    #[inline(always)]
    unsafe fn transpose(self, from: *const u8, stride: usize, rows: usize, to: *mut f32, width: usize) {
        for unit in 0..Self::LANES {
            for row in 0..Self::LANES {
                // SAFETY: the caller's.
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

    /// Brings the cache line at `from` into the second-level cache, where the CPU can be told so; no address faults.
    #[inline(always)]
    fn prefetch(self, _from: *const f32) {}

    /// All lanes the four bytes at `from`, whatever they hold.
    /// # Safety
    /// Four bytes can be read; no alignment is asked.
    #[inline(always)]
    unsafe fn splat_bytes(self, from: *const u8) -> Self::V {
        // SAFETY: the caller's.
        self.splat(unsafe { from.cast::<f32>().read_unaligned() })
    }
}

/// Safe methods that are one expression of intrinsics.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! intrinsics {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: $kind),*) -> $result {
            // SAFETY: a permit exists only on CPUs with these instructions, and no memory is touched.
            unsafe { $body }
        }
    )*};
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use intrinsics;

/// Four lanes in an array: plain Rust for every CPU, as fast as the compiler makes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain;

impl Simd for Plain {
    type V = [f32; 4];
    const LANES: usize = 4;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: the caller's.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::V) {
        // SAFETY: the caller's.
        unsafe { to.cast::<Self::V>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, n: usize) -> Self::V {
        // SAFETY: only the first `n` are read.
        std::array::from_fn(|i| if i < n { unsafe { *from.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, x: Self::V, n: usize) {
        for (i, x) in x.into_iter().enumerate().take(n) {
            // SAFETY: only the first `n` are written.
            unsafe { *to.add(i) = x }
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, x: Self::V, n: usize) {
        for (i, x) in x.into_iter().enumerate().take(n) {
            // SAFETY: only the first `n` are written.
            unsafe { *to.add(i) = bf16::from_f32(x).to_bits() }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::V {
        // SAFETY: the caller's.
        let narrow = unsafe { from.cast::<[u16; 4]>().read_unaligned() };
        narrow.map(|x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, x: Self::V) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[i8; 4]>().write_unaligned(x.map(|x| x as i8)) }
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
        // Without an instruction for it, a fused multiply-add would be a library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn round(self, x: Self::V) -> Self::V {
        // Adding 1.5 * 2^23 leaves no bits for a fraction: exact for |x| < 2^22, and vectorised everywhere.
        const SHIFT: f32 = 12_582_912.0;
        std::array::from_fn(|i| (x[i] + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn scale(self, x: Self::V, n: Self::V) -> Self::V {
        // `as` would saturate, at the price of compares; a NaN gives some power of two, and NaN * it is NaN.
        std::array::from_fn(|i| x[i] * f32::from_bits(((n[i] as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    fn sum(self, x: Self::V) -> f32 {
        (x[0] + x[2]) + (x[1] + x[3])
    }
    #[inline(always)]
    fn largest(self, x: Self::V) -> f32 {
        x[0].max(x[2]).max(x[1].max(x[3]))
    }
    #[inline(always)]
    fn dot2(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let low = |x: Self::V| x.map(|x| f32::from_bits(x.to_bits() << 16));
        let high = |x: Self::V| x.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000));
        self.mul_add(high(a), high(b), self.mul_add(low(a), low(b), acc))
    }
}
