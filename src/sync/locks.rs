//! Locks: the standard library's, without poisoning.
//!
//! `parking_lot` keeps every waiting thread in one table of the process. In a child after `fork` that table still points
//! into the stacks of threads that did not survive, and the next new thread reads it. The standard library's locks are
//! words that the kernel waits on. They have no state outside themselves, so nothing becomes stale.

use std::sync::{PoisonError, TryLockError};
use std::time::Instant;

use super::primitives::sync;
pub use super::primitives::sync::MutexGuard;

/// A mutual exclusion lock. A panic while it is held does not poison it: every critical section here leaves the value
/// consistent.
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized>(sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits until the lock is free and takes it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock if it is free now.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The value, without locking: the exclusive reference is proof that no other thread can reach it.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A condition variable: a waiting thread releases the lock, and takes it again before it goes on.
#[derive(Debug, Default)]
pub struct Condvar(sync::Condvar);

impl Condvar {
    /// A condition variable without waiting threads.
    pub const fn new() -> Self {
        Self(sync::Condvar::new())
    }

    /// Wakes one waiting thread.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all waiting threads.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Waits for a notification. May return without one: check the condition again.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a notification, until `at` at most. True when the wait ended by time.
    pub fn wait_until<'a, T>(&self, guard: MutexGuard<'a, T>, at: Instant) -> (MutexGuard<'a, T>, bool) {
        let left = at.saturating_duration_since(Instant::now());
        let (guard, timeout) = self.0.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner);
        (guard, timeout.timed_out())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_panic_under_the_lock_does_not_poison_it() {
        let lock = Arc::new(Mutex::new(1));
        let other = Arc::clone(&lock);
        let panicked = thread::spawn(move || {
            let _held = other.lock();
            panic!("while holding it");
        });
        assert!(panicked.join().is_err());
        *lock.lock() += 1;
        assert_eq!(lock.try_lock().as_deref(), Some(&2));
        assert_eq!(Arc::into_inner(lock).map(Mutex::into_inner), Some(2));
    }

    #[test]
    fn a_held_lock_cannot_be_taken() {
        let lock = Mutex::new(());
        let _held = lock.lock();
        assert!(lock.try_lock().is_none());
    }

    #[test]
    fn waiting_ends_by_notification_or_by_time() {
        let pair = Arc::new((Mutex::new(false), Condvar::new()));
        let (guard, timed_out) = pair.1.wait_until(pair.0.lock(), Instant::now() + Duration::from_millis(5));
        assert!(timed_out && !*guard);
        drop(guard);
        let other = Arc::clone(&pair);
        let notifier = thread::spawn(move || {
            *other.0.lock() = true;
            other.1.notify_all();
        });
        let mut ready = pair.0.lock();
        while !*ready {
            ready = pair.1.wait(ready);
        }
        drop(ready);
        notifier.join().unwrap();
    }
}
