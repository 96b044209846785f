//! Lines of the log that wait until a lock is free: a handler of Python's log may call the manager that holds the lock.
//! The logger of the process gives every record to `keep` first.

use std::cell::RefCell;

use log::Level;
#[cfg(any(test, feature = "python"))]
use log::Record;

thread_local! {
    /// The lines that this thread holds back, while it does.
    static HELD: RefCell<Option<Vec<Line>>> = const { RefCell::new(None) };
}

struct Line {
    level: Level,
    target: String,
    message: String,
}

/// Keeps a record of the process's logger if this thread holds its lines back. Returns whether it did.
#[cfg(any(test, feature = "python"))]
pub(crate) fn keep(record: &Record<'_>) -> bool {
    HELD.with_borrow_mut(|held| {
        let Some(lines) = held else { return false };
        let (level, target) = (record.level(), record.target().to_owned());
        lines.push(Line { level, target, message: record.args().to_string() });
        true
    })
}

/// Whether this thread holds its lines back.
pub(crate) fn is_holding() -> bool {
    HELD.with_borrow(Option::is_some)
}

/// Runs `work`, whose lines wait for [`HeldLines::write`]. Lines of other threads do not wait.
pub(crate) fn hold<T>(work: impl FnOnce() -> T) -> (T, HeldLines) {
    /// Also after a panic this thread logs at once again.
    struct Restore(Option<Vec<Line>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            HELD.set(self.0.take());
        }
    }
    let restore = Restore(HELD.replace(Some(Vec::new())));
    let done = work();
    let lines = HELD.take().unwrap_or_default();
    drop(restore);
    (done, HeldLines(lines))
}

/// Lines that were not logged yet.
#[must_use = "the lines are lost otherwise"]
pub(crate) struct HeldLines(Vec<Line>);

impl HeldLines {
    /// Logs them, in their order; later, where this thread holds lines back for another lock.
    pub(crate) fn write(self) {
        for Line { level, target, message } in self.0 {
            log::log!(target: &*target, level, "{message}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(held: &HeldLines) -> Vec<&str> {
        held.0.iter().map(|line| line.message.as_str()).collect()
    }

    /// The logger of a process: it gives every record to `keep` first.
    struct Keeping;

    impl log::Log for Keeping {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &Record<'_>) {
            keep(record);
        }

        fn flush(&self) {}
    }

    fn say(word: &str) {
        log::warn!("{word}");
    }

    #[test]
    fn lines_wait_on_their_own_thread() {
        log::set_logger(&Keeping).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
        let (inner, outer) = hold(|| {
            say("one");
            std::thread::spawn(|| say("of another thread")).join().unwrap();
            let ((), inner) = hold(|| say("two"));
            say("three");
            let held = lines(&inner).join(" ");
            inner.write();
            held
        });
        assert_eq!((inner.as_str(), lines(&outer)), ("two", vec!["one", "three", "two"]));
        HELD.with_borrow(|held| assert!(held.is_none()));
    }

    #[test]
    fn a_panic_ends_the_holding() {
        let caught = std::panic::catch_unwind(|| drop(hold(|| panic!("on purpose")).1));
        assert!(caught.is_err());
        HELD.with_borrow(|held| assert!(held.is_none()));
    }
}
