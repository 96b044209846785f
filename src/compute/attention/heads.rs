//! How an input of attention divides into heads.

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
