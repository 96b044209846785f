//! The files of a loaded model, and what they contain, which is computed when a caller asks for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::options::Check;
use crate::compute::WeightFormat;
use crate::models::{ContentId, ModelFiles, Overrides};
use crate::sync::{Condvar, Mutex, fork::Process};
use crate::{Error, Result};

/// How often a caller that waits for another's reading runs its check.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// A cheap-clone handle.
#[derive(Debug, Clone)]
pub(super) struct LoadedFiles(Arc<FilesInUse>);

#[derive(Debug)]
struct FilesInUse {
    files: ModelFiles,
    format: WeightFormat,
    overrides: Overrides,
    /// Of the files before the load.
    stamp: Arc<str>,
    reading: Mutex<Reading>,
    /// Signalled when a reading has ended.
    ended: Condvar,
}

#[derive(Debug, Clone, Copy)]
enum Reading {
    Unread,
    /// A thread of this process reads the files.
    Now(Process),
    /// `None`: the files were changed after the load, or cannot be read, so it will never be known.
    Known(Option<ContentId>),
}

impl PartialEq for LoadedFiles {
    fn eq(&self, other: &Self) -> bool {
        self.0.stamp == other.0.stamp
    }
}

/// Ends a reading, also when it panics.
struct Ends<'f>(&'f FilesInUse, Reading);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        *self.0.reading.lock() = self.1;
        self.0.ended.notify_all();
    }
}

impl LoadedFiles {
    /// `stamp` is that of the files before they were loaded, in this format with these overrides.
    pub(super) fn new(
        files: ModelFiles,
        format: WeightFormat,
        overrides: Overrides,
        stamp: Arc<str>,
    ) -> Self {
        let (reading, ended) = (Mutex::new(Reading::Unread), Condvar::new());
        Self(Arc::new(FilesInUse { files, format, overrides, stamp, reading, ended }))
    }

    /// The same files, with what is known of them, and nothing of another process' threads.
    pub(super) fn inherited(&self) -> Self {
        let FilesInUse { files, format, overrides, stamp, .. } = &*self.0;
        let new = Self::new(files.clone(), *format, *overrides, Arc::clone(stamp));
        if let Some(Reading::Known(content)) = self.0.reading.try_lock().as_deref() {
            *new.0.reading.lock() = Reading::Known(*content);
        }
        new
    }

    /// Whether their content will never be known.
    fn is_lost(&self) -> bool {
        matches!(*self.0.reading.lock(), Reading::Known(None))
    }

    /// What the model of the files computes. `None` where that is not known: they were changed after the load. One of several
    /// callers reads them, the others wait; `check` is called meanwhile.
    ///
    /// # Errors
    /// That of `check`. The next caller reads them then.
    pub(super) fn content(&self, check: Check<'_>) -> Result<Option<ContentId>> {
        let files = &*self.0;
        let mut reading = files.reading.lock();
        loop {
            match *reading {
                Reading::Known(content) => return Ok(content),
                Reading::Now(process) if process.is_current() => {
                    reading = files.ended.wait_until(reading, Instant::now() + CHECK_EVERY).0;
                    drop(reading);
                    check()?;
                    reading = files.reading.lock();
                }
                Reading::Unread | Reading::Now(_) => break,
            }
        }
        *reading = Reading::Now(Process::current());
        drop(reading);
        let mut ends = Ends(files, Reading::Unread);
        let mut stopped = None;
        let found = ContentId::of(&files.files, files.format, files.overrides, &mut || {
            check().inspect_err(|error| stopped = Some(error.clone()))
        });
        if let Some(error) = stopped {
            return Err(error);
        }
        let content = self.unchanged(found);
        ends.1 = Reading::Known(content);
        Ok(content)
    }

    fn unchanged(&self, found: Result<ContentId>) -> Option<ContentId> {
        let FilesInUse { files, format, overrides, stamp, .. } = &*self.0;
        let now = found.and_then(|content| Ok((content, files.stamp(*format, *overrides)?)));
        let content = now.and_then(|(content, now)| match now == **stamp {
            true => Ok(content),
            false => {
                Err(Error::invalid_file(&files.root, "its files were changed after the model was loaded"))
            }
        });
        content.inspect_err(|error| log::info!("{}: its content is not known: {error}", files.model)).ok()
    }
}

