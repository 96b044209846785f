//! Requests → one packed batch → worker thread → replies.
//!
//! Each loaded model has one [`Batcher`]: a queue and the thread that empties it. While the worker computes one batch,
//! the queue forms the next, so batches grow with the load by themselves: there is no delay timer, and a lone request
//! never waits. A batch is bounded by tokens, not texts, and carries no padding.
//!
//! - Sequences with the same token ids, in one batch or in flight at once, are computed once.
//! - Two lanes: a bulk job of 100,000 texts cannot starve a chat message (see [`Lane`]).
//! - Sequences whose callers have all left are dropped before they are computed.
//! - A panic or error in one batch reaches only the callers of that batch; the worker lives on.

mod chunk;
mod queue;
mod worker;

pub use chunk::{Cancel, Chunk, Rows};
pub use queue::Lane;
pub(crate) use queue::{Budget, Queue, Waiter};
pub use worker::{Batcher, Counters, Forward, Work};
