//! What the convolutions of a model keep of a sequence: the gated rows before the next one.
//!
//! A sequence can be cut where its rows are known: at its end, before each draft of the latest pass, and after every
//! [`SNAPSHOT`] positions.

use std::ops::Range;
use std::sync::Arc;

use super::rows::GatedRows;
use crate::compute::memory::zeroed;
use crate::{Error, Result};

/// Positions from one snapshot to the next.
pub(crate) const SNAPSHOT: usize = 64;

/// Most drafts at the end of a pass that can be taken back.
pub(crate) const MOST_DRAFTED: usize = 16;

/// The convolutions of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShortConvolutionShape {
    /// Layers with a convolution.
    pub layers: usize,
    /// Rows before its own that an output sees.
    pub before: usize,
    /// Numbers of a row.
    pub columns: usize,
}

impl ShortConvolutionShape {
    /// Numbers of the rows of all layers.
    fn numbers(self) -> usize {
        self.layers * self.layer()
    }

    /// Numbers of the rows of one layer.
    fn layer(self) -> usize {
        self.before * self.columns
    }

    /// Numbers of the rows of one layer that outputs from the first draft on see.
    fn window(self) -> usize {
        (self.before + MOST_DRAFTED) * self.columns
    }

    /// Bytes of a state of `positions` at most; `None` on overflow.
    pub(crate) fn bytes(self, positions: usize) -> Option<u64> {
        if positions == 0 {
            return Some(0);
        }
        let snapshots = positions as u64 / SNAPSHOT as u64 + 2;
        let rows = (self.before as u64).checked_mul(snapshots)?;
        let rows = rows.checked_add(self.before as u64)?.checked_add(MOST_DRAFTED as u64)?;
        rows.checked_mul(self.layers as u64)?.checked_mul(self.columns as u64)?.checked_mul(4)
    }
}

/// The rows of every convolution before the next row of a sequence: `[layers, before, columns]`.
#[derive(Debug)]
pub(crate) struct ShortConvolutionState {
    shape: ShortConvolutionShape,
    /// Positions of the sequence.
    len: usize,
    /// At its end.
    last: Vec<f32>,
    /// At the end of what a pass has written of each layer.
    next: Vec<f32>,
    /// Where that is.
    written: Vec<usize>,
    /// For each layer, the rows that outputs from the first draft of a pass on see.
    window: Vec<f32>,
    /// Drafts at the end of the sequence that `window` has, and those of a pass that has not ended.
    drafted: [usize; 2],
    /// After every so many positions; those beyond the end have any numbers, and no other state has them.
    snapshots: Vec<Arc<Vec<f32>>>,
}

fn misuse(reason: &str) -> Error {
    Error::internal("rows of convolutions", reason)
}

impl ShortConvolutionState {
    pub(crate) fn new(shape: ShortConvolutionShape) -> Self {
        Self {
            shape,
            len: 0,
            last: Vec::new(),
            next: Vec::new(),
            written: Vec::new(),
            window: Vec::new(),
            drafted: [0; 2],
            snapshots: Vec::new(),
        }
    }

    /// Positions of the sequence.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes allocated, including snapshots that other states have too.
    pub(crate) fn bytes(&self) -> u64 {
        let snapshots: usize = self.snapshots.iter().map(|rows| rows.len()).sum();
        4 * (self.last.len() + self.next.len() + self.window.len() + snapshots) as u64
    }

    /// The last place up to `len` at which the sequence can be cut.
    pub(crate) fn cut(&self, len: usize) -> usize {
        if self.shape.numbers() == 0 || len + self.drafted[0] >= self.len {
            len
        } else {
            len / SNAPSHOT * SNAPSHOT
        }
    }

    /// Drafts that the next pass may have at its end.
    pub(crate) fn most_drafted(&self) -> usize {
        if self.shape.numbers() == 0 { usize::MAX } else { MOST_DRAFTED }
    }

    /// Writes the rows at `len`, a [`cut`](Self::cut) before the end, to `out`: `[layers, before, columns]`.
    fn read_at(&self, len: usize, out: &mut [f32]) {
        if let Some(kept) = (len + self.drafted[0]).checked_sub(self.len) {
            let windows = self.window.chunks_exact(self.shape.window());
            for (out, window) in out.chunks_exact_mut(self.shape.layer()).zip(windows) {
                out.copy_from_slice(&window[kept * self.shape.columns..][..out.len()]);
            }
            return;
        }
        match (len / SNAPSHOT).checked_sub(1) {
            Some(number) => out.copy_from_slice(&self.snapshots[number]),
            None => out.fill(0.0),
        }
    }

