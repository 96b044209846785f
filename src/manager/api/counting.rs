//! Counting the tokens of texts.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::inputs::{LONG_TEXT, PART_BYTES};
use super::super::instance::Manager;
use super::super::options::Check;
use crate::Result;
use crate::compute::memory::reserve;
use crate::compute::{Threads, map_in_order};
use crate::models::Bounds;
use crate::sync::fork;

/// Texts that the pool's threads share at once, and bytes of them: some tens of milliseconds of work, after which the call
/// looks for a signal. A long text is a block of its own.
const BLOCK_TEXTS: usize = 16 << 10;
const BLOCK_BYTES: usize = 16 * LONG_TEXT;
/// Bytes of text that one thread takes at a time.
const SHARE_BYTES: usize = 4 * PART_BYTES;

impl Manager {
    /// Tokens of each text, special tokens included, not cut to the model's maximum. Loads the model.
    ///
    /// # Errors
    /// As [`Manager::embed`]: that of the first text that has one.
    pub fn count_tokens<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        model: Option<&str>,
        check: Check<'_>,
    ) -> Result<Vec<usize>> {
        let mut counts = Vec::new();
        reserve(&mut counts, texts.len())?;
        let mut rest = texts;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take(BLOCK_TEXTS).take_while(|text| {
                let length = text.as_ref().len();
                bytes += length;
                length <= LONG_TEXT && bytes <= BLOCK_BYTES
            });
            let (block, after) = rest.split_at(fits.count().max(1));
            match self.count_block(block, model, check)? {
                Some(block) => counts.extend(block),
                None => self.count_each(block, model, check, &mut counts)?,
            }
            check()?;
            rest = after;
        }
        Ok(counts)
    }

    /// The counts of `texts`, which the pool's threads share; `None` if one of them has an error. Which error comes first
    /// is then a question of their order, and of the models that they go to.
    fn count_block<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        model: Option<&str>,
        check: Check<'_>,
    ) -> Result<Option<Vec<usize>>> {
        if texts.len() == 1 {
            return Ok(None);
        }
        let parts = self.parts()?;
        let names: Vec<&str> =
            texts.iter().map(|text| model.unwrap_or_else(|| parts.router.route(text.as_ref()))).collect();
        let max_bytes = parts.settings.max_text_bytes;
        // Each thread writes its counts here. A list that one thread makes and another frees has both wait for the allocator.
        let counts: Vec<AtomicUsize> = texts.iter().map(|_| AtomicUsize::new(0)).collect();
        let mut left: Vec<usize> = (0..texts.len()).collect();
        while let Some(&first) = left.first() {
            let name = names[first];
            let own: Vec<usize> = left.extract_if(.., |text| names[*text] == name).collect();
            let lease = self.lease(name, None, check)?;
            let model = &*lease;
            let _computing = fork::computing();
            let weight = |at: usize| texts[own[at]].as_ref().len();
            let made = map_in_order(&Threads::global(), own.len(), SHARE_BYTES, &weight, &|part, check| {
                let mut bounds = Bounds { max_bytes, check };
                for &text in &own[part] {
                    let count = model.count_tokens(name, texts[text].as_ref(), &mut bounds)?;
                    counts[text].store(count, Ordering::Relaxed);
                }
                Ok(Vec::<()>::new())
            });
            if made.is_err() {
                return Ok(None);
            }
        }
        Ok(Some(counts.into_iter().map(AtomicUsize::into_inner).collect()))
    }

    /// Adds the counts of `texts`, one after the other.
    fn count_each<T: AsRef<str>>(
        &self,
        texts: &[T],
        model: Option<&str>,
        check: Check<'_>,
        counts: &mut Vec<usize>,
    ) -> Result<()> {
        let parts = self.parts()?;
        for text in texts.iter().map(AsRef::as_ref) {
            let name = model.unwrap_or_else(|| parts.router.route(text));
            let lease = self.lease(name, None, check)?;
            let _computing = fork::computing();
            let mut between = || if text.len() > LONG_TEXT { check() } else { Ok(()) };
            let mut bounds = Bounds { max_bytes: parts.settings.max_text_bytes, check: &mut between };
            counts.push(lease.count_tokens(name, text, &mut bounds)?);
        }
        Ok(())
    }
}
