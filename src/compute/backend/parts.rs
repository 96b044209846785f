//! The parts of a batch that a device computes one after the other, and what happens when its memory is full.

use std::ops::Range;

use super::candle::device::CandleDevice;
use super::rows::PassRows;
use crate::compute::batch::PackedBatch;
use crate::{Error, Result};

/// A batch that is computed in parts.
pub(super) struct BatchParts<'a> {
    pub(super) on: &'a CandleDevice,
    pub(super) batch: &'a PackedBatch<'a>,
    /// Numbers that a sequence has in the output.
    pub(super) width: usize,
    /// Tokens of a part at most; a longer sequence goes alone.
    pub(super) most_tokens: usize,
}

/// Computes some sequences of a batch into their rows. Returns whether it may begin again if it failed.
type Compute<'c, 'a> = dyn FnMut(PassRows<'a>, &mut [f32]) -> (Result<()>, bool) + 'c;

impl<'a> BatchParts<'a> {
    /// Calls `compute` for all parts, each with its rows of `out`. Parts are of about the same size. Where the memory of the
    /// device does not suffice, memory of idle models is freed; then halves of the part are tried.
    ///
    /// # Errors
    /// Those of `compute`.
    pub(super) fn run(&self, out: &mut [f32], compute: &mut Compute<'_, 'a>) -> Result<()> {
        let (batch, width) = (self.batch, self.width);
        assert_eq!(out.len(), batch.sequences() * width, "one row of output for each sequence");
        let parts = batch.tokens().div_ceil(self.most_tokens.max(1)).max(1);
        // A part ends with the text that reaches this many tokens, or before the one that exceeds `most_tokens`.
        let tokens = batch.tokens().div_ceil(parts).max(1);
        let mut first = 0;
        while first < batch.sequences() {
            let start = batch.offsets[first] as usize;
            let has_room = |&end: &usize| (batch.offsets[end - 1] as usize - start) < tokens;
            let fits = |&end: &usize| batch.offsets[end] as usize - start <= self.most_tokens;
            let ends = (first + 1..=batch.sequences()).take_while(|end| has_room(end) && fits(end));
            let end = ends.last().unwrap_or(first + 1);
            self.run_part(first..end, &mut out[first * width..end * width], compute)?;
            first = end;
        }
        Ok(())
    }

    fn run_part(&self, part: Range<usize>, out: &mut [f32], compute: &mut Compute<'_, 'a>) -> Result<()> {
        let mut can_begin_again = true;
        let done = retried(self.on, || {
            let (done, again) = compute(PassRows::of_part(self.batch, &part), out);
            can_begin_again = again;
            (done, again)
        });
        match done {
            Err(Error::DeviceMemory { .. }) if can_begin_again && part.len() > 1 => {
                let middle = part.start + part.len() / 2;
                log::debug!("{}: half of {} sequences at a time", self.on.name, part.len());
                let (first, second) = out.split_at_mut((middle - part.start) * self.width);
                self.run_part(part.start..middle, first, compute)?;
                self.run_part(middle..part.end, second, compute)
            }
            done => done,
        }
    }
}

/// Calls `pass`, and again as long as it may begin again, lacks memory, and memory was freed for it.
///
/// # Errors
/// Those of `pass`; a lack of memory names the device.
pub(super) fn retried(on: &CandleDevice, mut pass: impl FnMut() -> (Result<()>, bool)) -> Result<()> {
    loop {
        let (done, can_begin_again) = pass();
        match done {
            Err(Error::DeviceMemory { .. }) if can_begin_again && on.relieve() => {}
            Err(error) => return Err(on.described(error)),
            Ok(()) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Where the parts of a batch of sequences of these lengths end.
    fn ends_of_parts(lengths: &[u32], most_tokens: usize) -> Vec<usize> {
        let mut end = 0;
        let ends = lengths.iter().map(|length| {
            end += length;
            end
        });
        let offsets: Vec<u32> = std::iter::once(0).chain(ends).collect();
        let ids = vec![0; end_of(&offsets)];
        let batch = PackedBatch::new(&ids, &offsets).unwrap();
        let on = Device::Cpu.into();
        let mut found = Vec::new();
        let parts = BatchParts { on: &on, batch: &batch, width: 1, most_tokens };
        let mut out = vec![0.0; lengths.len()];
        parts
            .run(&mut out, &mut |part, out| {
                assert_eq!(part.sequences.len(), out.len());
                assert_eq!(found.last().copied().unwrap_or(0), part.first);
                found.push(part.first + part.sequences.len());
                (Ok(()), true)
            })
            .unwrap();
        found
    }

    fn end_of(offsets: &[u32]) -> usize {
        offsets[offsets.len() - 1] as usize
    }

    #[test]
    fn parts_are_of_about_the_same_size() {
        assert_eq!(ends_of_parts(&[10; 8], 100), [8]);
        assert_eq!(ends_of_parts(&[10; 8], 70), [4, 8]);
        assert_eq!(ends_of_parts(&[10; 5], 20), [2, 4, 5]);
        assert_eq!(ends_of_parts(&[90, 1, 1, 90], 100), [2, 4]);
        assert_eq!(ends_of_parts(&[500, 1, 0], 100), [1, 3]);
        assert_eq!(ends_of_parts(&[0, 0], 100), [2]);
        assert_eq!(ends_of_parts(&[], 100), [0; 0]);
    }
}
