//! Requests to a server's model: with retries, behind a circuit breaker, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::address::Address;
use super::breaker::{Breaker, Circuit, Permit};
use super::client::{Client, Fault, ServerState};
use super::protocol::{Answer, Defect};
use super::retry::{ATTEMPTS, PATIENCE, chance, pause};
use crate::clock::Clock;
use crate::config::Host;
use crate::trace::Trace;
use crate::{Error, Result};

/// What a server is asked to embed to see that it and the model are there, and how long the vectors are.
pub(super) const PROBE: &str = "hello";

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

/// Those who wait for the vectors of a request.
pub(super) trait Callers {
    /// Pauses before the next attempt. True when it is to be made.
    fn pause(&mut self, pause: Duration) -> bool;

    /// Whether the texts will be asked for in parts, where that may help.
    fn divisible(&self, remedy: Recovery) -> bool;
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

    /// The vectors of `texts`, for a call with this record.
    pub(super) fn embed(
        &self,
        texts: &[&str],
        trace: Option<&Trace>,
        callers: &mut dyn Callers,
    ) -> std::result::Result<Answer, Failure> {
        let outcome = self.attempt(texts, trace, callers);
        let failed = match &outcome {
            Ok(answer) => answer.rows.iter().any(Result::is_err),
            Err(failure) => failure.error != Error::Cancelled && !callers.divisible(failure.remedy),
        };
        if failed {
            self.health.errors.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    /// The error for a row that is none.
    pub(super) fn defective(&self, defect: Defect) -> Error {
        self.client.defective(defect)
    }

    fn attempt(
        &self,
        texts: &[&str],
        trace: Option<&Trace>,
        callers: &mut dyn Callers,
    ) -> std::result::Result<Answer, Failure> {
        let lasting = |error: Error| Failure { error, remedy: Recovery::Nothing };
        let mut failed = 0;
        // Why the latest attempt failed.
        let mut latest: Option<String> = None;
        loop {
            let open = |cooldown| lasting(self.cooling_down(cooldown, latest.as_deref()));
            let permit = self.health.breaker.enter().map_err(open)?;
            self.health.requests.fetch_add(1, Ordering::Relaxed);
            let fault = match self.client.ask(texts, trace) {
                Ok(answer) => {
                    permit.succeeded();
                    return Ok(answer);
                }
                Err(fault) => fault,
            };
            let server = fault.server();
            self.report(permit, server, texts);
            let recovery =
                if server == ServerState::Doubtful { Recovery::Isolate } else { Recovery::Nothing };
            let (reason, after) = match fault {
                Fault::Refused { error, too_large } => {
                    let remedy = if too_large { Recovery::SplitBatch } else { Recovery::Isolate };
                    return Err(Failure { error, remedy });
                }
                Fault::Permanent { error, .. } => return Err(Failure { error, remedy: recovery }),
                Fault::Transient { reason, after, .. } => (reason, after),
            };
            // At once: the callers of sound texts need not wait for all attempts at a bad one.
            if callers.divisible(recovery) {
                return Err(Failure { error: self.error(reason), remedy: recovery });
            }
            failed += 1;
            if let Some(asked) = after.filter(|asked| *asked > PATIENCE) {
                let asked = asked.as_secs();
                return Err(lasting(self.error(format!("{reason}; it asks to be left alone for {asked} s"))));
            }
            if failed == ATTEMPTS {
                return Err(lasting(
                    self.error(format!("{reason}, {ATTEMPTS} times in a row. {}", remedy(server))),
                ));
            }
            let pause = pause(failed, after, chance());
            log::warn!("{}: {reason}; trying again in {:.1} s", self.client.url(), pause.as_secs_f64());
            latest = Some(reason);
            if !callers.pause(pause) {
                return Err(lasting(Error::Cancelled));
            }
            self.health.retries.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reports a failed request for `texts` to the circuit breaker.
    fn report(&self, permit: Permit<'_>, server: ServerState, texts: &[&str]) {
        let runs = match server {
            ServerState::Runs => true,
            ServerState::Down => false,
            // A few bad texts in a row must not shut out all others.
            ServerState::Doubtful => permit.is_decisive() && self.answers(texts),
        };
        if runs {
            permit.succeeded();
        } else {
            self.note_failure(permit.failed());
        }
    }

    /// Whether the server still answers for the text that it answered for at loading, after it failed at `texts`.
    fn answers(&self, texts: &[&str]) -> bool {
        if texts == [PROBE] {
            return false;
        }
        self.health.requests.fetch_add(1, Ordering::Relaxed);
        self.client.ask(&[PROBE], None).map_or_else(|fault| fault.server() == ServerState::Runs, |_| true)
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
        self.error(format!(
            "{latest}it kept failing and is left alone for a while; {when}. {}",
            remedy(ServerState::Down)
        ))
    }

    fn error(&self, reason: String) -> Error {
        Error::Remote { server: self.client.url().to_owned(), reason }
    }
}

/// What to do about a server that kept failing.
fn remedy(server: ServerState) -> &'static str {
    match server {
        ServerState::Runs => "It is busy: lower remote_connections, or ask again later",
        ServerState::Doubtful => "Its log may say why",
        ServerState::Down => "Check that the server runs and can be reached from here",
    }
}
