//! One server or cluster: its connections, and how long it rests after a failure.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisResult, ServerErrorKind};
use sha2::{Digest as _, Sha256};

use super::super::key::TierKey;
use super::super::tier::TierCounts;
use super::connection::{RedisClient, RedisConnection};
use crate::clock::Clock;
use crate::config::Host;
use crate::sync::Mutex;
use crate::{Error, Result, tls};

/// How long connecting may take, unless a request may take longer.
const CONNECT: Duration = Duration::from_millis(200);
/// How long a server is not asked after a failure: doubled with each failure in a row.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// In the scheme of an address, it says that the server is a node of a cluster: `redis+cluster://`, `rediss+cluster://`.
const CLUSTER: &str = "+cluster://";
/// Connections that are kept.
const MOST_IDLE: usize = 4;

pub(super) struct RedisServer {
    /// Its address without a password, for messages; also what its weights are made of.
    pub(super) name: String,
    seed: u64,
    client: RedisClient,
    timeout: Duration,
    clock: Clock,
    idle: Mutex<Vec<RedisConnection>>,
    rest: Mutex<ServerRest>,
}

#[derive(Default)]
struct ServerRest {
    until: Option<Instant>,
    length: Duration,
    /// The latest failure, which is reported once.
    reported: Option<String>,
    /// The latest refusal to store, until something is stored.
    refused: Option<String>,
}

impl RedisServer {
    /// The servers that `urls` name: each by itself, or all as nodes of one cluster.
    pub(super) fn all(
        urls: &[&str],
        timeout: Duration,
        environment: &dyn Host,
        clock: &Clock,
    ) -> Result<Vec<Self>> {
        let is_node = |url: &&&str| url.contains(CLUSTER);
        if let Some(single) = urls.iter().find(|url| !is_node(url))
            && urls.iter().any(|url| is_node(&url))
        {
            let reason =
                "the other addresses are those of a cluster; name either servers, or nodes of one cluster";
            return Err(refused("cache_url", &without_password(single), reason));
        }
        let named = |urls: &[&str], client: Result<RedisClient>| {
            let name = urls.iter().map(|url| without_password(url)).collect::<Vec<_>>().join(",");
            Ok(Self::new(name, client?, timeout, clock.clone()))
        };
        if urls.iter().any(|url| is_node(&url)) {
            let nodes = urls.iter().map(|url| settings(url, environment)).collect::<Result<_>>()?;
            let client = RedisClient::cluster(nodes, CONNECT.max(timeout), timeout);
            let client =
                client.map_err(|error| refused("cache_url", &without_password(urls[0]), &error.to_string()));
            return Ok(vec![named(urls, client)?]);
        }
        let single = |url: &&str| {
            let client = RedisClient::single(settings(url, environment)?);
            named(
                &[*url],
                client.map_err(|error| refused("cache_url", &without_password(url), &error.to_string())),
            )
        };
        urls.iter().map(single).collect()
    }

    fn new(name: String, client: RedisClient, timeout: Duration, clock: Clock) -> Self {
        let sum = Sha256::digest(&name);
        let seed = u64::from_le_bytes([sum[0], sum[1], sum[2], sum[3], sum[4], sum[5], sum[6], sum[7]]);
        Self { name, seed, client, timeout, clock, idle: Mutex::default(), rest: Mutex::default() }
    }

    /// How much this server wants `key`: the one that wants it most has it.
    pub(super) fn weight(&self, key: TierKey) -> u64 {
        let mut half = [0; 8];
        half.copy_from_slice(&key.0[8..]);
        // The finalizer of MurmurHash3: every bit of the input changes half of the result's.
        let mut mixed = u64::from_le_bytes(half) ^ self.seed;
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ (mixed >> 33)
    }

    /// How long a request may take, connecting included.
    pub(super) fn patience(&self) -> Duration {
        CONNECT.max(self.timeout).saturating_add(self.timeout)
    }

    /// Whether it may be asked: it does not rest after a failure.
    pub(super) fn is_working(&self) -> bool {
        self.rest.lock().until.is_none_or(|until| self.clock.now() >= until)
    }

    /// Whether it has not failed since its latest answer.
    pub(super) fn answers(&self) -> bool {
        self.rest.lock().length.is_zero()
    }

    /// Ends a rest after a failure.
    pub(super) fn wake(&self) {
        self.rest.lock().until = None;
    }

