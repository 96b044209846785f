//! Late chunking: the vectors of a text's parts, pooled from the states of one pass over the whole text.

use std::ops::Range;
use std::time::Instant;

use super::super::inputs::Inputs;
use super::super::instance::Manager;
use super::super::options::{Check, EmbedOptions};
use super::scoring::Activate;
use crate::compute::memory::{joined, zeroed};
use crate::models::{Bounds, Pooling, TextChunk};
use crate::output::{Output, OutputKind};
use crate::sync::fork;
use crate::{Error, Result};

/// Windows of a long text that are computed in one call.
const WINDOWS: usize = 8;

/// The parts of a text that a model reads one at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TokenWindow {
    /// The tokens that the model reads.
    reads: Range<usize>,
    /// Those whose states are taken from it.
    gives: Range<usize>,
}

/// The windows of `tokens` tokens, of which a model reads `capacity`. Neighbors share a quarter of that; a token's state is
/// taken from the window in which it stands farther from the edge.
fn windows(tokens: usize, capacity: usize) -> Vec<TokenWindow> {
    if tokens <= capacity {
        return vec![TokenWindow { reads: 0..tokens, gives: 0..tokens }];
    }
    let step = (capacity - capacity / 4).max(1);
    let mut starts: Vec<usize> = (0..tokens - capacity).step_by(step).collect();
    starts.push(tokens - capacity);
    let middle = |index: usize| starts[index] + (starts[index - 1] + capacity - starts[index]) / 2;
    let given = |index: usize| {
        let from = if index == 0 { 0 } else { middle(index) };
        from..if index + 1 == starts.len() { tokens } else { middle(index + 1) }
    };
    let window =
        |index: usize| TokenWindow { reads: starts[index]..starts[index] + capacity, gives: given(index) };
    (0..starts.len()).map(window).collect()
}

