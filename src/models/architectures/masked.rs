//! The head of a masked language model: a number for each token of the vocabulary, at each token of a text.

use super::tensors::{EmbeddingTensors, Tensors};
use crate::compute::memory::zeroed;
use crate::compute::{Activation, Backend, Matrix, Pass, Rows, StatesOf, Weight};
use crate::models::heads::layout::MaskedHead;
use crate::{Error, Result};

/// Entries of the vocabulary whose numbers are in memory at a time.
const STRIP: usize = 1024;

/// The head on a backend.
pub(super) struct MaskedLm<B: Backend> {
    dense: B::Linear,
    activation: Activation,
    norm: B::Norm,
    /// The matrix of the vocabulary, `STRIP` rows each.
    strips: Vec<B::Linear>,
}

/// Checks that the tensors of the head are there and have its shapes, for a model of this vocabulary and width.
///
/// # Errors
/// When a tensor is missing or of another shape.
pub fn check_masked(
    tensors: &dyn Tensors,
    head: &MaskedHead,
    [vocabulary, hidden]: [usize; 2],
) -> Result<()> {
    tensors.matrix(&format!("{}.weight", head.dense), [hidden, hidden])?;
    for name in [head.dense, head.norm] {
        tensors.vector(&format!("{name}.bias"), hidden)?;
    }
    tensors.vector(&format!("{}.weight", head.norm), hidden)?;
    if tensors.contains(head.decoder) {
        tensors.matrix(head.decoder, [vocabulary, hidden])?;
    }
    tensors.vector(bias_of(tensors, head), vocabulary).map(drop)
}

/// Two names of one vector, unless a file has both: then the layer itself has the first.
fn bias_of(tensors: &dyn Tensors, head: &MaskedHead) -> &'static str {
    if tensors.contains(head.decoder_bias) { head.decoder_bias } else { head.bias }
}

impl<B: Backend> MaskedLm<B> {
    pub(super) fn load(
        backend: &B,
        tensors: &dyn Tensors,
        head: &MaskedHead,
        embeddings: EmbeddingTensors,
        [vocabulary, hidden]: [usize; 2],
        activation: Activation,
    ) -> Result<Self> {
        let vector = |name: &str, rest: &str| tensors.vector(&format!("{name}.{rest}"), hidden);
        let dense = tensors.matrix(&format!("{}.weight", head.dense), [hidden, hidden])?;
        let epsilon = embeddings.norm.as_ref().map_or(1e-12, |norm| norm.epsilon);
        let scale = vector(head.norm, "weight")?;
        let decoder = match tensors.contains(head.decoder) {
            true => tensors.matrix(head.decoder, [vocabulary, hidden])?,
            false => embeddings.words,
        };
        let bias = tensors.vector(bias_of(tensors, head), vocabulary)?.to_f32()?;
        let Matrix::Plain(decoder) = decoder else {
            let (place, reason) = ("masked".into(), "a quantized vocabulary is not divided".into());
            return Err(Error::Internal { place, reason });
        };
        let (mut strips, mut scratch) = (Vec::new(), Vec::new());
        for (number, bias) in bias.chunks(STRIP).enumerate() {
            let first = number * STRIP;
            let mut rows = zeroed(bias.len() * hidden)?;
            decoder.rows_f32(first..first + bias.len(), &mut rows, &mut scratch)?;
            let rows = Weight::from_f32(&rows, &[bias.len(), hidden])?;
            strips.push(backend.linear(&[(rows.into(), Some(Weight::from_f32(bias, &[bias.len()])?))])?);
        }
        Ok(Self {
            dense: backend.linear(&[(dense, Some(vector(head.dense, "bias")?))])?,
            activation: head.activation.unwrap_or(activation),
            norm: backend.norm(&scale, Some(&vector(head.norm, "bias")?), epsilon)?,
            strips,
        })
    }

    /// Calls `each` with the index in the pass of each sequence, the first entry of a strip, and its numbers at each
    /// token: for a sequence, strip by strip in the order of the vocabulary.
    pub(super) fn read<'a>(
        &self,
        pass: &mut B::Pass<'a>,
        x: StatesOf<'a, B>,
        each: &mut dyn FnMut(usize, usize, Rows<'_>),
    ) -> Result<()> {
        let x = pass.linear_norm(x, &self.dense, self.activation, &self.norm)?;
        for (number, strip) in self.strips.iter().enumerate() {
            pass.for_each_logits(&x, strip, &mut |index, rows| each(index, number * STRIP, rows))?;
        }
        Ok(())
    }
}
