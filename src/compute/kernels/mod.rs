//! Kernels, one set for each instruction set, behind a table of functions.
//!
//! Each kernel is written once over [`simd::Simd`]; `table!` compiles it for one instruction set. To add one:
//! write its registers (`simd.rs` says what is asked), name its features in [`crate::compute::Isa`], and add a
//! line to [`Kernels::of`]. Every test of this room then runs on it. A set that multiplies in another shape replaces
//! the tile functions of a table, as AMX does.

pub(crate) mod activation;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx;
pub(crate) mod math;
pub(crate) mod pack;
pub(crate) mod quantize;
pub(crate) mod rowwise;
#[cfg(test)]
#[cfg(unix)]
mod tests;
pub(crate) mod tile;

use std::fmt;

pub use self::activation::Activation;
use self::quantize::QuantizedRow;
use self::rowwise::{RmsRow, RopeRow, Softmax, TileEpilogue};
use self::tile::Tile;
#[cfg(target_arch = "aarch64")]
use super::simd::neon;
#[cfg(target_arch = "x86_64")]
use super::simd::x86;
use super::simd::{Plain, Simd};
use crate::compute::isa::{DType, Isa};

type TileFn = unsafe fn(&Tile);
type TileEpilogueFn = unsafe fn(&TileEpilogue);
type NormFn = unsafe fn(&mut [f32], &[f32], &[f32], f32, Option<&mut [u16]>);
type RmsFn = unsafe fn(&RmsRow<'_>);
type RopeFn = unsafe fn(&RopeRow<'_>);
type SoftmaxFn = unsafe fn(&mut Softmax<'_>);
type QuantizeFn = unsafe fn(&mut QuantizedRow<'_>);
type TransposeFn = unsafe fn(*const u8, usize, usize, usize, bool, &mut [u32]);
type ValuesFn = unsafe fn(*const u8, usize, usize, usize, usize, &mut [u32]);

/// The kernels of one instruction set.
pub(crate) struct Kernels {
    /// Columns of a panel, and of a tile.
    pub width: usize,
    /// Units that sums in bf16 go by: others are padded with zeros.
    depth_bf16: usize,
    isa: Isa,
    rows_f32: usize,
    rows_bf16: usize,
    tile_f32: TileFn,
    tile_bf16: TileFn,
    finish: TileEpilogueFn,
    norm: NormFn,
    rms: RmsFn,
    apply_rope: RopeFn,
    softmax: SoftmaxFn,
    quantize: QuantizeFn,
    transpose: TransposeFn,
    values_f32: ValuesFn,
    values_bf16: ValuesFn,
}

/// Rows of the tallest tile of any instruction set.
pub(crate) const TALLEST_TILE: usize = 32;

/// The same times the widest panel: what a tile's result needs at most.
pub(crate) const LARGEST_TILE: usize = TALLEST_TILE * 32;

/// What the instruction set keeps from one product to the next.
pub(crate) struct Held {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    _tiles: Option<amx::Held>,
}

macro_rules! table {
    ($isa:expr, $kind:ty $(, $features:literal)?) => {{
        $(#[target_feature(enable = $features)])?
        unsafe fn tile_f32(t: &Tile) {
            // SAFETY: the table's reader found the features; the rest is the caller's. So for all below.
            unsafe { tile::tile::<$kind, tile::One>(<$kind>::permit(), t) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn tile_bf16(t: &Tile) {
            // SAFETY: as above.
            unsafe { tile::tile::<$kind, tile::Pair>(<$kind>::permit(), t) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn finish(f: &TileEpilogue) {
            // SAFETY: as above.
            unsafe { rowwise::finish::<$kind>(<$kind>::permit(), f) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn norm(x: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32, narrow: Option<&mut [u16]>) {
            // SAFETY: as above.
            rowwise::norm::<$kind>(unsafe { <$kind>::permit() }, x, scale, shift, epsilon, narrow);
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn rms(row: &RmsRow<'_>) {
            // SAFETY: as above.
            unsafe { rowwise::rms::<$kind>(<$kind>::permit(), row) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn apply_rope(t: &RopeRow<'_>) {
            // SAFETY: as above.
            unsafe { rowwise::apply_rope::<$kind>(<$kind>::permit(), t) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn softmax(block: &mut Softmax<'_>) {
            // SAFETY: as above.
            rowwise::softmax::<$kind>(unsafe { <$kind>::permit() }, block);
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn quantize(row: &mut QuantizedRow<'_>) {
            // SAFETY: as above.
            unsafe { quantize::quantize::<$kind>(<$kind>::permit(), row) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn transpose(
            from: *const u8,
            stride: usize,
            rows: usize,
            units: usize,
            odd: bool,
            panel: &mut [u32],
        ) {
            // SAFETY: as above.
            unsafe { pack::transpose::<$kind>(<$kind>::permit(), from, stride, rows, units, odd, panel) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn values_f32(
            from: *const u8,
            stride: usize,
            rows: usize,
            columns: usize,
            width: usize,
            panel: &mut [u32],
        ) {
            // SAFETY: as above.
            unsafe { pack::copy_f32(from, stride, rows, columns, width, panel) }
        }
        $(#[target_feature(enable = $features)])?
        unsafe fn values_bf16(
            from: *const u8,
            stride: usize,
            rows: usize,
            columns: usize,
            width: usize,
            panel: &mut [u32],
        ) {
            // SAFETY: as above.
            unsafe { pack::pair_bf16(from, stride, rows, columns, width, panel) }
        }
        static TABLE: Kernels = {
            assert!(<$kind as Simd>::ROWS <= TALLEST_TILE && <$kind as Simd>::LANES <= 16, "LARGEST_TILE");
            Kernels {
                isa: $isa,
                rows_f32: <$kind as Simd>::ROWS,
                rows_bf16: <$kind as Simd>::ROWS,
                depth_bf16: 1,
                width: 2 * <$kind as Simd>::LANES,
                tile_f32,
                tile_bf16,
                finish,
                norm,
                rms,
                apply_rope,
                softmax,
                quantize,
                transpose,
                values_f32,
                values_bf16,
            }
        };
        &TABLE
    }};
}

#[cfg(target_arch = "x86_64")]
static AVX512_BF16: &Kernels =
    table!(Isa::Avx512Bf16, x86::Avx512<true>, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16");

impl Kernels {
    /// The kernels of `isa`, or those of [`Isa::Portable`] when this CPU lacks it: nothing else can reach the
    /// others, so holding a table proves that its instructions exist.
    pub(crate) fn of(isa: Isa) -> &'static Self {
        if !isa.is_available() {
            return Self::of(Isa::Portable);
        }
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => table!(Isa::Avx2, x86::Avx2, "avx2,fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                table!(Isa::Avx512, x86::Avx512<false>, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => AVX512_BF16,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Isa::Amx => {
                static TABLE: Kernels = Kernels {
                    isa: Isa::Amx,
                    rows_bf16: amx::ROWS,
                    depth_bf16: amx::DEPTH,
                    tile_bf16: amx::tile,
                    ..*AVX512_BF16
                };
                &TABLE
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => table!(Isa::Neon, neon::Neon, "neon"),
            _ => table!(Isa::Portable, Plain),
        }
    }

    /// The instruction set.
    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// Rows of a tile in `format`, at most.
    pub(crate) fn rows(&self, format: DType) -> usize {
        match format {
            DType::F32 => self.rows_f32,
            DType::Bf16 => self.rows_bf16,
        }
    }

    /// Units that a sum in `format` should have a multiple of: a product of another number of them is right, but
    /// slower.
    pub(crate) fn depth(&self, format: DType) -> usize {
        match format {
            DType::F32 => 1,
            DType::Bf16 => self.depth_bf16,
        }
    }

    /// To be kept over a run of products on this thread, in which no code but this room's runs.
    pub(crate) fn hold(&self) -> Held {
        Held {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            _tiles: (self.isa == Isa::Amx).then(amx::Held::new),
        }
    }

    /// [`tile::tile`] in `format`.
    ///
    /// # Safety
    /// All that [`Tile`] names can be read, and `c` written.
    pub(crate) unsafe fn tile(&self, format: DType, t: &Tile) {
        let tile = match format {
            DType::F32 => self.tile_f32,
            DType::Bf16 => self.tile_bf16,
        };
        // SAFETY: the CPU runs this table; the rest is the caller's.
        unsafe { tile(t) }
    }

    /// [`rowwise::finish`].
    ///
    /// # Safety
    /// All that [`TileEpilogue`] names can be read, and the output written.
    pub(crate) unsafe fn finish(&self, f: &TileEpilogue) {
        // SAFETY: the CPU runs this table; the rest is the caller's.
        unsafe { (self.finish)(f) }
    }

    /// [`rowwise::norm`].
    pub(crate) fn norm(
        &self,
        x: &mut [f32],
        scale: &[f32],
        shift: &[f32],
        epsilon: f32,
        narrow: Option<&mut [u16]>,
    ) {
        // SAFETY: the CPU runs this table.
        unsafe { (self.norm)(x, scale, shift, epsilon, narrow) }
    }

    /// [`rowwise::rms`], in place.
    pub(crate) fn rms_in_place(&self, x: &mut [f32], scale: &[f32], epsilon: f32) {
        assert_eq!(x.len(), scale.len(), "norm parameters");
        let out = x.as_mut_ptr();
        // SAFETY: the CPU runs this table; both lengths are those of `scale`.
        unsafe { (self.rms)(&RmsRow { x: out, scale, epsilon, out: out.cast(), to: DType::F32 }) }
    }

    /// [`rowwise::rms`].
    ///
    /// # Safety
    /// All that [`RmsRow`] names can be read, and the output written.
    pub(crate) unsafe fn rms(&self, row: &RmsRow<'_>) {
        // SAFETY: the CPU runs this table; the rest is the caller's.
        unsafe { (self.rms)(row) }
    }

    /// [`rowwise::apply_rope`].
    ///
    /// # Safety
    /// The row can be read and written.
    pub(crate) unsafe fn apply_rope(&self, t: &RopeRow<'_>) {
        // SAFETY: the CPU runs this table; the rest is the caller's.
        unsafe { (self.apply_rope)(t) }
    }

    /// [`rowwise::softmax`].
    pub(crate) fn softmax(&self, block: &mut Softmax<'_>) {
        // SAFETY: the CPU runs this table.
        unsafe { (self.softmax)(block) }
    }

    /// [`quantize::quantize`].
    ///
    /// # Safety
    /// The row's values can be read, and are aligned as their format asks.
    ///
    /// # Panics
    /// When there are fewer codes, scales, sums or offsets than the row has groups.
    pub(crate) unsafe fn quantize(&self, row: &mut QuantizedRow<'_>) {
        let groups = row.length.div_ceil(quantize::GROUP);
        let halves = row.sums.as_ref().map_or(groups, |sums| sums.len() / 2);
        let room = [row.codes.len() / quantize::GROUP, row.scales.len(), halves, row.offsets.len()];
        assert!(room.into_iter().all(|room| room >= groups), "room for codes");
        // SAFETY: the CPU runs this table; the rest is the caller's.
        unsafe { (self.quantize)(row) }
    }

    /// `rows` rows of `length` elements become the columns of one panel: [`pack::transpose`].
    ///
    /// # Safety
    /// The rows can be read; in bf16 with an odd `length`, one element beyond each as well.
    pub(crate) unsafe fn pack_columns(
        &self,
        format: DType,
        from: *const u8,
        stride: usize,
        rows: usize,
        length: usize,
        panel: &mut [u32],
    ) {
        let odd = format == DType::Bf16 && length % 2 == 1;
        // SAFETY: the CPU runs this table; the rest is the caller's.
        unsafe { (self.transpose)(from, stride, rows, units(format, length), odd, panel) }
    }

    /// `rows` rows of `columns` elements become the rows of one panel: [`pack::copy_f32`], [`pack::pair_bf16`].
    ///
    /// # Safety
    /// The rows can be read.
    pub(crate) unsafe fn pack_rows(
        &self,
        format: DType,
        from: *const u8,
        stride: usize,
        rows: usize,
        columns: usize,
        panel: &mut [u32],
    ) {
        let pack = match format {
            DType::F32 => self.values_f32,
            DType::Bf16 => self.values_bf16,
        };
        // SAFETY: the CPU runs this table; the rest is the caller's.
        unsafe { pack(from, stride, rows, columns, self.width, panel) }
    }
}

/// Four-byte units that `length` elements take.
pub(crate) fn units(format: DType, length: usize) -> usize {
    (length * format.bytes()).div_ceil(4)
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).finish_non_exhaustive()
    }
}
