//! Rowwise operations between matrix products: GEMM epilogues, normalization, rotary position embedding.

use std::ops::Range;

use super::activation::Activation;
use super::math::activate;
use crate::compute::isa::DType;
use crate::compute::simd::Simd;

/// The epilogue of a tile: what is applied to a product when it is stored in its output matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileEpilogue {
    /// The product: each row has whole registers.
    pub tile: *const f32,
    /// Elements from a row of the tile to the next.
    pub tile_stride: usize,
    /// Rows of the tile.
    pub rows: usize,
    /// Columns of the tile that are stored.
    pub columns: usize,
    /// `columns` values that are added to every row, or null.
    pub bias: *const f32,
    /// Applied after the bias.
    pub activation: Activation,
    /// A second product with the layout of `tile`, multiplied by the activated values in a gated layer; or null.
    pub gated: *const f32,
    /// `columns` values that are added to every row of `gated`, or null.
    pub gated_bias: *const f32,
    /// A factor for each row, or null.
    pub factors: *const f32,
    /// The first element of the output.
    pub out: *mut u8,
    /// Bytes from a row of the output to the next.
    pub out_stride: usize,
    /// How the output is stored.
    pub store: StoreMode,
}

impl TileEpilogue {
    /// The same for some of the rows.
    pub(crate) fn slice_rows(&self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows of an epilogue");
        // A null pointer stays null.
        let skip = |from: *const f32, by: usize| if from.is_null() { from } else { from.wrapping_add(by) };
        Self {
            tile: skip(self.tile, rows.start * self.tile_stride),
            gated: skip(self.gated, rows.start * self.tile_stride),
            factors: skip(self.factors, rows.start),
            out: self.out.wrapping_add(rows.start * self.out_stride),
            rows: rows.len(),
            ..*self
        }
    }
}

/// How the result of an epilogue is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreMode {
    /// As f32.
    F32,
    /// Rounded to bf16.
    Bf16,
    /// Added to the output, a residual in f32.
    AddF32,
}

impl From<DType> for StoreMode {
    fn from(format: DType) -> Self {
        match format {
            DType::F32 => Self::F32,
            DType::Bf16 => Self::Bf16,
        }
    }
}

/// `out = activation(tile * factor + bias) * (gated + gated_bias)`, or `out += …`, rounded to the output's format.
///
/// # Safety
///
/// - `f.tile` is aligned and points to `f.rows` rows, `f.tile_stride` values apart, of `f.columns` readable values
///   rounded up to whole registers.
/// - `f.gated` is null, or points to rows of the same layout.
/// - `f.bias` and `f.gated_bias` are null, or are aligned and point to `f.columns` readable values.
/// - `f.factors` is null, or is aligned and points to `f.rows` readable values.
/// - `f.out` is aligned for the format of `f.store` and points to `f.rows` rows of `f.columns` writable values,
///   `f.out_stride` bytes apart; they are initialized if `f.store` adds to them.
/// - No other thread accesses these values of the output during the call.
#[inline(always)]
pub(crate) unsafe fn finish<S: Simd>(s: S, f: &TileEpilogue) {
    macro_rules! with {
        ($($activation:path),*) => {
            match (f.activation, f.store) {
                // One loop for each activation and format keeps the choice out of the loop.
                // SAFETY: the preconditions are the same, and the output is bf16.
                $(($activation, StoreMode::Bf16) => unsafe { finish_with::<S, true>(s, f, $activation) },
                // SAFETY: the preconditions are the same, and the output is f32.
                ($activation, StoreMode::F32 | StoreMode::AddF32) => unsafe {
                    finish_with::<S, false>(s, f, $activation)
                },)*
                // SAFETY: the preconditions are the same, and the output is bf16.
                (Activation::Xielu(_) | Activation::ClampedSwish(_), StoreMode::Bf16) => unsafe {
                    finish_with::<S, true>(s, f, f.activation)
                },
                // SAFETY: the preconditions are the same, and the output is f32.
                (Activation::Xielu(_) | Activation::ClampedSwish(_), StoreMode::F32 | StoreMode::AddF32) => unsafe {
                    finish_with::<S, false>(s, f, f.activation)
                },
            }
        };
    }
    with!(
        Activation::Identity,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
        Activation::ReluSquared
    );
}

