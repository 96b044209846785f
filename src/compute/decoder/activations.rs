//! Activations in the forms that products take them: f32, bf16, or eight-bit codes with a scale for each group.

use super::blocks::GROUP;
use crate::Result;
use crate::compute::Threads;

/// Rows of fewer values than this are not worth other threads.
const WORTH_SPLITTING: usize = 1 << 14;

/// The rows that a linear layer multiplies, prepared once for all of its parts.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// bf16, each row padded to a whole pair.
    pub(crate) narrow: Vec<u16>,
    /// Codes, each row padded to whole groups.
    pub(crate) codes: Vec<i8>,
    /// A scale for each group.
    pub(crate) scales: Vec<f32>,
    /// The sum of the codes of each half group.
    pub(crate) sums: Vec<i32>,
    /// The sum of each group, as its codes have it.
    pub(crate) totals: Vec<f32>,
}

/// What a linear layer's parts ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forms {
    pub narrow: bool,
    pub codes: bool,
}

impl Activations {
    /// Prepares `x`, rows of `columns` values.
    pub(crate) fn prepare(
        &mut self,
        x: &[f32],
        columns: usize,
        forms: Forms,
        threads: &Threads,
    ) -> Result<()> {
        self.columns = columns;
        self.rows = x.len() / columns;
        if forms.narrow {
            self.narrow.resize(self.rows * columns.next_multiple_of(2), 0);
            split(threads, x, columns, &mut self.narrow, columns.next_multiple_of(2), |x, narrow| {
                narrow[columns..].fill(0);
                for (narrow, &x) in narrow.iter_mut().zip(x) {
                    *narrow = half::bf16::from_f32(x).to_bits();
                }
            })?;
        }
        if forms.codes {
            let groups = columns.div_ceil(GROUP);
            self.codes.resize(self.rows * groups * GROUP, 0);
            self.scales.resize(self.rows * groups, 0.0);
            self.sums.resize(self.rows * groups * 2, 0);
            self.totals.resize(self.rows * groups, 0.0);
            let codes = self.codes.chunks_mut(groups * GROUP);
            let sums = self.sums.chunks_mut(groups * 2).zip(self.totals.chunks_mut(groups));
            let rest = self.scales.chunks_mut(groups).zip(sums);
            let mut parts: Vec<_> = x.chunks(columns).zip(codes.zip(rest)).collect();
            let tasks = if x.len() < WORTH_SPLITTING { 1 } else { threads.count().min(self.rows) };
            let each = parts.len().div_ceil(tasks.max(1)).max(1);
            let shares: Vec<_> = parts.chunks_mut(each).map(crate::sync::Mutex::new).collect();
            threads.run(shares.len(), &|index| {
                for (x, (codes, (scales, (sums, totals)))) in shares[index].lock().iter_mut() {
                    encode(x, codes, scales, sums, totals);
                }
            })?;
        }
        Ok(())
    }
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
    let rows = x.len() / columns;
    let tasks = if x.len() < WORTH_SPLITTING { 1 } else { threads.count().min(rows) };
    let each = rows.div_ceil(tasks.max(1)).max(1);
    let shares: Vec<_> = x
        .chunks(each * columns)
        .zip(out.chunks_mut(each * out_columns))
        .map(crate::sync::Mutex::new)
        .collect();
    threads.run(shares.len(), &|index| {
        let (x, out) = &mut *shares[index].lock();
        for (x, out) in x.chunks(columns).zip(out.chunks_mut(out_columns)) {
            work(x, out);
        }
    })
}

/// Rounds a row to eight bits: a group's largest magnitude becomes 127, so the error is at most 1/254 of it. A number
/// that is not finite makes its group's scale NaN, so that it cannot vanish in the rounding.
fn encode(x: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [i32], totals: &mut [f32]) {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it leaves the nearest integer in the low bits
    for (group, codes) in codes.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        let mut values = [0.0f32; GROUP];
        let from = &x[group * GROUP..x.len().min((group + 1) * GROUP)];
        values[..from.len()].copy_from_slice(from);
        let mut largest = [0.0f32; 8];
        let mut taint = [0.0f32; 8];
        for eight in values.as_chunks::<8>().0 {
            for i in 0..8 {
                let magnitude = eight[i].abs();
                largest[i] = if magnitude > largest[i] { magnitude } else { largest[i] };
                taint[i] += eight[i] * 0.0;
            }
        }
        let most = largest.into_iter().fold(0.0, f32::max);
        scales[group] = most / 127.0 + taint.into_iter().sum::<f32>();
        let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
        for (code, value) in codes.iter_mut().zip(values) {
            *code = (value * inverse + ROUND).to_bits() as i8;
        }
        for half in 0..2 {
            sums[group * 2 + half] = codes[half * 16..][..16].iter().map(|&code| i32::from(code)).sum();
        }
        totals[group] = scales[group] * (sums[group * 2] + sums[group * 2 + 1]) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_within_half_a_step() {
        let x: Vec<f32> = (0..3 * 50).map(|i| (i as f32 * 1.7).sin() * 4.0).collect();
        let mut prepared = Activations::default();
        prepared.prepare(&x, 50, Forms { narrow: true, codes: true }, &Threads::global()).unwrap();
        assert_eq!((prepared.rows, prepared.codes.len(), prepared.scales.len()), (3, 3 * 64, 6));
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
        assert_eq!(half::bf16::from_bits(prepared.narrow[51]), half::bf16::from_f32(x[51]));
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = vec![1.0; 64];
            x[40] = bad;
            let mut prepared = Activations::default();
            prepared.prepare(&x, 64, Forms { narrow: false, codes: true }, &Threads::global()).unwrap();
            assert!(prepared.scales[0].is_finite() && prepared.scales[1].is_nan());
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let mut prepared = Activations::default();
        prepared.prepare(&[0.0; 32], 32, Forms { narrow: false, codes: true }, &Threads::global()).unwrap();
        assert_eq!((prepared.scales[0], &prepared.codes[..]), (0.0, &[0i8; 32][..]));
    }
}
