//! What the delta rules of a model keep of a sequence: the state of each head, and the rows that the next convolution sees.
//!
//! A state is as large as the keys and values of hundreds of tokens, so few are kept: that of the end, those after every power
//! of two of positions from [`FIRST_POINT`] on, and one some tokens before the end of the text that was read, where the next
//! turn of a conversation goes on.

use std::ops::Range;
use std::sync::Arc;

use super::heads::DeltaHeads;
use crate::compute::memory::zeroed;
use crate::{Error, Result};

/// The first position after which a state is kept: to read fewer tokens again takes little time.
const FIRST_POINT: usize = 256;

/// Tokens at the end of a prompt that the next turn may not have: the beginning of an answer, as templates write it.
const PROMPT_END: usize = 16;

/// The first position of such a state in a prompt.
const SHORTEST_PROMPT: usize = 64;

/// The delta rules of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaRuleShape {
    /// Layers with a delta rule.
    pub layers: usize,
    /// Rows before its own that an output of a convolution sees.
    pub before: usize,
    /// Their heads.
    pub heads: DeltaHeads,
}

impl DeltaRuleShape {
    /// No layers.
    pub const NONE: Self = Self { layers: 0, before: 0, heads: DeltaHeads::NONE };

    /// Numbers of the rows of a layer that its convolution sees.
    pub(crate) fn rows(self) -> usize {
        self.before * self.heads.columns()
    }

    /// Numbers of a layer.
    fn layer(self) -> usize {
        self.rows() + self.heads.values * self.heads.padded_head()
    }

    fn numbers(self) -> usize {
        self.layers * self.layer()
    }

    /// Bytes of a cache of `positions` at most; `None` on overflow.
    pub(crate) fn bytes(self, positions: usize) -> Option<u64> {
        if self.layers == 0 || positions == 0 {
            return Some(0);
        }
        let powers = (positions / FIRST_POINT).checked_ilog2().map_or(0, |power| u64::from(power) + 1);
        let points = powers + u64::from(prompt_point(positions).is_some());
        (self.numbers() as u64).checked_mul(4)?.checked_mul(1 + points)
    }
}

/// The position of the state that is kept before the end of a text of `prompt` tokens that was read.
fn prompt_point(prompt: usize) -> Option<usize> {
    prompt.checked_sub(PROMPT_END).filter(|&point| point >= SHORTEST_PROMPT)
}

/// Whether a state is kept after so many positions of any text.
fn is_power(position: usize) -> bool {
    position >= FIRST_POINT && position.is_power_of_two()
}

/// A state that is kept: after `position` tokens.
#[derive(Debug, Clone)]
struct KeptState {
    position: usize,
    numbers: Arc<Vec<f32>>,
}

/// The states of every layer: rows, then heads.
#[derive(Debug)]
pub(crate) struct DeltaRuleState {
    shape: DeltaRuleShape,
    /// Positions of the sequence.
    len: usize,
    /// After what a pass has written of each layer.
    now: Vec<f32>,
    /// Where that is: all at the end of the sequence, unless a pass has failed.
    written: Vec<usize>,
    /// In the order of their positions. Only those up to the end are whole, and shared with other sequences.
    kept: Vec<KeptState>,
}

/// One layer's part of a state, to go on with.
#[derive(Debug)]
pub(crate) struct DeltaLayer<'a> {
    /// The rows that the next convolution sees.
    pub rows: &'a mut [f32],
    /// The states of the heads.
    pub heads: &'a mut [f32],
    /// The same after some of the positions to write.
    pub points: Vec<(usize, &'a mut [f32], &'a mut [f32])>,
}

fn misuse(reason: &str) -> Error {
    Error::internal("states of delta rules", reason)
}

impl DeltaRuleState {
    pub(crate) fn new(shape: DeltaRuleShape) -> Self {
        Self { shape, len: 0, now: Vec::new(), written: Vec::new(), kept: Vec::new() }
    }

    /// Positions of the sequence.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes allocated, including what other states have too.
    pub(crate) fn bytes(&self) -> u64 {
        let kept: usize = self.kept.iter().map(|kept| kept.numbers.len()).sum();
        4 * (self.now.len() + kept) as u64
    }

    fn is_empty(&self) -> bool {
        self.shape.layers == 0
    }

    /// The last place up to `len` at which the sequence can be cut.
    pub(crate) fn cut(&self, len: usize) -> usize {
        if self.is_empty() || self.written.is_empty() {
            return len;
        }
        if len >= self.len && self.written.iter().all(|&written| written == self.len) {
            return self.len;
        }
        let most = len.min(self.len);
        self.kept.iter().rev().map(|kept| kept.position).find(|&position| position <= most).unwrap_or(0)
    }

