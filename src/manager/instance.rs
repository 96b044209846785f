//! A manager: built at its first use, closed once, carried over `fork`.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::closing::Closing;
use super::model::LoadedModel;
use super::parts::Parts;
use super::registry::NamedSlot;
use super::spec::{ENGLISH, TURKISH};
use crate::config::{Host, SettingValue, Settings};
use crate::held_log;
use crate::lifecycle::{Lease, ReaperSettings, Tracker};
use crate::sync::Mutex;
#[cfg(doc)]
use crate::sync::fork;
use crate::{Error, Result};

/// Model slots, the embedding cache and the queues. All methods may be called from any thread.
///
/// The settings are read, and everything is built, at the first use: constructing a manager costs nothing.
pub struct Manager {
    host: Arc<dyn Host>,
    given: SettingsSource,
    /// Replaced in a child process: a thread that does not exist there may hold a lock of the parent's.
    tracker: ArcSwap<Tracker>,
    parts: ArcSwapOption<Parts>,
    /// Replaced in a child process, as well.
    building: ArcSwap<Mutex<()>>,
    closing: Closing,
    closed: AtomicBool,
}

/// Where a manager's settings come from.
enum SettingsSource {
    /// Validated already.
    Settings(Box<Settings>),
    /// Keywords over the environment, which is read at first use.
    Keywords(Vec<(String, SettingValue)>),
}

impl Manager {
    /// A manager with these settings.
    pub fn new(settings: Settings, host: Arc<dyn Host>) -> Self {
        Self::build(SettingsSource::Settings(Box::new(settings)), host)
    }

