//! The kernels of each instruction set, in a table of functions.
//!
//! Each kernel is generic over [`Simd`], and `table!` compiles it for one instruction set. To add an instruction set,
//! implement [`Simd`], name its CPU features in [`crate::compute::Isa`], and add a line to [`Kernels::of`]. All tests of
//! this module then run on it. An instruction set with another tile shape replaces the tile functions of a table, as
//! AMX does.

pub(crate) mod activation;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx;
pub(crate) mod delta;
pub(crate) mod math;
pub(crate) mod pack;
pub(crate) mod quantize;
pub(crate) mod rowwise;
pub(crate) mod scaled;
pub(crate) mod softmax;
#[cfg(test)]
#[cfg(unix)]
mod tests;
pub(crate) mod tile;

use std::fmt;

pub use self::activation::{Activation, ClampedSwish, Xielu};
use self::delta::DeltaStep;
use self::quantize::QuantizedRow;
use self::rowwise::{RmsRow, RopeRow, TileEpilogue};
pub(super) use self::scaled::ScaledTile;
use self::softmax::Softmax;
use self::tile::Tile;
#[cfg(target_arch = "aarch64")]
use super::simd::neon;
#[cfg(target_arch = "x86_64")]
use super::simd::x86;
use super::simd::{Portable, Simd};
use crate::compute::isa::{DType, Isa};

