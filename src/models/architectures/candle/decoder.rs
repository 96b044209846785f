//! Text token by token: the steps of the engine.

use std::sync::{Arc, Weak};

use candle_core::Device;

use super::loader::TensorLoader;
use super::ops::{Ops, failed};
use super::pool;
use super::state::{CandleState, DecoderModel, LayerShape, bytes_of};
use crate::compute::file::WeightFile;
use crate::models::architectures::architecture::{Architecture, misuse};
use crate::models::architectures::tensors::Tensors;
use crate::models::decoder::{Decoder, KvCache as _, Step};
use crate::{Error, Result};

/// A decoder in memory. Sequences take turns: each step computes them one after another.
pub struct CandleDecoder {
    model: Box<dyn DecoderModel>,
    ops: Ops,
    shapes: Arc<[LayerShape]>,
    vocabulary: usize,
    context: usize,
    bytes: u64,
    files: Vec<Weak<WeightFile>>,
}

impl CandleDecoder {
    /// Loads the model of `architecture` onto `device`; `None` if its layers are those of this crate.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; those of the device.
    pub(crate) fn load(
        architecture: &dyn Architecture,
        tensors: &dyn Tensors,
        device: &Device,
    ) -> Result<Option<Self>> {
        let Some(described) = architecture.candle() else { return Ok(None) };
        let mut loader = TensorLoader::new(tensors, device);
        let model = described.decoder(&mut loader)?;
        let description = architecture.describe();
        Ok(Some(Self {
            shapes: model.layers().into(),
            model,
            ops: Ops::new(device),
            vocabulary: description.vocabulary,
            context: description.context,
            bytes: loader.bytes(),
            files: tensors.files(),
        }))
    }

    /// Bytes of weights in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.bytes
    }

    /// Of those, bytes on a device with a memory of its own.
    pub fn device_bytes(&self) -> u64 {
        if self.ops.computes_rows() { 0 } else { self.bytes }
    }

    /// The format of weights.
    pub fn dtype(&self) -> &'static str {
        "float32"
    }

    fn check(&self, step: &Step<'_, CandleState>) -> Result<()> {
        let end = step.cache.len() + step.tokens.len();
        if end > self.context {
            let context = self.context;
            return Err(Error::Input(format!("{end} tokens exceed the model's context of {context}")));
        }
        Ok(())
    }
}

impl Decoder for CandleDecoder {
    type Cache = CandleState;

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn context(&self) -> usize {
        self.context
    }

    fn new_cache(&self, _capacity: usize) -> Result<CandleState> {
        Ok(CandleState::empty(self.shapes.clone()))
    }

    fn cache_bytes(&self, tokens: usize) -> u64 {
        bytes_of(&self.shapes, tokens)
    }

    /// All caches get their tokens, or none does: one with a recurrent layer cannot be shortened by a few tokens.
    fn forward(&self, steps: &mut [Step<'_, CandleState>], logits: &mut [f32]) -> Result<()> {
        let mut rows = logits.chunks_exact_mut(self.vocabulary);
        let mut states = Vec::with_capacity(steps.len());
        for step in steps.iter() {
            self.check(step)?;
            let mut state = step.cache.clone();
            let (tokens, needs_logits) = (step.tokens, step.needs_logits);
            let work = || self.model.forward(&self.ops, tokens, &mut state, needs_logits);
            let found = pool::run(work)??;
            state.extend(tokens.len());
            states.push(state);
            if needs_logits {
                let row =
                    rows.next().ok_or_else(|| misuse("one row of output for each step that needs logits"))?;
                let found = found.ok_or_else(|| misuse("a step without its logits"))?;
                let found = found.flatten_all().and_then(|x| x.to_vec1::<f32>()).map_err(failed)?;
                row.copy_from_slice(&found);
            }
        }
        steps.iter_mut().zip(states).for_each(|(step, state)| *step.cache = state);
        self.files.iter().filter_map(Weak::upgrade).try_for_each(|file| file.check())
    }
}
