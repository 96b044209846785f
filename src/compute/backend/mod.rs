//! The backends that run models: the traits of backends and passes, and two implementations.

pub mod candle;
pub mod cpu;
pub(crate) mod traits;

pub use candle::{Candle, CandleDevice, Relief};
pub use cpu::Cpu;
pub use traits::{Backend, ForwardFn, KvCache, Pass, Positions, Row, Rows, Step};
