//! How long an idle value stays, and when it is loaded ahead of its use.
//!
//! ```text
//! fixed      a timer; also what it would have cost
//! adaptive   one slot: gaps (how long it is idle) → window     daily (at which time it is used)
//! learning   all slots: successors (what is used after what), pressure (memory is short), saved (across restarts)
//! ```

mod adaptive;
mod daily;
mod fixed;
mod gaps;
mod learning;
mod pressure;
mod saved;
mod simulation;
mod successors;

pub use adaptive::{AdaptivePolicy, AdaptiveSettings, Explanation, LoadAhead, LoadReason, SHORTEST_STAY};
pub use fixed::Spent;
pub use gaps::Window;
pub use learning::{Learning, Probabilities};
#[cfg(test)]
pub(super) use pressure::MemoryPressure;
#[cfg(test)]
pub(super) use saved::SlotHabits;
pub use simulation::{Simulated, simulate};
