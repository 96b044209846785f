//! The CPU backend: packed weights and fused kernels, on packed batches without padding.
//!
//! A batch is divided into parts of whole sequences. Each thread runs a part through all layers in its own workspace, so
//! threads synchronize only at the end. If there are too few sequences for that, all threads divide each operation instead
//! ([`Parallelism`](crate::compute::parallel::Parallelism)).

mod attend;
mod delta_rule;
mod device;
mod embed;
mod experts;
mod layer_inputs;
mod normed;
mod pass;
mod plan;
#[cfg(test)]
mod relative_tests;
mod run;
mod sequence_convolution;
mod short_convolution;
mod states;
#[cfg(test)]
mod tests;
mod workspace;

pub use device::{Cpu, Norm, Table};
pub use pass::CpuPass;
pub use states::States;
