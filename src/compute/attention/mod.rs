//! Attention: of queries over the keys and values of their own sequence, which lie beside them or in a cache.

pub(crate) mod heads;
pub(crate) mod kv_cache;
pub(crate) mod rope;
pub(crate) mod tiles;

pub use heads::Heads;
pub use kv_cache::{CacheShape, PagedKvCache};
pub use rope::{RopeStyle, RopeTable, Rotary};
