//! How devices run a model. On the CPU: packed weights, fused kernels for each instruction set, one thread pool.
//!
//! A model description calls the operations of a [`Pass`], and a [`Backend`] runs them. [`Cpu`] uses the kernels of this
//! module, the backend `cuda` those of its own on NVIDIA's cards. [`Candle`] uses candle's operations on any device, and is the
//! reference of the tests.
//!
//! Unsafe code is here and in `arrow/` alone. Every unsafe block states the obligations that it meets. Tests compare every
//! kernel with a plain reference on all instruction sets of the machine, at sizes around its tile edges, and with operands
//! that end at inaccessible pages.
#![allow(unsafe_code)]

pub mod attention;
pub mod backend;
mod batch;
pub mod cards;
mod delta_rule;
mod experts;
pub mod file;
#[cfg(test)]
#[cfg(unix)]
mod guarded;
mod isa;
mod kernels;
pub mod linear;
mod matrix;
mod maxsim;
pub mod memory;
mod narrow;
mod ordered;
pub(crate) mod pages;
mod parallel;
pub mod pooling;
mod projection;
mod short_convolution;
mod simd;
mod threads;
mod weight;

pub use attention::{
    CacheShape, DistanceBias, DistanceRows, Heads, KeySource, LayerAttention, LayerShapes, LongRope, Mask,
    QueryGrowth, RelativeLayers, RelativeTable, RopeStyle, RopeTable, Rotary,
};
#[cfg(feature = "cuda")]
pub use backend::Cuda;
pub use backend::{
    Backend, Candle, CandleDevice, Cpu, ForwardFn, KvCache, Pass, Positions, Relief, Row, Rows, StatesOf,
    Step, TokenRows,
};
pub use batch::PackedBatch;
pub use delta_rule::{DeltaHeads, DeltaRule, DeltaRuleFactors, DeltaRuleShape};
pub use experts::{ExpertLayers, ExpertNorms, ExpertRouting, ExpertScores, Experts, SharedExpert};
pub use isa::{DType, ISA_VARIABLE, Isa};
pub(crate) use kernels::rowwise::LONGEST_HEAD;
pub use kernels::{Activation, ClampedSwish, Xielu};
pub use linear::{Biased, Matrix, WeightFormat};
pub use maxsim::maxsim;
pub(crate) use ordered::map_in_order;
pub use pooling::Pooling;
pub use projection::Projection;
pub use short_convolution::{
    LONGEST_SHORT_CONVOLUTION, ShortConvolution, ShortConvolutionFactors, ShortConvolutionShape,
};
pub use threads::Threads;
pub use weight::{Stored, Weight};
