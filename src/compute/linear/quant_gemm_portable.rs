//! The quantized GEMM in plain Rust, for any CPU.

use super::dots::{Dots, four_bytes, group_by_dots};
use super::{Lanes, PANEL, Product, QuantLayout, product};

/// [`product`] for any CPU.
///
/// # Safety
///
/// - All preconditions of [`product`].
pub(super) unsafe fn portable(p: &Product, layout: QuantLayout) {
    // SAFETY: `Array` needs no special instructions. The pointers in `p` have the rows, lengths and alignment that `product`
    // lists, by the precondition.
    unsafe { product(Array::permit(), p, layout) }
}

/// Sixteen columns in arrays, which the compiler vectorizes for the baseline of the target.
#[derive(Clone, Copy)]
struct Array;

impl Lanes for Array {
    type I = [i32; PANEL];
    type F = [f32; PANEL];
    const COLUMNS: usize = PANEL;
    const TALLEST: usize = 8;
    const PAIRED: bool = false;
    const SIGNED: bool = false;
    const FLIPS: bool = false;

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
        // SAFETY: `from` points to `4 * COLUMNS` readable bytes, the size of `I`.
        unsafe { from.cast::<Self::I>().read_unaligned() }
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
        // SAFETY: `from` points to `COLUMNS` = `PANEL` readable values.
        let bits = unsafe { from.cast::<[u16; PANEL]>().read_unaligned() };
        bits.map(|bits| half::f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::F) {
        // SAFETY: `to` points to `COLUMNS` writable values, the size of `F`.
        unsafe { to.cast::<Self::F>().write_unaligned(x) }
    }
    group_by_dots!();
}

impl Dots for Array {
    #[inline(always)]
    fn low(self, x: Self::I) -> Self::I {
        x.map(|x| x & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn high(self, x: Self::I) -> Self::I {
        x.map(|x| x >> 4 & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn dot<const BITS: usize, const FOUR: usize>(
        self,
        sum: Self::I,
        quants: Self::I,
        x: *const i8,
    ) -> Self::I {
        // SAFETY: `x` points to sixteen readable bytes.
        let x = unsafe { four_bytes::<FOUR>(x) };
        let signed = |byte: u32| i32::from((x >> (8 * byte)) as i8);
        let quant = |quants: i32, byte: u32| quants >> (8 * byte) & 0xff;
        std::array::from_fn(|i| (0..4).fold(sum[i], |sum, byte| sum + quant(quants[i], byte) * signed(byte)))
    }
}
