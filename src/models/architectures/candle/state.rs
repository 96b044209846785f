//! What the layers of a decoder keep of a sequence.

use std::sync::Arc;

use candle_core::Tensor;

use super::ops::{Ops, failed};
use crate::Result;
use crate::models::decoder::KvCache;

/// The layers of a decoder.
pub trait DecoderModel: Send + Sync {
    /// What a new sequence has in each layer.
    fn layers(&self) -> Vec<LayerShape>;

    /// Appends `tokens` to the sequence of `state`, in each of its layers. The logits after the last of them, one row, if they
    /// are needed.
    ///
    /// # Errors
    /// Those of candle.
    fn forward(
        &self,
        ops: &Ops,
        tokens: &[u32],
        state: &mut CandleState,
        needs_logits: bool,
    ) -> Result<Option<Tensor>>;
}

/// What a layer keeps of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerShape {
    /// Keys and values of each token: so many numbers of both.
    Attention(usize),
    /// So many numbers, whatever the length.
    Recurrent(usize),
}

/// What one layer has of a sequence.
#[derive(Debug, Clone)]
pub(super) enum LayerState {
    /// Nothing yet.
    Empty,
    /// Keys and values, `[heads, tokens, width]`.
    Attention([Tensor; 2]),
    /// What it takes from the tokens so far.
    Recurrent(Tensor),
}

/// What the layers of a model have of one sequence. Clones share their tensors, of which none is ever changed.
#[derive(Debug, Clone)]
pub struct CandleState {
    layers: Vec<LayerState>,
    shapes: Arc<[LayerShape]>,
    len: usize,
}

impl CandleState {
    /// An empty state of so many layers.
    #[cfg(test)]
    pub(super) fn of_layers(count: usize) -> Self {
        Self::empty(vec![LayerShape::Attention(0); count].into())
    }

    pub(super) fn empty(shapes: Arc<[LayerShape]>) -> Self {
        Self { layers: vec![LayerState::Empty; shapes.len()], shapes, len: 0 }
    }

    /// Tokens so far.
    pub(super) fn tokens(&self) -> usize {
        self.len
    }

    /// Counts tokens that all layers have been given.
    pub(super) fn extend(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Appends the keys and values of new tokens to those of layer `index`, and returns all.
    pub(super) fn append(&mut self, index: usize, new: [Tensor; 2]) -> Result<[Tensor; 2]> {
        let all = match &self.layers[index] {
            LayerState::Attention([keys, values]) => {
                let join = |old: &Tensor, new: &Tensor| Tensor::cat(&[old, new], 1).map_err(failed);
                [join(keys, &new[0])?, join(values, &new[1])?]
            }
            _ => new,
        };
        self.layers[index] = LayerState::Attention(all.clone());
        Ok(all)
    }

    /// What layer `index` took from earlier tokens.
    pub(super) fn recurrent(&self, index: usize) -> Option<&Tensor> {
        match &self.layers[index] {
            LayerState::Recurrent(state) => Some(state),
            _ => None,
        }
    }

    pub(super) fn set_recurrent(&mut self, index: usize, state: Tensor) {
        self.layers[index] = LayerState::Recurrent(state);
    }

    /// Whether it can be shortened to any number of tokens.
    fn is_divisible(&self) -> bool {
        self.shapes.iter().all(|shape| matches!(shape, LayerShape::Attention(_)))
    }
}

impl KvCache for CandleState {
    fn len(&self) -> usize {
        self.len
    }

    /// A state that cannot be shortened to `len` tokens is emptied.
    fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        let shorten = |layer: &LayerState| match layer {
            LayerState::Attention([keys, values]) => {
                let first = |x: &Tensor| x.narrow(1, 0, len).ok();
                Some(LayerState::Attention([first(keys)?, first(values)?]))
            }
            _ => None,
        };
        let divisible = len > 0 && self.is_divisible();
        let layers =
            if divisible { self.layers.iter().map(shorten).collect::<Option<Vec<_>>>() } else { None };
        *self = match layers {
            Some(layers) => Self { layers, len, shapes: self.shapes.clone() },
            None => Self::empty(self.shapes.clone()),
        };
    }

    fn reserve(&mut self, _capacity: usize) -> Result<()> {
        Ok(())
    }

    fn fork(&self, len: usize, _capacity: usize) -> Result<Self> {
        let mut fork = self.clone();
        fork.truncate(len);
        Ok(fork)
    }

    fn shrink(&mut self) -> Result<()> {
        for layer in &mut self.layers {
            if let LayerState::Attention(parts) = layer {
                for part in parts {
                    *part = part.force_contiguous().map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        bytes_of(&self.shapes, self.len)
    }
}

/// Bytes of `tokens` tokens.
pub(super) fn bytes_of(shapes: &[LayerShape], tokens: usize) -> u64 {
    let of = |shape: &LayerShape| match *shape {
        LayerShape::Attention(each) => 8 * each as u64 * tokens as u64,
        LayerShape::Recurrent(numbers) => 4 * numbers as u64 * u64::from(tokens > 0),
    };
    shapes.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn keys(tokens: usize) -> [Tensor; 2] {
        let one = || Tensor::zeros((2, tokens, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        [one(), one()]
    }

    fn state(shapes: &[LayerShape]) -> CandleState {
        let mut state = CandleState::empty(shapes.into());
        state.append(0, keys(5)).unwrap();
        if shapes.len() > 1 {
            state.set_recurrent(1, Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu).unwrap());
        }
        state.len = 5;
        state
    }

    #[test]
    fn attention_is_shortened_and_recurrence_begins_anew() {
        let mut divisible = state(&[LayerShape::Attention(6)]);
        assert_eq!((divisible.len(), divisible.bytes()), (5, 240));
        assert_eq!(divisible.fork(2, 9).unwrap().len(), 2);
        divisible.truncate(3);
        divisible.shrink().unwrap();
        let [all, _] = divisible.append(0, keys(1)).unwrap();
        assert_eq!((divisible.len(), all.dims()), (3, &[2, 4, 3][..]));
        let mut mixed = state(&[LayerShape::Attention(6), LayerShape::Recurrent(4)]);
        assert_eq!((mixed.fork(5, 9).unwrap().len(), mixed.bytes()), (5, 256));
        mixed.truncate(7);
        assert_eq!(mixed.len(), 5);
        mixed.truncate(4);
        assert!(mixed.is_empty() && mixed.recurrent(1).is_none() && mixed.bytes() == 0);
    }
}
