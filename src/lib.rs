//! Sentence embeddings and small language models inside a process: lazy, batched, cached, fast on a CPU.
//!
//! ```text
//! text ─ normalise ─ route (language → slot) ─ cache? ─ tokenise ─ queue ─ pack ─ forward ─ pool ─ cache ─ vectors
//!                                    │ hit: returns here            │
//!                                    └ slot: absent → loading → ready → idle → absent
//! ```

pub mod compute;
pub mod config;
pub mod error;
pub mod generation;
pub mod models;

pub use error::{Error, Result};
