//! Models from disk and from a hub, sound and broken, without a network.

mod faults;
mod fixtures;
mod hub;
mod server;
