//! The backends that run models: the traits of backends and passes, and their implementations.

pub mod candle;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod parts;
pub(crate) mod rows;
mod traits;

pub use candle::{Candle, CandleDevice, Relief};
pub use cpu::Cpu;
#[cfg(feature = "cuda")]
pub use cuda::Cuda;
pub use traits::{
    Backend, ForwardFn, KvCache, Pass, Positions, Row, Rows, StatesOf, Step, TokenRows, WindowFn,
};
