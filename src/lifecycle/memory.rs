//! What the process has in memory, as the lifecycle measures it.

/// How resident memory is read and returned. Injected, so that tests count bytes of their own.
pub trait MemoryProbe: Send + Sync {
    /// Resident bytes of this process; 0 on a system that does not report them.
    fn resident(&self) -> u64;
    /// Asks the allocator to give free pages back to the operating system.
    fn trim(&self);
}

/// Bytes in MiB, the unit of every statistic whose key ends with `_mb`.
#[must_use]
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
