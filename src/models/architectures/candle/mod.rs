//! Families that the layers of [`Transformer`](super::Transformer) do not describe, over candle's tensors.
//!
//! ```text
//! describe.rs   what a family says
//! loader.rs     tensors of a file → tensors on a device
//! ops.rs        linear layers, norms, softmax: by this crate's threads on the CPU, by candle's kernels on a GPU
//! pool.rs       the threads of candle's products
//! encoder.rs    one sequence after another → states → vectors
//! decoder.rs    one sequence after another → logits
//! head.rs       its last norm and the layer of logits
//! state.rs      what a sequence leaves in each layer
//! attention.rs  causal attention over that
//! deberta_v2/, lfm2.rs   the families
//! ```
//! A sequence is computed alone, so nothing is padded and its vector does not depend on its batch. The weights are float32.
//! A build without the feature `candle-models` has `absent.rs` in the place of all this.

use super::family::Family;

mod attention;
mod deberta_v2;
mod decoder;
pub(super) mod describe;
mod encoder;
mod head;
mod lfm2;
mod loader;
mod ops;
mod pool;
mod state;

pub use self::decoder::CandleDecoder;
pub use self::describe::{CandleArchitecture, EncoderModel};
pub(crate) use self::encoder::CandleEncoder;
pub use self::loader::TensorLoader;
pub use self::ops::Ops;
pub use self::state::{CandleState, DecoderModel, LayerShape};

/// The families.
pub(super) const FAMILIES: &[Family] = &[deberta_v2::FAMILY, lfm2::FAMILY];
