//! The cache, clean-ups of idle models, and statistics.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::super::instance::Manager;
use super::super::options::Check;
use super::super::stats::ManagerStatistics;
use crate::cache::CacheStatistics;
use crate::cache::tiers::disk::{Disk, ImportError, Verified};
use crate::lifecycle::ReaperSettings;
use crate::sync::spawn;
use crate::{Error, Result};

/// How often a caller that waits for a tier checks whether it still wants to.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// What `work` returns, which may wait for a server. It runs on a thread of its own: `check` can end the waiting, not the work.
fn on_own_thread<T: Send + 'static>(
    role: &str,
    check: Check<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let (sender, found) = mpsc::channel();
    let run = move || {
        // Without a receiver the caller has given up.
        let _ = sender.send(work());
    };
    spawn(role, run)
        .map_err(|error| Error::internal("cache", format!("no thread could be started: {error}")))?;
    loop {
        match found.recv_timeout(CHECK_EVERY) {
            Ok(found) => return Ok(found),
            Err(RecvTimeoutError::Timeout) => check()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::internal("cache", "the thread that asks the tiers has ended"));
            }
        }
    }
}

impl Manager {
    /// State of the embedding cache in memory.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn cache_statistics(&self) -> Result<CacheStatistics> {
        Ok(self.parts()?.cache.statistics())
    }

    /// Empties the embedding cache and sets its counts to zero. With `tiers`, those below the memory are emptied too, and
    /// what is on its way to them is dropped. Calls that still compute store their results later. `check` can end the waiting
    /// for the tiers; the clearing goes on.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::Io`] when a folder or a server could not be emptied: everything else is; those of `check`.
    pub fn clear_cache(&self, tiers: bool, check: Check<'_>) -> Result<()> {
        let parts = self.parts()?;
        parts.cache.clear();
        parts.registry.all().iter().for_each(|entry| entry.cache.clear());
        if tiers {
            let emptied = Arc::clone(&parts.tiering.tiers);
            let mut failed = on_own_thread("cache-clearing", check, move || emptied.clear())?.into_iter();
            if let Some((place, reason)) = failed.next() {
                let others: String = failed.map(|(place, reason)| format!("; {place}: {reason}")).collect();
                let reason = format!("not emptied: {reason}{others}");
                return Err(Error::Io { path: place.into(), reason, code: None });
            }
        }
        Ok(())
    }

    /// Waits until everything that is on its way to lower tiers is stored, `patience` at most; `None`: without limit.
    ///
    /// # Errors
    /// [`Error::Closed`]; those of `check`.
    pub fn flush_cache(&self, patience: Option<Duration>, check: Check<'_>) -> Result<()> {
        let tiers = Arc::clone(&self.parts()?.tiering.tiers);
        // More than the clock can represent is no limit.
        let until = patience.and_then(|patience| Instant::now().checked_add(patience));
        loop {
            let next = Instant::now() + CHECK_EVERY;
            let is_last = until.is_some_and(|until| until <= next);
            if tiers.flush(until.map_or(next, |until| until.min(next))) || is_last {
                return Ok(());
            }
            check()?;
        }
    }

    /// Asks the servers of the cache now: their addresses without passwords, and whether they answer.
    ///
    /// # Errors
    /// [`Error::Closed`]; those of `check`.
    pub fn probe_cache(&self, check: Check<'_>) -> Result<Vec<(String, bool)>> {
        let tiers = Arc::clone(&self.parts()?.tiering.tiers);
        on_own_thread("cache-probing", check, move || tiers.probe())
    }

    /// Reads everything that is on disk.
    ///
    /// # Errors
    /// [`Error::Config`] when nothing is stored on disk; that of a folder that cannot be listed.
    pub fn verify_cache(&self) -> Result<Verified> {
        let disk = self.disk()?;
        disk.verify().map_err(|error| Error::io(disk.folder(), "list", &error))
    }

    /// Writes everything that is on disk to one file; how many results.
    ///
    /// # Errors
    /// [`Error::Config`] when nothing is stored on disk; those of the file.
    pub fn export_cache(&self, path: &Path) -> Result<usize> {
        self.disk()?.export(path).map_err(|error| Error::io(path, "write", &error))
    }

    /// Adds the results of such a file; how many were new.
    ///
    /// # Errors
    /// [`Error::Config`] when nothing is stored on disk; [`Error::InvalidFile`] for another or a damaged file; those of
    /// reading it, and of writing into the cache's folder.
    pub fn import_cache(&self, path: &Path) -> Result<usize> {
        let disk = self.disk()?;
        disk.import(path).map_err(|error| match error {
            ImportError::Folder(error) => Error::io(disk.folder(), "write", &error),
            ImportError::File(error) => match error.kind() {
                ErrorKind::InvalidData => Error::invalid_file(path, error.to_string()),
                ErrorKind::UnexpectedEof => {
                    Error::invalid_file(path, "it ends too early; export the cache again")
                }
                _ => Error::io(path, "read", &error),
            },
        })
    }

    fn disk(&self) -> Result<Arc<Disk>> {
        self.parts()?.tiering.disk.clone().ok_or_else(|| Error::Config {
            setting: "cache_disk".into(),
            value: "False".into(),
            reason: "nothing is stored on disk; set it to True or to a folder".into(),
        })
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
        let parts = self.parts()?;
        if settings.enabled {
            parts.learning.set_usual(settings.max_idle);
        }
        parts.reaper.set(settings);
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
