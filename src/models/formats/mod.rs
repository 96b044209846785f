//! Readers of the formats of weights. Each lists the tensors of a file; none runs code of it.

pub mod gguf;
mod gguf_asked;
mod gguf_file_type;
mod gguf_metadata;
pub(crate) mod mxfp4;
pub(super) mod pickle;
mod pickle_machine;
pub(super) mod safetensors;
