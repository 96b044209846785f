//! Slots: made, loaded, unloaded.

use std::sync::Arc;
use std::time::Duration;

use super::super::instance::Manager;
use super::super::model::{LoadedModel, SlotValue};
use super::super::options::Check;
use super::super::pins;
use super::super::spec::{ModelSpec, Retention, Spec};
#[cfg(doc)]
use crate::Error;
use crate::Result;
use crate::lifecycle::{Lease, State};
use crate::models::ModelKind;

impl Manager {
    /// Makes the slot `name`. Nothing is loaded yet.
    ///
    /// # Errors
    /// [`Error::Input`] when the name is blank, or taken and not to be replaced; [`Error::Argument`] for a price of loads
    /// that has no effect.
    pub fn register(&self, name: &str, spec: Spec, keep: Retention, replace: bool) -> Result<()> {
        let parts = self.parts()?;
        let tiers = keep.cache.tiers.clone();
        if let Some(former) = parts.registry.register(name, spec, keep, replace)?
            && let Some(info) = former.info()
        {
            pins::release(&parts.cache, &parts.registry.all(), &info);
        }
        for tier in tiers.iter().flat_map(|tiers| tiers.iter()) {
            if let Some(setting) = parts.tiering.missing(tier) {
                log::warn!("{name}: the cache tier {tier:?} takes no part, because {setting} is not set");
            }
        }
        Ok(())
    }

    /// What the files of `spec` are made for; `None` when they are not on this machine, or do not show it. Downloads
    /// nothing.
    ///
    /// # Errors
    /// Those of the settings.
    pub fn installed_kind(&self, spec: &ModelSpec) -> Result<Option<ModelKind>> {
        Ok(self.parts()?.loader.installed_kind(spec))
    }

    /// Unloads and forgets the slot.
    ///
    /// # Errors
    /// [`Error::Input`] for a built-in slot; [`Error::UnknownModel`].
    pub fn unregister(&self, name: &str) -> Result<()> {
        let parts = self.parts()?;
        let former = parts.registry.unregister(name)?;
        if let Some(info) = former.info() {
            pins::release(&parts.cache, &parts.registry.all(), &info);
        }
        Ok(())
    }

    /// A number of the slot's latest registration, equal to that of no other one.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn registration(&self, name: &str) -> Result<u64> {
        Ok(self.parts()?.registry.entry(name)?.registration)
    }

    /// Names of all slots, in the order they were made.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.parts()?.registry.all().iter().map(|entry| entry.name.clone()).collect())
    }

    /// Loads the slot and waits for it. Concurrent callers share one load.
    ///
    /// # Errors
    /// [`Error::UnknownModel`]; [`Error::Timeout`], while the load goes on; whatever the load failed with.
    pub fn load(&self, name: &str, timeout: Option<Duration>, check: Check<'_>) -> Result<()> {
        self.lease(name, timeout, check).map(drop)
    }

    /// Loads several slots at the same time and waits for all. `ended` is called with the place of each name and the end of
    /// its load: on the thread that loads, before the wait for that slot ends.
    ///
    /// # Errors
    /// The first failure, after all have ended. Of an unknown name before anything is loaded; `ended` is not called then.
    pub fn warm_up(
        &self,
        names: &[String],
        timeout: Option<Duration>,
        ended: &Arc<dyn Fn(usize, Result<()>) + Send + Sync>,
        check: Check<'_>,
    ) -> Result<()> {
        let parts = self.parts()?;
        let entries = names.iter().map(|name| parts.registry.entry(name)).collect::<Result<Vec<_>>>()?;
        for (place, entry) in entries.iter().enumerate() {
            let ended = Arc::clone(ended);
            entry.slot.when_ready(Box::new(move |lease| ended(place, lease.map(drop))));
        }
        let mut outcome = Ok(());
        for name in names {
            outcome = outcome.and(self.load(name, timeout, check));
        }
        outcome
    }

    /// Unloads the slot; true if it was loaded. Calls that compute with it finish first.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn unload(&self, name: &str) -> Result<bool> {
        let entry = self.parts()?.registry.entry(name)?;
        Ok(entry.slot.unload())
    }

    /// Unloads every slot; how many were loaded.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn unload_all(&self) -> Result<usize> {
        Ok(self.parts()?.registry.unload_all())
    }

    /// Whether the slot's model makes vectors, as far as that is known. Never loads.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::Closed`].
    pub fn is_embedding(&self, name: &str) -> Result<bool> {
        Ok(matches!(self.parts()?.registry.entry(name)?.spec(), Spec::Embedding(_) | Spec::Open(_)))
    }

    /// Whether the slot is in memory now.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn is_loaded(&self, name: &str) -> Result<bool> {
        Ok(self.parts()?.registry.entry(name)?.slot.state() == State::Ready)
    }

    /// The slot's value, loaded if need be.
    ///
    /// # Errors
    /// As [`Manager::load`].
    pub fn get(&self, name: &str, timeout: Option<Duration>, check: Check<'_>) -> Result<SlotValue> {
        Ok(self.lease(name, timeout, check)?.value())
    }

    /// The slot's value if it is in memory. Never loads, and does not count as a use: deadlines stay.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn peek(&self, name: &str) -> Result<Option<SlotValue>> {
        let entry = self.parts()?.registry.entry(name)?;
        Ok(entry.slot.inspect(LoadedModel::value))
    }

    pub(super) fn lease(
        &self,
        name: &str,
        timeout: Option<Duration>,
        check: Check<'_>,
    ) -> Result<Lease<LoadedModel>> {
        self.parts()?.registry.acquire(name, timeout, check)
    }
}
