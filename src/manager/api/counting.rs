//! Counting the tokens of texts.

use super::super::inputs::{LONG_TEXT, PART_BYTES};
use super::super::instance::Manager;
use super::super::options::Check;
use crate::Result;
use crate::compute::memory::reserve;
use crate::compute::{Threads, map_in_order};
use crate::models::Bounds;
use crate::sync::fork;

/// Texts that the pool's threads share at once.
const BLOCK_TEXTS: usize = 1024;

impl Manager {
    /// Tokens of each text, special tokens included, not cut to the model's maximum. Loads the model.
    ///
    /// # Errors
    /// As [`Manager::embed`]: that of the first text that has one.
    pub fn count_tokens(
        &self,
        texts: &[String],
        model: Option<&str>,
        check: Check<'_>,
    ) -> Result<Vec<usize>> {
        let mut counts = Vec::new();
        reserve(&mut counts, texts.len())?;
        let mut rest = texts;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take(BLOCK_TEXTS).take_while(|text| {
                bytes += text.len();
                bytes <= LONG_TEXT
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
    fn count_block(
        &self,
        texts: &[String],
        model: Option<&str>,
        check: Check<'_>,
    ) -> Result<Option<Vec<usize>>> {
        if texts.len() == 1 {
            return Ok(None);
        }
        let parts = self.parts()?;
        let names: Vec<&str> =
            texts.iter().map(|text| model.unwrap_or_else(|| parts.router.route(text))).collect();
        let max_bytes = parts.settings.max_text_bytes;
        let mut counts = vec![0; texts.len()];
        let mut left: Vec<usize> = (0..texts.len()).collect();
        while let Some(&first) = left.first() {
            let name = names[first];
            let own: Vec<usize> = left.extract_if(.., |text| names[*text] == name).collect();
            let lease = self.lease(name, None, check)?;
            let model = &*lease;
            let _computing = fork::computing();
            let weight = |at: usize| texts[own[at]].len();
            let found = map_in_order(&Threads::global(), own.len(), PART_BYTES, &weight, &|part, check| {
                let mut bounds = Bounds { max_bytes, check };
                own[part].iter().map(|&text| model.count_tokens(name, &texts[text], &mut bounds)).collect()
            });
            let Ok(found) = found else { return Ok(None) };
            own.iter().zip(found).for_each(|(&text, count)| counts[text] = count);
        }
        Ok(Some(counts))
    }

    /// Adds the counts of `texts`, one after the other.
    fn count_each(
        &self,
        texts: &[String],
        model: Option<&str>,
        check: Check<'_>,
        counts: &mut Vec<usize>,
    ) -> Result<()> {
        let parts = self.parts()?;
        for text in texts {
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
