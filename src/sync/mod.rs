//! What threads of this crate share: locks, background threads, and the rules for `fork`.

pub mod fork;
mod locks;
mod worker;

pub use locks::{Condvar, Mutex, MutexGuard};
pub use worker::{Abandon, Guard, Monitor, Work, Worker, WorkerThread, spawn};
