//! The phases of a slot: plain data behind the slot's lock.

use std::sync::Arc;
use std::time::Instant;

use super::keep_alive::KeepAlive;
use super::lease::Continuation;
use super::managed::{Idle, SlotOptions};
use super::residency::Residency;
use crate::Error;
use crate::sync::thread::ThreadId;

pub(super) struct LockedSlot<T: ?Sized + Send + Sync + 'static> {
    pub(super) phase: Phase<T>,
    pub(super) options: SlotOptions,
    pub(super) last_error: Option<Error>,
    /// End of the latest use, or the moment of loading.
    pub(super) last_used: Option<Instant>,
    /// Loads that an `unload` has detached: callers that wait for them get their value, the slot does not.
    pub(super) detached: Vec<Flight<T>>,
    /// Number of the latest load or adoption, which is the id of its residency.
    pub(super) arrivals: u64,
    pub(super) idle_periods: u64,
    /// Uses of the present value, and the seconds of its load.
    pub(super) uses: u64,
    pub(super) load_seconds: f64,
    /// As [`Idle::priority`].
    pub(super) priority: u64,
}

pub(super) enum Phase<T: ?Sized + Send + Sync + 'static> {
    Absent,
    Loading(Flight<T>),
    Ready(Ready<T>),
}

/// A load in progress.
pub(super) struct Flight<T: ?Sized + Send + Sync + 'static> {
    pub(super) id: u64,
    /// Its thread, once that runs.
    pub(super) thread: Option<ThreadId>,
    pub(super) waiters: Vec<Continuation<T>>,
    /// It is loaded ahead of a use, without a request, and stays until then.
    pub(super) ahead: Option<Instant>,
}

pub(super) struct Ready<T: ?Sized> {
    pub(super) residency: Arc<Residency<T>>,
    pub(super) leases: usize,
    /// Applies to the idle time after the present uses: the longest of their keep-alives.
    pub(super) keep_alive: Option<KeepAlive>,
    /// Present leases with a keep-alive of their own, and the longest of these.
    pub(super) own: usize,
    pub(super) longest_own: KeepAlive,
}

/// What a caller that asks for the value does next.
pub(super) enum AcquireStep<T: ?Sized + Send + Sync + 'static> {
    /// The value is ready, and the caller's lease is counted.
    Take(Arc<Residency<T>>, Continuation<T>),
    /// The continuation waits for a load.
    Wait,
    /// The continuation waits for a load that the caller is to start.
    Start(u64),
    /// The caller is that load itself.
    Refuse(Continuation<T>),
}

impl<T: ?Sized + Send + Sync + 'static> LockedSlot<T> {
    pub(super) fn new(options: SlotOptions) -> Self {
        Self {
            phase: Phase::Absent,
            options,
            last_error: None,
            last_used: None,
            detached: Vec::new(),
            arrivals: 0,
            idle_periods: 0,
            uses: 0,
            load_seconds: 0.0,
            priority: 0,
        }
    }

    /// Takes the value out. The caller drops it after unlocking.
    pub(super) fn take_value(&mut self) -> Option<Arc<Residency<T>>> {
        match std::mem::replace(&mut self.phase, Phase::Absent) {
            Phase::Ready(ready) => Some(ready.residency),
            other => {
                self.phase = other;
                None
            }
        }
    }

    /// Takes the flight with this id out of the slot. The second value is true when the slot waits for it.
    pub(super) fn take_flight(&mut self, id: u64) -> Option<(Flight<T>, bool)> {
        match std::mem::replace(&mut self.phase, Phase::Absent) {
            Phase::Loading(flight) if flight.id == id => Some((flight, true)),
            other => {
                self.phase = other;
                let index = self.detached.iter().position(|flight| flight.id == id)?;
                Some((self.detached.swap_remove(index), false))
            }
        }
    }

    pub(super) fn flight_mut(&mut self, id: u64) -> Option<&mut Flight<T>> {
        let current = match &mut self.phase {
            Phase::Loading(flight) => Some(flight),
            Phase::Absent | Phase::Ready(_) => None,
        };
        current.into_iter().chain(&mut self.detached).find(|flight| flight.id == id)
    }

    pub(super) fn idle(&self) -> Option<Idle> {
        match &self.phase {
            Phase::Ready(ready) if ready.leases == 0 && !self.options.pinned => Some(Idle {
                since: self.last_used?,
                keep_alive: ready.keep_alive,
                charge: ready.residency.charge(),
                priority: self.priority,
                period: self.idle_periods,
            }),
            _ => None,
        }
    }
}

impl<T: ?Sized> Ready<T> {
    pub(super) fn new(residency: Arc<Residency<T>>, leases: usize, keep_alive: Option<KeepAlive>) -> Self {
        Self { residency, leases, keep_alive, own: 0, longest_own: KeepAlive::AFTER_USE }
    }

    /// What will apply to the idle time if the present uses end now. `usual` is that of uses without one of their own.
    pub(super) fn expected(&self, usual: Option<KeepAlive>, default: KeepAlive) -> Option<KeepAlive> {
        let mut longest = self.keep_alive;
        if self.own > 0 {
            longest = longer(longest, Some(self.longest_own), default);
        }
        if self.own < self.leases {
            longest = longer(longest, usual, default);
        }
        longest
    }

    pub(super) fn count_lease(&mut self) {
        if self.leases == 0 {
            // The shortest there is: the uses that begin now will bring their own.
            self.keep_alive = Some(KeepAlive::AFTER_USE);
            self.longest_own = KeepAlive::AFTER_USE;
        }
        self.leases += 1;
    }
}

/// The longer of two, where `None` stands for `default`; `b` when they are equal.
pub(super) fn longer(a: Option<KeepAlive>, b: Option<KeepAlive>, default: KeepAlive) -> Option<KeepAlive> {
    if a.unwrap_or(default) > b.unwrap_or(default) { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_keep_alive_wins_and_none_is_the_default() {
        let of = |seconds| Some(KeepAlive::For(std::time::Duration::from_secs(seconds)));
        let default = KeepAlive::For(std::time::Duration::from_secs(10));
        for (a, b, longest) in [
            (of(1), of(2), of(2)),
            (of(2), of(1), of(2)),
            (None, of(9), None),
            (of(11), None, of(11)),
            (Some(KeepAlive::Forever), None, Some(KeepAlive::Forever)),
            (Some(KeepAlive::AFTER_USE), None, None),
        ] {
            assert_eq!(longer(a, b, default), longest, "{a:?} {b:?}");
        }
    }
}
