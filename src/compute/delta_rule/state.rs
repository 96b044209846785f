//! What the delta rules of a model keep of a sequence: the state of each head, and the rows that the next convolution sees.
//!
//! A state is as large as the keys and values of hundreds of tokens, so few are kept: that of the end, those after every power
//! of two of positions from [`FIRST_POINT`] on, and one some tokens before the end of the text that was read, where the next
//! turn of a conversation goes on. Drafts at the end of a sequence are not in the states: what their steps read is kept, and the
//! next pass computes those that stayed again.

use std::ops::Range;
use std::sync::Arc;

use super::heads::DeltaHeads;
use super::rows::StateDrafts;
use crate::compute::memory::zeroed;
use crate::compute::short_convolution::MOST_DRAFTED;
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

    /// Numbers of a layer for drafts: the rows that their convolutions see, and what their steps read.
    fn drafts(self) -> usize {
        self.window() + MOST_DRAFTED * self.heads.step()
    }

    fn window(self) -> usize {
        (self.before + MOST_DRAFTED) * self.heads.columns()
    }

    /// Bytes of a cache of `positions` at most; `None` on overflow.
    pub(crate) fn bytes(self, positions: usize) -> Option<u64> {
        if self.layers == 0 || positions == 0 {
            return Some(0);
        }
        let powers = (positions / FIRST_POINT).checked_ilog2().map_or(0, |power| u64::from(power) + 1);
        let points = powers + u64::from(prompt_point(positions).is_some());
        let drafts = (self.layers as u64).checked_mul(self.drafts() as u64)?;
        (self.numbers() as u64).checked_mul(1 + points)?.checked_add(drafts)?.checked_mul(4)
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
    /// Of each layer, the rows before the end of what a pass has written, and the states after `settled` tokens.
    now: Vec<f32>,
    /// So many tokens of each layer are in its states; those after them are drafts.
    settled: Vec<usize>,
    /// Of each layer, the rows that convolutions of drafts see, and what their steps read.
    drafts: Vec<f32>,
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
    /// The rows that the convolutions of drafts to write see.
    pub window: &'a mut [f32],
    pub drafts: StateDrafts<'a>,
    /// The same after some of the positions to write.
    pub points: Vec<(usize, &'a mut [f32], &'a mut [f32])>,
}

fn misuse(reason: &str) -> Error {
    Error::internal("states of delta rules", reason)
}

