//! Adapters: small tensors that change those of a base model.
//!
//! They are added to the weights when these are packed, so a model with an adapter computes and takes memory as one without.
//!
//! ```text
//! config.rs     adapter_config.json of PEFT       change.rs     tensors by the tensor that they change
//! own.rs        those in a model's own files       adapter.rs    the changes of one model
//! low_rank.rs   W + s·B·A
//! ```

pub(crate) mod adapter;
pub(crate) mod change;
pub(crate) mod config;
mod low_rank;
pub(crate) mod own;
