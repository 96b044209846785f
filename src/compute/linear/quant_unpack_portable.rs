//! Unpacking in plain Rust, so that tests run it with the tiles of any instruction set.

use std::cell::Cell;

use half::{bf16, f16};

use super::{PANEL, PackedPanel, QuantLayout, Unpack, UnpackLanes, unpack};
use crate::compute::isa::Isa;
use crate::compute::kernels::Kernels;

thread_local! {
    static EVERYWHERE: Cell<bool> = const { Cell::new(false) };
}

/// Lets models that `load` makes on this thread unpack weights on any instruction set whose panels have whole panels of
/// quantized weights, so that what AMX does is tested on a CPU without it.
pub(crate) fn everywhere<T>(load: impl FnOnce() -> T) -> T {
    let before = EVERYWHERE.replace(true);
    let loaded = load();
    EVERYWHERE.set(before);
    loaded
}

pub(super) fn allowed(isa: Isa) -> Option<Unpack> {
    let fits = Kernels::of(isa).width.is_multiple_of(PANEL);
    (EVERYWHERE.get() && fits).then_some(Unpack(portable))
}

/// [`unpack`] for any CPU.
///
/// # Safety
///
/// - All preconditions of [`unpack`].
pub(super) unsafe fn portable(p: &PackedPanel, layout: QuantLayout) {
    // SAFETY: `ArrayColumns` needs no special instructions. `p.panel` has its groups to read, and `p.out` is aligned and has
    // rows for them, by the precondition.
    unsafe { unpack(ArrayColumns::permit(), p, layout) }
}

/// Sixteen columns in arrays.
#[derive(Clone, Copy)]
struct ArrayColumns;

impl UnpackLanes for ArrayColumns {
    type I = [u32; PANEL];
    type F = [f32; PANEL];

    #[inline(always)]
    unsafe fn permit() -> Self {
        Self
    }
    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> Self::I {
        // SAFETY: `from` points to `4 * PANEL` readable bytes, the size of `I`.
        unsafe { from.cast::<Self::I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn halves(self, from: *const u16) -> Self::F {
        // SAFETY: `from` points to `PANEL` readable values.
        let bits = unsafe { from.cast::<[u16; PANEL]>().read_unaligned() };
        bits.map(|bits| f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    fn masked(self, x: Self::I, mask: u32) -> Self::F {
        x.map(|x| (x & mask) as f32)
    }
    #[inline(always)]
    fn scaled(self, x: Self::F, factor: f32) -> Self::F {
        x.map(|x| x * factor)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn store_pairs(self, to: *mut u32, first: Self::F, second: Self::F) {
        let bits = |x: f32| u32::from(bf16::from_f32(x).to_bits());
        let pairs: [u32; PANEL] = std::array::from_fn(|i| bits(first[i]) | bits(second[i]) << 16);
        // SAFETY: `to` points to `PANEL` writable values, the size of `pairs`.
        unsafe { to.cast::<[u32; PANEL]>().write_unaligned(pairs) }
    }
}