impl DeltaRuleState {
    pub(crate) fn new(shape: DeltaRuleShape) -> Self {
        Self {
            shape,
            len: 0,
            now: Vec::new(),
            settled: Vec::new(),
            drafts: Vec::new(),
            written: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Positions of the sequence.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes allocated, including what other states have too.
    pub(crate) fn bytes(&self) -> u64 {
        let kept: usize = self.kept.iter().map(|kept| kept.numbers.len()).sum();
        4 * (self.now.len() + self.drafts.len() + kept) as u64
    }

    fn is_empty(&self) -> bool {
        self.shape.layers == 0
    }

    /// The last place up to `len` at which the sequence can be cut.
    pub(crate) fn cut(&self, len: usize) -> usize {
        if self.is_empty() || self.written.is_empty() {
            return len;
        }
        let most = len.min(self.len);
        if self.is_known_after(most) {
            return most;
        }
        self.kept.iter().rev().map(|kept| kept.position).find(|&position| position <= most).unwrap_or(0)
    }

    /// Whether the states after `len` positions are known without those that are kept: no pass has failed, and only drafts
    /// follow.
    fn is_known_after(&self, len: usize) -> bool {
        self.written.iter().all(|&written| written == self.len)
            && self.settled.iter().all(|&settled| settled <= len)
    }

    /// Drafts that the next pass may have at its end, after one row that stays. A state that is to be kept is after none.
    pub(crate) fn most_drafted(&self) -> usize {
        if self.is_empty() {
            return usize::MAX;
        }
        let next = self.len + 2;
        MOST_DRAFTED.min(next.next_power_of_two().max(FIRST_POINT) - next)
    }

    /// Shortens the sequence to `len` positions, a [`cut`](Self::cut).
    pub(crate) fn truncate(&mut self, len: usize) {
        if self.is_empty() || self.written.is_empty() {
            self.len = len.min(self.len);
            return;
        }
        self.kept.retain(|kept| kept.position <= len);
        if self.is_known_after(len) {
            self.take_back(len);
            return;
        }
        if let Some(kept) = self.kept.last().filter(|kept| kept.position == len) {
            self.now.copy_from_slice(&kept.numbers);
        }
        self.settled.fill(len);
        self.written.fill(len);
        self.len = len;
    }

    /// Takes back the drafts from position `len` on.
    fn take_back(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        let (size, rows) = (self.shape.layer(), self.shape.rows());
        let windows = self.drafts.chunks_exact(self.shape.drafts());
        for ((own, window), settled) in self.now.chunks_exact_mut(size).zip(windows).zip(&self.settled) {
            let first = (len - settled) * self.shape.heads.columns();
            own[..rows].copy_from_slice(&window[first..first + rows]);
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
            self.settled = vec![0; self.shape.layers];
            self.written = vec![0; self.shape.layers];
        }
        Ok(())
    }

    /// Frees states beyond the end and what no draft needs, and all memory of an empty sequence.
    pub(crate) fn shrink(&mut self) {
        if self.settled.iter().all(|&settled| settled == self.len) {
            self.drafts = Vec::new();
        }
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
            None if len <= self.len && !self.now.is_empty() && self.is_known_after(len) => {
                fork.now.copy_from_slice(&self.now);
                fork.settled.copy_from_slice(&self.settled);
                fork.written.fill(self.len);
                fork.len = self.len;
                if self.settled.iter().any(|&settled| settled < self.len) {
                    fork.drafts = zeroed(self.drafts.len())?;
                    fork.drafts.copy_from_slice(&self.drafts);
                }
                fork.take_back(len);
                return Ok(fork);
            }
            None => return Err(misuse("a sequence is copied to where its states are not known")),
        }
        fork.settled.fill(len);
        fork.written.fill(len);
        fork.len = len;
        Ok(fork)
    }

    /// Layer `layer`, to write `positions`, which follow those that are written. The last `drafted` are drafts; more than
    /// [`MOST_DRAFTED`] cannot be taken back. `prompt` is the number of tokens that the model reads. The positions count as
    /// written.
    ///
    /// # Errors
    /// [`Error::Internal`] if they do not follow, or were not reserved; [`Error::OutOfMemory`].
    pub(crate) fn layer(
        &mut self,
        layer: usize,
        positions: Range<usize>,
        drafted: usize,
        prompt: usize,
    ) -> Result<DeltaLayer<'_>> {
        if self.written.get(layer) != Some(&positions.start) {
            return Err(misuse("the states before a position are not known"));
        }
        let drafted = if drafted <= MOST_DRAFTED { drafted } else { 0 };
        if drafted > 0 && self.drafts.is_empty() {
            self.drafts = zeroed(self.shape.layers * self.shape.drafts())?;
        }
        let (start, settled) = (positions.start, positions.end - drafted);
        let own = prompt_point(prompt);
        let wanted = |position: usize| is_power(position) || own == Some(position);
        let mut points: Vec<usize> = (FIRST_POINT.ilog2()..usize::BITS).map(|power| 1 << power).collect();
        points.extend(own.filter(|&point| !is_power(point)));
        for position in points.into_iter().filter(|&point| start < point && point <= settled) {
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
        let stayed = start - std::mem::replace(&mut self.settled[layer], settled);
        self.written[layer] = positions.end;
        let (size, rows) = (self.shape.layer(), self.shape.rows());
        let place = layer * size..(layer + 1) * size;
        let mut points = Vec::new();
        for kept in &mut self.kept {
            if start < kept.position && kept.position <= settled {
                let numbers = Arc::get_mut(&mut kept.numbers);
                let numbers = numbers.ok_or_else(|| misuse("a state that is shared is written"))?;
                let (rows, heads) = numbers[place.clone()].split_at_mut(rows);
                points.push((kept.position, rows, heads));
            }
        }
        let (rows, heads) = self.now[place].split_at_mut(rows);
        let (all, seen) = (self.shape.drafts(), (self.shape.before + drafted) * self.shape.heads.columns());
        let (mut window, mut drafts) =
            (Default::default(), StateDrafts { stayed, drafted, ..Default::default() });
        if !self.drafts.is_empty() {
            let (rows, steps) = self.drafts[layer * all..(layer + 1) * all].split_at_mut(self.shape.window());
            (window, drafts.steps) = (&mut rows[..seen], steps);
        }
        Ok(DeltaLayer { rows, heads, window, drafts, points })
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
