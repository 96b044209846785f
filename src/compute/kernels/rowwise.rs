//! What happens to a row between matrix products: bias and activation, layer normalisation, softmax.

use super::activation::Activation;
use super::math::{LOG2_E, activate, exp2};
use crate::compute::isa::DType;
use crate::compute::simd::Simd;

/// A tile's way into its output matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileEpilogue {
    /// The product: rows of whole registers.
    pub tile: *const f32,
    /// Elements from a row of the tile to the next.
    pub tile_stride: usize,
    /// Rows of the tile.
    pub rows: usize,
    /// Columns of the tile that the output has.
    pub columns: usize,
    /// `columns` values to add to every row, or null.
    pub bias: *const f32,
    /// Applied after the bias.
    pub activation: Activation,
    /// Another product, laid out as `tile`, which the activated values are multiplied by: a gate. Or null.
    pub gated: *const f32,
    /// What is added to `gated` first, or null.
    pub gated_bias: *const f32,
    /// A factor for every row, or null.
    pub factors: *const f32,
    /// Where the first element goes.
    pub out: *mut u8,
    /// Bytes from a row of the output to the next.
    pub out_stride: usize,
    /// The output's number format.
    pub to: DType,
    /// Whether to add to what the output (f32) holds: the residual.
    pub accumulate: bool,
}

/// `out = activation(tile * factor + bias) * (gated + gated_bias)`, or `out +=` it, rounded to the output's format.
///
/// # Safety
/// All that [`TileEpilogue`] names can be read, and the output written.
#[inline(always)]
pub(crate) unsafe fn finish<S: Simd>(s: S, f: &TileEpilogue) {
    macro_rules! with {
        ($($activation:path),*) => {
            match (f.activation, f.to) {
                // SAFETY: the caller's. One loop for each activation and format keeps the choice out of it.
                $(($activation, DType::F32) => unsafe { finish_with::<S, false>(s, f, $activation) },
                // SAFETY: as above.
                ($activation, DType::Bf16) => unsafe { finish_with::<S, true>(s, f, $activation) },)*
            }
        };
    }
    with!(Activation::Identity, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu);
}

/// # Safety
/// As for [`finish`]; `NARROW` says that the output is in bf16.
#[inline(always)]
unsafe fn finish_with<S: Simd, const NARROW: bool>(s: S, f: &TileEpilogue, activation: Activation) {
    for column in (0..f.columns).step_by(S::LANES) {
        let n = S::LANES.min(f.columns - column);
        let shift = |bias: *const f32| {
            // SAFETY: the first `n` of a bias from `column` on are readable.
            if bias.is_null() { s.splat(0.0) } else { unsafe { load(s, bias.add(column), n) } }
        };
        let (bias, gated_bias) = (shift(f.bias), shift(f.gated_bias));
        for row in 0..f.rows {
            // SAFETY: the tiles hold whole registers in a row; the output is touched in its columns only.
            unsafe {
                let mut x = s.load(f.tile.add(row * f.tile_stride + column));
                if !f.factors.is_null() {
                    x = s.mul(x, s.splat(*f.factors.add(row)));
                }
                x = activate::<S, NARROW>(s, activation, s.add(x, bias));
                if !f.gated.is_null() {
                    let gated = s.load(f.gated.add(row * f.tile_stride + column));
                    x = s.mul(x, s.add(gated, gated_bias));
                }
                let out = f.out.add(row * f.out_stride);
                if NARROW {
                    s.store_bf16(out.cast::<u16>().add(column), x, n);
                } else {
                    let out = out.cast::<f32>().add(column);
                    if f.accumulate {
                        x = s.add(x, load(s, out, n));
                    }
                    store(s, out, x, n);
                }
            }
        }
    }
}

/// # Safety
/// `n <= LANES` values can be written.
#[inline(always)]
unsafe fn store<S: Simd>(s: S, to: *mut f32, x: S::V, n: usize) {
    // SAFETY: the caller's.
    unsafe { if n == S::LANES { s.store(to, x) } else { s.store_first(to, x, n) } }
}

/// # Safety
/// `n <= LANES` values can be read.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, from: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's.
    unsafe { if n == S::LANES { s.load(from) } else { s.load_first(from, n) } }
}

/// One row's way out of [`rms`], where it may also come from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RmsRow<'a> {
    /// As many values as `scale` has.
    pub x: *const f32,
    /// A factor for each value.
    pub scale: &'a [f32],
    /// Added to the mean square.
    pub epsilon: f32,
    /// As many values in the format `to`; may be `x` itself in f32.
    pub out: *mut u8,
    /// The output's number format.
    pub to: DType,
}

