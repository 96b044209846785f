//! When a model is in memory.
//!
//! ```text
//!            acquire, when_ready: load on a thread of its own, once
//!   absent ──────────────────────→ loading ──────→ ready ⇄ leased
//!     ↑              failed: all callers get it   │   │
//!     └───────────────────────────────────────────┴───┘ idle deadline (reaper), memory needed (budget), unload
//! ```
//!
//! A [`Slot`] is one model's place in memory, and a [`Lease`] keeps its value there. The [`Reaper`] unloads idle models,
//! the [`Budget`] frees memory for the next one, and the [`Tracker`] counts what loading has cost.

mod ahead;
mod budget;
mod caller;
mod context;
mod eviction;
mod keep_alive;
mod lease;
mod limit;
mod managed;
mod memory;
mod oneshot;
mod phase;
pub mod policy;
mod reaper;
mod residency;
mod slot;
mod state;
mod tracker;
mod wait_graph;

#[cfg(test)]
mod tests;

pub use ahead::is_loading_ahead;
pub use budget::{Budget, Charge, in_leaving_order};
pub use caller::act_for;
pub use context::Context;
pub use eviction::Eviction;
pub use keep_alive::KeepAlive;
pub use lease::{Continuation, Lease};
pub use limit::MemoryLimit;
pub use managed::{HeldCharge, Idle, Managed, SlotOptions, State, Status, UnloadReason};
pub use memory::{MemoryProbe, megabytes};
pub use reaper::{Reaper, ReaperSettings};
pub use residency::Loaded;
pub use slot::Slot;
pub use tracker::{Tracker, TrackerStatistics};
pub use wait_graph::WaitGraph;
