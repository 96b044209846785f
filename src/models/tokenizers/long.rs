//! Tokenizing a text in parts, so that a long one takes neither much memory nor a long time that nothing can end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::cut::Cuts;
use super::pipeline::Pipeline;
use crate::compute::memory;
use crate::{Error, Result};

/// The shortest part, in bytes.
const SHORTEST: usize = if cfg!(test) { 64 } else { 4 << 10 };
/// The longest part that is tried first.
const LONGEST: usize = if cfg!(test) { 256 } else { 64 << 10 };
/// Bytes of text for one token of room in that part. Words of natural text need about five.
const BYTES_PER_TOKEN: usize = 8;
/// Bytes of text without a cut that are tokenized for one token of room.
const MOST_PER_TOKEN: usize = 64;
/// Where no cut is exact: tokens after the last one that is used. What stands after a cut can change a token before it
/// only through a chain of merges of ever later rank, one token each.
const MARGIN: usize = 256;
/// Bytes tokenized in one call above which the memory goes back to the operating system.
const TRIM: usize = 1 << 20;

/// Asked during long work; its error ends it.
type PartCheck<'a> = &'a mut dyn FnMut() -> Result<()>;

/// What bounds the work on one text.
pub struct Bounds<'a> {
    /// Most bytes of a text whose every token is wanted. Of a stretch without a place to cut, a sixteenth, or 64
    /// for a token that is wanted.
    pub max_bytes: usize,
    /// Asked between two parts and now and then within a long one; its error ends the work.
    pub check: &'a mut dyn FnMut() -> Result<()>,
}

/// Which tokens of a text are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// So many from the start.
    Beginning(usize),
    /// So many from the end.
    End(usize),
}

/// The ids of `text` that `keep` wants, perhaps more.
pub(crate) fn read(
    inner: &Pipeline,
    cuts: &Cuts,
    text: &str,
    keep: Keep,
    bounds: &mut Bounds<'_>,
) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    match keep {
        Keep::Beginning(room) if room < text.len() => {
            beginning(inner, cuts, text, room, bounds, &mut ids)?;
        }
        Keep::End(room) => each_part(inner, cuts, text, bounds, &mut |part| {
            ids.extend_from_slice(part);
            ids.drain(..ids.len().saturating_sub(room.max(LONGEST)));
        })?,
        _ => each_part(inner, cuts, text, bounds, &mut |part| ids.extend_from_slice(part))?,
    }
    Ok(ids)
}

/// All ids of `text`, part by part.
///
/// # Errors
/// [`Error::Input`] for a text that is too long; those of the tokenizer and of `bounds.check`.
pub(crate) fn each_part(
    inner: &Pipeline,
    cuts: &Cuts,
    text: &str,
    bounds: &mut Bounds<'_>,
    take: &mut dyn FnMut(&[u32]),
) -> Result<()> {
    each_piece(inner, cuts, text, bounds, &mut |_, piece, check| {
        take(&content(inner, piece, check)?);
        Ok(())
    })
}

