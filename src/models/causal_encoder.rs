//! A language model as a sentence model: Qwen3-Embedding and its kin.
//!
//! The same layers as [`super::causal`] runs to write text, over packed batches and without a head: each token sees
//! itself and those before it, so the last one, the end token, has seen the whole text. A model that was trained to
//! attend in both directions is the same without that limit.

use super::causal::Source;
use super::llama::Shape;
use super::pooling::{Pooling, SentenceEncoder};
use crate::compute::decoder::Rotary;
use crate::compute::{Activation, Backend, Heads, Packed, Pass, RopeTable, Row};
use crate::{Error, Result};

/// A causal model on a backend.
pub struct CausalEncoder<B: Backend> {
    backend: B,
    words: B::Table,
    rotary: Rotary,
    layers: Vec<Layer<B>>,
    norm: B::Rms,
    heads: Heads,
    width: usize,
    context: usize,
}

struct Layer<B: Backend> {
    attention_norm: B::Rms,
    /// Queries, keys and values side by side.
    qkv: B::Linear,
    head_norms: Option<(B::Rms, B::Rms)>,
    output: B::Linear,
    mlp_norm: B::Rms,
    up: B::Linear,
    down: B::Linear,
}

impl<B: Backend> CausalEncoder<B> {
    /// Takes the weights that `shape` asks for from `source`.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; those of the backend.
    pub fn load(backend: B, shape: Shape, source: &dyn Source) -> Result<Self> {
        let rms = |scale| backend.rms(&scale, shape.epsilon);
        let layer = |index: usize| {
            let tensors = shape.layer(source, index)?;
            Ok(Layer {
                attention_norm: rms(tensors.attention_norm)?,
                qkv: backend.linear(&tensors.qkv)?,
                head_norms: match tensors.head_norms {
                    Some([queries, keys]) => Some((rms(queries)?, rms(keys)?)),
                    None => None,
                },
                output: backend.linear(&[tensors.output])?,
                mlp_norm: rms(tensors.mlp_norm)?,
                up: backend.gated(tensors.gate, tensors.up)?,
                down: backend.linear(&[tensors.down])?,
            })
        };
        let words = source.matrix("model.embed_tokens.weight", [shape.vocabulary, shape.hidden])?;
        Ok(Self {
            words: backend.table(words)?,
            layers: (0..shape.layers).map(layer).collect::<Result<_>>()?,
            norm: rms(source.vector("model.norm.weight", shape.hidden)?)?,
            heads: Heads {
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                width: shape.head,
                causal: shape.causal,
            },
            width: shape.hidden,
            context: shape.context,
            rotary: shape.rotary,
            backend,
        })
    }

    /// The last layer's states, not yet normalised: one row for each token of the pass, or `row` of each sequence
    /// alone.
    fn forward<'a>(
        &self,
        pass: &mut B::Pass<'a>,
        row: Option<Row>,
    ) -> Result<<B::Pass<'a> as Pass<B>>::States> {
        let turns = RopeTable::new(&self.rotary, pass.longest());
        let mut x = pass.embed(&self.words, None, None)?;
        // From the last attention on no row looks at another; in windows, all of them pass by first.
        // Without causality the rows of a window need those after it: there is one window, which is all rows.
        let windows = if self.heads.causal { pass.windows() } else { pass.windows().min(1) };
        let early = row.filter(|_| windows == 1);
        for (index, layer) in self.layers.iter().enumerate() {
            // What a row becomes depends on rows before it alone: keys and values are kept for one layer only.
            for window in 0..windows {
                if windows > 1 {
                    pass.enter(window);
                }
                let qkv = pass.norm_linear(&x, &layer.attention_norm, &layer.qkv, Activation::Identity)?;
                let qkv = pass.rotate(qkv, self.heads, layer.head_norms.as_ref(), &turns)?;
                let mut attended = pass.attention(qkv, self.heads)?;
                if let Some(row) = early.filter(|_| index + 1 == self.layers.len()) {
                    (attended, x) = (pass.pick(attended, row)?, pass.pick(x, row)?);
                }
                pass.linear_add(attended, &layer.output, &mut x)?;
                let up = pass.norm_linear(&x, &layer.mlp_norm, &layer.up, Activation::Silu)?;
                pass.linear_add(up, &layer.down, &mut x)?;
            }
        }
        match row.filter(|_| early.is_none()) {
            Some(row) => pass.pick(x, row),
            None => Ok(x),
        }
    }
}

impl<B: Backend> SentenceEncoder for CausalEncoder<B> {
    fn width(&self) -> usize {
        self.width
    }

    fn max_positions(&self) -> usize {
        self.context
    }

    fn encode(&self, batch: &Packed<'_>, pooling: Pooling, out: &mut [f32]) -> Result<()> {
        if out.len() != batch.sequences() * self.width {
            return Err(Error::Input(format!(
                "{} sequences of width {} do not fit into {} values",
                batch.sequences(),
                self.width,
                out.len()
            )));
        }
        if let Some(range) = batch.ranges().find(|range| range.len() > self.context) {
            return Err(Error::Input(format!(
                "{} tokens exceed the model's longest text ({})",
                range.len(),
                self.context
            )));
        }
        self.backend.run(batch, self.width, out, &|pass, out| {
            let x = self.forward(pass, pooling.row())?;
            let x = pass.rms(x, &self.norm)?;
            pass.read(x, &mut |index, rows| {
                pooling.pool(rows, &mut out[index * self.width..(index + 1) * self.width]);
            })
        })
    }

    fn memory_bytes(&self) -> u64 {
        self.backend.memory_bytes()
    }

    fn dtype(&self) -> &'static str {
        self.backend.dtype()
    }
}

#[cfg(test)]
#[path = "causal_encoder_tests.rs"]
mod tests;