type TileFn = unsafe fn(&Tile);
type TilesFn = unsafe fn(&Tile, usize);
type ScaledTileFn = unsafe fn(&ScaledTile);
type ScaleRowFn = unsafe fn(&[f32], &mut [u16]) -> f32;
type TileEpilogueFn = unsafe fn(&TileEpilogue);
type NormFn = unsafe fn(&mut [f32], &[f32], &[f32], f32, Option<&mut [u16]>);
type RmsFn = unsafe fn(&RmsRow<'_>);
type RopeFn = unsafe fn(&RopeRow<'_>);
type SoftmaxFn = unsafe fn(&mut Softmax<'_>);
type AdjustScoresFn = unsafe fn(&mut [f32], f32, Option<f32>, &[f32]);
type DeltaStepFn = unsafe fn(&mut DeltaStep<'_>);
type GateFn = unsafe fn(&mut [f32], &[f32]);
type QuantizeFn = unsafe fn(&mut QuantizedRow<'_>);
type TransposeFn = unsafe fn(*const u8, usize, usize, usize, bool, &mut [u32]);
type ValuesFn = unsafe fn(*const u8, usize, usize, usize, usize, &mut [u32]);

/// The kernels of one instruction set.
pub(crate) struct Kernels {
    /// Columns of a panel, and of a tile.
    pub width: usize,
    /// Units of one step of a sum in bf16; sums are padded with zeros to a multiple of it.
    depth_bf16: usize,
    isa: Isa,
    rows_f32: usize,
    rows_bf16: usize,
    tile_f32: TileFn,
    tile_bf16: TileFn,
    /// Products with several panels, where these are faster together than one after the other.
    tiles_bf16: Option<TilesFn>,
    tile_scaled: ScaledTileFn,
    scale_row: ScaleRowFn,
    finish: TileEpilogueFn,
    norm: NormFn,
    rms: RmsFn,
    apply_rope: RopeFn,
    softmax: SoftmaxFn,
    adjust_scores: AdjustScoresFn,
    delta_step: DeltaStepFn,
    multiply_sigmoid: GateFn,
    quantize: QuantizeFn,
    transpose: TransposeFn,
    values_f32: ValuesFn,
    values_bf16: ValuesFn,
}

/// Rows of the tallest tile of any instruction set.
pub(crate) const TALLEST_TILE: usize = 32;

/// Elements of the largest tile of any instruction set: [`TALLEST_TILE`] rows of the widest panel.
pub(crate) const LARGEST_TILE: usize = TALLEST_TILE * 32;

/// Keeps the tile registers of AMX configured until it is dropped; it holds nothing for other instruction sets.
pub(crate) struct KeepTiles {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    _tiles: Option<amx::TileGuard>,
}

/// A function of a table: a kernel, compiled for one instruction set.
macro_rules! compiled {
    ($simd:ty, [$($features:literal)?], fn $name:ident($($x:ident: $type:ty),*) = $kernel:path) => {
        $(#[target_feature(enable = $features)])?
        unsafe fn $name($($x: $type),*) {
            // SAFETY: `permit` needs the features: `Kernels::of` returns their table only if the CPU has them, and nothing
            // else calls this function. Pointers have the lengths, the alignment and the exclusive access that the kernel
            // needs, because the method of `Kernels` that makes the call demands the same in its `# Safety` section. Kernels
            // without such a section take references alone.
            unsafe { $kernel(<$simd>::permit(), $($x),*) }
        }
    };
}

macro_rules! table {
    ($isa:expr, $simd:ty $(, $features:literal)?) => {{
        compiled!($simd, [$($features)?], fn tile_f32(t: &Tile) = tile::tile::<$simd, tile::One>);
        compiled!($simd, [$($features)?], fn tile_bf16(t: &Tile) = tile::tile::<$simd, tile::Pair>);
        compiled!($simd, [$($features)?], fn tile_scaled(t: &ScaledTile) = scaled::widened::<$simd>);
        $(#[target_feature(enable = $features)])?
        unsafe fn scale_row(x: &[f32], out: &mut [u16]) -> f32 {
            scaled::scale_row(x, out)
        }
        compiled!($simd, [$($features)?], fn finish(f: &TileEpilogue) = rowwise::finish::<$simd>);
        compiled!(
            $simd,
            [$($features)?],
            fn norm(x: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32, narrow: Option<&mut [u16]>) =
                rowwise::norm::<$simd>
        );
        compiled!($simd, [$($features)?], fn rms(row: &RmsRow<'_>) = rowwise::rms::<$simd>);
        compiled!($simd, [$($features)?], fn apply_rope(rope: &RopeRow<'_>) = rowwise::apply_rope::<$simd>);
        compiled!($simd, [$($features)?], fn softmax(block: &mut Softmax<'_>) = softmax::softmax::<$simd>);
        compiled!(
            $simd,
            [$($features)?],
            fn adjust_scores(scores: &mut [f32], scale: f32, cap: Option<f32>, bias: &[f32]) =
                softmax::adjust_scores::<$simd>
        );
        compiled!($simd, [$($features)?], fn delta_step(step: &mut DeltaStep<'_>) = delta::delta_step::<$simd>);
        compiled!($simd, [$($features)?], fn multiply_sigmoid(x: &mut [f32], by: &[f32]) = delta::multiply_sigmoid::<$simd>);
        compiled!($simd, [$($features)?], fn quantize(row: &mut QuantizedRow<'_>) = quantize::quantize::<$simd>);
        compiled!(
            $simd,
            [$($features)?],
            fn transpose(from: *const u8, stride: usize, rows: usize, units: usize, odd: bool, panel: &mut [u32]) =
                pack::transpose::<$simd>
        );
        $(#[target_feature(enable = $features)])?
        unsafe fn values_f32(
            from: *const u8,
            stride: usize,
            rows: usize,
            columns: usize,
            width: usize,
            panel: &mut [u32],
        ) {
            // SAFETY: `from` points to `rows` rows of `columns` readable values, as `Kernels::pack_rows` demands.
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
            // SAFETY: `from` points to `rows` rows of `columns` readable values, as `Kernels::pack_rows` demands.
            unsafe { pack::pair_bf16(from, stride, rows, columns, width, panel) }
        }
        static TABLE: Kernels = {
            assert!(<$simd as Simd>::ROWS <= TALLEST_TILE && <$simd as Simd>::LANES <= 16, "LARGEST_TILE");
            Kernels {
                isa: $isa,
                rows_f32: <$simd as Simd>::ROWS,
                rows_bf16: <$simd as Simd>::ROWS,
                depth_bf16: 1,
                width: 2 * <$simd as Simd>::LANES,
                tile_f32,
                tile_bf16,
                tiles_bf16: None,
                tile_scaled,
                scale_row,
                finish,
                norm,
                rms,
                apply_rope,
                softmax,
                adjust_scores,
                delta_step,
                multiply_sigmoid,
                quantize,
                transpose,
                values_f32,
                values_bf16,
            }
        };
        &TABLE
    }};
}

/// The kernels of one instruction set for another that differs from it in quantized products only.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! shared {
    ($isa:expr, $table:expr) => {{
        static TABLE: Kernels = Kernels { isa: $isa, ..*$table };
        &TABLE
    }};
}

#[cfg(target_arch = "aarch64")]
static NEON: &Kernels = table!(Isa::Neon, neon::Neon, "neon");

#[cfg(target_arch = "x86_64")]
static AVX2: &Kernels = table!(Isa::Avx2, x86::Avx2, "avx2,fma");

#[cfg(target_arch = "x86_64")]
static AVX512: &Kernels =
    table!(Isa::Avx512, x86::Avx512<false>, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl");

#[cfg(target_arch = "x86_64")]
static AVX512_BF16: &Kernels =
    table!(Isa::Avx512Bf16, x86::Avx512<true>, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16");

impl Kernels {
    /// The kernels of `isa`, or those of [`Isa::Portable`] if this CPU lacks it. This is the only way to get a table,
    /// so a reference to a table proves that the CPU has its instructions.
    pub(crate) fn of(isa: Isa) -> &'static Self {
        if !isa.is_available() {
            return Self::of(Isa::Portable);
        }
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => AVX2,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => shared!(Isa::AvxVnni, AVX2),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => AVX512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Fp16 => {
                compiled!(
                    x86::Avx512<false, true>,
                    ["avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"],
                    fn tile_scaled(t: &ScaledTile) = scaled::native::<x86::Avx512<false, true>>
                );
                static TABLE: Kernels = Kernels { isa: Isa::Avx512Fp16, tile_scaled, ..*AVX512 };
                &TABLE
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
                    tiles_bf16: Some(amx::tiles),
                    ..*AVX512_BF16
                };
                &TABLE
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => NEON,
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => shared!(Isa::Dotprod, NEON),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => shared!(Isa::I8mm, NEON),
            _ => table!(Isa::Portable, Portable<4>),
        }
    }

    /// Kernels as wide as those of AVX-512, for tests on a CPU without it.
    #[cfg(test)]
    pub(crate) fn wide() -> &'static Self {
        table!(Isa::Portable, Portable<16>)
    }

    /// The same with the arithmetic of f16, by software.
    #[cfg(test)]
    pub(crate) fn wide_f16() -> &'static Self {
        compiled!(Portable<16>, [], fn tile_scaled(t: &ScaledTile) = scaled::native::<Portable<16>>);
        static WIDE: &Kernels = table!(Isa::Portable, Portable<16>);
        static TABLE: Kernels = Kernels { tile_scaled, ..*WIDE };
        &TABLE
    }

    /// The instruction set.
    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// Rows of the tallest tile in `format`.
    pub(crate) fn rows(&self, format: DType) -> usize {
        match format {
            DType::F32 => self.rows_f32,
            DType::Bf16 => self.rows_bf16,
        }
    }

    /// Units of one step of a sum in `format`. A product over another number of units is correct, but slower.
    pub(crate) fn depth(&self, format: DType) -> usize {
        match format {
            DType::F32 => 1,
            DType::Bf16 => self.depth_bf16,
        }
    }

    /// Whether AMX multiplies `format`.
    pub(crate) fn uses_amx(&self, format: DType) -> bool {
        self.isa == Isa::Amx && format == DType::Bf16
    }

    /// Keeps the tile registers of this thread configured from one product to the next, until the value is dropped.
    /// In between, this thread runs no AMX code other than these kernels.
    pub(crate) fn keep_tiles(&self) -> KeepTiles {
        KeepTiles {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            _tiles: (self.isa == Isa::Amx).then(amx::TileGuard::new),
        }
    }

    /// [`tile::tile`] in `format`.
    ///
    /// # Safety
    ///
    /// - `t.rows` is at most [`rows`](Self::rows) of `format`.
    /// - `t.a` points to `t.rows` rows of `t.k` readable units, `t.a_stride` bytes apart.
    /// - `t.panel` is aligned for `f32` and points to `t.k` readable rows of [`width`](Self::width) units.
    /// - `t.c` is aligned and points to `t.rows` writable rows of [`width`](Self::width) values, `t.c_stride` values
    ///   apart; they are initialized if `t.accumulate`.
    /// - No other thread accesses the rows of `t.c` during the call.
    pub(crate) unsafe fn tile(&self, format: DType, t: &Tile) {
        let tile = match format {
            DType::F32 => self.tile_f32,
            DType::Bf16 => self.tile_bf16,
        };
        // SAFETY: the CPU has the instructions: the table proves it. By the preconditions, `t.rows` fits a tile of this format,
        // `a` and `panel` have `t.k` readable units in each row, and `c` has rows that only this call accesses.
        unsafe { tile(t) }
    }

    /// [`tile`](Self::tile) of the same rows with `panels` panels, one behind the other. The result of each begins
    /// [`width`](Self::width) values after that of the one before.
    ///
    /// # Safety
    ///
    /// - All preconditions of [`tile`](Self::tile) for each panel and its result.
    pub(crate) unsafe fn tiles(&self, format: DType, t: &Tile, panels: usize) {
        // SAFETY: the CPU has the instructions: the table proves it. `t` and its first panel are as `tile` demands; by the
        // precondition, so are the panels behind it, `t.k` rows of `width` units each, and their results, `width` values on.
        unsafe {
            if let (DType::Bf16, Some(tiles)) = (format, self.tiles_bf16) {
                return tiles(t, panels);
            }
            for index in 0..panels {
                let panel = t.panel.add(index * t.k * self.width);
                self.tile(format, &Tile { panel, c: t.c.add(index * self.width), ..*t });
            }
        }
    }

    /// Rows of the tallest tile of f16 with scales.
    pub(crate) fn scaled_rows(&self) -> usize {
        self.rows_f32
    }

    /// [`scaled::widened`], or [`scaled::native`] where the CPU multiplies f16.
    ///
    /// # Safety
    ///
    /// - `t.tile.rows` is at most [`scaled_rows`](Self::scaled_rows).
    /// - `t.tile.a` points to `t.tile.rows` rows of `t.tile.k` readable units, `t.tile.a_stride` bytes apart.
    /// - `t.tile.panel` is aligned for `f32` and points to `t.tile.k + 1` readable rows of [`width`](Self::width) units.
    /// - `t.tile.c` is aligned and points to `t.tile.rows` writable rows of [`width`](Self::width) values, `t.tile.c_stride`
    ///   values apart.
    /// - `t.scales` is aligned and points to `t.tile.rows` readable values.
    /// - No other thread accesses the rows of `t.tile.c` during the call.
    pub(crate) unsafe fn tile_scaled(&self, t: &ScaledTile) {
        // SAFETY: the CPU has the instructions: the table proves it. By the preconditions, the rows fit a tile, operands and
        // scales are readable, and only this call accesses the result.
        unsafe { (self.tile_scaled)(t) }
    }

    /// [`scaled::scale_row`].
    pub(crate) fn scale_row(&self, x: &[f32], out: &mut [u16]) -> f32 {
        // SAFETY: the CPU has the instructions: the table proves it. The kernel takes references alone.
        unsafe { (self.scale_row)(x, out) }
    }

    /// [`rowwise::finish`].
    ///
    /// # Safety
    ///
    /// - All preconditions of [`rowwise::finish`]; a register is at most half of [`width`](Self::width).
    pub(crate) unsafe fn finish(&self, f: &TileEpilogue) {
        // SAFETY: the CPU has the instructions: the table proves it. By the preconditions, tile and gate have whole registers
        // to read, biases and factors a value for each column and row, and only this call accesses the output.
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
        // SAFETY: the CPU has the instructions: the table proves it. The kernel takes references alone.
        unsafe { (self.norm)(x, scale, shift, epsilon, narrow) }
    }

    /// [`rowwise::rms`], in place.
    pub(crate) fn rms_in_place(&self, x: &mut [f32], scale: &[f32], epsilon: f32) {
        assert_eq!(x.len(), scale.len(), "norm parameters");
        let out = x.as_mut_ptr();
        // SAFETY: the CPU has the instructions: the table proves it. `x` has as many values as `scale` by the assertion above;
        // it is borrowed exclusively, so `scale` does not overlap it, and an f32 output may be the input.
        unsafe { (self.rms)(&RmsRow { x: out, scale, epsilon, out: out.cast(), to: DType::F32 }) }
    }

    /// [`rowwise::rms`].
    ///
    /// # Safety
    ///
    /// - All preconditions of [`rowwise::rms`].
    pub(crate) unsafe fn rms(&self, row: &RmsRow<'_>) {
        // SAFETY: the CPU has the instructions: the table proves it. By the preconditions, `row.x` has a readable value and
        // `row.out` a writable one for each of `row.scale`, and they are apart, or one row of f32.
        unsafe { (self.rms)(row) }
    }

    /// [`rowwise::apply_rope`].
    ///
    /// # Safety
    ///
    /// - All preconditions of [`rowwise::apply_rope`].
    pub(crate) unsafe fn apply_rope(&self, rope: &RopeRow<'_>) {
        // SAFETY: the CPU has the instructions: the table proves it. By the preconditions, `rope.row` is aligned and has the
        // values of all heads, which only this call accesses.
        unsafe { (self.apply_rope)(rope) }
    }

    /// [`softmax::softmax`].
    pub(crate) fn softmax(&self, block: &mut Softmax<'_>) {
        // SAFETY: the CPU has the instructions: the table proves it. The kernel takes references alone.
        unsafe { (self.softmax)(block) }
    }

    /// [`softmax::adjust_scores`].
    pub(crate) fn adjust_scores(&self, scores: &mut [f32], scale: f32, cap: Option<f32>, bias: &[f32]) {
        // SAFETY: the CPU has the instructions: the table proves it. The kernel takes references alone.
        unsafe { (self.adjust_scores)(scores, scale, cap, bias) }
    }

    /// [`delta::delta_step`].
    pub(crate) fn delta_step(&self, step: &mut DeltaStep<'_>) {
        // SAFETY: the CPU has the instructions: the table proves it. The kernel takes references alone.
        unsafe { (self.delta_step)(step) }
    }

    /// [`delta::multiply_sigmoid`].
    pub(crate) fn multiply_sigmoid(&self, x: &mut [f32], by: &[f32]) {
        // SAFETY: the CPU has the instructions: the table proves it. The kernel takes references alone.
        unsafe { (self.multiply_sigmoid)(x, by) }
    }

    /// [`quantize::quantize`].
    ///
    /// # Safety
    ///
    /// - All preconditions of [`quantize::quantize`].
    ///
    /// # Panics
    ///
    /// If the output has fewer quants, scales, sums or offsets than the row has groups.
    pub(crate) unsafe fn quantize(&self, row: &mut QuantizedRow<'_>) {
        let groups = row.length.div_ceil(quantize::GROUP);
        let halves = row.sums.as_ref().map_or(groups, |sums| sums.len() / 2);
        let lengths = [row.quants.len() / quantize::GROUP, row.scales.len(), halves, row.offsets.len()];
        assert!(lengths.into_iter().all(|length| length >= groups), "length of a quantized row");
        // SAFETY: the CPU has the instructions: the table proves it. `row.x` is aligned and has `row.length` readable values, by
        // the precondition.
        unsafe { (self.quantize)(row) }
    }

    /// Packs `rows` rows of `length` elements as the columns of one panel: [`pack::transpose`].
    ///
    /// # Safety
    ///
    /// - `from` points to `rows` rows of `length` readable elements, `stride` bytes apart.
    /// - If `format` is bf16 and `length` is odd, one more element is readable after each row.
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
        // SAFETY: the CPU has the instructions: the table proves it. Each row has `units` readable units, the last one of an
        // odd bf16 row by the second precondition.
        unsafe { (self.transpose)(from, stride, rows, units(format, length), odd, panel) }
    }

    /// Packs `rows` rows of `columns` elements as the rows of one panel: [`pack::copy_f32`], [`pack::pair_bf16`].
    ///
    /// # Safety
    ///
    /// - `from` points to `rows` rows of `columns` readable elements, `stride` bytes apart.
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
        // SAFETY: `from` points to `rows` rows of `columns` readable elements of this format, by the precondition.
        unsafe { pack(from, stride, rows, columns, self.width, panel) }
    }
}

/// The number of four-byte units that hold `length` elements.
pub(crate) fn units(format: DType, length: usize) -> usize {
    (length * format.bytes()).div_ceil(4)
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).finish_non_exhaustive()
    }
}
