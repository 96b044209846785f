//! The progress of a job.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::super::info::ModelInfo;
use super::super::super::model::{LoadedModel, ModelHandle};
use super::super::super::registry::NamedSlot;
use crate::compute::memory::{push, reserve};
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
    /// The model that gave them, or one of several.
    pub(in super::super::super) info: Option<Arc<ModelInfo>>,
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
    /// The model of the latest group.
    pub(super) info: Option<Arc<ModelInfo>>,
    pub(super) outcome: Option<Result<()>>,
    /// Something for `step` to do.
    pub(super) runnable: bool,
}

/// A model in memory, and what keeps it there: for the call, and for each chunk of it until that is computed.
pub(super) struct LeasedModel {
    pub(super) handle: ModelHandle,
    pub(super) _lease: Lease<LoadedModel>,
}

/// Where the model of a group is.
#[derive(Default)]
pub(super) enum GroupModel {
    /// It is being loaded.
    #[default]
    Awaited,
    /// In memory.
    Ready(Arc<LeasedModel>),
    /// All inputs of the group are queued: their chunks keep it, so that the model of another group finds its memory.
    WithChunks,
}

impl GroupModel {
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self, Self::Awaited)
    }

    pub(super) fn ready(&self) -> Option<&Arc<LeasedModel>> {
        match self {
            Self::Ready(model) => Some(model),
            Self::Awaited | Self::WithChunks => None,
        }
    }
}

/// The inputs of a job that go to one slot.
pub(super) struct SlotGroup {
    pub(super) entry: Arc<NamedSlot>,
    pub(super) model: GroupModel,
    /// Input numbers, longest first: batches are even and the last one is quick.
    pub(super) order: Vec<usize>,
    pub(super) next: usize,
    /// Inputs still counted in `entry.queued`.
    pub(super) admitted: usize,
    /// Inputs whose results the cache had.
    pub(super) hits: Hits,
}

/// Results of one slot that the cache had, all of one model.
#[derive(Default)]
pub(super) struct Hits {
    identity: Option<Arc<str>>,
    inputs: Vec<usize>,
    tokens: u64,
}

impl Hits {
    /// Whether results of this model may be added.
    pub(super) fn are_of(&self, identity: &str) -> bool {
        self.identity.as_deref().is_none_or(|known| known == identity)
    }

    /// Adds an input whose result is that of `identity`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn add(&mut self, identity: &Arc<str>, input: usize, tokens: u32) -> Result<()> {
        push(&mut self.inputs, input)?;
        self.tokens += u64::from(tokens);
        self.identity.get_or_insert_with(|| Arc::clone(identity));
        Ok(())
    }
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
    /// Takes back what the cache had for a group whose slot has loaded another model since: one call gives results of one
    /// model for each slot. Those inputs are to be computed too. `length` is that of an input.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn take_back(
        &mut self,
        group: usize,
        identity: &str,
        length: impl Fn(usize) -> usize,
    ) -> Result<()> {
        let group = &mut self.groups[group];
        if group.hits.are_of(identity) {
            return Ok(());
        }
        let Hits { inputs, tokens, .. } = std::mem::take(&mut group.hits);
        reserve(&mut group.order, inputs.len())?;
        group.order.extend_from_slice(&inputs);
        group.order.sort_unstable_by_key(|&input| (std::cmp::Reverse(length(input)), input));
        group.entry.queued.fetch_add(inputs.len(), Ordering::Relaxed);
        group.admitted += inputs.len();
        self.finished -= inputs.len();
        self.tokens -= tokens;
        // No other result fixes the shape.
        if self.finished == 0 && self.groups.iter().all(|group| group.model.is_awaited()) {
            self.output = None;
        }
        Ok(())
    }

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
