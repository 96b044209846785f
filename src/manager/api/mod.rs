//! The methods of [`Manager`](super::instance::Manager), by subject. Each finds the part that does the work.

mod embedding;
mod generation;
mod scoring;
mod slots;
mod upkeep;

pub use scoring::Activate;
