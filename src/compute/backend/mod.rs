//! Where a model computes: what backends and their passes do, and the two that there are.

pub mod candle;
pub mod cpu;
pub(crate) mod traits;

pub use candle::Candle;
pub use cpu::Cpu;
pub use traits::{Backend, Forward, KvCache, Pass, Positions, Row, Rows, Step};