    /// Shortens the sequence to `len` positions, a [`cut`](Self::cut).
    pub(crate) fn truncate(&mut self, len: usize) {
        if self.is_empty() || self.written.is_empty() {
            self.len = len.min(self.len);
            return;
        }
        self.kept.retain(|kept| kept.position <= len);
        if len == self.len && self.written.iter().all(|&written| written == len) {
            return;
        }
        if let Some(kept) = self.kept.last().filter(|kept| kept.position == len) {
            self.now.copy_from_slice(&kept.numbers);
        }
        self.written.fill(len);
        self.len = len;
    }

    /// Makes positions writable.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; the states are then unchanged.
    pub(crate) fn reserve(&mut self, capacity: usize) -> Result<()> {
        if !self.is_empty() && capacity > 0 && self.now.is_empty() {
            self.now = zeroed(self.shape.numbers())?;
            self.written = vec![0; self.shape.layers];
        }
        Ok(())
    }

    /// Frees states beyond the end, and all memory of an empty sequence.
    pub(crate) fn shrink(&mut self) {
        self.kept.retain(|kept| kept.position <= self.len);
        if self.len == 0 {
            *self = Self::new(self.shape);
        }
    }

    /// The first `len` positions, a [`cut`](Self::cut), with room for `capacity`.
    ///
    /// # Errors
    /// Those of [`reserve`](Self::reserve).
    pub(crate) fn fork(&self, len: usize, capacity: usize) -> Result<Self> {
        let mut fork = Self::new(self.shape);
        fork.reserve(capacity.max(len))?;
        fork.kept.extend(self.kept.iter().filter(|kept| kept.position <= len).cloned());
        if fork.written.is_empty() || len == 0 {
            return Ok(fork);
        }
        match fork.kept.last().filter(|kept| kept.position == len) {
            Some(kept) => fork.now.copy_from_slice(&kept.numbers),
            None if len == self.len && !self.now.is_empty() => fork.now.copy_from_slice(&self.now),
            None => return Err(misuse("a sequence is copied to where its states are not known")),
        }
        fork.written.fill(len);
        fork.len = len;
        Ok(fork)
    }

    /// Layer `layer`, to write `positions`, which follow those that are written. `prompt` is the number of tokens that the
    /// model reads. The positions count as written.
    ///
    /// # Errors
    /// [`Error::Internal`] if they do not follow, or were not reserved; [`Error::OutOfMemory`].
    pub(crate) fn layer(
        &mut self,
        layer: usize,
        positions: Range<usize>,
        prompt: usize,
    ) -> Result<DeltaLayer<'_>> {
        if self.written.get(layer) != Some(&positions.start) {
            return Err(misuse("the states before a position are not known"));
        }
        let own = prompt_point(prompt);
        let wanted = |position: usize| is_power(position) || own == Some(position);
        let mut points: Vec<usize> = (FIRST_POINT.ilog2()..usize::BITS).map(|power| 1 << power).collect();
        points.extend(own.filter(|&point| !is_power(point)));
        for position in points.into_iter().filter(|&point| positions.start < point && point <= positions.end)
        {
            if self.kept.iter().all(|kept| kept.position != position) {
                if !is_power(position) {
                    // That of an earlier turn.
                    self.kept.retain(|kept| wanted(kept.position));
                }
                let numbers = Arc::new(zeroed(self.shape.numbers())?);
                self.kept.push(KeptState { position, numbers });
                self.kept.sort_unstable_by_key(|kept| kept.position);
            }
        }
        self.written[layer] = positions.end;
        let (size, rows) = (self.shape.layer(), self.shape.rows());
        let place = layer * size..(layer + 1) * size;
        let mut points = Vec::new();
        for kept in &mut self.kept {
            if positions.start < kept.position && kept.position <= positions.end {
                let numbers = Arc::get_mut(&mut kept.numbers);
                let numbers = numbers.ok_or_else(|| misuse("a state that is shared is written"))?;
                let (rows, heads) = numbers[place.clone()].split_at_mut(rows);
                points.push((kept.position, rows, heads));
            }
        }
        let (rows, heads) = self.now[place].split_at_mut(rows);
        Ok(DeltaLayer { rows, heads, points })
    }

    /// Extends the sequence to `len` positions, which have been written in every layer.
    pub(crate) fn extend_to(&mut self, len: usize) {
        if self.written.is_empty() || len == self.len {
            return;
        }
        assert!(self.written.iter().all(|&written| written == len), "{len} positions of {:?}", self.written);
        self.len = len;
    }
}