/// `x / √(mean(x²) + epsilon) * scale`, rounded to the output's format.
///
/// # Safety
/// All that [`RmsRow`] names can be read, and the output written.
#[inline(always)]
pub(crate) unsafe fn rms<S: Simd>(s: S, row: &RmsRow<'_>) {
    let (x, n) = (row.x, row.scale.len());
    let chunks = || (0..n).step_by(S::LANES).map(|i| (i, S::LANES.min(n - i)));
    let mut squares = s.splat(0.0);
    for (i, m) in chunks() {
        // SAFETY: `i + m <= n`, here and below; lanes past the end are zero.
        let x = unsafe { load(s, x.add(i), m) };
        squares = s.mul_add(x, x, squares);
    }
    let inverse = s.splat(1.0 / (s.sum(squares) / n.max(1) as f32 + row.epsilon).sqrt());
    for (i, m) in chunks() {
        // SAFETY: as above.
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

/// The longest head that [`apply_rope`] takes.
pub(crate) const LONGEST_HEAD: usize = 512;

/// Queries and keys of one token, which learn where they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeRow<'a> {
    /// `heads` times `width` values: query heads, then key heads.
    pub row: *mut u8,
    /// Their number format.
    pub format: DType,
    /// Query heads and key heads together.
    pub heads: usize,
    /// Query heads.
    pub queries: usize,
    /// Values of a head, at most [`LONGEST_HEAD`].
    pub width: usize,
    /// RMS normalisation of each query and each key before they turn: scales and epsilon.
    pub norms: Option<(&'a [f32], &'a [f32], f32)>,
    /// Cosines, then sines, of the token's position: one of each for every pair.
    pub angles: &'a [f32],
    /// Whether pairs are interleaved: `2 i` with `2 i + 1`; else `i` with `i + pairs`.
    pub interleaved: bool,
}

/// Normalises and turns each head of a row.
///
/// # Safety
/// The row can be read and written.
///
/// # Panics
/// When a head is longer than [`LONGEST_HEAD`], shorter than its pairs, or of another length than the norms.
#[inline(always)]
pub(crate) unsafe fn apply_rope<S: Simd>(s: S, t: &RopeRow<'_>) {
    let (width, pairs) = (t.width, t.angles.len() / 2);
    let fits = t.norms.is_none_or(|(queries, keys, _)| queries.len() == width && keys.len() == width);
    assert!(width <= LONGEST_HEAD && 2 * pairs <= width && fits, "heads to turn");
    let (cosines, sines) = t.angles.split_at(pairs);
    let mut wide = [0.0_f32; LONGEST_HEAD];
    for head in 0..t.heads {
        let narrow = t.row.cast::<u16>().wrapping_add(head * width);
        let values = match t.format {
            // SAFETY: head `head` of the row.
            DType::F32 => unsafe {
                std::slice::from_raw_parts_mut(t.row.cast::<f32>().add(head * width), width)
            },
            DType::Bf16 => {
                // SAFETY: as above.
                let narrow = unsafe { std::slice::from_raw_parts(narrow, width) };
                for (wide, &narrow) in wide.iter_mut().zip(narrow) {
                    *wide = f32::from_bits(u32::from(narrow) << 16);
                }
                &mut wide[..width]
            }
        };
        if let Some((queries, keys, epsilon)) = t.norms {
            let (x, scale) = (values.as_mut_ptr(), if head < t.queries { queries } else { keys });
            // SAFETY: `width` values, in place.
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
        if t.format == DType::Bf16 {
            for i in (0..width).step_by(S::LANES) {
                let m = S::LANES.min(width - i);
                // SAFETY: `i + m <= width`, and the buffer holds whole registers.
                unsafe { s.store_bf16(narrow.add(i), s.load_first(values.as_ptr().add(i), m), m) };
            }
        }
    }
}

/// Layer normalisation of one row in place: `(x - mean) / √(variance + epsilon) * scale + shift`, and the same
/// rounded to bf16 where asked. The variance is taken about the mean, so large means cost no digits.
///
/// # Panics
/// When lengths differ.
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
        // SAFETY: `i + m <= n`, here and below.
        sum = s.add(sum, unsafe { load(s, x.add(i), m) });
    }
    let mean = s.splat(s.sum(sum) / n as f32);
    let mut squares = s.splat(0.0);
    for (i, m) in chunks() {
        // SAFETY: as above.
        let mut centred = s.sub(unsafe { load(s, x.add(i), m) }, mean);
        if m < S::LANES {
            // Lanes past the end hold -mean: out with them.
            let mut kept = [0.0; 16];
            // SAFETY: 16 values hold a register; the first `m` lanes are stored, the rest stay zero.
            centred = unsafe {
                s.store_first(kept.as_mut_ptr(), centred, m);
                s.load(kept.as_ptr())
            };
        }
        squares = s.mul_add(centred, centred, squares);
    }
    let inverse = s.splat(1.0 / (s.sum(squares) / n as f32 + epsilon).sqrt());
    for (i, m) in chunks() {
        // SAFETY: as above; `narrow` has the length of `x`.
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

/// What a row of attention has seen so far: the largest score and the sum of `e^(score - largest)`, which is
/// `2^` of the same with scores in units of `ln 2`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    /// The largest scaled score, times log2(e).
    pub largest: f32,
    /// The sum of exponentials.
    pub sum: f32,
}

impl Default for Running {
    fn default() -> Self {
        Self { largest: f32::NEG_INFINITY, sum: 0.0 }
    }
}

/// A tile of scores against a block of keys.
#[derive(Debug)]
pub(crate) struct Softmax<'a> {
    /// Scores, `stride` apart from a row to the next; become probabilities times a factor of their row.
    pub scores: &'a mut [f32],
    /// The same in bf16, if asked for: then `scores` keep no meaning.
    pub narrow: Option<&'a mut [u16]>,
    /// Elements from a row to the next, in both.
    pub stride: usize,
    /// Keys of the block.
    pub keys: usize,
    /// The same with the zeros that follow them in every row.
    pub padded: usize,
    /// Keys that the first row sees (less than none: those of earlier blocks only), and how many more each further
    /// row does; beyond them are zeros.
    pub visible: (isize, isize),
    /// Applied to scores first.
    pub scale: f32,
    /// One for each row.
    pub running: &'a mut [Running],
    /// What to multiply each row's sum of earlier blocks with: one for each row.
    pub factors: &'a mut [f32],
}

