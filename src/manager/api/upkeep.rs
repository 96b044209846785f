//! The cache, clean-ups of idle models, and statistics.

use std::time::Duration;

use super::super::instance::Manager;
use super::super::stats::ManagerStatistics;
#[cfg(doc)]
use crate::Error;
use crate::Result;
use crate::cache::CacheStatistics;
use crate::lifecycle::ReaperSettings;

impl Manager {
    /// State of the embedding cache.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn cache_statistics(&self) -> Result<CacheStatistics> {
        Ok(self.parts()?.cache.statistics())
    }

    /// Empties the embedding cache and sets its counts to zero.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn clear_cache(&self) -> Result<()> {
        self.parts()?.cache.clear();
        Ok(())
    }

    /// When idle models leave.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn reaper_settings(&self) -> Result<ReaperSettings> {
        Ok(self.parts()?.reaper.settings())
    }

    /// Changes when idle models leave; takes effect at once.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn set_reaper(&self, settings: ReaperSettings) -> Result<()> {
        self.parts()?.reaper.set(settings);
        Ok(())
    }

    /// Unloads now what has been idle for long enough; how many slots.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn clean_up(&self) -> Result<usize> {
        Ok(self.parts()?.reaper.clean_up())
    }

    /// Time since the latest clean-up of idle models.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn since_clean_up(&self) -> Result<Duration> {
        Ok(self.parts()?.reaper.since_cleanup())
    }

    /// Everything countable. Loads nothing.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn statistics(&self) -> Result<ManagerStatistics> {
        Ok(ManagerStatistics::of(&*self.parts()?))
    }
}
