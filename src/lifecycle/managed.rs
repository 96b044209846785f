//! A slot of any type, as the reaper, the budget and the reports see it.

use std::time::Instant;

use super::keep_alive::KeepAlive;
use crate::Error;

/// How a slot keeps its value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotOptions {
    /// How long the value stays after its last use; `None` follows the reaper's settings.
    pub keep_alive: Option<KeepAlive>,
    /// A pinned value leaves only when it is unloaded by name.
    pub pinned: bool,
}

/// Where a slot is in its cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing is in memory.
    Absent,
    /// A loader is running.
    Loading,
    /// The value is in memory.
    Ready,
}

/// A snapshot of a slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Where the slot is in its cycle.
    pub state: State,
    /// Leases on the present value.
    pub leases: usize,
    /// Bytes of the present value.
    pub bytes: u64,
    /// When the present or the latest value was last used; now while leases exist.
    pub last_used: Option<Instant>,
    /// When the present value is unloaded if it is not used again: as its latest uses asked, or its options, or the
    /// reaper's settings. `None`: never, or there is no value.
    pub deadline: Option<Instant>,
    /// The slot's own options.
    pub options: SlotOptions,
    /// Why the latest load failed; `None` after one that succeeded.
    pub last_error: Option<Error>,
}

/// A ready, unleased, unpinned value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idle {
    /// Since when.
    pub since: Instant,
    /// How long it may stay so; `None` follows the reaper's settings.
    pub keep_alive: Option<KeepAlive>,
    /// Its charge to the budget.
    pub charge: Option<HeldCharge>,
    /// Of several, the one with the lowest leaves first when another value needs memory.
    pub priority: u64,
    /// Distinguishes this idle period from every other of the slot.
    pub(super) period: u64,
}

/// A charge, as one of the slots that hold it has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldCharge {
    /// Bytes that the budget gets back when the last holder has been unloaded.
    pub bytes: u64,
    /// Equal for those that hold the same charge.
    pub(super) id: usize,
    /// How many do.
    pub(super) holders: usize,
}

/// Why a value left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnloadReason {
    /// Its idle time was up.
    Idle,
    /// Another model needed the memory.
    Evicted,
}

/// A slot of any type.
pub trait Managed: Send + Sync {
    /// The slot's name.
    fn name(&self) -> &str;
    /// The slot's state and options.
    fn status(&self) -> Status;
    /// The value's idle period; `None` when it is in use, pinned, loading or absent.
    fn idle(&self) -> Option<Idle>;
    /// When the slot is to be loaded ahead of its use, `now` or later; `None`: not at all, or it is loaded.
    fn next_load(&self, now: Instant) -> Option<Instant>;
    /// Whether it is loaded now ahead of a use that is due. True when a load has begun.
    fn load_ahead(&self) -> bool;
    /// Whether its stay is decided by its use.
    fn is_adaptive(&self) -> bool;
    /// Unloads if the slot is still in the idle period `seen`. True when it did.
    fn unload_idle(&self, seen: &Idle, reason: UnloadReason) -> bool;
    /// Makes the slot absent. True when it had or was loading a value.
    fn unload(&self) -> bool;
}
