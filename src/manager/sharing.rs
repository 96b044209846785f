//! What slots of one manager share: loaded models by identity, and the health of servers.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::backend::EncoderBackend;
use crate::clock::Clock;
use crate::lifecycle::Charge;
use crate::remote::{Address, Health};
use crate::sync::Mutex;
use crate::{Result, held_log};

/// A loaded model, and its charge to the budget: `None` where it takes no memory of its own here.
pub(super) type ChargedBackend = (Arc<EncoderBackend>, Option<Arc<Charge>>);

/// A model as the slots share it: it stays as long as one of them has it.
#[derive(Default)]
struct SharedModel {
    backend: Weak<EncoderBackend>,
    charge: Option<Weak<Charge>>,
}

impl SharedModel {
    /// `None` unless it is loaded, and charged as it was.
    fn upgrade(&self) -> Option<ChargedBackend> {
        let charge = self.charge.as_ref().map(|charge| charge.upgrade().ok_or(())).transpose().ok()?;
        Some((self.backend.upgrade()?, charge))
    }
}

/// Loaded models by identity, for names that share one. A model's own lock is held during its load, so that names with
/// the same files load once.
#[derive(Default)]
pub(super) struct SharedModels(Mutex<HashMap<Arc<str>, Arc<Mutex<SharedModel>>>>);

impl SharedModels {
    /// The loaded model with this identity, or the one that `load` makes. Concurrent callers wait for one load. Its lines
    /// are logged when the lock is free: a logging handler may use another name of the model.
    pub(super) fn get_or_load(
        &self,
        identity: &Arc<str>,
        load: impl FnOnce() -> Result<ChargedBackend>,
    ) -> Result<ChargedBackend> {
        let (found, lines) = held_log::hold(|| self.get_or_connect(identity, load));
        lines.write();
        found
    }

    /// The same for a model of a server, whose lines are logged at once: its attempts may take long.
    pub(super) fn get_or_connect(
        &self,
        identity: &Arc<str>,
        load: impl FnOnce() -> Result<ChargedBackend>,
    ) -> Result<ChargedBackend> {
        let cell = Arc::clone(self.0.lock().entry(Arc::clone(identity)).or_default());
        let mut model = cell.lock();
        if let Some(shared) = model.upgrade() {
            return Ok(shared);
        }
        let (backend, charge) = load()?;
        *model =
            SharedModel { backend: Arc::downgrade(&backend), charge: charge.as_ref().map(Arc::downgrade) };
        Ok((backend, charge))
    }
}

/// The health of the models of servers, by address. Outlives the loads of their slots.
#[derive(Default)]
pub(super) struct Healths(Mutex<HashMap<Address, Arc<Health>>>);

impl Healths {
    /// The health of the model at `address`; `None` when it has never been asked for.
    pub(super) fn known(&self, address: &Address) -> Option<Arc<Health>> {
        self.0.lock().get(address).cloned()
    }

    /// The same, which is counted from now on if it was not yet.
    pub(super) fn of(&self, address: &Address) -> Arc<Health> {
        let fresh = || Arc::new(Health::new(Clock::System));
        Arc::clone(self.0.lock().entry(address.clone()).or_insert_with(fresh))
    }
}
