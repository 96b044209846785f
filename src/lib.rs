//! Sentence embeddings and small language models inside a process: lazy, batched, cached, fast on a CPU.
//!
//! ```text
//! text ─ normalise ─ route (language → slot) ─ cache? ─ tokenise ─ queue ─ pack ─ forward ─ pool ─ cache ─ vectors
//!                                    │ hit: returns here            │
//!                                    └ slot: absent → loading → ready → idle → absent
//! ```
//!
//! A reader can follow one text by opening each room once, in this order: [`manager`] composes them, [`language`]
//! routes, [`cache`] answers what it knows, [`lifecycle`] brings a model into memory, [`models`] says what a model is,
//! [`batching`] packs what many callers want, [`compute`] runs it. No room calls back into one before it.

pub mod batching;
pub mod cache;
pub mod clock;
pub mod compute;
pub mod config;
pub mod error;
pub mod generation;
pub mod json;
pub mod language;
pub mod lifecycle;
pub mod manager;
pub mod models;
#[cfg(feature = "python")]
mod python;
pub mod remote;
pub mod sync;
mod tls;
pub mod wire;

pub use error::{Error, Result};
