//! The epilogue of a product, finished a few rows at a time during the next product.

use std::ffi::c_void;
use std::ops::Range;

use crate::compute::kernels::Kernels;
use crate::compute::kernels::rowwise::TileEpilogue;
use crate::compute::kernels::tile::Overlap;

/// An epilogue, and how many of its rows are done.
pub(super) struct Unfinished {
    kernels: &'static Kernels,
    epilogue: TileEpilogue,
    rows: Range<usize>,
    /// Rows of a call of [`Overlap::run`].
    step: usize,
}

impl Unfinished {
    /// # Safety
    ///
    /// Until all rows are done, the preconditions of [`Kernels::finish`] hold for `epilogue`.
    pub(super) unsafe fn new(kernels: &'static Kernels, epilogue: TileEpilogue) -> Self {
        Self { kernels, epilogue, rows: 0..epilogue.rows, step: 0 }
    }

    /// Divides the rows that are left among `calls` calls of the result. It refers to this value, which stays in place until
    /// the last call.
    pub(super) fn overlap(&mut self, calls: usize) -> Overlap {
        self.step = self.rows.len().div_ceil(calls.max(1));
        Overlap { run: finish_step, state: std::ptr::from_mut(self).cast() }
    }

    /// Finishes all rows that are left.
    pub(super) fn finish_rest(&mut self) {
        self.finish(self.rows.len());
    }

    fn finish(&mut self, rows: usize) {
        let end = self.rows.end.min(self.rows.start + rows);
        if end > self.rows.start {
            // SAFETY: until all rows are done, the tile, its gate and factors have all of them to read, and nothing else
            // accesses the output: `new` demands it. These rows are some of them that are not done.
            unsafe { self.kernels.finish(&self.epilogue.slice_rows(self.rows.start..end)) };
            self.rows.start = end;
        }
    }
}

/// [`Overlap::run`] of an [`Unfinished`].
///
/// # Safety
///
/// `state` points to an [`Unfinished`] that nothing else accesses during the call.
unsafe extern "C" fn finish_step(state: *mut c_void) {
    // SAFETY: `state` points to an `Unfinished` that nothing else accesses, by the precondition, so that the reference is the
    // only one. As `Overlap` demands, an epilogue neither unwinds, since its rows are checked, nor uses AMX.
    let unfinished = unsafe { &mut *state.cast::<Unfinished>() };
    unfinished.finish(unfinished.step);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::kernels::Activation;
    use crate::compute::kernels::rowwise::StoreMode;

    #[test]
    fn steps_finish_each_row_once_and_in_order() {
        let kernels = Kernels::of(crate::compute::Isa::Portable);
        let (rows, columns) = (13, 8);
        let tile: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        for calls in [0, 1, 4, 5, 13, 40] {
            let mut out = vec![100.0_f32; rows * columns];
            let epilogue = TileEpilogue {
                tile: tile.as_ptr(),
                tile_stride: columns,
                rows,
                columns,
                bias: std::ptr::null(),
                activation: Activation::Identity,
                gated: std::ptr::null(),
                gated_bias: std::ptr::null(),
                factors: std::ptr::null(),
                out: out.as_mut_ptr().cast(),
                out_stride: columns * 4,
                store: StoreMode::AddF32,
            };
            // SAFETY: `tile` and `out` have `rows` rows of `columns` values, whole registers of four.
            let mut unfinished = unsafe { Unfinished::new(kernels, epilogue) };
            let overlap = unfinished.overlap(calls);
            let (mut before, most) = (0, rows.div_ceil(calls.max(1)));
            for _ in 0..calls {
                // SAFETY: `overlap.state` is `unfinished`, which nothing else accesses.
                unsafe { (overlap.run)(overlap.state) };
                assert!(unfinished.rows.start - before <= most, "{calls}");
                before = unfinished.rows.start;
            }
            assert_eq!(unfinished.rows.is_empty(), calls > 0, "{calls}");
            unfinished.finish_rest();
            unfinished.finish_rest();
            for (i, &x) in out.iter().enumerate() {
                assert_eq!(x, 100.0 + i as f32, "{calls}");
            }
        }
    }
}
