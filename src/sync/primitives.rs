//! Locks and threads of the standard library. With `--cfg shuttle` they are those of Shuttle, which decides where threads
//! interleave, so that a test tries many schedules and repeats the one that failed.

#[cfg(not(shuttle))]
pub(crate) use std::{sync, thread};

#[cfg(shuttle)]
pub(crate) use shuttle::{sync, thread};
