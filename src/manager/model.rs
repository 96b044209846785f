//! A loaded model, as the slot of its name has it.

use std::sync::Arc;

use super::backend::EncoderBackend;
use super::info::ModelInfo;
use super::spec::HostObject;
use crate::generation::Generator;
use crate::models::Bounds;
use crate::output::OutputKind;
use crate::{Error, Result};

/// The value of a slot, as its user sees it.
pub enum SlotValue {
    /// A sentence model.
    Encoder,
    /// A reranker or a classifier.
    Scorer,
    /// A text generator.
    Generator,
    /// An object of the host's own.
    Object(HostObject),
}

/// The value of a slot.
pub(super) enum LoadedModel {
    Encoder(ModelHandle),
    Generator(Box<GeneratorHandle>),
    Object(HostObject),
}

/// A sentence model as one name serves it.
#[derive(Clone)]
pub(super) struct ModelHandle {
    pub(super) backend: Arc<EncoderBackend>,
    pub(super) info: Arc<ModelInfo>,
    /// The source that was loaded: the configured one, or a fallback. Never contains a key.
    pub(super) source: String,
    /// The adapter as this name's own configuration spells it: names with equal files share the model.
    pub(super) adapter: Option<String>,
}

/// A language model as one name serves it.
pub(super) struct GeneratorHandle {
    pub(super) generator: Generator,
    /// The source that was loaded.
    pub(super) source: String,
}

impl LoadedModel {
    /// Bytes on a card.
    pub(super) fn device_bytes(&self) -> u64 {
        match self {
            Self::Encoder(handle) => handle.backend.device_bytes(),
            Self::Generator(handle) => handle.generator.device_bytes(),
            Self::Object(_) => 0,
        }
    }

    /// Whether its weights lie on a card.
    pub(super) fn is_on_card(&self) -> bool {
        self.device_bytes() > 0
    }

    /// The model of vectors or scores that the slot `name` has, or an error that says what it gives in the place of
    /// `asked`.
    pub(super) fn encoder(&self, name: &str, asked: OutputKind) -> Result<&ModelHandle> {
        let given = match self {
            Self::Encoder(handle) => return Ok(handle),
            Self::Generator(_) => {
                let kind = match asked {
                    OutputKind::Scores => "reranker",
                    OutputKind::Sparse => "sparse",
                    _ => "embedding",
                };
                format!("text (generate, stream); a model that gives them is registered with kind={kind:?}")
            }
            Self::Object(_) => format!("the object of a loader of its own: get({name:?})"),
        };
        Err(Error::Task { name: name.to_owned(), asked: asked.name(), given })
    }

    /// The model of vectors or scores that the slot `name` has, for its description.
    pub(super) fn described(&self, name: &str) -> Result<&ModelHandle> {
        let Self::Generator(_) = self else { return self.encoder(name, OutputKind::Dense) };
        let (asked, given) =
            (OutputKind::Dense.name(), "text (generate, stream); describe_generator describes it");
        Err(Error::Task { name: name.to_owned(), asked, given: given.into() })
    }

    /// The text generator, if it is one.
    pub(super) fn text_generator(&self) -> Option<&Generator> {
        match self {
            Self::Generator(handle) => Some(&handle.generator),
            Self::Encoder(_) | Self::Object(_) => None,
        }
    }

    /// The text generator, or an error that says what the slot `name` has instead.
    pub(super) fn generator(&self, name: &str) -> Result<&Generator> {
        let reason = match self {
            Self::Generator(handle) => return Ok(&handle.generator),
            Self::Encoder(handle) => {
                let given: Vec<_> = handle.info.facts.shapes.kinds().map(OutputKind::name).collect();
                let given = given.join(", ");
                format!(
                    "{name:?} gives {given}; a model that writes text is registered with kind=\"generator\""
                )
            }
            Self::Object(_) => format!("{name:?} has a loader of its own; get({name:?}) returns its object"),
        };
        Err(Error::NoGenerator { reason })
    }

    /// Tokens of `text`, special ones included, not cut.
    pub(super) fn count_tokens(&self, name: &str, text: &str, bounds: &mut Bounds<'_>) -> Result<usize> {
        match self {
            Self::Encoder(handle) => handle.backend.count_tokens(text, bounds),
            Self::Generator(_) if text.is_empty() => Ok(0),
            Self::Generator(handle) => Ok(handle.generator.count(text, bounds)?),
            Self::Object(_) => Err(Error::Input(format!(
                "{name:?} is registered with a loader of its own, and has no tokenizer here"
            ))),
        }
    }

    /// Whether a file that the model still reads from was changed, so that it has to be loaded again.
    pub(super) fn is_stale(&self) -> bool {
        matches!(self, Self::Encoder(handle) if handle.backend.is_stale())
    }

    /// Identifies the model in memory: equal for slots that share one.
    pub(super) fn shared(&self) -> Option<usize> {
        match self {
            Self::Encoder(handle) => Some(Arc::as_ptr(&handle.backend) as usize),
            Self::Generator(_) | Self::Object(_) => None,
        }
    }

    /// What it is, and the host's object if it is one.
    pub(super) fn value(&self) -> SlotValue {
        match self {
            Self::Encoder(handle) if handle.info.facts.shapes.scores.is_some() => SlotValue::Scorer,
            Self::Encoder(_) => SlotValue::Encoder,
            Self::Generator(_) => SlotValue::Generator,
            Self::Object(object) => SlotValue::Object(Arc::clone(object)),
        }
    }

    /// The source that was loaded; `None` for a host's own loader.
    pub(super) fn source(&self) -> Option<&str> {
        match self {
            Self::Encoder(handle) => Some(&handle.source),
            Self::Generator(handle) => Some(&handle.source),
            Self::Object(_) => None,
        }
    }
}
