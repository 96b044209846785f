//! The progress of a job.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::super::model::LoadedModel;
use super::super::super::registry::NamedSlot;
use crate::lifecycle::Lease;
use crate::models::heads::ScoreConfig;
use crate::output::{Output, Shape, View};
use crate::{Error, Result};

/// The results of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// One item for each input.
    pub output: Output,
    /// Tokens that the models read for them: prompts and special ones included, those cut off not.
    pub tokens: u64,
    /// Labels and activations of the model, if it scores.
    pub scores: Option<Arc<ScoreConfig>>,
}

#[derive(Default)]
pub(super) struct JobState {
    pub(super) groups: Vec<SlotGroup>,
    /// Allocated when the shape of the results is known.
    pub(super) output: Option<Output>,
    pub(super) finished: usize,
    /// Tokens of what is finished.
    pub(super) tokens: u64,
    /// Tokens of what is queued or being computed.
    pub(super) in_flight: usize,
    /// Inputs that were tokenized together last.
    pub(super) block: usize,
    pub(super) scores: Option<Arc<ScoreConfig>>,
    pub(super) outcome: Option<Result<()>>,
    /// Something for `step` to do.
    pub(super) runnable: bool,
}

/// The inputs of a job that go to one slot.
pub(super) struct SlotGroup {
    pub(super) entry: Arc<NamedSlot>,
    pub(super) lease: Option<Lease<LoadedModel>>,
    /// Input numbers, longest first: batches are even and the last one is quick.
    pub(super) order: Vec<usize>,
    pub(super) next: usize,
    /// Inputs still counted in `entry.queued`.
    pub(super) admitted: usize,
}

impl SlotGroup {
    /// Gives up the places of `inputs` in the slot's queue.
    pub(super) fn leave(&mut self, inputs: usize) {
        self.admitted -= inputs;
        self.entry.queued.fetch_sub(inputs, Ordering::Relaxed);
    }
}

impl Drop for SlotGroup {
    fn drop(&mut self) {
        self.leave(self.admitted);
    }
}

impl JobState {
    /// Allocates `inputs` results of this shape, if that is not done yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and [`Error::Input`] when the results have another shape already.
    pub(super) fn fit(&mut self, shape: Shape, inputs: usize) -> Result<()> {
        match self.output.as_ref().map(Output::shape) {
            None => {
                self.output = Some(Output::new(shape, inputs)?);
                Ok(())
            }
            Some(known) if known == shape => Ok(()),
            Some(known) => Err(Error::Input(format!(
                "these texts go to models of different dimensions ({} and {}), which one array cannot hold; name the \
                 model: embed(texts, model=...)",
                known.width(),
                shape.width()
            ))),
        }
    }

    /// Stores the result of one input, after [`JobState::fit`].
    pub(super) fn put(&mut self, input: usize, item: View<'_>) {
        if let Some(output) = &mut self.output {
            output.put(input, item);
        }
    }
}