/// The files of all models that were loaded, by their stamps: a model that is loaded again is not read again.
#[derive(Debug, Default)]
pub(super) struct FilesByStamp(Mutex<HashMap<Arc<str>, LoadedFiles>>);

impl FilesByStamp {
    /// Those of an earlier load that had the same stamp, or else `loaded`.
    pub(super) fn known_or(&self, loaded: LoadedFiles) -> LoadedFiles {
        let mut all = self.0.lock();
        let known = all.get(&loaded.0.stamp).filter(|known| !known.is_lost()).cloned();
        known.unwrap_or_else(|| {
            all.insert(Arc::clone(&loaded.0.stamp), loaded.clone());
            loaded
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A model of several megabytes, between whose parts checks are called.
    fn model(folder: &Path) -> ModelFiles {
        fs::write(folder.join("config.json"), "{}").unwrap();
        fs::write(folder.join("tokenizer.json"), "{}").unwrap();
        fs::write(folder.join("model.safetensors"), vec![7; 5 << 20]).unwrap();
        ModelFiles::open("m", folder).unwrap()
    }

    fn loaded(files: &ModelFiles) -> LoadedFiles {
        let (format, overrides) = (WeightFormat::F32, Overrides::default());
        LoadedFiles::new(files.clone(), format, overrides, files.stamp(format, overrides).unwrap().into())
    }

    fn content(files: &LoadedFiles) -> Option<ContentId> {
        files.content(&mut || Ok(())).unwrap()
    }

    #[test]
    fn several_callers_read_the_files_once() {
        let folder = tempfile::tempdir().unwrap();
        let files = model(folder.path());
        let expected =
            ContentId::of(&files, WeightFormat::F32, Overrides::default(), &mut || Ok(())).unwrap();
        let (loaded, checks, start) = (loaded(&files), AtomicUsize::new(0), Barrier::new(4));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    let mut check = || {
                        checks.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    };
                    assert_eq!(loaded.content(&mut check).unwrap(), Some(expected));
                });
            }
        });
        let read = checks.swap(0, Ordering::Relaxed);
        assert_eq!(content(&loaded), Some(expected));
        assert!(read >= 5, "{read}");
    }

    #[test]
    fn what_a_check_stops_is_read_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let loaded = loaded(&model(folder.path()));
        assert_eq!(loaded.content(&mut || Err(Error::Cancelled)), Err(Error::Cancelled));
        assert!(content(&loaded).is_some());
    }

    #[test]
    fn files_that_were_changed_or_lost_are_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let files = model(folder.path());
        let [changed, lost, known] = [(); 3].map(|()| loaded(&files));
        assert!(content(&known).is_some());
        fs::write(folder.path().join("model.safetensors"), "others").unwrap();
        assert_eq!(content(&changed), None);
        assert!(content(&known).is_some(), "it was known before");
        assert_eq!(content(&changed.inherited()), None);
        assert_eq!(content(&known.inherited()), content(&known));
        fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        assert_eq!(content(&lost), None);
    }

    #[test]
    fn files_that_are_loaded_again_are_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let files = model(folder.path());
        let all = FilesByStamp::default();
        let first = all.known_or(loaded(&files));
        let expected = content(&first);
        let mut never = || panic!("they are read");
        assert_eq!(all.known_or(loaded(&files)).content(&mut never).unwrap(), expected);
        assert_eq!(first.inherited().content(&mut never).unwrap(), expected);
        // What could not be known is read at the next load.
        let lost = all.known_or(loaded(&files));
        *lost.0.reading.lock() = Reading::Known(None);
        assert_eq!(content(&all.known_or(loaded(&files))), expected);
        fs::write(folder.path().join("model.safetensors"), "others").unwrap();
        assert_ne!(content(&all.known_or(loaded(&files))), expected);
    }

    /// A child has no thread that its parent's reading belongs to.
    #[test]
    fn the_reading_of_another_process_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let loaded = loaded(&model(folder.path()));
        *loaded.0.reading.lock() = Reading::Now(Process::parent());
        assert!(content(&loaded).is_some());
    }
}
