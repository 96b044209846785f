//! The division of an attention input into heads.

/// The columns of an attention input: `heads` queries, then `kv_heads` keys, then `kv_heads` values, each of `width`
/// columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads. They divide `heads`, and are fewer in grouped-query attention.
    pub kv_heads: usize,
    /// Columns of one head.
    pub width: usize,
    /// Whether the attention mask is causal: a token attends only to itself and to earlier tokens.
    pub causal: bool,
}
