//! Models from disk and from a hub, sound and broken, without a network.

#![allow(clippy::unwrap_used)] // helpers of tests are tests too

mod adapter_refusals;
mod adapters;
mod faults;
mod fixtures;
mod hub;
mod scorers;
mod server;
mod tokenizer_kinds;
mod tokenizer_texts;
mod toy;
