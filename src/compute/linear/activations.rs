//! The left operands of products: plain rows, rows of f16 with a scale each, or rows quantized to eight bits with a scale for
//! each group.

use super::blocks::GROUP;
use super::flipped::FlippedGroup;
use super::quant_gemm::Dot;
use crate::Result;
use crate::compute::isa::DType;
use crate::compute::kernels::quantize::QuantizedRow;
use crate::compute::kernels::{Kernels, units};
use crate::compute::memory::resized;
use crate::compute::parallel::Parallelism;
use crate::sync::Mutex;

/// Plain rows, borrowed from a matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlainRows<'a> {
    bytes: &'a [u8],
    /// Bytes from a row to the next.
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) format: DType,
}

impl<'a> PlainRows<'a> {
    /// Rows of `columns` values in `format`, `stride` bytes apart. Each row ends with a whole unit.
    ///
    /// # Panics
    ///
    /// If `bytes` is too short for the rows, or a row is not aligned for `format`.
    pub(crate) fn new(bytes: &'a [u8], stride: usize, rows: usize, columns: usize, format: DType) -> Self {
        let end = if rows == 0 { 0 } else { (rows - 1) * stride + units(format, columns) * 4 };
        let aligned = (bytes.as_ptr().addr() | stride).is_multiple_of(format.bytes());
        assert!(end <= bytes.len() && aligned, "rows of activations");
        Self { bytes, stride, rows, columns, format }
    }

    /// The start of row `row`, which is aligned and has `columns` values, rounded up to whole units.
    pub(crate) fn row(&self, row: usize) -> *const u8 {
        assert!(row < self.rows, "row of activations");
        self.bytes[row * self.stride..].as_ptr()
    }

    /// Row `row`, which is in f32.
    pub(crate) fn row_f32(&self, row: usize) -> &'a [f32] {
        assert_eq!(self.format, DType::F32, "format of activations");
        // SAFETY: a row is aligned for its format and has `columns` readable values, of which every bit pattern is valid.
        unsafe { std::slice::from_raw_parts(self.row(row).cast(), self.columns) }
    }
}

/// The rows that a linear layer multiplies in other forms than the plain one, made once for all of its parts.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    pub(crate) quantized: QuantizedRows,
    pub(crate) scaled: ScaledRows,
}

/// Rows of f16 with a scale each: [`scaled`](crate::compute::kernels::scaled).
#[derive(Debug, Default)]
pub(crate) struct ScaledRows {
    /// The numbers, each row padded with zeros to [`spread`].
    pub(crate) numbers: Vec<u16>,
    pub(crate) scales: Vec<f32>,
}

/// Rows quantized to eight bits.
#[derive(Debug, Default)]
pub(crate) struct QuantizedRows {
    /// Quantized values, each row padded to whole groups.
    pub(crate) quants: Vec<i8>,
    /// A scale for each group.
    pub(crate) scales: Vec<f32>,
    /// The sum of the quants of each half group, if halves have separate scales.
    pub(crate) sums: Vec<i32>,
    /// For each group, the sum of its quants, times its scale, times -[`ZERO`](crate::compute::kernels::quantize::ZERO).
    pub(crate) offsets: Vec<f32>,
    /// The quants in flipped pairs, if the kernels need them.
    pub(crate) flipped: Vec<FlippedGroup>,
}

/// The forms of activations that the parts of a linear layer need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forms {
    /// f16 with scales.
    pub scaled: bool,
    /// Quantized activations.
    pub quantized: bool,
    /// Quantized activations with a sum for each half group.
    pub halves: bool,
    /// Quantized activations for weights of eight bits, which some kernels multiply in flipped pairs.
    pub eight_bits: bool,
}

/// Bytes from one row of `columns` values to the next. They are whole cache lines, but no multiple of a large power of
/// two, which would map all rows of a tile to the same few cache sets.
pub(crate) fn spread(format: DType, columns: usize) -> usize {
    let stride = (columns * format.bytes()).next_multiple_of(64).max(64);
    if stride.is_multiple_of(512) { stride + 64 } else { stride }
}

impl ScaledRows {
    /// Bytes from one row of `columns` numbers to the next.
    pub(crate) fn stride(columns: usize) -> usize {
        spread(DType::Bf16, columns)
    }

    /// Rounds the rows of `x`, in f32, to f16 with scales.
    pub(crate) fn fill(
        &mut self,
        kernels: &Kernels,
        x: PlainRows<'_>,
        parallelism: Parallelism<'_>,
    ) -> Result<()> {
        let stride = Self::stride(x.columns) / 2;
        let numbers = resized(&mut self.numbers, x.rows * stride).chunks_mut(stride);
        let rows: Vec<_> = numbers.zip(resized(&mut self.scales, x.rows)).enumerate().collect();
        each(parallelism.worth(x.rows * x.columns), rows, |(row, (numbers, scale))| {
            **scale = kernels.scale_row(x.row_f32(*row), numbers);
        })
    }
}

