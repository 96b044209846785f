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
    fn new((backend, charge): &ChargedBackend) -> Self {
        Self { backend: Arc::downgrade(backend), charge: charge.as_ref().map(Arc::downgrade) }
    }

    /// `None` unless it is loaded, and charged as it was.
    fn upgrade(&self) -> Option<ChargedBackend> {
        let charge = self.charge.as_ref().map(|charge| charge.upgrade().ok_or(())).transpose().ok()?;
        Some((self.backend.upgrade()?, charge))
    }
}

/// Loaded models by identity, for names that share one.
#[derive(Default)]
pub(super) struct SharedModels(Mutex<HashMap<Arc<str>, Arc<Mutex<SharedModel>>>>);

impl SharedModels {
    fn cell(&self, identity: &Arc<str>) -> Arc<Mutex<SharedModel>> {
        Arc::clone(self.0.lock().entry(Arc::clone(identity)).or_default())
    }

    /// The loaded model with this identity, or the one that `load` makes. Its lock is held during the load, so that names
    /// with the same files load once. Lines are logged when the lock is free: a logging handler may use another name.
    pub(super) fn get_or_load(
        &self,
        identity: &Arc<str>,
        load: impl FnOnce() -> Result<ChargedBackend>,
    ) -> Result<ChargedBackend> {
        let cell = self.cell(identity);
        let (found, lines) = held_log::hold(|| {
            let mut model = cell.lock();
            if let Some(shared) = model.upgrade() {
                return Ok(shared);
            }
            let loaded = load()?;
            *model = SharedModel::new(&loaded);
            Ok(loaded)
        });
        lines.write();
        found
    }

    /// The same for a model of a server, whose attempts may take long: `connect` runs without the lock, and its lines are
    /// logged at once. Of two connections made at the same time the first is kept.
    pub(super) fn get_or_connect(
        &self,
        identity: &Arc<str>,
        connect: impl FnOnce() -> Result<ChargedBackend>,
    ) -> Result<ChargedBackend> {
        let cell = self.cell(identity);
        let known = cell.lock().upgrade();
        if let Some(shared) = known {
            return Ok(shared);
        }
        let connected = connect()?;
        let mut model = cell.lock();
        Ok(model.upgrade().unwrap_or_else(|| {
            *model = SharedModel::new(&connected);
            connected
        }))
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
