//! What was learned of the use of models, and what is expected.

use std::time::Duration;

use super::super::instance::Manager;
#[cfg(doc)]
use crate::Error;
use crate::Result;
use crate::lifecycle::KeepAlive;
use crate::lifecycle::policy::{Explanation, LoadAhead};

/// A load ahead of a use that is planned.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// The slot.
    pub slot: String,
    /// From now until the load.
    pub after: Duration,
    /// From now until it leaves again, if it is not used.
    pub until: Duration,
    /// What it is expected for.
    pub load: LoadAhead,
}

/// What is known of a slot's use, and the slots that follow it with their probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotExplanation {
    /// What decides its stay.
    pub explanation: Explanation,
    /// Slots that are used soon after it.
    pub successors: Vec<(String, f64)>,
}

impl Manager {
    /// The host knows that a slot will be needed soon: it is loaded if its stay is decided by its use, nothing is computed
    /// now, and memory is free. Slots that usually follow it are, too: by the habits of `user` where they are known. False
    /// when its stay is not.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::Closed`].
    pub fn hint(&self, name: &str, user: Option<&str>) -> Result<bool> {
        let parts = self.parts()?;
        parts.registry.entry(name)?;
        Ok(parts.registry.hint(name, user))
    }

    /// What is known of a slot's use; `None` when that does not decide its stay.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::Closed`].
    pub fn explain(&self, name: &str) -> Result<Option<SlotExplanation>> {
        let parts = self.parts()?;
        parts.registry.entry(name)?;
        Ok(parts.learning.explain(name).map(|(explanation, successors)| SlotExplanation {
            explanation,
            successors: successors.into_iter().map(|(slot, p)| (slot.to_string(), p)).collect(),
        }))
    }

    /// How long a slot stays whose stay is not decided by its use, as a sentence.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::Closed`].
    pub fn fixed_stay(&self, name: &str) -> Result<String> {
        let parts = self.parts()?;
        let options = parts.registry.entry(name)?.slot.status().options;
        let reaper = parts.reaper.settings();
        let stay = options.keep_alive.or(reaper.enabled.then_some(KeepAlive::For(reaper.max_idle)));
        Ok(match stay {
            _ if options.pinned => "It is pinned: it stays until it is unloaded by name.".to_owned(),
            Some(KeepAlive::For(stay)) if stay.is_zero() => "It leaves after each use.".to_owned(),
            Some(KeepAlive::For(stay)) => {
                format!("It stays {} s after a use, as configured.", stay.as_secs_f64())
            }
            Some(KeepAlive::Forever) | None => {
                "It stays until it is unloaded by name or evicted by the memory budget.".to_owned()
            }
        })
    }

    /// The loads ahead of a use that are planned, the next first.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn forecast(&self) -> Result<Vec<Forecast>> {
        let (now, planned) = self.parts()?.learning.forecast();
        let forecast = planned.into_iter().map(|(slot, load)| Forecast {
            slot: slot.to_string(),
            after: load.at.saturating_duration_since(now),
            until: load.until.saturating_duration_since(now),
            load,
        });
        Ok(forecast.collect())
    }
}
