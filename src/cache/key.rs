//! What a cached vector is the vector of.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Everything that decides a vector. Borrowed, so that a look-up allocates nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyRef<'a> {
    /// The text as it is tokenised: normalised, without the prompt.
    pub text: &'a str,
    /// What the model puts before the text; empty for nothing.
    pub prompt: &'a str,
    /// Identity of the model: equal only for equal weights, dtype, pooling and tokeniser.
    pub model: &'a Arc<str>,
    /// Dimensions that the vector is cut to; `None` is all of them.
    pub dimensions: Option<usize>,
    /// Whether the vector has length 1.
    pub normalized: bool,
}

/// The owned form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    text: Box<str>,
    prompt: Box<str>,
    model: Arc<str>,
    dimensions: Option<usize>,
    normalized: bool,
}

impl Key {
    pub(super) fn model(&self) -> &str {
        &self.model
    }
}

impl From<&KeyRef<'_>> for Key {
    fn from(key: &KeyRef<'_>) -> Self {
        let KeyRef { text, prompt, model, dimensions, normalized } = *key;
        Self { text: text.into(), prompt: prompt.into(), model: Arc::clone(model), dimensions, normalized }
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
        let Self { text, prompt, model, dimensions, normalized } = self;
        KeyRef { text, prompt, model, dimensions: *dimensions, normalized: *normalized }
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
