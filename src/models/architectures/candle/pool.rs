//! The threads of candle's matrix products on the CPU.
//!
//! candle gives a product to the rayon pool that its caller runs in. rayon's global pool obeys no setting of this crate, and
//! a child process that inherits it waits for threads that do not exist there. So each process has a pool of its own here,
//! with as many threads as [`Threads`] has. candle has another pool, for functions of many numbers; [`super::ops`] computes
//! those itself and never starts it.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::compute::Threads;
use crate::{Error, Result};

static POOL: ArcSwapOption<ProcessPool> = ArcSwapOption::const_empty();

struct ProcessPool {
    process: u32,
    pool: ThreadPool,
}

/// Runs `work` in the pool of this process. A panic of it goes on in the caller.
///
/// # Errors
/// [`Error::Internal`] when the operating system provides no thread.
pub(super) fn run<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    Ok(current()?.pool.install(work))
}

fn current() -> Result<Arc<ProcessPool>> {
    let (process, threads) = (std::process::id(), Threads::global().count());
    let known = POOL.load_full();
    if let Some(known) = known.filter(|known| known.process == process)
        && known.pool.current_num_threads() == threads
    {
        return Ok(known);
    }
    let named = ThreadPoolBuilder::new().num_threads(threads).thread_name(|_| "mm-candle".into());
    let pool = named
        .build()
        .map_err(|error| Error::Internal { place: "threads of candle".into(), reason: error.to_string() })?;
    let pool = Arc::new(ProcessPool { process, pool });
    if let Some(old) = POOL.swap(Some(Arc::clone(&pool)))
        && old.process != process
    {
        // Its threads belong to the parent, and may have held its locks at the fork.
        std::mem::forget(old);
    }
    Ok(pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_runs_on_as_many_threads_as_are_set() {
        let threads = run(rayon::current_num_threads).unwrap();
        assert_eq!(threads, Threads::global().count());
    }

    #[test]
    fn a_panic_leaves_the_pool_usable() {
        let panicked = std::panic::catch_unwind(|| run(|| panic!("unlucky")));
        assert!(panicked.is_err());
        assert_eq!(run(|| 7).unwrap(), 7);
    }
}
