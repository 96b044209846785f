//! Families that the layers of [`Transformer`](super::Transformer) do not describe, over candle's tensors.
//!
//! ```text
//! describe.rs   what a family says
//! loader.rs     tensors of a file → tensors on a device
//! ops.rs        linear layers, norms, softmax: by this crate's threads on the CPU, by candle's kernels on a GPU
//! pool.rs       the threads of candle's products
//! encoder.rs    one sequence after another → states → vectors
//! decoder.rs    one sequence after another → logits
//! state.rs      what a sequence leaves in each layer
//! attention.rs  causal attention over that
//! deberta_v2/, lfm2.rs, falcon.rs   the families
//! ```
//! A sequence is computed alone, so nothing is padded and its vector does not depend on its batch. The weights are float32.
//! A build without the feature `candle-models` knows the names of these families and refuses them.

#[cfg(not(feature = "candle-models"))]
use super::architecture::Architecture;
use super::family::Family;
#[cfg(not(feature = "candle-models"))]
use super::family::{ComputeEngine, ConfigFile};
#[cfg(not(feature = "candle-models"))]
use crate::models::heads::layout;

#[cfg(feature = "candle-models")]
mod attention;
#[cfg(feature = "candle-models")]
mod deberta_v2;
#[cfg(feature = "candle-models")]
mod decoder;
#[cfg(feature = "candle-models")]
pub(super) mod describe;
#[cfg(feature = "candle-models")]
mod encoder;
#[cfg(feature = "candle-models")]
mod falcon;
#[cfg(feature = "candle-models")]
mod lfm2;
#[cfg(feature = "candle-models")]
mod loader;
#[cfg(feature = "candle-models")]
mod ops;
#[cfg(feature = "candle-models")]
mod pool;
#[cfg(feature = "candle-models")]
mod state;

#[cfg(feature = "candle-models")]
pub use self::decoder::CandleDecoder;
#[cfg(feature = "candle-models")]
pub use self::describe::{CandleArchitecture, EncoderModel};
#[cfg(feature = "candle-models")]
pub(crate) use self::encoder::CandleEncoder;
#[cfg(feature = "candle-models")]
pub use self::loader::TensorLoader;
#[cfg(feature = "candle-models")]
pub use self::ops::Ops;
#[cfg(feature = "candle-models")]
pub use self::state::{CandleState, DecoderModel, LayerShape};

/// The families.
#[cfg(feature = "candle-models")]
pub(super) const FAMILIES: &[Family] = &[deberta_v2::FAMILY, lfm2::FAMILY, falcon::FAMILY];

/// Their names, for lists and refusals.
#[cfg(not(feature = "candle-models"))]
pub(super) const FAMILIES: &[Family] = &[
    Family {
        generates: false,
        classifier: Some(&layout::DEBERTA),
        engine: ComputeEngine::Candle,
        ..Family::new("deberta-v2", "DebertaV2", &[], absent)
    },
    generator("lfm2", "Lfm2"),
    generator("falcon", "Falcon"),
];

#[cfg(not(feature = "candle-models"))]
const fn generator(model_type: &'static str, classes: &'static str) -> Family {
    Family { embeds: false, engine: ComputeEngine::Candle, ..Family::new(model_type, classes, &[], absent) }
}

#[cfg(not(feature = "candle-models"))]
fn absent(file: &ConfigFile<'_>) -> crate::Result<Box<dyn Architecture>> {
    Err(file.unsupported(ComputeEngine::Candle.missing()))
}