    /// The answer to a request; `None` when it fails, or the server rests after a failure. A server that refuses a write
    /// does not rest: it is still read. A request on a kept connection that the server has closed is repeated on a new one.
    pub(super) fn ask<T>(
        &self,
        counts: &TierCounts,
        writes: bool,
        request: impl Fn(&mut RedisConnection) -> RedisResult<T>,
    ) -> Option<T> {
        if !self.is_working() {
            return None;
        }
        let kept = self.idle.lock().pop();
        let mut asked = kept.map(|mut connection| (request(&mut connection), connection));
        if let Some((Err(error), _)) = &asked
            && error.is_connection_dropped()
        {
            // The others are as old.
            self.idle.lock().clear();
            asked = None;
        }
        let (answer, connection) = match asked {
            Some((answer, connection)) => (answer, Some(connection)),
            None => match self.client.connect(CONNECT.max(self.timeout), self.timeout) {
                Ok(mut connection) => (request(&mut connection), Some(connection)),
                Err(error) => (Err(error), None),
            },
        };
        match answer {
            Ok(answer) => {
                self.keep(connection);
                let mut rest = self.rest.lock();
                let refused = rest.refused.take().filter(|_| !writes);
                *rest = ServerRest { refused, ..ServerRest::default() };
                Some(answer)
            }
            Err(error) if writes && connection.is_some() && is_refusal(&error) => {
                if is_read_only(&error) {
                    // Its name may belong to another server by now, to which new connections go.
                    self.idle.lock().clear();
                } else {
                    self.keep(connection);
                }
                TierCounts::add(&counts.errors, 1);
                let reason = self.reason(&error, true);
                let known = self.rest.lock().refused.replace(reason.clone());
                if known.as_ref() != Some(&reason) {
                    log::warn!("the cache at {} refuses to store: {reason}", self.name);
                }
                None
            }
            Err(error) => {
                self.idle.lock().clear();
                self.report(counts, &error, connection.is_some());
                None
            }
        }
    }

    /// Removes the keys that begin with `prefix`, and asks while the server rests too.
    ///
    /// # Errors
    /// Why it failed.
    pub(super) fn clear(&self, counts: &TierCounts, prefix: &str) -> Result<(), String> {
        self.wake();
        if self.ask(counts, true, |connection| connection.remove(prefix)).is_some() {
            return match self.ask(counts, false, RedisConnection::is_node) {
                Some(false) => Ok(()),
                Some(true) => Err(format!("its other nodes were not asked{}", self.of_cluster())),
                None => Err("it does not say whether it is a node of a cluster".into()),
            };
        }
        let state = self.rest.lock();
        let reason = state.refused.clone().or_else(|| state.reported.clone());
        Err(reason.unwrap_or_else(|| "it does not answer".into()))
    }

    fn keep(&self, connection: Option<RedisConnection>) {
        let mut idle = self.idle.lock();
        if idle.len() < MOST_IDLE {
            idle.extend(connection);
        }
    }

    /// Counts a failure and reports it, unless the latest one was the same. The server is not asked for a while.
    fn report(&self, counts: &TierCounts, error: &redis::RedisError, connected: bool) {
        TierCounts::add(&counts.errors, 1);
        let mut state = self.rest.lock();
        state.length = if state.length.is_zero() { FIRST_REST } else { (state.length * 2).min(LONGEST_REST) };
        state.until = self.clock.now().checked_add(state.length);
        let reason = self.reason(error, connected);
        if state.reported.as_ref() != Some(&reason) {
            state.reported = Some(reason.clone());
            drop(state);
            log::warn!("the cache at {} does not answer: {reason}; results are computed instead", self.name);
        }
    }

    /// What went wrong, with the remedy if there is one. Of several commands that failed together, the first says it.
    /// `connected`: the server has answered before, so that it speaks TLS or does not.
    fn reason(&self, error: &redis::RedisError, connected: bool) -> String {
        if let Some(error) = io_error(error) {
            let (plain, tls) = ("write redis:// in the place of rediss://", self.name.starts_with("rediss"));
            return tls::io_refusal(error, plain).unwrap_or_else(|| {
                let remedy = match (error.kind(), tls) {
                    (io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock, true) if !connected => {
                        format!(" (does it speak TLS? {plain} for a port without it)")
                    }
                    (io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof, false) if !connected => {
                        " (does it speak TLS? write rediss:// in the place of redis://)".to_owned()
                    }
                    _ => String::new(),
                };
                tls::io_words(error) + &remedy
            });
        }
        let words = match error.clone().into_server_errors().as_deref() {
            Some([(_, first), ..]) => first.to_string(),
            _ => error.to_string(),
        };
        if is_of_cluster(error) { words + &self.of_cluster() } else { words }
    }

