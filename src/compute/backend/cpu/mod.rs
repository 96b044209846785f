//! The CPU backend: packed weights and fused kernels, on packed batches without padding.
//!
//! A batch is cut into parts of whole sequences. Each thread takes a part through all layers in a workspace of its
//! own, so threads meet only at the end. When there are too few sequences for that, all threads divide each
//! operation instead ([`Parallelism`](crate::compute::parallel::Parallelism)).

mod attend;
mod device;
mod pass;
mod plan;
mod run;
#[cfg(test)]
mod tests;
mod workspace;

pub use device::{Cpu, Norm, Table};
pub use pass::{CpuPass, States};
