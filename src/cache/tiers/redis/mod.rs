//! Results in Redis or Valkey, shared by processes and machines: one server, several, or a cluster.
//!
//! With several servers each key belongs to one, by rendezvous hashing: when one is added or lost, only its keys move. A
//! value has a checksum, or with a secret a code that only holders of the secret can make; the keys then reveal nothing.

mod connection;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

use super::super::item::CachedItem;
use super::key::TierKey;
use super::record::{ValueFormat, decode, encode};
use super::tier::{Tier, TierCounts};
use crate::Result;
use crate::clock::Clock;
use crate::config::Host;
use server::RedisServer;

/// Keys of one request.
const MOST_KEYS: usize = 128;
/// Before every key. The number is raised when the layout of values changes.
const PREFIX: &str = "mm:1:";

/// Which servers, and how long they may take.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// Addresses, separated by commas: `redis://`, `rediss://`, `unix://`; or of nodes of one cluster: `redis+cluster://`,
    /// `rediss+cluster://`.
    pub url: String,
    /// How long a value is kept there.
    pub time_to_live: Duration,
    /// How long one request may take.
    pub timeout: Duration,
    /// Makes keys and values unreadable and unforgeable for others who use the same server.
    pub secret: Option<String>,
}

/// Results on one or more servers.
pub struct Redis {
    hosts: Vec<RedisServer>,
    time_to_live: Duration,
    secret: Option<Arc<[u8]>>,
    counts: TierCounts,
}

impl Redis {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for an address that is none, or a variable that is not set.
    pub fn new(settings: &RedisSettings, environment: &dyn Host, clock: &Clock) -> Result<Self> {
        let urls: Vec<_> = settings.url.split(',').map(str::trim).filter(|url| !url.is_empty()).collect();
        if urls.iter().any(|url| !url.contains("://")) {
            // Not shown: it may be a part of a password.
            let reason =
                "has a part that is no address, between commas; a comma in a password is written %2C";
            return Err(server::refused("cache_url", "", reason));
        }
        let hosts = RedisServer::all(&urls, settings.timeout, environment, clock)?;
        if hosts.is_empty() {
            return Err(server::refused("cache_url", "", "names no server"));
        }
        let secret = settings.secret.as_deref().map(|secret| {
            server::from_environment("cache_secret", secret, environment)
                .map(|secret| secret.into_bytes().into())
        });
        Ok(Self {
            hosts,
            time_to_live: settings.time_to_live,
            secret: secret.transpose()?,
            counts: TierCounts::default(),
        })
    }

    /// The key as the server has it.
    fn name(&self, key: TierKey) -> String {
        let bytes = match &self.secret {
            Some(secret) => code(secret, &[&key.0]),
            None => key.0,
        };
        let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
        digits.fold(String::from(PREFIX), |name, digits| name + &digits)
    }

    /// What proves that a value belongs to its key and is whole.
    fn proof(&self, key: TierKey, value: &[u8]) -> [u8; 16] {
        match &self.secret {
            Some(secret) => code(secret, &[b"value", &key.0, value]),
            None => {
                let sum = Sha256::new().chain_update(key.0).chain_update(value).finalize();
                let mut proof = [0; 16];
                proof.copy_from_slice(&sum[..16]);
                proof
            }
        }
    }

    fn read(&self, key: TierKey, bytes: &[u8]) -> Option<CachedItem> {
        let (value, proof) = bytes.split_at_checked(bytes.len().checked_sub(16)?)?;
        (proof == self.proof(key, value)).then(|| decode(value)).flatten()
    }

    /// Numbers of `keys` by server.
    fn by_host(&self, keys: impl Iterator<Item = TierKey>) -> Vec<Vec<usize>> {
        let mut numbers = vec![Vec::new(); self.hosts.len()];
        for (number, key) in keys.enumerate() {
            let weights = self.hosts.iter().map(|host| host.weight(key));
            let best = weights.enumerate().max_by_key(|(_, weight)| *weight).map_or(0, |(host, _)| host);
            numbers[best].push(number);
        }
        numbers
    }
}

