//! A look-up under way: its caller goes on with what was found, or when its time is over.

use super::super::item::CachedItem;
use crate::sync::Mutex;

/// Receives the results, in the order of their keys. Called once.
pub type OnFound = Box<dyn FnOnce(Vec<Option<CachedItem>>) + Send>;

/// A look-up under way. The first of [`Asked::finish`] and [`Asked::expire`] answers the caller.
pub struct Asked(Mutex<Option<(Vec<Option<CachedItem>>, OnFound)>>);

impl Asked {
    /// `found` is known already.
    pub(super) fn new(found: Vec<Option<CachedItem>>, on_found: OnFound) -> Self {
        Self(Mutex::new(Some((found, on_found))))
    }

    /// Whether the caller has been answered.
    pub(super) fn is_over(&self) -> bool {
        self.0.lock().is_none()
    }

    /// Answers with everything that was found. False when the time was over before.
    pub(super) fn finish(&self, found: Vec<Option<CachedItem>>) -> bool {
        let waiting = self.0.lock().take();
        let in_time = waiting.is_some();
        if let Some((_, on_found)) = waiting {
            on_found(found);
        }
        in_time
    }

    /// The time is over: answers with what was known at first.
    pub fn expire(&self) {
        let waiting = self.0.lock().take();
        if let Some((found, on_found)) = waiting {
            on_found(found);
        }
    }
}