impl QuantizedRows {
    /// Quantizes the rows of any format that `is_wanted` to eight bits; what the others have is unspecified.
    pub(crate) fn quantize(
        &mut self,
        kernels: &Kernels,
        dot: Dot,
        x: PlainRows<'_>,
        is_wanted: impl Fn(usize) -> bool,
        forms: Forms,
        parallelism: Parallelism<'_>,
    ) -> Result<()> {
        let parallelism = parallelism.worth(x.rows * x.columns);
        let groups = x.columns.div_ceil(GROUP);
        let quants = resized(&mut self.quants, x.rows * groups * GROUP).chunks_mut(groups * GROUP);
        let scales = resized(&mut self.scales, x.rows * groups).chunks_mut(groups);
        let offsets = resized(&mut self.offsets, x.rows * groups).chunks_mut(groups);
        let sums = resized(&mut self.sums, if forms.halves { x.rows * groups * 2 } else { 0 });
        let mut sums = sums.chunks_mut(groups * 2);
        let sums = std::iter::repeat_with(|| sums.next());
        let flips = forms.eight_bits && dot.flips();
        let flipped = resized(&mut self.flipped, if flips { x.rows * groups } else { 0 });
        let mut flipped = flipped.chunks_mut(groups);
        let flipped = std::iter::repeat_with(|| flipped.next().unwrap_or_default());
        let rows = quants.zip(scales).zip(sums.zip(offsets)).zip(flipped).enumerate();
        let rows: Vec<_> = rows.filter(|(row, _)| is_wanted(*row)).collect();
        each(parallelism, rows, |(row, (((quants, scales), (sums, offsets)), flipped))| {
            let sums = sums.as_deref_mut();
            let mut row = QuantizedRow {
                x: x.row(*row),
                format: x.format,
                length: x.columns,
                quants,
                scales,
                sums,
                offsets,
            };
            // SAFETY: `PlainRows::row` returns a row that is aligned and has `x.columns` values.
            unsafe { kernels.quantize(&mut row) };
            dot.flip(row.quants, flipped);
        })
    }
}

/// Runs `work` on each row.
fn each<T: Send>(parallelism: Parallelism<'_>, mut rows: Vec<T>, work: impl Fn(&mut T) + Sync) -> Result<()> {
    let share = rows.len().div_ceil(parallelism.threads()).max(1);
    let shares: Vec<_> = rows.chunks_mut(share).map(Mutex::new).collect();
    parallelism.run(shares.len(), &|index| shares[index].lock().iter_mut().for_each(&work))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::isa::Isa;
    use crate::compute::memory::Buffer;

    fn quantized(x: &[f32], columns: usize) -> QuantizedRows {
        let mut memory = Buffer::zeroed(x.len() * 4).unwrap();
        memory.as_mut_slice().copy_from_slice(x);
        let rows = PlainRows::new(memory.as_slice(), columns * 4, x.len() / columns, columns, DType::F32);
        let mut quantized = QuantizedRows::default();
        let forms = Forms { quantized: true, halves: true, eight_bits: true, ..Forms::default() };
        let (kernels, dot) = (Kernels::of(Isa::best()), Dot::of(Isa::best()));
        quantized.quantize(kernels, dot, rows, |_| true, forms, Parallelism::One).unwrap();
        quantized
    }

    #[test]
    fn quantized_values_are_within_half_a_step() {
        let x: Vec<f32> = (0..3 * 50).map(|i| (i as f32 * 1.7).sin() * 4.0).collect();
        let quantized = quantized(&x, 50);
        assert_eq!((quantized.quants.len(), quantized.scales.len()), (3 * 64, 6));
        for row in 0..3 {
            for column in 0..64 {
                let quant = quantized.quants[row * 64 + column];
                let scale = quantized.scales[row * 2 + column / 32];
                let value = if column < 50 { x[row * 50 + column] } else { 0.0 };
                assert!((f32::from(quant) * scale - value).abs() <= scale * 0.5001, "{row} {column}");
            }
            let first = quantized.quants[row * 64..].first_chunk().unwrap();
            if Dot::of(Isa::best()).flips() {
                assert_eq!(quantized.flipped[row * 2], FlippedGroup::new(first));
            }
            let sum: i32 = quantized.quants[row * 64..][..16].iter().map(|&c| i32::from(c)).sum();
            assert_eq!(quantized.sums[row * 4], sum);
        }
    }

    #[test]
    fn a_value_that_is_not_finite_makes_its_row_nan() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = vec![1.0; 64];
            x[40] = bad;
            let quantized = quantized(&x, 64);
            assert!(quantized.scales[0].is_nan() && quantized.offsets[0].is_nan());
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let quantized = quantized(&[0.0; 32], 32);
        assert_eq!((quantized.scales[0], &quantized.quants[..]), (0.0, &[0i8; 32][..]));
    }
}
