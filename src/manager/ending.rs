//! The end of a manager, and what a child process makes of one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Manager;
use super::core::Core;
use super::entry::{Entry, LoadedModel};
#[cfg(doc)]
use crate::Error;
use crate::Result;
use crate::lifecycle::{Lease, Tracker};
#[cfg(doc)]
use crate::sync::fork;
use crate::sync::{Condvar, Mutex};

/// How long a call to close waits for another one. Longer would be for ever where each waits for what the other holds: a
/// logging handler that closes the manager holds the handler's lock, and closing logs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether somebody closes the manager now.
#[derive(Default)]
pub(super) struct Closing {
    under_way: Mutex<bool>,
    ended: Condvar,
}

/// While it lives, nobody else closes.
struct Turn<'a>(&'a Closing);

impl Closing {
    /// Waits for the others; `None` when that takes too long.
    fn enter(&self) -> Option<Turn<'_>> {
        let deadline = Instant::now() + PATIENCE;
        let mut under_way = self.under_way.lock();
        while *under_way {
            let late;
            (under_way, late) = self.ended.wait_until(under_way, deadline);
            if late {
                return None;
            }
        }
        *under_way = true;
        Some(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.under_way.lock() = false;
        self.0.ended.notify_all();
    }
}

/// What a manager that nobody uses any more leaves behind. Dropping it unloads everything, as [`Manager::close`] does.
pub struct Abandoned(Arc<Core>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Manager {
    /// Unloads everything and stops the threads; calls in progress finish first. Further use is [`Error::Closed`].
    ///
    /// Another thread that closes at the same time is waited for, at most two seconds.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let Some(_turn) = self.closing.enter() else { return };
        let building = self.building.lock();
        let core = self.core.swap(None);
        // What is unloaded is told to Python's log.
        drop(building);
        if let Some(core) = core {
            core.close();
        }
    }

    /// Closes the manager, but leaves the unloading to whoever drops the result: a destructor of Python's must not wait.
    /// `None` when nothing was built.
    #[must_use]
    pub fn abandon(&self) -> Option<Abandoned> {
        self.closed.store(true, Ordering::Release);
        self.core.swap(None).map(Abandoned)
    }

    /// Whether the manager is in use: then nothing but its end takes what serves its calls away.
    #[must_use]
    pub fn is_built(&self) -> bool {
        self.core.load().is_some()
    }

    /// Whether [`Manager::close`] was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Before a fork, on the forking thread, during a [`fork::pause`]: what a child is to inherit.
    #[must_use]
    pub fn before_fork(&self) -> Inheritance {
        let slots = self.core.load_full().map(|core| {
            let entries = core.entries();
            let slots = entries.iter().map(|entry| (Arc::clone(entry), entry.slot.try_acquire())).collect();
            (core, slots)
        });
        Inheritance(slots)
    }

    /// In a child process: replaces everything that had a thread, and adopts the loaded models. `paused` tells whether
    /// [`fork::pause`] succeeded; without it the models cannot be trusted and load anew.
    ///
    /// # Errors
    /// Those of building the manager; it is then as if never used.
    pub fn after_fork_child(&self, inheritance: Inheritance, paused: bool) -> Result<()> {
        let Some((core, slots)) = inheritance.0 else { return Ok(()) };
        let settings = core.settings().clone();
        let tracker = Arc::new(Tracker::new(crate::clock::Clock::System));
        std::mem::forget(self.tracker.swap(Arc::clone(&tracker)));
        // Locks and queues of the parent's threads may be held for ever here: nothing of it is touched again, nor freed.
        std::mem::forget(self.core.swap(None));
        std::mem::forget(core);
        let child = Core::new(settings, Arc::clone(&self.host), tracker)?;
        for (entry, lease) in slots {
            child.register(&entry.name, entry.spec.clone(), entry.keep, true)?;
            if let Some(lease) = lease {
                if let (true, LoadedModel::Encoder(serving)) = (paused, &*lease) {
                    child.inherit(&entry.name, serving)?;
                }
                std::mem::forget(lease);
            }
            std::mem::forget(entry);
        }
        self.core.store(Some(child));
        Ok(())
    }
}

/// What a child process inherits of one manager.
pub struct Inheritance(Option<(Arc<Core>, Vec<Inherited>)>);

/// A name, and its model if that is loaded.
type Inherited = (Arc<Entry>, Option<Lease<LoadedModel>>);
