//! How the CPU runs a model: packed weights, fused kernels for each instruction set, one thread pool.
//!
//! A model description calls the operations of a [`Pass`]; a [`Backend`] carries them out. [`Cpu`] runs our own
//! kernels; [`Candle`] runs candle's operations on any device, and is the plain reference that tests compare with.
//!
//! This is the only room with unsafe code. Every block states why it holds, every kernel has a plain reference
//! beside it, and tests run each on all instruction sets of the machine, at sizes around its tile edges and with
//! its operands ending at unmapped pages.
#![allow(unsafe_code)]

mod backend;
pub mod candle;
pub mod cpu;
pub mod decoder;
pub mod file;
#[cfg(test)]
#[cfg(unix)]
mod guarded;
mod isa;
mod kernels;
pub mod memory;
mod threads;
mod weight;

pub use backend::{Activation, Backend, Forward, Heads, Pass, Positions, RopeTable, Row, Rows};
pub use candle::Candle;
pub use cpu::Cpu;
pub use decoder::{Matrix, WeightFormat};
pub use isa::{DType, ISA_VARIABLE, Isa};
pub(crate) use kernels::rowwise::LONGEST_HEAD;
pub use threads::Threads;
pub use weight::{Packed, Stored, Tensors, Weight};
