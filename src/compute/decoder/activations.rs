//! Activations in the forms that products take them: plain rows, or eight-bit codes with a scale for each group.

use super::blocks::GROUP;
use crate::Result;
use crate::compute::cpu::Parallelism;
use crate::compute::kernels::quantize::QuantizedRow;
use crate::compute::kernels::{Kernels, units};
use crate::compute::memory::room;
use crate::compute::{DType, Threads};
use crate::sync::Mutex;

/// Plain rows where they lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain<'a> {
    bytes: &'a [u8],
    /// Bytes from a row to the next.
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) format: DType,
}

impl<'a> Plain<'a> {
    /// Rows of `columns` values in `format`, `stride` bytes apart, with a whole unit at the end of each.
    pub(crate) fn new(bytes: &'a [u8], stride: usize, rows: usize, columns: usize, format: DType) -> Self {
        let end = if rows == 0 { 0 } else { (rows - 1) * stride + units(format, columns) * 4 };
        assert!(end <= bytes.len(), "rows of activations");
        Self { bytes, stride, rows, columns, format }
    }

    /// Rows of f32 one after another.
    pub(crate) fn of_f32(values: &'a [f32], columns: usize) -> Self {
        Self::new(bytes(values), columns * 4, values.len() / columns.max(1), columns, DType::F32)
    }

    /// Where row `row` starts.
    pub(crate) fn row(&self, row: usize) -> *const u8 {
        assert!(row < self.rows, "row of activations");
        self.bytes[row * self.stride..].as_ptr()
    }
}

fn bytes<T: Copy>(values: &[T]) -> &[u8] {
    // SAFETY: used with f32 and u16, which have no padding; any byte can be read.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The rows that a linear layer multiplies, prepared once for all of its parts.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    /// f32, where the rows themselves lie badly: see [`spread`].
    wide: Vec<f32>,
    /// bf16, likewise spread.
    narrow: Vec<u16>,
    /// Quantized values, each row padded to whole groups.
    pub(crate) codes: Vec<i8>,
    /// A scale for each group.
    pub(crate) scales: Vec<f32>,
    /// The sum of the codes of each half group, where halves have scales of their own.
    pub(crate) sums: Vec<i32>,
    /// What zeros coded as 128 would add to the sum of each group, negated.
    pub(crate) offsets: Vec<f32>,
}

/// What a linear layer's parts ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forms {
    pub wide: bool,
    pub narrow: bool,
    pub codes: bool,
    /// Quantized values whose groups have a scale for each half.
    pub halves: bool,
}

/// Bytes from one row of `columns` values to the next: whole cache lines, and no multiple of a large power of two,
/// which would put all rows of a tile into the same few cache sets.
pub(crate) fn spread(format: DType, columns: usize) -> usize {
    let stride = (columns * format.bytes()).next_multiple_of(64).max(64);
    if stride.is_multiple_of(512) { stride + 64 } else { stride }
}

impl Activations {
    /// Prepares `x`, rows of f32.
    pub(crate) fn prepare(
        &mut self,
        kernels: &Kernels,
        x: Plain<'_>,
        forms: Forms,
        team: Parallelism<'_>,
    ) -> Result<()> {
        let columns = x.columns;
        if copied(x, forms) {
            let stride = spread(DType::F32, columns) / 4;
            let rows: Vec<_> = room(&mut self.wide, x.rows * stride).chunks_mut(stride).collect();
            each(team, rows, |row, wide| {
                let values = x.bytes[row * x.stride..][..columns * 4].as_chunks().0;
                wide.iter_mut().zip(values).for_each(|(wide, raw)| *wide = f32::from_ne_bytes(*raw));
            })?;
        }
        if forms.narrow {
            let stride = spread(DType::Bf16, columns) / 2;
            let rows: Vec<_> = room(&mut self.narrow, x.rows * stride).chunks_mut(stride).collect();
            each(team, rows, |row, narrow| {
                let values = x.bytes[row * x.stride..][..columns * 4].as_chunks().0;
                for (narrow, raw) in narrow.iter_mut().zip(values) {
                    *narrow = half::bf16::from_f32(f32::from_ne_bytes(*raw)).to_bits();
                }
                narrow[columns..].fill(0);
            })?;
        }
        if forms.codes { self.encode(kernels, x, forms, team) } else { Ok(()) }
    }

    /// What plain parts multiply after [`prepare`](Self::prepare).
    pub(crate) fn plain<'a>(&'a self, x: Plain<'a>, forms: Forms) -> Plain<'a> {
        let format = if forms.narrow { DType::Bf16 } else { DType::F32 };
        let stride = spread(format, x.columns);
        if forms.narrow {
            Plain::new(bytes(&self.narrow), stride, x.rows, x.columns, format)
        } else if copied(x, forms) {
            Plain::new(bytes(&self.wide), stride, x.rows, x.columns, format)
        } else {
            x
        }
    }

