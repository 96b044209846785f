//! Results on disk: append-only segments in one folder, shared by any number of processes.
//!
//! Results never change, are named by their content, and can be computed again: so there is no lock, no log and no
//! repair. Each process appends to a segment of its own and reads those of all. What is damaged is a miss. When the
//! folder exceeds its bound, the oldest segment is removed, and those of its rows that were asked for are written again.
//! An error while writing switches the writing off, with one warning.

mod folder;
mod format;
mod index;
mod segment;
#[cfg(test)]
mod tests;
mod transfer;

pub use folder::{Disk, DiskSettings};
pub use transfer::{ImportError, Verified};