impl Manager {
    /// [`Manager::chunks`] of a text, a vector for each, row-major, and the length of a vector: the states of its tokens in
    /// a pass over the whole text, pooled as the model pools a text. A text that is longer than the model reads is read in
    /// windows that overlap.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model whose vector is the state of one token; as [`Manager::chunks`] and
    /// [`Manager::embed`].
    pub fn embed_chunks(
        &self,
        text: &str,
        max_tokens: Option<usize>,
        overlap: usize,
        options: &EmbedOptions,
        check: Check<'_>,
    ) -> Result<(Vec<TextChunk>, Vec<f32>, usize)> {
        // Every step calls it, so it limits all of them together.
        let ends = options.timeout.and_then(|after| Some((Instant::now().checked_add(after)?, after)));
        let check: Check<'_> = &mut || match ends {
            Some((at, after)) if Instant::now() >= at => {
                Err(Error::Timeout { what: "the chunks of a text".into(), after })
            }
            _ => check(),
        };
        let chunks = self.chunks(text, max_tokens, overlap, options, check)?;
        let parts = self.parts()?;
        let name = options.model.as_deref().unwrap_or_else(|| parts.router.route(text));
        let lease = self.lease(name, options.timeout, check)?;
        let handle = lease.encoder(name, OutputKind::Dense)?.clone();
        handle.info.facts.shapes.expect(OutputKind::Dense, name)?;
        let encoder = handle.backend.local()?;
        if let Pooling::Cls | Pooling::Last = encoder.config.pooling {
            return Err(Error::Unsupported {
                model: encoder.name.clone(),
                reason: format!(
                    "its vector is the state of one token (pooling {:?}), so parts of a text have none; embed the chunks \
                     one by one",
                    encoder.config.pooling.name()
                ),
            });
        }
        let prompt = handle.info.prompt(options)?;
        let (ids, places) = {
            let _computing = fork::computing();
            let mut bounds = Bounds { max_bytes: parts.settings.max_text_bytes, check: &mut *check };
            encoder.tokenizer.places(&joined(&[prompt, text])?, &mut bounds)?
        };
        let before = places.partition_point(|place| place.end <= prompt.len() && !prompt.is_empty());
        let (lead, own) = ids.split_at(before);
        let of_chunk = |chunk: &TextChunk| {
            let (start, end) = (prompt.len() + chunk.bytes.start, prompt.len() + chunk.bytes.end);
            let first = places[before..].partition_point(|place| place.end <= start);
            let last = places[before..].partition_point(|place| place.start < end);
            first..last.max(first)
        };
        let longest = encoder.config.max_length;
        let capacity = longest.saturating_sub(encoder.tokenizer.special_tokens() + lead.len());
        if capacity == 0 {
            return Err(Error::Input(format!("the prompt leaves no room for text in {longest} tokens")));
        }
        let all = windows(own.len(), capacity);
        let width = encoder.width();
        let mut vectors = zeroed(chunks.len() * width)?;
        let spans: Vec<Range<usize>> = chunks.iter().map(of_chunk).collect();
        // The states from token `kept` on: those of the chunks that are still to be pooled.
        let (mut states, mut kept, mut next) = (Vec::<f32>::new(), 0, 0);
        for group in all.chunks(WINDOWS).filter(|_| !chunks.is_empty()) {
            check()?;
            let sequence = |window: &TokenWindow| {
                encoder.tokenizer.dressed(&[lead, &own[window.reads.clone()]].concat())
            };
            let inputs = Inputs::from(group.iter().map(sequence).collect::<Vec<_>>());
            let asked = EmbedOptions {
                model: Some(name.to_owned()),
                kind: OutputKind::States,
                timeout: options.timeout,
                keep_alive: options.keep_alive,
                trace: options.trace.clone(),
                ..EmbedOptions::default()
            };
            let found = self.infer(inputs, asked, Activate::Model, &mut *check, &mut |_, _| Ok(()))?;
            let Output::Multi(found) = found.output else { continue };
            let skipped = encoder.tokenizer.before().len() + lead.len();
            let mut wide = 0;
            for (window, item) in group.iter().zip(&found.items) {
                let first = skipped + window.gives.start - window.reads.start;
                wide = item.width;
                states.extend_from_slice(&item.values[first * wide..(first + window.gives.len()) * wide]);
            }
            let end = kept + states.len() / wide.max(1);
            while let Some(span) = spans.get(next).filter(|span| span.end <= end) {
                let rows = &states[(span.start - kept) * wide..(span.end - kept) * wide];
                encoder.pool(rows, &mut vectors[next * width..(next + 1) * width])?;
                next += 1;
            }
            let needed = spans[next..].iter().map(|span| span.start).min().unwrap_or(end).min(end);
            states.drain(..(needed - kept) * wide);
            kept = needed;
        }
        let (computed, width) = (width, handle.info.facts.config.kept(width));
        if width < computed {
            for row in 0..chunks.len() {
                vectors.copy_within(row * computed..row * computed + width, row * width);
            }
            vectors.truncate(chunks.len() * width);
        }
        if options.normalize {
            vectors.chunks_exact_mut(width.max(1)).for_each(crate::models::normalize);
        }
        Ok((chunks, vectors, width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_a_text_once_and_overlap() {
        assert_eq!(windows(5, 8), [TokenWindow { reads: 0..5, gives: 0..5 }]);
        for tokens in 1..200 {
            for capacity in [1, 2, 3, 8, 17, 64] {
                let found = windows(tokens, capacity);
                assert_eq!(found[0].gives.start, 0);
                assert_eq!(found.last().unwrap().gives.end, tokens);
                assert!(found.windows(2).all(|pair| pair[0].gives.end == pair[1].gives.start));
                for TokenWindow { reads, gives } in &found {
                    assert!(reads.start <= gives.start && gives.end <= reads.end, "{reads:?} {gives:?}");
                    assert!(reads.len() <= capacity && reads.end <= tokens);
                }
            }
        }
    }
}