/// One block of softmax: turns scores into `e^(score * scale - largest)`.
///
/// # Panics
/// When a slice is too short for the rows.
#[inline(always)]
pub(crate) fn softmax<S: Simd>(s: S, block: &mut Softmax<'_>) {
    let rows = block.running.len();
    let n = block.padded;
    let needed = if rows == 0 { 0 } else { (rows - 1) * block.stride + n };
    let narrow = block.narrow.as_mut().map_or(std::ptr::null_mut(), |narrow| {
        assert!(narrow.len() >= needed, "narrow scores");
        narrow.as_mut_ptr()
    });
    assert!(
        block.keys <= n && n <= block.stride && block.scores.len() >= needed && block.factors.len() == rows,
        "scores"
    );
    let scores = block.scores.as_mut_ptr();
    for (row, (running, factor)) in block.running.iter_mut().zip(&mut *block.factors).enumerate() {
        let valid = block.visible.0 + row as isize * block.visible.1;
        let valid = block.keys.min(valid.max(0).cast_unsigned());
        // SAFETY: the row's `n` elements lie inside both slices.
        *factor = unsafe {
            let (x, scale) = (scores.add(row * block.stride), block.scale);
            if narrow.is_null() {
                softmax_row::<S, false>(s, x, n, valid, scale, running, narrow)
            } else {
                softmax_row::<S, true>(s, x, n, valid, scale, running, narrow.add(row * block.stride))
            }
        };
    }
}

/// # Safety
/// `valid <= n` elements of `x` can be read; `n` elements of `narrow`, or without `NARROW` of `x`, be written.
#[inline(always)]
unsafe fn softmax_row<S: Simd, const NARROW: bool>(
    s: S,
    x: *mut f32,
    n: usize,
    valid: usize,
    scale: f32,
    running: &mut Running,
    narrow: *mut u16,
) -> f32 {
    let (whole, rest) = (valid - valid % S::LANES, valid % S::LANES);
    // SAFETY (of all blocks below): `whole + rest == valid <= n`.
    let nothing = s.splat(f32::NEG_INFINITY);
    let mut most = nothing;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: see above.
        most = s.max(most, unsafe { s.load(x.add(i)) });
    }
    if rest > 0 {
        // SAFETY: see above.
        most = s.max(most, s.first(unsafe { s.load_first(x.add(whole), rest) }, rest, nothing));
    }
    let before = running.largest;
    let scale = scale * LOG2_E.0;
    running.largest = before.max(s.largest(most) * scale);
    let factor = if before == f32::NEG_INFINITY { 0.0 } else { (before - running.largest).exp2() };
    let (scale, minus, least) = (s.splat(scale), s.splat(-running.largest), s.splat(-126.0));
    let mut sum = s.splat(0.0);
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: see above.
        unsafe {
            let power = s.max(least, s.mul_add(s.load(x.add(i)), scale, minus));
            let p = exp2::<S, NARROW>(s, power);
            sum = s.add(sum, p);
            if NARROW { s.store_bf16(narrow.add(i), p, S::LANES) } else { s.store(x.add(i), p) }
        }
    }
    if rest > 0 {
        // SAFETY: see above.
        unsafe {
            let power = s.max(least, s.mul_add(s.load_first(x.add(whole), rest), scale, minus));
            let p = s.first(exp2::<S, NARROW>(s, power), rest, s.splat(0.0));
            sum = s.add(sum, p);
            if NARROW {
                s.store_bf16(narrow.add(whole), p, rest);
            } else {
                s.store_first(x.add(whole), p, rest);
            }
        }
    }
    // SAFETY: `valid <= n`; zero is all bits zero in both formats.
    unsafe {
        if NARROW {
            narrow.add(valid).write_bytes(0, n - valid);
        } else {
            x.add(valid).write_bytes(0, n - valid);
        }
    }
    running.sum = running.sum * factor + s.sum(sum);
    factor
}
