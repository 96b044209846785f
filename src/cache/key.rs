//! What a cached result is the result of.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::Result;
use crate::compute::memory::{joined, reserve};
use crate::output::OutputKind;

/// What a model is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content<'a> {
    /// A text as it is tokenized: normalized, without the prompt.
    Text(&'a str),
    /// Token ids as the model reads them; no text, even if one would give the same ids.
    Tokens(&'a [u32]),
    /// Two texts that the model reads as one sequence.
    Pair(&'a str, &'a str),
}

/// Everything that decides a result. Borrowed, so that a look-up allocates nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyRef<'a> {
    /// Text or token ids.
    pub content: Content<'a>,
    /// What the model puts before a text; empty for nothing.
    pub prompt: &'a str,
    /// Identity of the model: equal only for equal weights, dtype, pooling and tokenizer.
    pub model: &'a Arc<str>,
    /// Dimensions that the vector is cut to; `None` is all of them.
    pub dimensions: Option<usize>,
    /// Whether the vector has length 1.
    pub normalized: bool,
    /// What is asked for.
    pub kind: OutputKind,
}

impl Content<'_> {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(ids) => size_of_val(ids),
            Self::Pair(first, second) => first.len() + second.len(),
        }
    }
}

/// The owned form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    content: Owned,
    prompt: Box<str>,
    model: Arc<str>,
    dimensions: Option<usize>,
    normalized: bool,
    kind: OutputKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Owned {
    Text(Box<str>),
    Tokens(Box<[u32]>),
    Pair(Box<[Box<str>; 2]>),
}

impl Key {
    /// A copy that owns its text.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(super) fn copy(key: &KeyRef<'_>) -> Result<Self> {
        let KeyRef { content, prompt, model, dimensions, normalized, kind } = *key;
        let content = match content {
            Content::Text(text) => Owned::Text(joined(&[text])?.into_boxed_str()),
            Content::Tokens(ids) => {
                let mut copy = Vec::new();
                reserve(&mut copy, ids.len())?;
                copy.extend_from_slice(ids);
                Owned::Tokens(copy.into_boxed_slice())
            }
            Content::Pair(first, second) => Owned::Pair(Box::new([
                joined(&[first])?.into_boxed_str(),
                joined(&[second])?.into_boxed_str(),
            ])),
        };
        let prompt = joined(&[prompt])?.into_boxed_str();
        Ok(Self { content, prompt, model: Arc::clone(model), dimensions, normalized, kind })
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrowed().hash(state);
    }
}

/// Both forms of a key. Maps of owned keys are asked through `dyn AnyKey`, which either form can be seen as.
pub(super) trait AnyKey {
    fn borrowed(&self) -> KeyRef<'_>;
}

impl AnyKey for Key {
    fn borrowed(&self) -> KeyRef<'_> {
        let Self { content, prompt, model, dimensions, normalized, kind } = self;
        let content = match content {
            Owned::Text(text) => Content::Text(text),
            Owned::Tokens(ids) => Content::Tokens(ids),
            Owned::Pair(both) => Content::Pair(&both[0], &both[1]),
        };
        KeyRef { content, prompt, model, dimensions: *dimensions, normalized: *normalized, kind: *kind }
    }
}

impl AnyKey for KeyRef<'_> {
    fn borrowed(&self) -> KeyRef<'_> {
        *self
    }
}

impl PartialEq for dyn AnyKey + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.borrowed() == other.borrowed()
    }
}

impl Eq for dyn AnyKey + '_ {}

impl Hash for dyn AnyKey + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrowed().hash(state);
    }
}

impl<'a> Borrow<dyn AnyKey + 'a> for Key {
    fn borrow(&self) -> &(dyn AnyKey + 'a) {
        self
    }
}

impl<'a> Borrow<dyn AnyKey + 'a> for Arc<Key> {
    fn borrow(&self) -> &(dyn AnyKey + 'a) {
        &**self
    }
}