/// [`finish`] for a constant format.
///
/// # Safety
///
/// - All preconditions of [`finish`].
/// - `NARROW` is true if and only if the output is bf16.
#[inline(always)]
unsafe fn finish_with<S: Simd, const NARROW: bool>(s: S, f: &TileEpilogue, activation: Activation) {
    for column in (0..f.columns).step_by(S::LANES) {
        let n = S::LANES.min(f.columns - column);
        let shift = |bias: *const f32| {
            // SAFETY: a bias has `f.columns` readable values, and `column + n <= f.columns`; `n <= LANES`.
            if bias.is_null() { s.splat(0.0) } else { unsafe { load(s, bias.add(column), n) } }
        };
        let (bias, gated_bias) = (shift(f.bias), shift(f.gated_bias));
        for row in 0..f.rows {
            // SAFETY: `row < f.rows`, so the factor exists. The tile and the gate have whole registers from `column` on.
            // The output has `n` writable values from `column` on, because `column + n <= f.columns`; `n <= LANES`.
            unsafe {
                let mut x = s.load(f.tile.add(row * f.tile_stride + column));
                if !f.factors.is_null() {
                    x = s.mul(x, s.splat(*f.factors.add(row)));
                }
                x = activate::<S, NARROW>(s, activation, s.add(x, bias));
                if !f.gated.is_null() {
                    let gated = s.load(f.gated.add(row * f.tile_stride + column));
                    let mut gated = s.add(gated, gated_bias);
                    if let Some(limit) = activation.gated_limit() {
                        gated = s.max(s.splat(-limit), s.min(s.splat(limit), gated));
                        gated = s.add(gated, s.splat(1.0));
                    }
                    x = s.mul(x, gated);
                }
                let out = f.out.add(row * f.out_stride);
                if NARROW {
                    s.store_bf16(out.cast::<u16>().add(column), x, n);
                } else {
                    let out = out.cast::<f32>().add(column);
                    if f.store == StoreMode::AddF32 {
                        x = s.add(x, load(s, out, n));
                    }
                    store(s, out, x, n);
                }
            }
        }
    }
}

/// Stores the first `n` lanes.
///
/// # Safety
///
/// - `n <= LANES`.
/// - `to` is aligned and points to `n` writable values.
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(s: S, to: *mut f32, x: S::V, n: usize) {
    // SAFETY: `to` points to `n` writable values, which are `LANES` in the first case; `n <= LANES`.
    unsafe { if n == S::LANES { s.store(to, x) } else { s.store_first(to, x, n) } }
}

/// Loads `n` values and zeroes the other lanes.
///
/// # Safety
///
/// - `n <= LANES`.
/// - `from` is aligned and points to `n` readable values.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(s: S, from: *const f32, n: usize) -> S::V {
    // SAFETY: `from` points to `n` readable values, which are `LANES` in the first case; `n <= LANES`.
    unsafe { if n == S::LANES { s.load(from) } else { s.load_first(from, n) } }
}

/// The input and output of [`rms`], which may be the same row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RmsRow<'a> {
    /// The row: as many values as `scale` has.
    pub x: *const f32,
    /// A factor for each value.
    pub scale: &'a [f32],
    /// Added to the mean square.
    pub epsilon: f32,
    /// The output: as many values in the format `to`. It may be `x` itself if `to` is f32.
    pub out: *mut u8,
    /// The output's number format.
    pub to: DType,
}

/// `x / √(mean(x²) + epsilon) * scale`, rounded to the output's format.
///
/// # Safety
///
/// - `row.x` is aligned and points to `row.scale.len()` readable values.
/// - `row.out` is aligned for `row.to` and points to `row.scale.len()` writable values.
/// - `row.out` does not overlap `row.x`, or `row.out == row.x` and `row.to` is f32.
/// - `row.scale` does not overlap `row.out`.
#[inline(always)]
pub(crate) unsafe fn rms<S: Simd>(s: S, row: &RmsRow<'_>) {
    let (x, n) = (row.x, row.scale.len());
    let chunks = || (0..n).step_by(S::LANES).map(|i| (i, S::LANES.min(n - i)));
    let mut squares = s.splat(0.0);
    for (i, m) in chunks() {
        // SAFETY: `x` has `n` readable values, and `i + m <= n`; `m <= LANES`. Lanes past the end are zero.
        let x = unsafe { load(s, x.add(i), m) };
        squares = s.mul_add(x, x, squares);
    }
    let inverse = s.splat(1.0 / (s.sum(squares) / n.max(1) as f32 + row.epsilon).sqrt());
    for (i, m) in chunks() {
        // SAFETY: `x`, `scale` and `out` have `n` values, and `i + m <= n`; `m <= LANES`. Values of `x` are read before
        // they are overwritten.
        unsafe {
            let scale = load(s, row.scale.as_ptr().add(i), m);
            let y = s.mul(s.mul(load(s, x.add(i), m), inverse), scale);
            match row.to {
                DType::F32 => store(s, row.out.cast::<f32>().add(i), y, m),
                DType::Bf16 => s.store_bf16(row.out.cast::<u16>().add(i), y, m),
            }
        }
    }
}

/// The longest head that [`apply_rope`] supports.
pub(crate) const LONGEST_HEAD: usize = 512;

