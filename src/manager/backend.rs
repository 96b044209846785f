//! What computes the results of a sentence model: an encoder in this process, or a server.

use std::sync::Arc;

use super::info::ModelFacts;
use super::inputs::Inputs;
use super::options::EmbedOptions;
use crate::batching::{Batcher, Chunk, Encoded, Forward, Lane};
use crate::cache::Content;
use crate::compute::PackedBatch;
use crate::compute::memory::joined;
use crate::models::chunks::chunks;
use crate::models::heads::ScoreConfig;
use crate::models::{Bounds, ChunkSize, Encoder, SentenceConfig, TextChunk};
use crate::output::{Output, OutputKind, Shape, Shapes};
use crate::remote::RemoteEncoder;
use crate::sync::fork;
use crate::{Error, Result};

/// A loaded sentence model and its queue. Names with the same files and parameters, or the same server and model, share
/// one.
pub(super) enum EncoderBackend {
    /// In this process.
    Local {
        // Before `encoder`: the worker ends first.
        batcher: Batcher,
        encoder: Arc<Encoder>,
    },
    /// On a server.
    Remote(RemoteEncoder),
}

/// Inputs made ready for a queue, and that queue.
pub(super) enum PreparedInputs<'a> {
    Tokens(&'a Batcher, Vec<Encoded>, OutputKind),
    Texts(&'a RemoteEncoder, Vec<Arc<str>>),
}

impl EncoderBackend {
    /// What its results depend on. `identity` is equal for equal results.
    pub(super) fn facts(&self, identity: Arc<str>) -> ModelFacts {
        ModelFacts {
            identity,
            shapes: self.shapes(),
            model: self.name(),
            config: self.config(),
            max_length: self.max_length(),
            cuts_characters: self.cuts_characters(),
        }
    }

    /// The shapes of its results.
    pub(super) fn shapes(&self) -> Shapes {
        match self {
            Self::Local { encoder, .. } => encoder.shapes(),
            Self::Remote(remote) => Shapes::dense(remote.shape().width()),
        }
    }

    /// The encoder in this process.
    ///
    /// # Errors
    /// [`Error::Input`] for a model of a server.
    pub(super) fn local(&self) -> Result<&Arc<Encoder>> {
        match self {
            Self::Local { encoder, .. } => Ok(encoder),
            Self::Remote(remote) => Err(no_tokenizer(remote)),
        }
    }

    /// Labels and activations of a model that scores.
    pub(super) fn scores(&self) -> Option<&ScoreConfig> {
        match self {
            Self::Local { encoder, .. } => encoder.scores.as_ref(),
            Self::Remote(_) => None,
        }
    }

    /// Whether a file that is still read from was changed.
    pub(super) fn is_stale(&self) -> bool {
        match self {
            Self::Local { encoder, .. } => encoder.check().is_err(),
            Self::Remote(_) => false,
        }
    }

    /// Bytes in this process.
    pub(super) fn memory_bytes(&self) -> u64 {
        match self {
            Self::Local { encoder, .. } => encoder.memory_bytes(),
            Self::Remote(remote) => remote.memory_bytes(),
        }
    }

    /// Of those, bytes on a card.
    pub(super) fn device_bytes(&self) -> u64 {
        match self {
            Self::Local { encoder, .. } => encoder.device_bytes(),
            Self::Remote(_) => 0,
        }
    }

    /// The source, as messages name it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Local { encoder, .. } => encoder.name.clone(),
            Self::Remote(remote) => remote.link().address().to_string(),
        }
    }

    /// What the model's files say. A server's model has only its prompts here; how the server computes a vector is not
    /// known.
    pub(super) fn config(&self) -> SentenceConfig {
        match self {
            Self::Local { encoder, .. } => encoder.config.clone(),
            Self::Remote(remote) => {
                SentenceConfig { normalize: remote.normalizes(), ..SentenceConfig::plain() }
            }
        }
    }

    /// Tokens after which a text is cut; `None` when only a server knows.
    pub(super) fn max_length(&self) -> Option<usize> {
        match self {
            Self::Local { encoder, .. } => Some(encoder.config.max_length),
            Self::Remote(_) => None,
        }
    }

    /// Whether a text may be cut after some characters, before its tokens are counted.
    pub(super) fn cuts_characters(&self) -> bool {
        match self {
            Self::Local { encoder, .. } => encoder.cuts_characters(),
            Self::Remote(_) => false,
        }
    }

    /// Tokens of `text`, special ones included, not cut.
    pub(super) fn count_tokens(&self, text: &str, bounds: &mut Bounds<'_>) -> Result<usize> {
        match self {
            Self::Local { encoder, .. } => encoder.count("", text, bounds),
            Self::Remote(remote) => Err(no_tokenizer(remote)),
        }
    }

    /// `text` in chunks of at most `max_tokens`, and at most what the model reads.
    pub(super) fn chunks(
        &self,
        text: &str,
        prompt: &str,
        max_tokens: Option<usize>,
        overlap: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<Vec<TextChunk>> {
        let encoder = match self {
            Self::Local { encoder, .. } => encoder,
            Self::Remote(remote) => return Err(no_tokenizer(remote)),
        };
        let longest = encoder.config.max_length;
        if let Some(max_tokens) = max_tokens.filter(|&max_tokens| max_tokens > longest) {
            return Err(Error::argument(
                "max_tokens",
                format!("={max_tokens} is more than {:?} reads: {longest}", encoder.name),
            ));
        }
        let size = ChunkSize { max_tokens: max_tokens.unwrap_or(longest), overlap };
        let count = |piece: &str, bounds: &mut Bounds<'_>| encoder.count(prompt, piece, bounds);
        chunks(&encoder.tokenizer, text, &count, size, bounds)
    }

    /// Some of `inputs` as the queue takes them.
    pub(super) fn prepare(
        &self,
        inputs: &Inputs,
        numbers: &[usize],
        prompt: &str,
        options: &EmbedOptions,
        bounds: &mut Bounds<'_>,
    ) -> Result<PreparedInputs<'_>> {
        match self {
            Self::Local { batcher, encoder } => {
                let _computing = fork::computing();
                let sequences = inputs.sequences(numbers, encoder, prompt, options, bounds)?;
                Ok(PreparedInputs::Tokens(batcher, sequences, options.kind))
            }
            Self::Remote(remote) => {
                let refuse = |reason: &str| Error::Input(format!("{}: {reason}", remote.link().address()));
                if !options.truncate {
                    return Err(refuse(
                        "only the server knows how many tokens the model reads; leave truncate=False out",
                    ));
                }
                let text = |&input| match inputs.get(input) {
                    Content::Text(text) if prompt.is_empty() => Ok(Arc::from(text)),
                    Content::Text(text) => Ok(joined(&[prompt, text])?.into()),
                    Content::Tokens(_) | Content::Pair(..) => {
                        Err(refuse("a server's model takes texts; its tokenizer is not here"))
                    }
                };
                Ok(PreparedInputs::Texts(remote, numbers.iter().map(text).collect::<Result<_>>()?))
            }
        }
    }
}