/// All pieces of `text` that are tokenized alone, each with the byte where it begins, and the check of `bounds`.
///
/// # Errors
/// As [`each_part`]; those of `take`.
pub(crate) fn each_piece(
    inner: &Pipeline,
    cuts: &Cuts,
    text: &str,
    bounds: &mut Bounds<'_>,
    take: &mut dyn FnMut(usize, &str, PartCheck<'_>) -> Result<()>,
) -> Result<()> {
    refuse(text, bounds)?;
    let (mut at, mut size) = (0, LONGEST);
    while at < text.len() || at == 0 {
        (bounds.check)()?;
        let rest = &text[at..];
        let part = if rest.len() <= 2 * size { None } else { cuts.exact(inner, rest, size) };
        match part.and_then(|part| Some((part.end, part.next?))) {
            Some((end, next)) => {
                take(at, &rest[..end], bounds.check)?;
                (at, size) = (at + next, LONGEST);
            }
            None if rest.len() <= 2 * size => {
                take(at, rest, bounds.check)?;
                break;
            }
            None => size *= 4,
        }
    }
    trim(text.len());
    Ok(())
}

/// Refuses a text whose every token is wanted, by its length.
pub(crate) fn refuse(text: &str, bounds: &Bounds<'_>) -> Result<()> {
    if text.len() <= bounds.max_bytes {
        return Ok(());
    }
    Err(Error::Input(format!(
        "a text of {} bytes is too long to be tokenized whole: at most {} are (setting max_text_bytes); shorten it, or \
         raise the limit",
        text.len(),
        bounds.max_bytes
    )))
}

/// The first `room` ids of `text`, perhaps more.
fn beginning(
    inner: &Pipeline,
    cuts: &Cuts,
    text: &str,
    room: usize,
    bounds: &mut Bounds<'_>,
    ids: &mut Vec<u32>,
) -> Result<()> {
    let first = room.saturating_mul(BYTES_PER_TOKEN).clamp(SHORTEST, LONGEST);
    let most =
        (bounds.max_bytes / 16).max(room.saturating_mul(MOST_PER_TOKEN)).min(bounds.max_bytes).max(first);
    let (mut at, mut size, mut read) = (0, first, 0);
    while ids.len() < room {
        (bounds.check)()?;
        let rest = &text[at..];
        if rest.len() <= 2 * size {
            ids.extend(content(inner, rest, bounds.check)?);
            read += rest.len();
            break;
        }
        if size > most {
            return Err(Error::Input(format!(
                "{size} bytes of a text have no place to cut it and fewer than the {room} tokens that the model reads: at \
                 most {most} such bytes are tokenized, a sixteenth of the setting max_text_bytes; shorten the text, or \
                 raise the limit",
            )));
        }
        if let Some(part) = cuts.exact(inner, rest, size) {
            let found = content(inner, &rest[..part.end], bounds.check)?;
            read += part.end;
            let enough = ids.len() + found.len() >= room;
            if enough || part.next.is_some() {
                ids.extend(found);
            }
            if enough {
                break;
            }
            if let Some(next) = part.next {
                (at, size) = (at + next, first);
                continue;
            }
        } else if let Some(found) = near(inner, cuts, rest, size, room - ids.len(), bounds.check)? {
            ids.extend(found);
            break;
        } else {
            read += size;
        }
        size *= 4;
    }
    trim(read);
    Ok(())
}

/// The ids of a beginning of `text` without an exact cut, where they go well past `room` and a shorter beginning has the
/// same up to there.
fn near(
    inner: &Pipeline,
    cuts: &Cuts,
    text: &str,
    size: usize,
    room: usize,
    check: PartCheck<'_>,
) -> Result<Option<Vec<u32>>> {
    let (Some(end), Some(shorter)) = (cuts.near(text, size), cuts.near(text, size - size / 16)) else {
        return Ok(None);
    };
    let found = content(inner, &text[..end], check)?;
    if found.len() < room + MARGIN || shorter >= end {
        return Ok(None);
    }
    let other = content(inner, &text[..shorter], check)?;
    Ok((other.get(..room) == found.get(..room)).then_some(found))
}

/// The ids of `text`, unless `check` ends the work. A stretch without a cut may have megabytes.
fn content(inner: &Pipeline, text: &str, check: PartCheck<'_>) -> Result<Vec<u32>> {
    let mut ended = Ok(());
    let mut wanted = || {
        ended = check();
        ended.is_ok()
    };
    let read = catch_unwind(AssertUnwindSafe(|| inner.ids_while(text, &mut wanted)));
    ended?;
    match read {
        Ok(Ok(ids)) => Ok(ids),
        Ok(Err(e)) => Err(Error::internal("tokenizer", e)),
        Err(panic) => Err(Error::panic("tokenizer", panic.as_ref())),
    }
}

/// Gives the memory of a long text back.
fn trim(bytes: usize) {
    if bytes > TRIM {
        memory::trim();
    }
}

#[cfg(test)]
#[path = "long_tests.rs"]
mod tests;
