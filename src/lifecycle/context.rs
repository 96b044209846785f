//! What all slots of one manager share.

use std::sync::Arc;

use super::eviction::Eviction;
use super::memory::MemoryProbe;
use super::reaper::Reaper;
use super::tracker::Tracker;
use super::wait_graph::WaitGraph;
use crate::clock::Clock;

/// What all slots of one manager share.
#[derive(Clone)]
pub struct Context {
    /// The time that idle deadlines are measured by.
    pub clock: Clock,
    /// How resident memory is measured and trimmed.
    pub memory: Arc<dyn MemoryProbe>,
    /// Counts loads, accesses and unloads.
    pub tracker: Arc<Tracker>,
    /// Unloads idle slots.
    pub reaper: Arc<Reaper>,
    /// Which of them leave when another one needs memory.
    pub eviction: Arc<Eviction>,
    /// Which loads wait for which models.
    pub wait_graph: WaitGraph,
}
