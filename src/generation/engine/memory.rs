//! The memory of keys and values: how much a request takes, and who may have it.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::EngineSettings;
use crate::models::decoder::Decoder;
use crate::{Error, Result};

/// A place where keys and values are counted together with other memory.
pub trait KvMemory: Debug + Send + Sync {
    /// Takes `bytes` bytes; `None` when they will be free after other requests have ended.
    ///
    /// # Errors
    /// When they cannot be had.
    fn take(&self, bytes: u64) -> Result<Option<Box<dyn Allowance>>>;
}

/// Bytes taken from a [`KvMemory`]; dropping gives them back.
pub trait Allowance: Debug + Send {
    /// Keeps only `bytes` of them.
    fn shrink(&mut self, bytes: u64);
}

/// Most tokens of a prompt and its answer, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) tokens: usize,
    /// The setting that allows more, and its present value in bytes where it counts bytes.
    setting: Option<(&'static str, Option<u64>)>,
}

impl Bound {
    pub(super) fn of<D: Decoder>(decoder: &D, settings: &EngineSettings) -> Self {
        let mut bound = Self { tokens: decoder.context(), setting: None };
        if let Some(tokens) = settings.max_context.filter(|&tokens| tokens < bound.tokens) {
            bound = Self { tokens, setting: Some(("max_context", None)) };
        }
        let fits = |tokens| decoder.cache_bytes(tokens) <= settings.kv_bytes;
        if !fits(bound.tokens) {
            let (mut fitting, mut large) = (0, bound.tokens);
            while large - fitting > 1 {
                let middle = fitting + (large - fitting) / 2;
                *if fits(middle) { &mut fitting } else { &mut large } = middle;
            }
            bound = Self { tokens: fitting, setting: Some((settings.kv_setting, Some(settings.kv_bytes))) };
        }
        bound
    }

    /// Refuses a prompt that no answer fits after, where a setting is the reason.
    pub(super) fn check(&self, prompt: usize) -> Result<()> {
        let Some((setting, bytes)) = self.setting.filter(|_| prompt >= self.tokens) else { return Ok(()) };
        let tokens = self.tokens;
        let limit = match bytes {
            Some(bytes) => format!("{setting} ({} MB) holds the keys and values of {tokens}", bytes >> 20),
            None => format!("{setting} allows {tokens}"),
        };
        Err(Error::Argument {
            param: "prompt",
            code: Some("context_length_exceeded"),
            message: format!(
                "the prompt has {prompt} tokens but {limit} including the answer; shorten it or raise {setting}"
            ),
        })
    }
}

/// The keys and values of one engine.
#[derive(Debug)]
pub(super) struct Pool {
    limit: u64,
    used: AtomicU64,
    /// Of those, kept for reuse.
    kept: AtomicU64,
    memory: Option<Arc<dyn KvMemory>>,
}

/// Bytes taken from a pool; dropping gives them back.
#[derive(Debug)]
pub(super) struct Room {
    pool: Arc<Pool>,
    bytes: u64,
    kept: bool,
    allowance: Option<Box<dyn Allowance>>,
}

impl Pool {
    pub(super) fn new(limit: u64, memory: Option<Arc<dyn KvMemory>>) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0), kept: AtomicU64::new(0), memory })
    }

    /// Bytes of requests under way, and bytes kept for reuse.
    pub(super) fn used(&self) -> (u64, u64) {
        let kept = self.kept.load(Ordering::Acquire);
        (self.used.load(Ordering::Acquire).saturating_sub(kept), kept)
    }

    /// Bytes that must become free before `bytes` more fit under the pool's own limit.
    pub(super) fn missing(&self, bytes: u64) -> u64 {
        self.used.load(Ordering::Acquire).saturating_add(bytes).saturating_sub(self.limit)
    }

    /// Takes `bytes` bytes, `missing` none by the engine's own thread, which alone takes any. `None` when they will be
    /// free after requests have ended.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<Option<Room>> {
        if self.missing(bytes) > 0 {
            return Ok(None);
        }
        let allowance = match &self.memory {
            Some(memory) => match memory.take(bytes)? {
                Some(allowance) => Some(allowance),
                None => return Ok(None),
            },
            None => None,
        };
        self.used.fetch_add(bytes, Ordering::AcqRel);
        Ok(Some(Room { pool: Arc::clone(self), bytes, kept: false, allowance }))
    }
}

impl Room {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keeps only `bytes`, for reuse.
    pub(super) fn keep(mut self, bytes: u64) -> Self {
        if bytes < self.bytes {
            self.pool.used.fetch_sub(self.bytes - bytes, Ordering::AcqRel);
            if let Some(allowance) = &mut self.allowance {
                allowance.shrink(bytes);
            }
            self.bytes = bytes;
        }
        self.kept = true;
        self.pool.kept.fetch_add(self.bytes, Ordering::AcqRel);
        self
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.kept {
            self.pool.kept.fetch_sub(self.bytes, Ordering::AcqRel);
        }
        self.pool.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