/// One token's queries and keys, before rotary position embedding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeRow<'a> {
    /// `heads` times `width` values: query heads, then key heads.
    pub row: *mut u8,
    /// Their number format.
    pub format: DType,
    /// Query heads and key heads in total.
    pub heads: usize,
    /// Query heads.
    pub queries: usize,
    /// Values of a head, at most [`LONGEST_HEAD`].
    pub width: usize,
    /// Normalization before the rotation: scales of queries, scales of keys, and epsilon. RMS normalization with scales as
    /// long as a head is of each head; with scales as long as all heads it is of all of them together.
    pub norms: Option<(&'a [f32], &'a [f32], f32)>,
    /// The shifts of queries and of keys, as long as the scales: a layer normalization of each head instead. Parameters as
    /// long as all heads are different ones for each.
    pub shifts: Option<(&'a [f32], &'a [f32])>,
    /// Cosines, then sines, of the token's position: one of each for each pair.
    pub angles: &'a [f32],
    /// The factor of the queries after the rotation.
    pub query_factor: f32,
    /// Whether `2 i` is paired with `2 i + 1`; otherwise `i` is paired with `i + pairs`.
    pub interleaved: bool,
}

/// The sum of squares of some values.
#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut squares = s.splat(0.0);
    for i in (0..values.len()).step_by(S::LANES) {
        let m = S::LANES.min(values.len() - i);
        // SAFETY: `values` has `m` values from `i` on; `m <= LANES`. Lanes past the end are zero.
        let x = unsafe { load(s, values.as_ptr().add(i), m) };
        squares = s.mul_add(x, x, squares);
    }
    s.sum(squares)
}

/// Normalizes the heads of a row, if requested, and rotates the pairs of each by their angles.
///
/// # Safety
///
/// - `t.row` is aligned for `t.format` and points to `t.heads * t.width` readable and writable values.
/// - No other code accesses these values during the call.
///
/// # Panics
///
/// If a head is longer than [`LONGEST_HEAD`] or shorter than its pairs, or the norms have neither the length of a head nor
/// that of all heads.
#[inline(always)]
pub(crate) unsafe fn apply_rope<S: Simd>(s: S, t: &RopeRow<'_>) {
    let (width, pairs) = (t.width, t.angles.len() / 2);
    let spans = [0..t.queries, t.queries..t.heads];
    let lengths = t.norms.map(|(queries, keys, _)| [queries.len(), keys.len()]);
    let by_head = lengths == Some([width; 2]);
    let fits =
        by_head || lengths.is_none_or(|lengths| lengths == spans.clone().map(|span| span.len() * width));
    assert!(width <= LONGEST_HEAD && 2 * pairs <= width && fits, "heads to rotate");
    let (cosines, sines) = t.angles.split_at(pairs);
    let mut wide = [0.0_f32; LONGEST_HEAD];
    let narrow_at = |head: usize| t.row.cast::<u16>().wrapping_add(head * width);
    // The values of a head; those in bf16 are copied to `wide`.
    let widened = |head: usize, wide: &mut [f32; LONGEST_HEAD]| match t.format {
        // SAFETY: `head < heads`, so the row has `width` values there.
        DType::F32 => unsafe { t.row.cast::<f32>().add(head * width) },
        DType::Bf16 => {
            // SAFETY: `head < heads`, so the row has `width` values there, and they are not written while the slice lives.
            let narrow = unsafe { std::slice::from_raw_parts(narrow_at(head), width) };
            for (wide, &narrow) in wide.iter_mut().zip(narrow) {
                *wide = f32::from_bits(u32::from(narrow) << 16);
            }
            wide.as_mut_ptr()
        }
    };
    // Of queries and of keys, if all heads are normalized together.
    let mut inverses = [1.0_f32; 2];
    if let Some((_, _, epsilon)) = t.norms.filter(|_| !by_head && t.shifts.is_none()) {
        for (inverse, span) in inverses.iter_mut().zip(spans) {
            let count = span.len() * width;
            let mut squares = 0.0;
            for head in span {
                // SAFETY: `widened` points to `width` values, which only this call accesses.
                squares +=
                    sum_of_squares(s, unsafe { std::slice::from_raw_parts(widened(head, &mut wide), width) });
            }
            *inverse = 1.0 / (squares / count.max(1) as f32 + epsilon).sqrt();
        }
    }
    for head in 0..t.heads {
        // SAFETY: `widened` points to `width` values, which only this call accesses.
        let values = unsafe { std::slice::from_raw_parts_mut(widened(head, &mut wide), width) };
        if let (Some((queries, keys, epsilon)), Some(shifts)) = (t.norms, t.shifts) {
            let (scale, shift, first) =
                if head < t.queries { (queries, shifts.0, 0) } else { (keys, shifts.1, t.queries) };
            let at = if by_head { 0 } else { (head - first) * width };
            norm(s, values, &scale[at..][..width], &shift[at..][..width], epsilon, None);
        } else if let Some((queries, keys, _)) = t.norms.filter(|_| !by_head) {
            let (scale, inverse, first) =
                if head < t.queries { (queries, inverses[0], 0) } else { (keys, inverses[1], t.queries) };
            let scale = &scale[(head - first) * width..][..width];
            values.iter_mut().zip(scale).for_each(|(x, scale)| *x *= inverse * scale);
        } else if let Some((queries, keys, epsilon)) = t.norms {
            let (x, scale) = (values.as_mut_ptr(), if head < t.queries { queries } else { keys });
            // SAFETY: `x` has `width` values, which is the length of `scale` by the assertion above; the output is the
            // input, in f32.
            unsafe { rms(s, &RmsRow { x, scale, epsilon, out: x.cast(), to: DType::F32 }) };
        }
        if t.interleaved {
            for ((pair, cosine), sine) in values.as_chunks_mut::<2>().0.iter_mut().zip(cosines).zip(sines) {
                let [x, y] = *pair;
                *pair = [x * cosine - y * sine, y * cosine + x * sine];
            }
        } else {
            let (first, second) = values.split_at_mut(pairs);
            for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                let (x, y) = (*a, *b);
                (*a, *b) = (x * cosine - y * sine, y * cosine + x * sine);
            }
        }
        if t.query_factor != 1.0 && head < t.queries {
            values.iter_mut().for_each(|x| *x *= t.query_factor);
        }
        if t.format == DType::Bf16 {
            for i in (0..width).step_by(S::LANES) {
                let m = S::LANES.min(width - i);
                // SAFETY: `values` and the head have `width` values, and `i + m <= width`; `m <= LANES`.
                unsafe { s.store_bf16(narrow_at(head).add(i), s.load_first(values.as_ptr().add(i), m), m) };
            }
        }
    }
}

