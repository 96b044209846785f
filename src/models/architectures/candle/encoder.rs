//! Texts to states and vectors, one sequence after another.

use std::sync::Weak;

use candle_core::Device;

use super::describe::EncoderModel;
use super::loader::TensorLoader;
use super::ops::{Ops, failed};
use super::pool;
use crate::compute::file::WeightFile;
use crate::compute::{Packed, Rows};
use crate::models::architectures::architecture::{Architecture, misuse};
use crate::models::architectures::tensors::Tensors;
use crate::models::heads::pooling::{Pooling, ReadStates, SentenceEncoder};
use crate::{Error, Result};

/// An encoder in memory.
pub(crate) struct CandleEncoder {
    model: Box<dyn EncoderModel>,
    ops: Ops,
    width: usize,
    context: usize,
    bytes: u64,
    files: Vec<Weak<WeightFile>>,
}

impl CandleEncoder {
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
        let model = described.encoder(&mut loader)?;
        let description = architecture.describe();
        Ok(Some(Self {
            model,
            ops: Ops::new(device),
            width: description.hidden,
            context: description.context,
            bytes: loader.bytes(),
            files: tensors.files(),
        }))
    }

    /// The states of a sequence that has tokens, row-major.
    fn states_of(&self, ids: &[u32], second: usize) -> Result<Vec<f32>> {
        if ids.len() > self.context {
            let (tokens, longest) = (ids.len(), self.context);
            return Err(Error::Input(format!("{tokens} tokens exceed the model's longest text ({longest})")));
        }
        let states = pool::run(|| self.model.states(&self.ops, ids, second))??;
        states.flatten_all().and_then(|states| states.to_vec1()).map_err(failed)
    }

    fn each(&self, batch: &Packed<'_>, mut each: impl FnMut(usize, Rows<'_>)) -> Result<()> {
        if !batch.hidden.is_empty() {
            return Err(misuse("tokens to which none attends"));
        }
        for (index, range) in batch.ranges().enumerate() {
            let second = batch.second_type(index).saturating_sub(range.start);
            let ids = &batch.ids[range];
            let states = if ids.is_empty() { Vec::new() } else { self.states_of(ids, second)? };
            each(index, Rows::new(&states, self.width, self.width));
        }
        Ok(())
    }
}

impl SentenceEncoder for CandleEncoder {
    fn width(&self) -> usize {
        self.width
    }

    fn encode(&self, batch: &Packed<'_>, pooling: Pooling, out: &mut [f32]) -> Result<()> {
        if out.len() != batch.sequences() * self.width {
            return Err(misuse("one row of output for each sequence"));
        }
        let mut vectors = out.chunks_exact_mut(self.width);
        self.each(batch, |_, rows| {
            if let Some(vector) = vectors.next() {
                pooling.pool(rows, vector);
            }
        })
    }

    fn states(&self, batch: &Packed<'_>, each: &ReadStates<'_>) -> Result<()> {
        self.each(batch, |index, rows| each(index, 0, rows))
    }

    /// All weights are in memory: a file that changes later does not matter. One that changes during the load is found by
    /// the loader.
    fn check(&self) -> Result<()> {
        self.files.iter().filter_map(Weak::upgrade).try_for_each(|file| file.check())
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes
    }

    fn device_bytes(&self) -> u64 {
        if self.ops.computes_rows() { 0 } else { self.bytes }
    }

    fn dtype(&self) -> &'static str {
        "float32"
    }
}
