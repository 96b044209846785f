//! The memory of keys and values.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::Result;

/// A place where keys and values are counted together with other memory.
pub trait KvMemory: Debug + Send + Sync {
    /// Takes `bytes` bytes; `None` when they will be free after other requests have ended.
    ///
    /// # Errors
    /// When they will not be free.
    fn take(&self, bytes: u64) -> Result<Option<Box<dyn Allowance>>>;

    /// From now on `kept` may hold memory that was taken here, and frees it when it is asked to.
    fn lend(&self, kept: Weak<dyn Reclaim>);
}

/// Bytes taken from a [`KvMemory`]; dropping gives them back.
pub trait Allowance: Debug + Send {
    /// Keeps only `bytes` of them.
    fn shrink(&mut self, bytes: u64);
}

/// Memory that is kept only while no request needs it.
pub trait Reclaim: Send + Sync {
    /// Frees `bytes` bytes, or all that there are. Returns how many.
    fn reclaim(&self, bytes: u64) -> u64;
}

/// The keys and values of one engine.
#[derive(Debug)]
pub(super) struct KvPool {
    limit: u64,
    used: AtomicU64,
    /// Of those, bytes kept for reuse.
    kept: AtomicU64,
    memory: Option<Arc<dyn KvMemory>>,
}

/// Bytes taken from a pool; dropping gives them back.
#[derive(Debug)]
pub(super) struct Room {
    pool: Arc<KvPool>,
    bytes: u64,
    kept: bool,
    /// Where it is counted too, in the order in which it was taken.
    allowances: Vec<(u64, Box<dyn Allowance>)>,
}

impl KvPool {
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
        let mut allowances = Vec::new();
        if let Some(memory) = &self.memory {
            match memory.take(bytes)? {
                Some(allowance) => allowances.push((bytes, allowance)),
                None => return Ok(None),
            }
        }
        self.used.fetch_add(bytes, Ordering::AcqRel);
        Ok(Some(Room { pool: Arc::clone(self), bytes, kept: false, allowances }))
    }
}

impl Room {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds memory of the same pool.
    pub(super) fn add(&mut self, mut more: Self) {
        self.bytes += std::mem::take(&mut more.bytes);
        self.allowances.append(&mut more.allowances);
    }

    /// Gives all of it back.
    pub(super) fn clear(&mut self) {
        self.shrink(0);
    }

    fn shrink(&mut self, bytes: u64) {
        let mut surplus = self.bytes.saturating_sub(bytes);
        self.pool.used.fetch_sub(surplus, Ordering::AcqRel);
        self.bytes -= surplus;
        while surplus > 0
            && let Some((taken, allowance)) = self.allowances.last_mut()
        {
            if *taken > surplus {
                *taken -= surplus;
                allowance.shrink(*taken);
                return;
            }
            surplus -= *taken;
            self.allowances.pop();
        }
    }

    /// Keeps only `bytes` at most.
    pub(super) fn keep_at_most(&mut self, bytes: u64) {
        self.shrink(bytes);
    }

    /// Memory that was kept, for a request.
    pub(super) fn reuse(mut self) -> Self {
        if std::mem::take(&mut self.kept) {
            self.pool.kept.fetch_sub(self.bytes, Ordering::AcqRel);
        }
        self
    }

    /// Keeps only `bytes`, for reuse.
    pub(super) fn keep(mut self, bytes: u64) -> Self {
        self.shrink(bytes);
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
