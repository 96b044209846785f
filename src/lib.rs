//! Sentence embeddings and small language models inside a process: lazy, batched, cached, fast on a CPU.
//!
//! ```text
//! text ─ normalize ─ route (language → slot) ─ cache? ─ tokenize ─ queue ─ pack ─ forward ─ pool ─ cache ─ vectors
//!                                    │ hit: returns here            │
//!                                    └ slot: absent → loading → ready → idle → absent
//! ```
//!
//! A reader can follow one text by opening each module once, in this order: [`manager`] composes them, [`language`]
//! routes, [`cache`] answers repeated texts, [`generation`] writes texts, [`models`] says what a model is, [`chat`] makes
//! prompts of conversations, [`remote`] asks models on servers, [`batching`] packs the texts of many callers, [`output`] is
//! the result, [`lifecycle`] brings a model into memory, [`compute`] runs it. No module imports one before it.

pub mod arrow;
pub mod batching;
pub mod cache;
pub mod chat;
pub mod clock;
pub mod compute;
pub mod config;
pub mod error;
pub mod generation;
mod held_log;
pub mod json;
pub mod language;
pub mod lifecycle;
pub mod manager;
pub mod models;
mod number;
pub mod output;
mod private_files;
#[cfg(feature = "python")]
mod python;
pub mod remote;
mod similar;
mod size;
pub mod sync;
mod tls;
pub mod trace;
pub mod wire;

pub use error::{Error, Result};
