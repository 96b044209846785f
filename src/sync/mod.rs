//! What threads of this crate share: locks, background threads, and the rules for `fork`.

pub mod fork;
mod locks;
mod primitives;
#[cfg(all(test, shuttle))]
pub(crate) mod schedule_tests;
mod stop;
mod worker;

pub use locks::{Condvar, Mutex, MutexGuard};
pub(crate) use primitives::thread;
pub use stop::StopFlag;
pub use worker::{Abandon, Guard, Monitor, Work, Worker, WorkerThread, spawn};