    /// Rounds rows of any format to eight bits.
    pub(crate) fn encode(
        &mut self,
        kernels: &Kernels,
        x: Plain<'_>,
        forms: Forms,
        team: Parallelism<'_>,
    ) -> Result<()> {
        let team = team.worth(x.rows * x.columns);
        let groups = x.columns.div_ceil(GROUP);
        let codes = room(&mut self.codes, x.rows * groups * GROUP).chunks_mut(groups * GROUP);
        let scales = room(&mut self.scales, x.rows * groups).chunks_mut(groups);
        let offsets = room(&mut self.offsets, x.rows * groups).chunks_mut(groups);
        // Of each row, or of none.
        let sums = room(&mut self.sums, if forms.halves { x.rows * groups * 2 } else { 0 });
        let mut sums = sums.chunks_mut(groups * 2);
        let sums = std::iter::repeat_with(|| sums.next());
        let rows: Vec<_> = codes.zip(scales).zip(sums.zip(offsets)).collect();
        each(team, rows, |row, ((codes, scales), (sums, offsets))| {
            let sums = sums.as_deref_mut();
            let mut row = QuantizedRow {
                x: x.row(row),
                format: x.format,
                length: x.columns,
                codes,
                scales,
                sums,
                offsets,
            };
            // SAFETY: `Plain` was made of whole rows.
            unsafe { kernels.quantize(&mut row) };
        })
    }
}

/// Whether rows of f32 are worth a copy that is spread out: only several rows meet in a cache set.
fn copied(x: Plain<'_>, forms: Forms) -> bool {
    forms.wide && x.rows > 4 && x.stride.is_multiple_of(512)
}

/// Runs `work` on each row.
fn each<T: Send>(team: Parallelism<'_>, mut rows: Vec<T>, work: impl Fn(usize, &mut T) + Sync) -> Result<()> {
    let share = rows.len().div_ceil(team.threads()).max(1);
    let shares: Vec<_> = rows.chunks_mut(share).map(Mutex::new).collect();
    team.run(shares.len(), &|index| {
        shares[index].lock().iter_mut().enumerate().for_each(|(at, row)| work(index * share + at, row));
    })
}

/// Runs `work` on each row of `x` and of `out`, on several threads when that helps.
pub(crate) fn split<T: Send>(
    threads: &Threads,
    x: &[f32],
    columns: usize,
    out: &mut [T],
    out_columns: usize,
    work: impl Fn(&[f32], &mut [T]) + Sync,
) -> Result<()> {
    let rows: Vec<_> = x.chunks(columns).zip(out.chunks_mut(out_columns)).collect();
    each(Parallelism::All(threads).worth(x.len()), rows, |_, (x, out)| work(x, out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Isa;

    const CODES: Forms = Forms { wide: false, narrow: false, codes: true, halves: true };

    #[test]
    fn codes_are_within_half_a_step() {
        let x: Vec<f32> = (0..3 * 50).map(|i| (i as f32 * 1.7).sin() * 4.0).collect();
        let mut prepared = Activations::default();
        prepared
            .prepare(
                Kernels::of(Isa::best()),
                Plain::of_f32(&x, 50),
                Forms { narrow: true, ..CODES },
                Parallelism::One,
            )
            .unwrap();
        assert_eq!((prepared.codes.len(), prepared.scales.len()), (3 * 64, 6));
        for row in 0..3 {
            for column in 0..64 {
                let code = prepared.codes[row * 64 + column];
                let scale = prepared.scales[row * 2 + column / 32];
                let value = if column < 50 { x[row * 50 + column] } else { 0.0 };
                assert!((f32::from(code) * scale - value).abs() <= scale * 0.5001, "{row} {column}");
            }
            let sum: i32 = prepared.codes[row * 64..][..16].iter().map(|&c| i32::from(c)).sum();
            assert_eq!(prepared.sums[row * 4], sum);
        }
        assert_eq!(half::bf16::from_bits(prepared.narrow[64]), half::bf16::from_f32(x[50]));
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = vec![1.0; 64];
            x[40] = bad;
            let mut prepared = Activations::default();
            prepared
                .prepare(Kernels::of(Isa::best()), Plain::of_f32(&x, 64), CODES, Parallelism::One)
                .unwrap();
            assert!(prepared.scales[0].is_nan() && prepared.offsets[0].is_nan());
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let mut prepared = Activations::default();
        prepared
            .prepare(Kernels::of(Isa::best()), Plain::of_f32(&[0.0; 32], 32), CODES, Parallelism::One)
            .unwrap();
        assert_eq!((prepared.scales[0], &prepared.codes[..]), (0.0, &[0i8; 32][..]));
    }
}