/// The first half of HMAC-SHA-256.
fn code(secret: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut code = [0; 16];
    // Keys of every length are taken.
    if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) {
        parts.iter().for_each(|part| mac.update(part));
        code.copy_from_slice(&mac.finalize().into_bytes()[..16]);
    }
    code
}

impl Tier for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn is_fast(&self) -> bool {
        false
    }

    /// Each server is asked in turn, in requests of [`MOST_KEYS`].
    fn patience(&self, keys: usize) -> Duration {
        let requests = keys.div_ceil(MOST_KEYS) + self.hosts.len() - 1;
        let request = self.hosts.iter().map(RedisServer::patience).max().unwrap_or_default();
        request.saturating_mul(u32::try_from(requests).unwrap_or(u32::MAX))
    }

    fn get(&self, keys: &[TierKey]) -> Vec<Option<CachedItem>> {
        let mut found = vec![None; keys.len()];
        for (host, numbers) in self.hosts.iter().zip(self.by_host(keys.iter().copied())) {
            for part in numbers.chunks(MOST_KEYS) {
                let names: Vec<_> = part.iter().map(|number| self.name(keys[*number])).collect();
                let answer = host.ask(&self.counts, false, |connection| connection.get(&names));
                let answer = answer.filter(|values| values.len() == part.len());
                if answer.is_none() {
                    TierCounts::add(&self.counts.misses, part.len());
                }
                for (number, value) in part.iter().zip(answer.into_iter().flatten()) {
                    let item = value.and_then(|bytes| self.read(keys[*number], &bytes));
                    let counter = if item.is_some() { &self.counts.hits } else { &self.counts.misses };
                    TierCounts::add(counter, 1);
                    found[*number] = item;
                }
            }
        }
        found
    }

    fn put(&self, entries: &[(TierKey, CachedItem)]) {
        let seconds = self.time_to_live.as_secs().max(1);
        for (host, numbers) in self.hosts.iter().zip(self.by_host(entries.iter().map(|(key, _)| *key))) {
            for part in numbers.chunks(MOST_KEYS) {
                let named = part.iter().map(|number| &entries[*number]).filter_map(|(key, item)| {
                    let mut value = encode(item, ValueFormat::Float32)?;
                    value.extend(self.proof(*key, &value));
                    Some((self.name(*key), value))
                });
                let named: Vec<_> = named.collect();
                if named.is_empty() {
                    continue;
                }
                let stored = host.ask(&self.counts, true, |connection| connection.set(&named, seconds));
                if stored.is_some() {
                    TierCounts::add(&self.counts.writes, named.len());
                }
            }
        }
    }

    /// Removes the keys of this program's, none of others'.
    fn clear(&self) -> Vec<(String, String)> {
        let failed = |host: &RedisServer| {
            let reason = host.clear(&self.counts, PREFIX).err()?;
            let remedy = "its results are kept for cache_url_ttl at most; call again when it answers";
            Some((host.name.clone(), format!("{reason}; {remedy}")))
        };
        self.hosts.iter().filter_map(failed).collect()
    }

    /// Reads a key that no result has: what a look-up needs, with the rights that it needs.
    fn probe(&self) -> Vec<(String, bool)> {
        let name = [format!("{PREFIX}probe")];
        let answers = |host: &RedisServer| {
            host.wake();
            host.ask(&self.counts, false, |connection| connection.get(&name)).is_some()
        };
        self.hosts.iter().map(|host| (host.name.clone(), answers(host))).collect()
    }

    fn counts(&self) -> &TierCounts {
        &self.counts
    }

    fn is_working(&self) -> bool {
        self.hosts.iter().any(RedisServer::is_working)
    }

    fn answers(&self) -> bool {
        self.hosts.iter().any(RedisServer::answers)
    }
}
