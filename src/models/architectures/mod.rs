//! The architectures that this crate runs, by the names that files give them.
//!
//! An architecture is one file: what its configuration says, and the names of its tensors. [`Transformer`] makes vectors
//! and logits of both, on any [`Backend`](crate::compute::Backend). To add one, write its file and name its
//! [`Family`] in `registry.rs`; a program adds its own with [`register`].

mod albert;
mod architecture;
mod bert;
mod biased_experts;
mod convbert;
mod convolution;
mod deberta_v2;
mod distilbert;
mod dynamic_convolution;
mod experts;
mod family;
mod gemma4;
mod gguf_keys;
mod gguf_tensors;
mod gpt2;
mod jina_bert;
mod layers;
mod lfm2;
mod llama;
mod masked;
mod modernbert;
mod mpnet;
mod nomic_experts;
mod nomic_spellings;
mod qwen3_5;
mod registry;
mod rope_scaling;
mod rotary_bert;
mod rotary_gpt;
mod t5;
mod tensors;
mod transformer;

pub use architecture::{Architecture, Description, Factors, check_tensors};
pub(crate) use family::LARGEST_SIZE;
pub use family::{
    ConfigFields, ConfigFile, Family, FieldsOf, GgufFamily, ModelKind, ReadConfig, ReadGguf, keys_of,
};
pub(crate) use gguf_tensors::GgufTensors;
pub use masked::check_masked;
pub use registry::{example, families, find, find_config, find_gguf, register};
pub(crate) use registry::{gguf_refusal, refusal};
pub use tensors::{
    ConvolutionTensors, DynamicConvolutionTensors, EmbeddingTensors, ExpertMatrices, ExpertTensors,
    LayerTensors, MixerTensors, MlpTensors, NormTensors, SharedTensors, Tensors,
};
pub use transformer::Transformer;
