//! The progress of a job.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::super::model::LoadedModel;
use super::super::super::registry::Entry;
use crate::compute::memory::zeroed;
use crate::lifecycle::Lease;
use crate::{Error, Result};

/// Vectors of a call: row-major f32 `[rows, width]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// `rows · width` values.
    pub values: Vec<f32>,
    /// Inputs.
    pub rows: usize,
    /// Dimensions; 0 when there were no inputs and no model is known yet.
    pub width: usize,
    /// Tokens that the models read for them: prompts and special ones included, those cut off not.
    pub tokens: u64,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) groups: Vec<Group>,
    pub(super) out: Vec<f32>,
    pub(super) width: Option<usize>,
    pub(super) finished: usize,
    /// Tokens of what is finished.
    pub(super) tokens: u64,
    /// Tokens of what is queued or being computed.
    pub(super) in_flight: usize,
    pub(super) outcome: Option<Result<()>>,
    /// Something for `step` to do.
    pub(super) runnable: bool,
}

/// The inputs of a job that go to one slot.
pub(super) struct Group {
    pub(super) entry: Arc<Entry>,
    pub(super) lease: Option<Lease<LoadedModel>>,
    /// Input numbers, longest first: batches are even and the last one is quick.
    pub(super) order: Vec<usize>,
    pub(super) next: usize,
    /// Inputs still counted in `entry.queued`.
    pub(super) admitted: usize,
}

impl Group {
    /// Gives up the places of `inputs` in the slot's queue.
    pub(super) fn leave(&mut self, inputs: usize) {
        self.admitted -= inputs;
        self.entry.queued.fetch_sub(inputs, Ordering::Relaxed);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.leave(self.admitted);
    }
}

impl State {
    /// Allocates `inputs` rows of `width`, if that is not done yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and [`Error::Input`] when the rows have another width already.
    pub(super) fn fit(&mut self, width: usize, inputs: usize) -> Result<()> {
        match self.width {
            None => {
                self.out = zeroed(width.saturating_mul(inputs))?;
                self.width = Some(width);
                Ok(())
            }
            Some(known) if known == width => Ok(()),
            Some(known) => Err(Error::Input(format!(
                "these texts go to models of different dimensions ({known} and {width}), which one array cannot hold; \
                 name the model: embed(texts, model=...)"
            ))),
        }
    }

    pub(super) fn row(&mut self, input: usize) -> &mut [f32] {
        let width = self.width.unwrap_or(0);
        &mut self.out[input * width..(input + 1) * width]
    }
}