    /// Shortens the sequence to `len` positions, a [`cut`](Self::cut).
    pub(crate) fn truncate(&mut self, len: usize) {
        if self.shape.numbers() == 0 || len >= self.len {
            return;
        }
        let mut last = std::mem::take(&mut self.last);
        self.read_at(len, &mut last);
        self.last = last;
        self.drafted[0] = (len + self.drafted[0]).saturating_sub(self.len);
        self.snapshots.truncate(len / SNAPSHOT);
        self.len = len;
    }

    /// Makes the positions up to `capacity` writable.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; the rows are then unchanged.
    pub(crate) fn reserve(&mut self, capacity: usize) -> Result<()> {
        let numbers = self.shape.numbers();
        if numbers == 0 || capacity == 0 {
            return Ok(());
        }
        if self.last.is_empty() {
            (self.last, self.next) = (zeroed(numbers)?, zeroed(numbers)?);
            self.written = vec![0; self.shape.layers];
        }
        while self.snapshots.len() < capacity / SNAPSHOT {
            self.snapshots.push(Arc::new(zeroed(numbers)?));
        }
        Ok(())
    }

    /// Frees snapshots beyond the end and what drafts need, and all memory of an empty sequence.
    pub(crate) fn shrink(&mut self) {
        (self.window, self.drafted) = (Vec::new(), [0; 2]);
        if self.len == 0 {
            *self = Self::new(self.shape);
        }
        self.snapshots.truncate(self.len / SNAPSHOT);
    }

    /// The first `len` positions, a [`cut`](Self::cut), with room for `capacity`.
    ///
    /// # Errors
    /// Those of [`reserve`](Self::reserve).
    pub(crate) fn fork(&self, len: usize, capacity: usize) -> Result<Self> {
        let mut fork = Self::new(self.shape);
        if self.shape.numbers() == 0 {
            return Ok(fork);
        }
        fork.snapshots = self.snapshots[..self.snapshots.len().min(len / SNAPSHOT)].to_vec();
        fork.reserve(capacity.max(len))?;
        if len == self.len && !self.last.is_empty() {
            fork.last.copy_from_slice(&self.last);
        } else if len < self.len {
            self.read_at(len, &mut fork.last);
        }
        fork.len = len;
        Ok(fork)
    }

    /// The rows of layer `layer` before `position`, at which the sequence ends or a pass has stopped: `[before, columns]`.
    ///
    /// # Errors
    /// [`Error::Internal`] for any other position.
    pub(crate) fn before(&self, layer: usize, position: usize) -> Result<&[f32]> {
        let rows = layer * self.shape.layer()..(layer + 1) * self.shape.layer();
        let from = match self.written.get(layer) {
            Some(_) if position == self.len => &self.last,
            Some(&written) if position == written => &self.next,
            _ => return Err(misuse("the rows before a position are not known")),
        };
        Ok(&from[rows])
    }

    /// Keeps what later rows of layer `layer` see of `rows`, which are those of `positions`. The last `drafted` are drafts;
    /// more than [`MOST_DRAFTED`] cannot be taken back.
    ///
    /// # Errors
    /// [`Error::Internal`] if the positions were not reserved; [`Error::OutOfMemory`].
    pub(crate) fn write(
        &mut self,
        layer: usize,
        positions: Range<usize>,
        drafted: usize,
        rows: &GatedRows<'_>,
    ) -> Result<()> {
        let place = layer * self.shape.layer()..(layer + 1) * self.shape.layer();
        if rows.columns != self.shape.columns || positions.len() != rows.count || layer >= self.written.len()
        {
            return Err(misuse("a layer has another shape"));
        }
        for number in positions.start / SNAPSHOT..positions.end / SNAPSHOT {
            let snapshot = self.snapshots.get_mut(number).and_then(Arc::get_mut);
            let snapshot = snapshot.ok_or_else(|| misuse("positions were not reserved"))?;
            let index = (number + 1) * SNAPSHOT - positions.start;
            rows.read_before(index, &mut snapshot[place.clone()]);
        }
        rows.read_before(rows.count, &mut self.next[place]);
        let drafted = if drafted <= MOST_DRAFTED { drafted } else { 0 };
        self.drafted = [0, drafted];
        if drafted > 0 {
            let size = self.shape.window();
            if self.window.is_empty() {
                self.window = zeroed(self.shape.layers * size)?;
            }
            let rows_of = (self.shape.before + drafted) * self.shape.columns;
            rows.read_before(rows.count - drafted, &mut self.window[layer * size..][..rows_of]);
        }
        self.written[layer] = positions.end;
        Ok(())
    }

    /// Extends the sequence to `len` positions, which have been written in every layer.
    pub(crate) fn extend_to(&mut self, len: usize) {
        if self.written.is_empty() || len == self.len {
            return;
        }
        assert!(self.written.iter().all(|&written| written == len), "{len} positions of {:?}", self.written);
        std::mem::swap(&mut self.last, &mut self.next);
        self.drafted = [self.drafted[1], 0];
        self.len = len;
    }
}
