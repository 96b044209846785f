//! The texts of Arrow columns that other libraries hand over through Arrow's C interface.
//!
//! [`import_array`] and [`import_stream`] move the structures out and check every number in them; [`Imported::read`] checks
//! the values and copies the texts. The binding gets the structures from Python's capsules.

mod column;
mod structures;

pub use self::column::{Column, ColumnKind};
pub use self::structures::{Imported, import_array, import_stream};
