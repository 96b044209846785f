//! What computes the results of a sentence model: an encoder in this process, or a server.

use std::sync::Arc;

use super::inputs::Inputs;
use super::options::EmbedOptions;
use crate::batching::{Batcher, Chunk, Forward, Lane};
use crate::cache::Content;
use crate::compute::Packed;
use crate::compute::memory::joined;
use crate::models::{Bounds, Encoder, Pooling, SentenceConfig, Similarity};
use crate::output::{Output, Shape};
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
    Tokens(&'a Batcher, Vec<Vec<u32>>),
    Texts(&'a RemoteEncoder, Vec<Arc<str>>),
}

impl EncoderBackend {
    /// The shape of its results.
    pub(super) fn shape(&self) -> Shape {
        match self {
            Self::Local { encoder, .. } => Forward::shape(&**encoder),
            Self::Remote(remote) => remote.shape(),
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
            Self::Remote(remote) => SentenceConfig {
                pooling: Pooling::Mean,
                include_prompt: true,
                dense: Vec::new(),
                normalize: remote.normalizes(),
                max_length: usize::MAX,
                lower_case: false,
                prompts: Default::default(),
                default_prompt_name: None,
                similarity: Similarity::Cosine,
            },
        }
    }

    /// Tokens after which a text is cut; `None` when only a server knows.
    pub(super) fn max_length(&self) -> Option<usize> {
        match self {
            Self::Local { encoder, .. } => Some(encoder.config.max_length),
            Self::Remote(_) => None,
        }
    }

    /// Tokens of `text`, special ones included, not cut.
    pub(super) fn count_tokens(&self, text: &str, bounds: &mut Bounds<'_>) -> Result<usize> {
        match self {
            Self::Local { encoder, .. } => encoder.tokenizer.count_within(text, bounds),
            Self::Remote(remote) => Err(Error::Input(format!(
                "only the server of {} can count tokens: its tokenizer is not here",
                remote.link().address()
            ))),
        }
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
                let mut sequence = |&input| inputs.sequence(input, encoder, prompt, options.truncate, bounds);
                Ok(PreparedInputs::Tokens(batcher, numbers.iter().map(&mut sequence).collect::<Result<_>>()?))
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
                    Content::Tokens(_) => {
                        Err(refuse("a server's model takes texts; its tokenizer is not here"))
                    }
                };
                Ok(PreparedInputs::Texts(remote, numbers.iter().map(text).collect::<Result<_>>()?))
            }
        }
    }
}

impl Forward for Encoder {
    fn shape(&self) -> Shape {
        Shape::Dense { width: self.width() }
    }

    fn forward(&self, batch: &Packed<'_>, out: &mut Output) -> Result<()> {
        let _computing = fork::computing();
        match out {
            Output::Dense(out) => self.encode(batch, out.values_mut()),
        }
    }
}

impl PreparedInputs<'_> {
    /// How much of a window of `window` tokens they take. Of a server's model two full rounds of requests fill it.
    pub(super) fn weight(&self, window: usize) -> usize {
        match self {
            Self::Tokens(_, sequences) => sequences.iter().map(Vec::len).sum(),
            Self::Texts(remote, texts) => texts.len() * (window / (2 * remote.texts_in_flight())).max(1),
        }
    }

    /// Queues them as the rows of `chunk`. Never blocks.
    pub(super) fn submit(self, chunk: &Arc<Chunk>, lane: Lane) {
        match self {
            Self::Tokens(batcher, sequences) => batcher.submit(sequences, chunk, lane),
            Self::Texts(remote, texts) => remote.submit(texts, chunk, lane),
        }
    }
}
