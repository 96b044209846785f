//! Attention of queries over the keys and values of their own sequence, which are rows of the same matrix or in a KV cache.

pub(crate) mod heads;
pub(crate) mod kv_cache;
pub(crate) mod relative;
pub(crate) mod rope;
pub(crate) mod tiles;

pub use heads::{DistanceBias, Heads, KeySource, LayerAttention, Mask};
pub use kv_cache::{CacheShape, LayerShapes, PagedKvCache};
pub use relative::{DistanceRows, RelativeLayers, RelativeTable};
pub use rope::{LongRope, QueryGrowth, RopeStyle, RopeTable, Rotary};