impl Forward for Encoder {
    fn shape(&self, kind: OutputKind) -> Result<Shape> {
        self.shapes().expect(kind, &self.name)
    }

    fn forward(&self, kind: OutputKind, batch: &PackedBatch<'_>, out: &mut Output) -> Result<()> {
        let _computing = fork::computing();
        self.compute(kind, batch, out)
    }
}

impl PreparedInputs<'_> {
    /// How much of a window of `window` tokens they take. Of a server's model two full rounds of requests fill it.
    pub(super) fn weight(&self, window: usize) -> usize {
        match self {
            Self::Tokens(_, sequences, _) => sequences.iter().map(|sequence| sequence.ids.len()).sum(),
            Self::Texts(remote, texts) => texts.len() * (window / (2 * remote.texts_in_flight())).max(1),
        }
    }

    /// How many of them were cut. What a server cuts is not known.
    pub(super) fn truncated(&self) -> usize {
        match self {
            Self::Tokens(_, sequences, _) => sequences.iter().filter(|sequence| sequence.truncated).count(),
            Self::Texts(..) => 0,
        }
    }

    /// The same in groups of at most `most`, in their order.
    pub(super) fn groups(self, most: usize) -> Vec<Self> {
        /// `all` in lists of at most `most`.
        fn lists<T>(all: Vec<T>, most: usize) -> impl Iterator<Item = Vec<T>> {
            let mut all = all.into_iter();
            std::iter::from_fn(move || Some(all.by_ref().take(most).collect::<Vec<T>>()))
                .take_while(|list| !list.is_empty())
        }
        match self {
            Self::Tokens(batcher, all, kind) if all.len() > most => {
                lists(all, most).map(|list| Self::Tokens(batcher, list, kind)).collect()
            }
            Self::Texts(remote, all) if all.len() > most => {
                lists(all, most).map(|list| Self::Texts(remote, list)).collect()
            }
            few => vec![few],
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Tokens(_, sequences, _) => sequences.len(),
            Self::Texts(_, texts) => texts.len(),
        }
    }

    /// Queues them as the rows of `chunk`. Never blocks.
    pub(super) fn submit(self, chunk: &Arc<Chunk>, lane: Lane) {
        match self {
            Self::Tokens(batcher, sequences, kind) => batcher.submit(sequences, kind, chunk, lane),
            Self::Texts(remote, texts) => remote.submit(texts, chunk, lane),
        }
    }
}

fn no_tokenizer(remote: &RemoteEncoder) -> Error {
    Error::Input(format!(
        "only the server of {} can count tokens: its tokenizer is not here",
        remote.link().address()
    ))
}
