//! Reports of how far a download is.

use crate::Result;

/// How far the download of one file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file, relative to the model.
    pub file: &'a str,
    /// Bytes on disk, those of an earlier attempt included.
    pub done: u64,
    /// Bytes in total, when the server states it.
    pub total: Option<u64>,
}

/// The callback of [`resolve`](fn@crate::models::resolve) during downloads.
pub(crate) type OnProgress<'a> = dyn FnMut(&Progress<'_>) -> Result<()> + 'a;
