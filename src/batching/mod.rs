//! Requests → one packed batch → worker thread → replies.
//!
//! Each loaded model has one [`Batcher`]: a queue and the thread that empties it. While the worker computes one batch,
//! the queue forms the next, so batches grow with the load by themselves: there is no delay timer, and a single request
//! never waits. A batch is bounded by tokens, not texts, and carries no padding.
//!
//! - Sequences with the same token ids, in one batch or in flight at once, are computed once.
//! - Two lanes: a bulk job of 100,000 texts cannot starve a chat message (see [`Lane`]).
//! - Sequences whose callers have all left are dropped before they are computed.
//! - A panic or error in one batch reaches only the callers of that batch; the worker goes on.

mod chunk;
mod counters;
mod encoded;
mod queue;
mod queue_worker;
mod worker;

pub use chunk::{Cancel, Chunk, ChunkOutput};
pub use counters::{Counters, WorkDone};
pub use encoded::Encoded;
pub use queue::Lane;
pub(crate) use queue::{BatchLimit, Queue, Waiter};
pub(crate) use queue_worker::{QueueWorker, abandon, complete, next_batch};
pub use worker::{Batcher, Forward};
