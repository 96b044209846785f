//! Requests to a server's model: with retries, behind a circuit breaker, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::address::Address;
use super::breaker::{Breaker, Circuit};
use super::client::{Client, Fault};
use super::protocol::Answer;
use super::retry::{ATTEMPTS, PATIENCE, chance, pause};
use crate::clock::Clock;
use crate::config::Host;
use crate::trace::Trace;
use crate::{Error, Result};

/// How requests to servers are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteSettings {
    /// Requests in flight at a time.
    pub connections: usize,
    /// Texts of one request at most.
    pub batch: usize,
    /// The longest time for one request and its answer.
    pub timeout: Duration,
}

/// The health of a server's model. Outlives the [`Link`]: after failures the next load waits for the server too.
#[derive(Debug)]
pub struct Health {
    breaker: Breaker,
    requests: AtomicU64,
    retries: AtomicU64,
    errors: AtomicU64,
}

/// [`Health`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthReport {
    /// Requests sent, those sent again included.
    pub requests: u64,
    /// Requests sent again after a failure.
    pub retries: u64,
    /// Failures that callers got.
    pub errors: u64,
    /// What the circuit breaker lets through.
    pub circuit: Circuit,
}

impl Health {
    /// Nothing has been asked yet.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            breaker: Breaker::new(clock),
            requests: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    /// The figures now.
    #[must_use]
    pub fn report(&self) -> HealthReport {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        HealthReport {
            requests: read(&self.requests),
            retries: read(&self.retries),
            errors: read(&self.errors),
            circuit: self.breaker.circuit(),
        }
    }
}

/// A connection to a server's model.
pub struct Link {
    client: Client,
    health: Arc<Health>,
    settings: RemoteSettings,
}

/// Why texts have no vectors.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) remedy: Recovery,
}

/// What may still succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recovery {
    /// Nothing.
    Nothing,
    /// Fewer texts at a time.
    SplitBatch,
    /// The texts of each caller alone: not all of them need be refused.
    Isolate,
}

impl Link {
    /// A link to `address`. Does not connect yet.
    ///
    /// # Errors
    /// [`Error::Config`] for a key that is missing or none, and for an `SSL_CERT_FILE` without certificates.
    pub fn new(
        address: &Address,
        host: &dyn Host,
        settings: RemoteSettings,
        health: Arc<Health>,
    ) -> Result<Self> {
        let client = Client::new(address, host, settings.connections, settings.timeout)?;
        Ok(Self { client, health, settings })
    }

    /// The model and its server.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.client.address()
    }

    /// The URL of requests.
    #[must_use]
    pub fn url(&self) -> &str {
        self.client.url()
    }

    /// The health of the server.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// How requests are made.
    #[must_use]
    pub fn settings(&self) -> RemoteSettings {
        self.settings
    }

    /// The vectors of `texts`, for a call with this record. `wait` pauses between attempts and says whether to go on.
    pub(super) fn embed(
        &self,
        texts: &[&str],
        trace: Option<&Trace>,
        wait: &mut dyn FnMut(Duration) -> bool,
    ) -> std::result::Result<Answer, Failure> {
        self.attempt(texts, trace, wait).inspect_err(|failure| {
            if failure.error != Error::Cancelled {
                self.health.errors.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    fn attempt(
        &self,
        texts: &[&str],
        trace: Option<&Trace>,
        wait: &mut dyn FnMut(Duration) -> bool,
    ) -> std::result::Result<Answer, Failure> {
        let lasting = |error: Error| Failure { error, remedy: Recovery::Nothing };
        let mut failed = 0;
        // Why the latest attempt failed.
        let mut latest: Option<String> = None;
        loop {
            let open = |cooldown| lasting(self.cooling_down(cooldown, latest.as_deref()));
            let permit = self.health.breaker.enter().map_err(open)?;
            self.health.requests.fetch_add(1, Ordering::Relaxed);
            let (reason, after) = match self.client.ask(texts, trace) {
                Ok(answer) => {
                    permit.succeeded();
                    return Ok(answer);
                }
                Err(Fault::Refused { error, too_large }) => {
                    permit.succeeded();
                    let remedy = if too_large { Recovery::SplitBatch } else { Recovery::Isolate };
                    return Err(Failure { error, remedy });
                }
                Err(Fault::Permanent { error, alive }) => {
                    if alive {
                        permit.succeeded();
                    } else {
                        self.note_failure(permit.failed());
                    }
                    return Err(lasting(error));
                }
                Err(Fault::Transient { reason, after, alive }) => {
                    if alive {
                        permit.succeeded();
                    } else {
                        self.note_failure(permit.failed());
                    }
                    (reason, after)
                }
            };
            failed += 1;
            if let Some(asked) = after.filter(|asked| *asked > PATIENCE) {
                let asked = asked.as_secs();
                return Err(lasting(self.error(format!("{reason}; it asks to be left alone for {asked} s"))));
            }
            if failed == ATTEMPTS {
                return Err(lasting(self.error(format!("{reason}, {ATTEMPTS} times in a row; {REMEDY}"))));
            }
            let pause = pause(failed, after, chance());
            log::warn!("{}: {reason}; trying again in {:.1} s", self.client.url(), pause.as_secs_f64());
            latest = Some(reason);
            if !wait(pause) {
                return Err(lasting(Error::Cancelled));
            }
            self.health.retries.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn note_failure(&self, opened: bool) {
        if let (true, Circuit::Open(cooldown)) = (opened, self.health.breaker.circuit()) {
            log::warn!(
                "{} keeps failing; it is left alone for {:.0} s",
                self.client.url(),
                cooldown.as_secs_f64()
            );
        }
    }

    /// The circuit is open.
    fn cooling_down(&self, cooldown: Duration, latest: Option<&str>) -> Error {
        let latest = latest.map(|reason| format!("{reason}; ")).unwrap_or_default();
        let when = if cooldown.is_zero() {
            "a request is finding out how it is now".to_owned()
        } else {
            format!("it is tried again in {:.1} s", cooldown.as_secs_f64())
        };
        self.error(format!("{latest}it kept failing and is left alone for a while; {when}. {REMEDY}"))
    }

    fn error(&self, reason: String) -> Error {
        Error::Remote { server: self.client.url().to_owned(), reason }
    }
}

const REMEDY: &str = "Check that the server runs and can be reached from here";
