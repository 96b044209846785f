//! The lifecycle with models that are a few counted bytes, a clock that stands still and a memory that is an integer.

mod adaptive;
mod budget;
mod cycle;
mod keeping;
mod locks;
mod races;
mod reaper;
mod reported;
#[cfg(shuttle)]
mod schedules;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::Result;
use crate::clock::Clock;
use crate::sync::Mutex;

/// Far beyond what any step takes: reached only when something hangs.
const HANG: Duration = Duration::from_secs(60);
const MB: u64 = 1 << 20;

/// The process's memory: what the living models say they take.
#[derive(Default)]
struct FakeMemory {
    resident: AtomicU64,
    trims: AtomicUsize,
}

impl MemoryProbe for FakeMemory {
    fn resident(&self) -> u64 {
        self.resident.load(Ordering::SeqCst)
    }

    fn trim(&self) {
        self.trims.fetch_add(1, Ordering::SeqCst);
    }
}

/// A "model" that knows its number, and is resident from `new` to `drop`.
struct Model {
    number: usize,
    bytes: u64,
    memory: Arc<FakeMemory>,
    dropped: mpsc::Sender<usize>,
    on_drop: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Drop for Model {
    fn drop(&mut self) {
        if let Some(on_drop) = self.on_drop.take() {
            on_drop();
        }
        self.memory.resident.fetch_sub(self.bytes, Ordering::SeqCst);
        let _ = self.dropped.send(self.number);
    }
}

/// What the slots of one test share.
struct World {
    clock: Clock,
    memory: Arc<FakeMemory>,
    context: Context,
    /// Models made so far.
    made: Arc<AtomicUsize>,
    dropping: mpsc::Sender<usize>,
    /// Numbers of the models dropped, in order.
    dropped: Mutex<mpsc::Receiver<usize>>,
}

impl World {
    /// A clock that stands still, and a reaper that is disabled and has no thread: it cleans up when the test says so.
    fn new() -> Self {
        let settings = ReaperSettings { enabled: false, ..ReaperSettings::default() };
        let world = Self::with(Clock::manual(), settings, || {});
        world.context.reaper.stop();
        world
    }

    fn with(clock: Clock, settings: ReaperSettings, housekeeping: impl Fn() + Send + Sync + 'static) -> Self {
        let memory = Arc::new(FakeMemory::default());
        let context = Context {
            clock: clock.clone(),
            memory: Arc::<FakeMemory>::clone(&memory),
            tracker: Arc::new(Tracker::new(clock.clone())),
            reaper: Arc::new(Reaper::new(clock.clone(), settings, housekeeping)),
            eviction: Arc::default(),
            wait_graph: WaitGraph::default(),
        };
        let (dropping, dropped) = mpsc::channel();
        Self { clock, memory, context, made: Arc::default(), dropping, dropped: Mutex::new(dropped) }
    }

    /// A function that makes the next model of `bytes` bytes, numbered from 1.
    fn maker(&self, bytes: u64) -> impl Fn() -> Model + Clone + Send + Sync + 'static {
        let (memory, made) = (Arc::clone(&self.memory), Arc::clone(&self.made));
        let dropping = self.dropping.clone();
        move || {
            memory.resident.fetch_add(bytes, Ordering::SeqCst);
            let number = made.fetch_add(1, Ordering::SeqCst) + 1;
            Model { number, bytes, memory: Arc::clone(&memory), dropped: dropping.clone(), on_drop: None }
        }
    }

    fn slot_with(
        &self,
        name: &str,
        options: SlotOptions,
        loader: impl Fn() -> Result<Loaded<Model>> + Send + Sync + 'static,
    ) -> Slot<Model> {
        Slot::new(name, options, self.context.clone(), loader)
    }

    /// A slot whose loader always succeeds, with a model of 1 MB.
    fn slot(&self, name: &str, options: SlotOptions) -> Slot<Model> {
        let make = self.maker(MB);
        self.slot_with(name, options, move || Ok(loaded(make())))
    }

    /// A slot whose loader says on the receiver that it runs, then waits for a word from the sender.
    fn gated_slot(&self, name: &str) -> (Slot<Model>, mpsc::Receiver<()>, mpsc::Sender<Result<()>>) {
        let make = self.maker(MB);
        let (started, starts) = mpsc::channel();
        let (gate, open) = mpsc::channel::<Result<()>>();
        let open = Mutex::new(open);
        let slot = self.slot_with(name, SlotOptions::default(), move || {
            started.send(()).unwrap();
            open.lock().recv_timeout(HANG).unwrap().map(|()| loaded(make()))
        });
        (slot, starts, gate)
    }

    fn statistics(&self) -> TrackerStatistics {
        self.context.tracker.statistics()
    }

    /// (loads, unloads) of a slot.
    fn counts(&self, slot: &str) -> (u64, u64) {
        let all = self.statistics();
        let of = |map: &std::collections::BTreeMap<String, u64>| map.get(slot).copied().unwrap_or(0);
        (of(&all.load_counts), of(&all.unload_counts))
    }

    /// The number of the next model dropped.
    fn next_drop(&self) -> usize {
        self.dropped.lock().recv_timeout(HANG).unwrap()
    }

    fn no_drop(&self) -> bool {
        self.dropped.lock().try_recv().is_err()
    }
}

fn loaded(model: Model) -> Loaded<Model> {
    let bytes = model.bytes;
    Loaded::new(Arc::new(model), bytes)
}

fn keep(keep_alive: KeepAlive) -> SlotOptions {
    SlotOptions { keep_alive: Some(keep_alive), pinned: false }
}

fn seconds(seconds: u64) -> KeepAlive {
    KeepAlive::For(Duration::from_secs(seconds))
}

/// Acquires without a timeout that could pass.
fn acquire<T: ?Sized + Send + Sync>(slot: &Slot<T>) -> Result<Lease<T>> {
    slot.acquire(Some(HANG), &mut || Ok(()))
}

/// Has `done` reports on a channel: the model's number, or the error.
fn ask(slot: &Slot<Model>, reports: &mpsc::Sender<Result<usize>>) {
    let reports = reports.clone();
    slot.when_ready(Box::new(move |lease| reports.send(lease.map(|lease| lease.number)).unwrap()));
}
