//! Weights and a change of low rank, added up once: `W + s·B·A`, and the magnitudes of DoRA.
//!
//! Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021;
//! Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024.

use crate::compute::memory::zeroed;
use crate::compute::pooling::Rows;
use crate::compute::{Isa, Projection, Stored, Threads, Weight};
use crate::sync::Mutex;
use crate::{Error, Result};

/// Numbers that one task makes: some milliseconds of work.
const TASK: usize = 1 << 20;

/// A change of a matrix that is stored as `[rows, columns]`, in float32.
#[derive(Debug)]
pub(super) struct LowRank {
    /// `[rows, rank]`
    pub(super) left: Vec<f32>,
    /// `[columns, rank]`
    pub(super) right: Vec<f32>,
    pub(super) rank: usize,
    /// Of the product of both.
    pub(super) scale: f32,
    pub(super) magnitude: Option<Magnitude>,
}

/// The lengths of DoRA, in place of those of the sum.
#[derive(Debug)]
pub(super) enum Magnitude {
    /// One for each row.
    Rows(Vec<f32>),
    /// One for each column.
    Columns(Vec<f32>),
}

impl LowRank {
    /// `base` with the change, in float32: it is rounded once, when it is packed.
    ///
    /// # Errors
    /// Those of reading `base`; [`Error::OutOfMemory`].
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub(super) fn apply(&self, base: &Weight) -> Result<Weight> {
        let (rows, columns) = (base.rows(), base.columns());
        assert_eq!(
            (self.left.len(), self.right.len()),
            (rows * self.rank, columns * self.rank),
            "sizes of a change"
        );
        let mut sum = zeroed::<u8>(rows * columns * 4)?;
        if rows == 0 || columns == 0 {
            return Weight::owned(sum, Stored::F32, base.shape().to_vec());
        }
        let product = Projection::new(Isa::from_env()?, &self.right, None, self.rank)?;
        let size = (TASK / columns).clamp(1, rows);
        let parts: Vec<_> = sum.chunks_mut(size * columns * 4).map(Mutex::new).collect();
        let fault = Mutex::new(None);
        Threads::global().run(parts.len(), &|part| {
            let first = part * size;
            let work = || self.rows(base, &product, first, &mut parts[part].lock());
            if let Err(error) = work() {
                fault.lock().get_or_insert(error);
            }
        })?;
        drop(parts);
        fault.into_inner().map_or(Ok(()), Err::<(), Error>)?;
        if let Some(Magnitude::Columns(lengths)) = &self.magnitude {
            scale_columns(&mut sum, lengths);
        }
        Weight::owned(sum, Stored::F32, base.shape().to_vec())
    }

    /// The rows of the sum from `first` on, as many as `out` has bytes for.
    fn rows(&self, base: &Weight, product: &Projection, first: usize, out: &mut [u8]) -> Result<()> {
        let columns = base.columns();
        let count = out.len() / (columns * 4);
        let left = &self.left[first * self.rank..(first + count) * self.rank];
        let change = product.apply(Rows::new(left, self.rank, self.rank))?;
        let (mut row, mut scratch) = (zeroed::<f32>(columns)?, Vec::new());
        for (index, (out, change)) in
            out.chunks_exact_mut(columns * 4).zip(change.chunks_exact(columns)).enumerate()
        {
            base.rows_f32(first + index..first + index + 1, &mut row, &mut scratch)?;
            row.iter_mut().zip(change).for_each(|(x, change)| *x += self.scale * change);
            if let Some(Magnitude::Rows(lengths)) = &self.magnitude {
                let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
                let factor = (f64::from(lengths[first + index]) / length) as f32;
                row.iter_mut().for_each(|x| *x *= factor);
            }
            for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(&row) {
                *out = x.to_le_bytes();
            }
        }
        Ok(())
    }
}

/// Gives the columns of `sum`, rows of float32, these lengths.
fn scale_columns(sum: &mut [u8], lengths: &[f32]) {
    let mut squares = vec![0.0_f64; lengths.len()];
    let values = sum.as_chunks_mut::<4>().0;
    for row in values.chunks_exact(lengths.len()) {
        squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(f32::from_le_bytes(*x)).powi(2));
    }
    let factors: Vec<_> = squares
        .iter()
        .zip(lengths)
        .map(|(square, length)| (f64::from(*length) / square.sqrt()) as f32)
        .collect();
    for row in values.chunks_exact_mut(lengths.len()) {
        row.iter_mut()
            .zip(&factors)
            .for_each(|(x, factor)| *x = (f32::from_le_bytes(*x) * factor).to_le_bytes());
    }
}

/// `[rows, columns]` to `[columns, rows]`.
pub(super) fn turned(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    let mut turned = Vec::with_capacity(values.len());
    for column in 0..columns {
        turned.extend((0..rows).map(|row| values[row * columns + column]));
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) % 23) as f32 / 23.0 - 0.4).collect()
    }

    fn plainly(base: &[f32], change: &LowRank, columns: usize) -> Vec<f64> {
        let rank = change.rank;
        let entry = |index: usize| -> f64 {
            let (row, column) = (index / columns, index % columns);
            let product: f64 = (0..rank)
                .map(|k| f64::from(change.left[row * rank + k]) * f64::from(change.right[column * rank + k]))
                .sum();
            f64::from(base[index]) + f64::from(change.scale) * product
        };
        let sum: Vec<_> = (0..base.len()).map(entry).collect();
        // Which sum of squares a number belongs to.
        let (lengths, place): (_, fn(usize, usize) -> usize) = match &change.magnitude {
            None => return sum,
            Some(Magnitude::Rows(lengths)) => (lengths, |index, columns| index / columns),
            Some(Magnitude::Columns(lengths)) => (lengths, |index, columns| index % columns),
        };
        let mut squares = vec![0.0; lengths.len()];
        sum.iter().enumerate().for_each(|(index, x)| squares[place(index, columns)] += x * x);
        let factor = |at: usize| f64::from(lengths[at]) / squares[at].sqrt();
        sum.iter().enumerate().map(|(index, x)| x * factor(place(index, columns))).collect()
    }

    #[test]
    fn sums_and_magnitudes_are_those_of_plain_loops() {
        for (rows, columns, rank) in [(1, 1, 1), (5, 7, 3), (64, 33, 16), (3, 2000, 8), (1500, 1000, 2)] {
            let base = numbers(rows * columns, 1);
            for kind in 0..3 {
                let change = LowRank {
                    left: numbers(rows * rank, 2),
                    right: numbers(columns * rank, 3),
                    rank,
                    scale: 0.75,
                    magnitude: match kind {
                        0 => None,
                        1 => Some(Magnitude::Rows(numbers(rows, 4))),
                        _ => Some(Magnitude::Columns(numbers(columns, 5))),
                    },
                };
                let weight = Weight::from_f32(&base, &[rows, columns]).unwrap();
                let sum = change.apply(&weight).unwrap();
                assert_eq!((sum.shape(), sum.stored()), (&[rows, columns][..], Stored::F32));
                for (found, wanted) in sum.to_f32().unwrap().into_iter().zip(plainly(&base, &change, columns))
                {
                    assert!(
                        (f64::from(found) - wanted).abs() < 2e-5,
                        "{rows} {columns} {kind}: {found} {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_matrix_is_turned() {
        assert_eq!(turned(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert!(turned(&[], 0).is_empty());
    }
}
