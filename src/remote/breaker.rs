//! A circuit breaker: a server that fails repeatedly gets no requests for a while, and calls fail at once meanwhile.
//!
//! ```text
//! closed ─ FAILURES in a row → open ─ cooldown over → half open: one request goes through
//!    ↑                          ↑                            │
//!    └──────── it succeeds ─────┼────────────────────────────┤
//!                               └──── it fails: twice as long ┘
//! ```

use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::sync::Mutex;

/// Failures in a row that open the circuit.
pub(super) const FAILURES: u32 = 5;
const FIRST_COOLDOWN: Duration = Duration::from_secs(5);
const LONGEST_COOLDOWN: Duration = Duration::from_secs(60);

/// What a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Circuit {
    /// Everything.
    Closed,
    /// Nothing, for so long.
    Open(Duration),
    /// One request at a time, to find out whether the server works again.
    HalfOpen,
}

impl Circuit {
    /// closed, open or half_open
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open(_) => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// The recent failures of a server.
#[derive(Debug)]
pub(super) struct Breaker {
    clock: Clock,
    state: Mutex<BreakerState>,
}

#[derive(Debug, Default)]
struct BreakerState {
    /// Failures in a row.
    failures: u32,
    /// The latest cooldown: when it ends, and how long it is. `None` while closed.
    cooldown: Option<(Instant, Duration)>,
    /// A request is under way to find out whether the server works again.
    probing: bool,
}

/// Permission for one request. Reports how it ended: [`Permit::succeeded`] or [`Permit::failed`]. Dropping it reports
/// nothing.
pub(super) struct Permit<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Breaker {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, state: Mutex::default() }
    }

    /// Permission for a request, or how long the server gets none (zero: until the request under way has ended).
    pub(super) fn enter(&self) -> Result<Permit<'_>, Duration> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let Some((until, _)) = state.cooldown else { return Ok(Permit { breaker: self, probe: false }) };
        if now < until || state.probing {
            return Err(until.saturating_duration_since(now));
        }
        state.probing = true;
        Ok(Permit { breaker: self, probe: true })
    }

    pub(super) fn circuit(&self) -> Circuit {
        let now = self.clock.now();
        match self.state.lock().cooldown {
            None => Circuit::Closed,
            Some((until, _)) if now < until => Circuit::Open(until - now),
            Some(_) => Circuit::HalfOpen,
        }
    }
}

impl Permit<'_> {
    /// The server works.
    pub(super) fn succeeded(self) {
        let mut state = self.breaker.state.lock();
        // An answer from before the circuit opened says nothing about the server now.
        if self.probe || state.cooldown.is_none() {
            *state = BreakerState { probing: state.probing, ..BreakerState::default() };
        }
    }

    /// Whether [`Self::failed`] would open the circuit.
    pub(super) fn is_decisive(&self) -> bool {
        let state = self.breaker.state.lock();
        self.probe || (state.cooldown.is_none() && state.failures.saturating_add(1) >= FAILURES)
    }

    /// The server does not work. True when this opens the circuit.
    pub(super) fn failed(self) -> bool {
        let now = self.breaker.clock.now();
        let mut state = self.breaker.state.lock();
        state.failures = state.failures.saturating_add(1);
        let cooldown = match state.cooldown {
            Some((_, latest)) if self.probe => (latest * 2).min(LONGEST_COOLDOWN),
            None if state.failures >= FAILURES => FIRST_COOLDOWN,
            _ => return false,
        };
        state.cooldown = Some((now + cooldown, cooldown));
        true
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.breaker.state.lock().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opened() -> (Breaker, Clock) {
        let clock = Clock::manual();
        let breaker = Breaker::new(clock.clone());
        for failure in 1..=FAILURES {
            let permit = breaker.enter().ok().unwrap();
            assert_eq!(permit.is_decisive(), failure == FAILURES);
            assert_eq!(permit.failed(), failure == FAILURES);
        }
        (breaker, clock)
    }

    fn wait(breaker: &Breaker) -> Option<Duration> {
        breaker.enter().err()
    }

    #[test]
    fn it_opens_after_failures_in_a_row() {
        let (breaker, clock) = opened();
        assert_eq!(wait(&breaker), Some(FIRST_COOLDOWN));
        clock.advance(Duration::from_secs(2));
        assert_eq!(wait(&breaker), Some(Duration::from_secs(3)));
        assert_eq!(breaker.circuit(), Circuit::Open(Duration::from_secs(3)));
    }

    #[test]
    fn a_success_in_between_starts_the_count_anew() {
        let breaker = Breaker::new(Clock::manual());
        for _ in 0..3 {
            (1..FAILURES).for_each(|_| assert!(!breaker.enter().ok().unwrap().failed()));
            breaker.enter().ok().unwrap().succeeded();
        }
        assert_eq!(breaker.circuit(), Circuit::Closed);
    }

    #[test]
    fn one_request_at_a_time_finds_out() {
        let (breaker, clock) = opened();
        clock.advance(FIRST_COOLDOWN);
        assert_eq!(breaker.circuit(), Circuit::HalfOpen);
        let probe = breaker.enter().ok().unwrap();
        assert_eq!(wait(&breaker), Some(Duration::ZERO));
        // Given up without an answer: the next one may try.
        drop(probe);
        let probe = breaker.enter().ok().unwrap();
        assert!(probe.is_decisive());
        assert!(probe.failed());
        assert_eq!(wait(&breaker), Some(FIRST_COOLDOWN * 2));
        clock.advance(FIRST_COOLDOWN * 2);
        breaker.enter().ok().unwrap().succeeded();
        assert_eq!(breaker.circuit(), Circuit::Closed);
        assert!(!breaker.enter().ok().unwrap().failed());
    }

    #[test]
    fn an_answer_that_comes_late_does_not_close_it() {
        let clock = Clock::manual();
        let breaker = Breaker::new(clock);
        let slow = breaker.enter().ok().unwrap();
        for _ in 0..FAILURES {
            breaker.enter().ok().unwrap().failed();
        }
        slow.succeeded();
        assert!(matches!(breaker.circuit(), Circuit::Open(_)));
    }

    proptest! {
        /// Whatever happens, it never rests longer than the longest cooldown, and a success after that closes it.
        #[test]
        fn it_always_comes_back(events in prop::collection::vec((0u8..3, 0u64..100), 0..200)) {
            let clock = Clock::manual();
            let breaker = Breaker::new(clock.clone());
            for (outcome, seconds) in events {
                clock.advance(Duration::from_secs(seconds));
                match (breaker.enter(), outcome) {
                    (Ok(pass), 0) => pass.succeeded(),
                    (Ok(pass), 1) => drop(pass.failed()),
                    (Ok(pass), _) => drop(pass),
                    (Err(cooldown), _) => prop_assert!(cooldown <= LONGEST_COOLDOWN),
                }
            }
            clock.advance(LONGEST_COOLDOWN);
            breaker.enter().ok().unwrap().succeeded();
            prop_assert_eq!(breaker.circuit(), Circuit::Closed);
        }
    }
}