/// Layer normalization of one row in place: `(x - mean) / √(variance + epsilon) * scale + shift`. If requested, `narrow`
/// gets the same values rounded to bf16. The variance is computed from differences to the mean, so a large mean costs no
/// precision.
///
/// # Panics
///
/// If lengths differ.
#[inline(always)]
pub(crate) fn norm<S: Simd>(
    s: S,
    x: &mut [f32],
    scale: &[f32],
    shift: &[f32],
    epsilon: f32,
    narrow: Option<&mut [u16]>,
) {
    let n = x.len();
    let narrow = narrow.map_or(std::ptr::null_mut(), |narrow| {
        assert_eq!(narrow.len(), n, "narrow copy");
        narrow.as_mut_ptr()
    });
    assert!(scale.len() == n && shift.len() == n, "norm parameters");
    let (x, scale, shift) = (x.as_mut_ptr(), scale.as_ptr(), shift.as_ptr());
    let chunks = || (0..n).step_by(S::LANES).map(|i| (i, S::LANES.min(n - i)));
    let mut sum = s.splat(0.0);
    for (i, m) in chunks() {
        // SAFETY: `x` has `n` values, and `i + m <= n`; `m <= LANES`.
        sum = s.add(sum, unsafe { load(s, x.add(i), m) });
    }
    let mean = s.splat(s.sum(sum) / n as f32);
    let mut squares = s.splat(0.0);
    for (i, m) in chunks() {
        // SAFETY: `x` has `n` values, and `i + m <= n`; `m <= LANES`.
        let mut centered = s.sub(unsafe { load(s, x.add(i), m) }, mean);
        if m < S::LANES {
            // Zero the tail lanes, which are -mean.
            let mut kept = [0.0; 16];
            // SAFETY: `kept` has 16 values, and `m < LANES <= 16`, which `Kernels` asserts at compile time.
            centered = unsafe {
                s.store_first(kept.as_mut_ptr(), centered, m);
                s.load(kept.as_ptr())
            };
        }
        squares = s.mul_add(centered, centered, squares);
    }
    let inverse = s.splat(1.0 / (s.sum(squares) / n as f32 + epsilon).sqrt());
    for (i, m) in chunks() {
        // SAFETY: `x`, `scale`, `shift` and, unless it is null, `narrow` have `n` values by the assertions above, and
        // `i + m <= n`; `m <= LANES`.
        unsafe {
            let y = s.mul(s.sub(load(s, x.add(i), m), mean), inverse);
            let y = s.mul_add(y, load(s, scale.add(i), m), load(s, shift.add(i), m));
            store(s, x.add(i), y, m);
            if !narrow.is_null() {
                s.store_bf16(narrow.add(i), y, m);
            }
        }
    }
}
