//! Families that the layers of [`Transformer`](super::Transformer) do not describe, over candle's tensors.
//!
//! ```text
//! describe.rs   what a family says
//! loader.rs     tensors of a file → tensors on a device
//! ops.rs        linear layers, norms, softmax: by this crate's threads on the CPU, by candle's kernels on a GPU
//! pool.rs       the threads of candle's products
//! decoder.rs    one sequence after another → logits
//! head.rs       its last norm and the layer of logits
//! state.rs      what a sequence leaves in each layer
//! attention.rs  causal attention over that
//! lfm2.rs       the family
//! ```
//! A sequence is computed alone, so nothing is padded and its vector does not depend on its batch. The weights are float32.
//! A build without the feature `candle-models` has `absent.rs` in the place of all this.

use super::family::Family;

#[cfg(test)]
mod absent;
mod attention;
mod decoder;
pub(super) mod describe;
mod head;
mod lfm2;
mod loader;
mod ops;
mod pool;
mod state;

pub use self::decoder::CandleDecoder;
pub use self::describe::CandleArchitecture;
pub use self::loader::TensorLoader;
pub use self::ops::Ops;
pub use self::state::{CandleState, DecoderModel, LayerShape};

/// The families.
pub(super) const FAMILIES: &[Family] = &[lfm2::FAMILY];
