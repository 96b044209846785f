//! How the CPU runs a model: packed weights, fused kernels for each instruction set, one thread pool.
//!
//! A model description calls the operations of a [`Pass`]; a [`Backend`] carries them out. [`Cpu`] runs our own
//! kernels; [`Candle`] runs candle's operations on any device, and is the plain reference that tests compare with.
//!
//! This is the only room with unsafe code. Every block states why it holds, every kernel has a plain reference
//! beside it, and tests run each on all instruction sets of the machine, at sizes around its tile edges and with
//! its operands ending at unmapped pages.
#![allow(unsafe_code)]

pub mod attention;
pub mod backend;
pub mod file;
#[cfg(test)]
#[cfg(unix)]
mod guarded;
mod isa;
mod kernels;
pub mod linear;
mod matrix;
pub mod memory;
mod parallel;
mod simd;
mod threads;
mod weight;

pub use attention::{CacheShape, Heads, RopeStyle, RopeTable, Rotary};
pub use backend::{Backend, Candle, Cpu, Forward, KvCache, Pass, Positions, Row, Rows, Step};
pub use isa::{DType, ISA_VARIABLE, Isa};
pub use kernels::Activation;
pub(crate) use kernels::rowwise::LONGEST_HEAD;
pub use linear::{Matrix, WeightFormat};
pub use threads::Threads;
pub use weight::{Packed, Stored, Weight};
