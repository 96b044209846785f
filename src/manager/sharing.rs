//! What slots of one manager share: loaded models by identity, and the health of servers.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::backend::EncoderBackend;
use crate::Result;
use crate::clock::Clock;
use crate::remote::{Address, Health};
use crate::sync::Mutex;

/// A shared model, or the lock that callers of its one load wait for.
type SharedModel = Arc<Mutex<Weak<EncoderBackend>>>;

/// Loaded models by identity, for names that share one. A model's own lock is held during its load, so that names with
/// the same files load once.
#[derive(Default)]
pub(super) struct SharedModels(Mutex<HashMap<Arc<str>, SharedModel>>);

impl SharedModels {
    /// The loaded model with this identity, or the one that `load` makes. Concurrent callers wait for one load.
    pub(super) fn get_or_load(
        &self,
        identity: &Arc<str>,
        load: impl FnOnce() -> Result<Arc<EncoderBackend>>,
    ) -> Result<Arc<EncoderBackend>> {
        let cell = Arc::clone(self.0.lock().entry(Arc::clone(identity)).or_default());
        let mut model = cell.lock();
        if let Some(backend) = model.upgrade() {
            return Ok(backend);
        }
        let backend = load()?;
        *model = Arc::downgrade(&backend);
        Ok(backend)
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
