//! Attention: of queries over the keys and values of their own sequence, which lie beside them or in a cache.

pub(crate) mod kv_cache;
mod rope;
pub(crate) mod tiles;

pub use kv_cache::{CacheShape, PagedKvCache};
pub use rope::{RopeStyle, RopeTable, Rotary};

/// How the columns of an attention input divide: `heads` queries, then `kv_heads` keys, then as many values, each
/// `width` wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads: a divisor of `heads`, equal to it without grouping.
    pub kv_heads: usize,
    /// Columns of one head.
    pub width: usize,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
}
