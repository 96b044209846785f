//! When a model is in memory.
//!
//! ```text
//!            acquire, when_ready: load on a thread of its own, once
//!   absent ──────────────────────→ loading ──────→ ready ⇄ leased
//!     ↑              failed: told to all who wait │   │
//!     └───────────────────────────────────────────┴───┘ idle time up (reaper), room needed (budget), unload
//! ```
//!
//! [`Slot`] is one model's place, [`Lease`] a hold on its value; [`Reaper`] unloads the idle, [`Budget`] makes room,
//! [`Tracker`] remembers what it cost.

mod budget;
mod caller;
mod keep_alive;
mod lease;
mod limit;
mod managed;
mod memory;
mod reaper;
mod shared;
mod slot;
mod tracker;

#[cfg(test)]
mod tests;

pub use budget::{Budget, Charge};
pub use caller::act_for;
pub use keep_alive::KeepAlive;
pub use lease::Lease;
pub use limit::MemoryLimit;
pub use managed::{Idle, Managed, State, Status, Why};
pub use memory::{MemoryProbe, megabytes};
pub use reaper::{Reaper, ReaperSettings};
pub use slot::{Context, Continuation, Loaded, Slot, SlotOptions};
pub use tracker::{Tracker, TrackerStatistics};
