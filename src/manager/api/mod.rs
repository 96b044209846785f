//! The methods of [`Manager`](super::instance::Manager), by subject. Each finds the part that does the work.

pub(super) mod adaptive;
mod counting;
mod embedding;
mod generation;
pub(super) mod inspect;
mod late;
mod scoring;
mod slots;
mod upkeep;

pub use scoring::Activate;