    /// A manager whose environment is read at its first use. A wrong keyword is refused now.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_environment(keywords: Vec<(String, SettingValue)>, host: Arc<dyn Host>) -> Result<Self> {
        Settings::default().with(pairs(&keywords))?;
        Ok(Self::build(SettingsSource::Keywords(keywords), host))
    }

    fn build(given: SettingsSource, host: Arc<dyn Host>) -> Self {
        Self {
            host,
            given,
            tracker: ArcSwap::from_pointee(Tracker::new(crate::clock::Clock::System)),
            parts: ArcSwapOption::empty(),
            building: ArcSwap::from_pointee(Mutex::new(())),
            closing: Closing::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// The parts, built at the first use.
    pub(super) fn parts(&self) -> Result<Arc<Parts>> {
        if let Some(parts) = self.parts.load_full() {
            return Ok(parts);
        }
        // A caller that is attached to the interpreter must not wait for this lock: building may wait for the interpreter.
        if self.is_closed() {
            return Err(Error::Closed);
        }
        // Not under the lock: reading Python's environment may run a signal handler that calls the manager.
        let settings = match &self.given {
            SettingsSource::Settings(settings) => (**settings).clone(),
            SettingsSource::Keywords(keywords) => {
                self.host.before_settings();
                Settings::resolve(&*self.host, pairs(keywords))?
            }
        };
        let turn = self.building.load_full();
        let building = turn.lock();
        if let Some(parts) = self.parts.load_full() {
            return Ok(parts);
        }
        // Under the lock: `close` finds what is built here, or it is not built.
        if self.is_closed() {
            return Err(Error::Closed);
        }
        let (parts, lines) =
            held_log::hold(|| Parts::new(settings, Arc::clone(&self.host), self.tracker()).map(Arc::new));
        if let Ok(parts) = &parts {
            self.parts.store(Some(Arc::clone(parts)));
        }
        drop(building);
        lines.write();
        let parts = parts?;
        if !parts.settings.lazy_loading {
            for name in [TURKISH, ENGLISH] {
                parts.registry.entry(name)?.slot.when_ready(Box::new(|_| ()));
            }
        }
        Ok(parts)
    }

    /// The settings in force. Reading them fixes them.
    ///
    /// # Errors
    /// [`Error::Config`] when the environment has a wrong value; [`Error::Closed`].
    pub fn settings(&self) -> Result<Settings> {
        Ok((*self.parts()?.settings).clone())
    }

    /// Where sentence models compute: cpu, cuda:0, mps:0.
    ///
    /// # Errors
    /// As [`Manager::settings`].
    pub fn device(&self) -> Result<String> {
        Ok(self.parts()?.loader.device().name())
    }

    /// Load times, memory and accesses by slot.
    #[must_use]
    pub fn tracker(&self) -> Arc<Tracker> {
        self.tracker.load_full()
    }
}

impl Manager {
    /// Unloads everything and stops the threads; calls in progress finish first. Further use is [`Error::Closed`].
    ///
    /// Another thread that closes at the same time is waited for, at most two seconds.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let Some(_turn) = self.closing.enter() else { return };
        let turn = self.building.load_full();
        let building = turn.lock();
        let parts = self.parts.swap(None);
        // Not under the lock: unloading logs, and Python's logging may call the manager.
        drop(building);
        if let Some(parts) = parts {
            parts.close();
        }
    }

    /// Closes the manager, but leaves the unloading to the drop of the result: a destructor of Python's must not wait.
    /// `None` when nothing was built.
    #[must_use]
    pub fn abandon(&self) -> Option<Abandoned> {
        self.closed.store(true, Ordering::Release);
        self.parts.swap(None).map(Abandoned)
    }

    /// Whether the manager is built: then its parts exist until it is closed.
    #[must_use]
    pub fn is_built(&self) -> bool {
        self.parts.load().is_some()
    }

    /// Whether [`Manager::close`] was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Before a fork, on the forking thread, during a [`fork::pause`]: what a child is to inherit.
    #[must_use]
    pub fn before_fork(&self) -> Inheritance {
        let slots = self.parts.load_full().map(|parts| {
            let entries = parts.registry.all();
            let slots = entries.iter().map(|entry| (Arc::clone(entry), entry.slot.try_acquire())).collect();
            let idle = parts.reaper.settings();
            InheritedParts { parts, slots, idle }
        });
        Inheritance(slots)
    }

    /// In a child process: builds new parts, and adopts the loaded models. `paused` says whether [`fork::pause`] succeeded;
    /// without it the models cannot be trusted and load again.
    ///
    /// # Errors
    /// Those of building the manager; it is then as if never used.
    pub fn after_fork_child(&self, inheritance: Inheritance, paused: bool) -> Result<()> {
        // A thread that does not exist here may have been building the manager.
        std::mem::forget(self.building.swap(Arc::default()));
        let Some(inherited) = inheritance.0 else { return Ok(()) };
        // Threads that do not exist here may hold locks of the parent's parts: those are not used again, nor freed, also
        // when the child's cannot be built.
        let inherited = ManuallyDrop::new(inherited);
        std::mem::forget(self.parts.swap(None));
        let settings = (*inherited.parts.settings).clone();
        let tracker = Arc::new(Tracker::new(crate::clock::Clock::System));
        std::mem::forget(self.tracker.swap(Arc::clone(&tracker)));
        // A card's memory belongs to the parent.
        let paused = paused && inherited.parts.loader.device().survives_fork();
        let child = Parts::new(settings, Arc::clone(&self.host), tracker)?;
        child.reaper.set(inherited.idle);
        for (entry, lease) in &inherited.slots {
            child.registry.inherit(entry);
            if let (true, Some(LoadedModel::Encoder(handle))) = (paused, lease.as_deref()) {
                child.loader.inherit(&*child.registry.entry(&entry.name)?, handle)?;
            }
        }
        self.parts.store(Some(Arc::new(child)));
        Ok(())
    }
}

/// What a manager without users leaves behind. Dropping it unloads everything, as [`Manager::close`] does.
pub struct Abandoned(Arc<Parts>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What a child process inherits of one manager.
pub struct Inheritance(Option<InheritedParts>);

struct InheritedParts {
    parts: Arc<Parts>,
    slots: Vec<Inherited>,
    /// When idle models leave, as it was set last.
    idle: ReaperSettings,
}

/// A name, and its model if that is loaded.
type Inherited = (Arc<NamedSlot>, Option<Lease<LoadedModel>>);

fn pairs(keywords: &[(String, SettingValue)]) -> impl Iterator<Item = (&str, SettingValue)> {
    keywords.iter().map(|(name, value)| (name.as_str(), value.clone()))
}