    /// The remedy for a node that is named as a single server.
    fn of_cluster(&self) -> String {
        match self.name.split_once("://") {
            Some((scheme, _)) if !self.name.contains(CLUSTER) => {
                format!(" (it is a node of a cluster: write {scheme}{CLUSTER} in the place of {scheme}://)")
            }
            _ => String::new(),
        }
    }
}

/// The error of the connection, if it is one.
fn io_error(error: &redis::RedisError) -> Option<&io::Error> {
    error.source()?.downcast_ref::<Arc<dyn StdError + Send + Sync>>()?.downcast_ref()
}

/// Whether a node of a cluster refuses keys of other nodes.
fn is_of_cluster(error: &redis::RedisError) -> bool {
    use ServerErrorKind as Kind;
    matches!(error.kind(), ErrorKind::Server(Kind::CrossSlot | Kind::Moved | Kind::ClusterDown))
        || error.clone().into_server_errors().is_some_and(|errors| {
            errors.iter().any(|(_, error)| error.kind() == Some(ServerErrorKind::Moved))
        })
}

/// Whether the server works and only refuses to store: its memory is full, or the user may not write.
fn is_refusal(error: &redis::RedisError) -> bool {
    let is_broken = error.is_io_error() || error.is_timeout() || error.is_connection_dropped();
    let is_nonsense = matches!(
        error.kind(),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType | ErrorKind::AuthenticationFailed
    );
    !(is_broken || is_nonsense || error.to_string().contains("NOAUTH"))
}

/// Whether the server is a copy of another one, which alone takes writes.
fn is_read_only(error: &redis::RedisError) -> bool {
    let read_only = ErrorKind::Server(ServerErrorKind::ReadOnly);
    error.kind() == read_only
        || error.clone().into_server_errors().is_some_and(|errors| {
            errors.iter().any(|(_, error)| error.kind() == Some(ServerErrorKind::ReadOnly))
        })
}

/// What an address says, with a password from the environment where it names a variable.
fn settings(url: &str, environment: &dyn Host) -> Result<ConnectionInfo> {
    let plain = url.replacen(CLUSTER, "://", 1);
    let info = plain.as_str().into_connection_info().map_err(|_| {
        let reason = "it is no address of Redis: expected redis://[[user]:password@]host[:port][/db], rediss://, unix://, or \
                      redis+cluster://; in a password write # / ? @ , as %23 %2F %3F %40 %2C, or let it be env:NAME, which \
                      reads the variable NAME";
        refused("cache_url", &without_password(url), reason)
    })?;
    if plain.starts_with("rediss://") {
        // The client trusts no server where the file holds no certificate, and does not say so.
        tls::trust(environment)?;
    }
    let settings = info.redis_settings().clone();
    let settings = match settings.password() {
        Some(password) => {
            let password = from_environment("cache_url", password, environment)?;
            settings.set_password(password)
        }
        None => settings,
    };
    Ok(info.set_redis_settings(settings))
}

pub(super) fn refused(setting: &str, value: &str, reason: &str) -> Error {
    Error::Config { setting: setting.into(), value: value.into(), reason: reason.into() }
}

/// `text`, or the value of the variable that `env:NAME` names.
pub(super) fn from_environment(setting: &str, text: &str, environment: &dyn Host) -> Result<String> {
    let Some(name) = text.strip_prefix("env:") else { return Ok(text.to_owned()) };
    environment.env(name).filter(|value| !value.is_empty()).ok_or_else(|| {
        refused(
            setting,
            text,
            &format!("the environment variable {name} is not set; set it, or write the value"),
        )
    })
}

/// An address as messages show it: without user, password, and what follows the path, where the address of a socket has them.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "…".into() };
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let rest = rest.split_once('?').map_or(rest, |(path, _)| path);
    format!("{scheme}://{rest}")
}
