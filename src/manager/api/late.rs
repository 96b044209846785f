//! Late chunking: the vectors of a text's parts, pooled from the states of one pass over the whole text.

use std::ops::Range;
use std::time::Instant;

use super::super::inputs::Inputs;
use super::super::instance::Manager;
use super::super::options::{Check, EmbedOptions};
use super::scoring::Activate;
use crate::compute::memory::{joined, zeroed};
use crate::models::{Bounds, Encoder, Pooling, TextChunk};
use crate::output::{MultiVector, Output, OutputKind};
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
        refuse_states_of_one_token(encoder)?;
        refuse_conversations(encoder)?;
        let prompt = handle.info.prompt(options)?;
        let (ids, places) = {
            let _computing = fork::computing();
            let mut bounds = Bounds { max_bytes: parts.settings.max_text_bytes, check: &mut *check };
            encoder.tokenizer.places(&joined(&[prompt, text])?, &mut bounds)?
        };
        let before = places.partition_point(|place| place.end <= prompt.len() && !prompt.is_empty());
        let (lead, own) = ids.split_at(before);
        let longest = encoder.config.max_length;
        let capacity = longest.saturating_sub(encoder.tokenizer.special_tokens() + lead.len());
        if capacity == 0 {
            return Err(Error::Input(format!("the prompt leaves no room for text in {longest} tokens")));
        }
        let skipped = encoder.tokenizer.before().len() + lead.len();
        let spans = token_spans(&chunks, &places[before..], prompt.len());
        let mut pooling = ChunkPooling::new(encoder, spans)?;
        for group in windows(own.len(), capacity).chunks(WINDOWS).filter(|_| !chunks.is_empty()) {
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
            for (window, item) in group.iter().zip(&found.items) {
                let first = skipped + window.gives.start - window.reads.start;
                pooling.add(item, first..first + window.gives.len());
            }
            pooling.pool_complete()?;
        }
        let width = handle.info.facts.config.kept(encoder.width());
        let mut vectors = cut_rows(pooling.vectors, encoder.width(), width);
        if options.normalize {
            vectors.chunks_exact_mut(width.max(1)).for_each(crate::models::normalize);
        }
        Ok((chunks, vectors, width))
    }
}

fn refuse_states_of_one_token(encoder: &Encoder) -> Result<()> {
    let (Pooling::Cls | Pooling::Last) = encoder.config.pooling else { return Ok(()) };
    Err(Error::Unsupported {
        model: encoder.name.clone(),
        reason: format!(
            "its vector is the state of one token (pooling {:?}), so parts of a text have none; embed the chunks one by one",
            encoder.config.pooling.name()
        ),
    })
}

fn refuse_conversations(encoder: &Encoder) -> Result<()> {
    if !encoder.reads_conversations() {
        return Ok(());
    }
    Err(Error::Unsupported {
        model: encoder.name.clone(),
        reason: "its texts go through its chat template, so which tokens are those of a chunk is not known; embed the chunks one \
                 by one"
            .into(),
    })
}

/// The tokens of each chunk. `places` are the bytes of the text's tokens, counted with the `prompt` bytes before the text.
fn token_spans(chunks: &[TextChunk], places: &[Range<usize>], prompt: usize) -> Vec<Range<usize>> {
    let of_chunk = |chunk: &TextChunk| {
        let (start, end) = (prompt + chunk.bytes.start, prompt + chunk.bytes.end);
        let first = places.partition_point(|place| place.end <= start);
        let last = places.partition_point(|place| place.start < end);
        first..last.max(first)
    };
    chunks.iter().map(of_chunk).collect()
}

/// The vectors of chunks, each pooled as soon as the states of its tokens are computed.
struct ChunkPooling<'a> {
    encoder: &'a Encoder,
    /// The tokens of each chunk.
    spans: Vec<Range<usize>>,
    /// The states from token `kept` on, which chunks from `next` on need; each has `state_width` values.
    states: Vec<f32>,
    state_width: usize,
    kept: usize,
    next: usize,
    /// Row-major.
    vectors: Vec<f32>,
}

impl<'a> ChunkPooling<'a> {
    fn new(encoder: &'a Encoder, spans: Vec<Range<usize>>) -> Result<Self> {
        let vectors = zeroed(spans.len() * encoder.width())?;
        Ok(Self { encoder, spans, states: Vec::new(), state_width: 0, kept: 0, next: 0, vectors })
    }

    /// Adds the states of the tokens that follow: `rows` of `item`.
    fn add(&mut self, item: &MultiVector, rows: Range<usize>) {
        self.state_width = item.width;
        self.states.extend_from_slice(&item.values[rows.start * item.width..rows.end * item.width]);
    }

    /// Pools the chunks all of whose states are there, and drops the states that no other chunk needs.
    fn pool_complete(&mut self) -> Result<()> {
        let (wide, width) = (self.state_width, self.encoder.width());
        let end = self.kept + self.states.len() / wide.max(1);
        while let Some(span) = self.spans.get(self.next).filter(|span| span.end <= end) {
            let rows = &self.states[(span.start - self.kept) * wide..(span.end - self.kept) * wide];
            self.encoder.pool(rows, &mut self.vectors[self.next * width..(self.next + 1) * width])?;
            self.next += 1;
        }
        let needed = self.spans[self.next..].iter().map(|span| span.start).min().unwrap_or(end).min(end);
        self.states.drain(..(needed - self.kept) * wide);
        self.kept = needed;
        Ok(())
    }
}

/// The first `kept` of the `width` values of each row.
fn cut_rows(mut rows: Vec<f32>, width: usize, kept: usize) -> Vec<f32> {
    if kept < width {
        let count = rows.len() / width;
        for row in 0..count {
            rows.copy_within(row * width..row * width + kept, row * kept);
        }
        rows.truncate(count * kept);
    }
    rows
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
