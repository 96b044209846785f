//! What a cached result is the result of.

use std::borrow::Borrow;
use std::hash::{BuildHasherDefault, Hash, Hasher};
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

/// A key with its hash: a long prompt is hashed once, before the cache's lock is taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct HashedKey<'a> {
    pub(super) key: KeyRef<'a>,
    pub(super) hash: u64,
}

/// The owned form.
#[derive(Debug, Clone)]
pub(super) struct Key {
    content: Owned,
    prompt: Box<str>,
    model: Arc<str>,
    dimensions: Option<usize>,
    normalized: bool,
    kind: OutputKind,
    hash: u64,
}

#[derive(Debug, Clone)]
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
    pub(super) fn copy(key: &HashedKey<'_>) -> Result<Self> {
        let HashedKey { key: KeyRef { content, prompt, model, dimensions, normalized, kind }, hash } = *key;
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
        Ok(Self { content, prompt, model: Arc::clone(model), dimensions, normalized, kind, hash })
    }
}

/// Both forms of a key. Maps of owned keys are asked through `dyn AnyKey`, which either form can be seen as.
pub(super) trait AnyKey {
    fn borrowed(&self) -> KeyRef<'_>;
    /// Equal for equal keys of one cache.
    fn hashed(&self) -> u64;
}

impl AnyKey for Key {
    fn borrowed(&self) -> KeyRef<'_> {
        let Self { content, prompt, model, dimensions, normalized, kind, hash: _ } = self;
        let content = match content {
            Owned::Text(text) => Content::Text(text),
            Owned::Tokens(ids) => Content::Tokens(ids),
            Owned::Pair(both) => Content::Pair(&both[0], &both[1]),
        };
        KeyRef { content, prompt, model, dimensions: *dimensions, normalized: *normalized, kind: *kind }
    }

    fn hashed(&self) -> u64 {
        self.hash
    }
}

impl AnyKey for HashedKey<'_> {
    fn borrowed(&self) -> KeyRef<'_> {
        self.key
    }

    fn hashed(&self) -> u64 {
        self.hash
    }
}

impl PartialEq for dyn AnyKey + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.hashed() == other.hashed() && self.borrowed() == other.borrowed()
    }
}

impl Eq for dyn AnyKey + '_ {}

impl Hash for dyn AnyKey + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hashed());
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self as &dyn AnyKey == other as &dyn AnyKey
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self as &dyn AnyKey).hash(state);
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

/// Makes the hasher of maps by [`Key`].
pub(super) type BuildKeyHasher = BuildHasherDefault<KeyHasher>;

/// Hands on the hash that a key has.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        unreachable!("a key writes its hash alone, not {} bytes", bytes.len());
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
