//! A family of models: what files call it, and how its configuration is read.

use std::path::Path;

use serde::de::value::Error as NoValue;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde_json::Value;

use super::architecture::Architecture;
use crate::compute::{Activation, Heads, LONGEST_HEAD};
use crate::models::formats::gguf::Gguf;
use crate::models::heads::layout::{ClassifierHead, MaskedHead};
use crate::{Error, Result};

/// No dimension of a model is larger: products of a few fit into 64 bits.
pub(crate) const LARGEST_SIZE: usize = 1 << 28;

/// Whether a size is neither 0 nor absurd.
pub(crate) fn is_size(size: usize) -> bool {
    (1..=LARGEST_SIZE).contains(&size)
}

/// The longest text whose biases by distance are kept in memory.
const LONGEST_BIASED: usize = 1 << 16;

/// What a model is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// Texts to vectors.
    Embedding,
    /// Text to more text.
    Generator,
    /// Texts or pairs of texts to one number for each label: rerankers too.
    Classifier,
    /// Texts to weights of the vocabulary.
    Sparse,
}

impl ModelKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Embedding, Self::Generator, Self::Classifier, Self::Sparse];

    /// What its models give, for messages.
    pub(crate) fn result(self) -> &'static str {
        match self {
            Self::Embedding => "vectors",
            Self::Generator => "text",
            Self::Classifier => "scores",
            Self::Sparse => "sparse vectors",
        }
    }

    /// One of its models, for messages.
    pub(crate) fn model(self) -> &'static str {
        match self {
            Self::Embedding => "an embedding model",
            Self::Generator => "a text generator",
            Self::Classifier => "a model that scores texts",
            Self::Sparse => "a model of sparse vectors",
        }
    }

    /// The name that [`ModelKind::from_name`] reads.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Generator => "generator",
            Self::Classifier => "reranker",
            Self::Sparse => "sparse",
        }
    }

    /// The kind that a user names.
    ///
    /// # Errors
    /// [`Error::Argument`] with the names that there are.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "embedding" => Ok(Self::Embedding),
            "generator" => Ok(Self::Generator),
            "reranker" | "classifier" => Ok(Self::Classifier),
            "sparse" => Ok(Self::Sparse),
            _ => Err(Error::argument(
                "kind",
                format!("={name:?}: expected embedding, generator, reranker, classifier or sparse"),
            )),
        }
    }
}

/// Models of one `model_type`, and how their configuration is read.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// What the names of its classes in transformers begin with.
    pub classes: &'static str,
    /// Full names of other classes that files of its models name: those of code that computes the same.
    pub code: &'static [&'static str],
    /// What [`read`](Self::read) parses `config.json` into.
    pub fields: &'static [ConfigFields],
    /// More keys of `config.json` that are accepted: those that change nothing, each with its reason. Others are refused
    /// unless they are harmless.
    pub keys: &'static [&'static str],
    /// Whether its models embed text.
    pub embeds: bool,
    /// Whether its models write text.
    pub generates: bool,
    /// Whether a model without a chat template gets one of bare turns, each ended by the end-of-text token.
    pub bare_turns: bool,
    /// The head of its masked language models.
    pub masked_lm: Option<&'static MaskedHead>,
    /// How its models score texts, if they do.
    pub classifier: Option<&'static ClassifierHead>,
    /// Reads `config.json`.
    pub read: ReadConfig,
    /// Its GGUF files.
    pub gguf: &'static [GgufFamily],
    /// Reads the metadata of one of them.
    pub read_gguf: Option<ReadGguf>,
}

/// Models of one `general.architecture`.
#[derive(Debug, Clone, Copy)]
pub struct GgufFamily {
    /// `general.architecture` of the file.
    pub architecture: &'static str,
    /// Whether they are read as sentence models.
    pub embeds: bool,
    /// Whether they are read as generators.
    pub generates: bool,
}

impl GgufFamily {
    /// Generators.
    pub const fn generators(architecture: &'static str) -> Self {
        Self { architecture, embeds: false, generates: true }
    }

    /// Sentence models.
    pub const fn encoders(architecture: &'static str) -> Self {
        Self { architecture, embeds: true, generates: false }
    }

    /// Whether its models can be used so.
    pub fn serves(&self, kind: ModelKind) -> bool {
        match kind {
            ModelKind::Embedding => self.embeds,
            ModelKind::Generator => self.generates,
            // The format has no place for such a head.
            ModelKind::Classifier | ModelKind::Sparse => false,
        }
    }
}

/// Reads a `config.json`.
pub type ReadConfig = fn(&ConfigFile<'_>) -> Result<Box<dyn Architecture>>;

/// Reads the metadata of a GGUF file.
pub type ReadGguf = fn(&Gguf) -> Result<Box<dyn Architecture>>;

/// Keys of `config.json` that a family reads: fields of a struct that it parses.
#[derive(Debug, Clone, Copy)]
pub enum ConfigFields {
    /// All fields.
    All(FieldsOf),
    /// All but these, which related families have.
    But(FieldsOf, &'static [&'static str]),
    /// These alone, of those that related families have.
    Only(FieldsOf, &'static [&'static str]),
}

/// [`keys_of`] a struct.
pub type FieldsOf = fn() -> &'static [&'static str];

impl ConfigFields {
    /// All fields of the struct.
    fn all(self) -> &'static [&'static str] {
        let (Self::All(fields) | Self::But(fields, _) | Self::Only(fields, _)) = self;
        fields()
    }

    /// The keys.
    fn keys(self) -> Vec<&'static str> {
        let is_own = |key: &&'static str| match self {
            Self::All(_) => true,
            Self::But(_, others) => !others.contains(key),
            Self::Only(_, own) => own.contains(key),
        };
        self.all().iter().copied().filter(is_own).collect()
    }
}

/// The keys that the fields of `T` are read from, as its derived `Deserialize` names them, aliases included. A struct that
/// flattens another one names none.
pub fn keys_of<T: DeserializeOwned>() -> &'static [&'static str] {
    struct FieldNames<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for FieldNames<'_> {
        type Error = NoValue;

        fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, NoValue> {
            Err(NoValue::custom("it has no fields"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            _visitor: V,
        ) -> Result<V::Value, NoValue> {
            *self.0 = fields;
            Err(NoValue::custom("its fields are known"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    drop(T::deserialize(FieldNames(&mut names)));
    names
}

/// A model's `config.json`.
#[derive(Debug, Clone, Copy)]
pub struct ConfigFile<'a> {
    /// The source, as messages name it.
    pub model: &'a str,
    /// Where the file is.
    pub path: &'a Path,
    /// What it says, without nulls.
    pub json: &'a Value,
}

impl ConfigFile<'_> {
    /// Reads the fields of `T`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the field that is missing or of another type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(self.json).map_err(|error| Error::InvalidFile {
            path: self.path.to_path_buf(),
            reason: format!("it does not describe its model: {error}"),
        })
    }

    /// Checks that these sizes, each with its key, are neither 0 nor absurd.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the first that is.
    pub(super) fn check_sizes(&self, sizes: &[(&str, usize)]) -> Result<()> {
        match sizes.iter().find(|(_, size)| !is_size(*size)) {
            Some((key, size)) => {
                Err(self.unsupported(format!("its {key} is {size}; it must be 1 to {LARGEST_SIZE}")))
            }
            None => Ok(()),
        }
    }

    /// Checks `max_position_embeddings` of a model with a bias by distance, of which it has two numbers for each position.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub(super) fn check_biased_length(&self, length: usize) -> Result<()> {
        if length <= LONGEST_BIASED {
            return Ok(());
        }
        Err(self.refuse("max_position_embeddings", &format!("at most {LONGEST_BIASED}")))
    }

    /// The heads of states of `hidden` numbers, as many of keys as of queries.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if they do not divide the states, or are too wide.
    pub(super) fn heads(&self, hidden: usize, heads: usize) -> Result<Heads> {
        if heads == 0 || !hidden.is_multiple_of(heads) {
            let reason = format!("hidden_size {hidden} does not divide into {heads} attention heads");
            return Err(self.unsupported(reason));
        }
        let width = hidden / heads;
        if width > LONGEST_HEAD {
            return Err(self.unsupported(format!(
                "its attention heads are {width} wide ({heads} of them); the widest that run here are {LONGEST_HEAD}"
            )));
        }
        Ok(Heads { heads, kv_heads: heads, width })
    }

    /// The activation that transformers calls `name`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the key and its value.
    pub(super) fn activation(&self, key: &str, name: &str) -> Result<Activation> {
        match name {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            "silu" | "swish" => Ok(Activation::Silu),
            other => {
                Err(self.unsupported(format!("{key} {other:?}; supported are gelu, gelu_new, relu, silu")))
            }
        }
    }

    /// The refusal of `key`, whose value is not computed.
    pub(super) fn refuse(&self, key: &str, supported: &str) -> Error {
        self.unsupported(format!("its {key} is {}; supported is {supported}", self.json[key]))
    }

    /// The error for what this crate cannot compute.
    pub fn unsupported(&self, reason: impl Into<String>) -> Error {
        Error::Unsupported { model: self.model.into(), reason: reason.into() }
    }
}

impl Family {
    /// A family whose models embed and write text, read from `config.json`: from [`fields`](Self::fields), and with `keys`
    /// that are accepted in addition.
    pub const fn new(
        model_type: &'static str,
        classes: &'static str,
        keys: &'static [&'static str],
        read: ReadConfig,
    ) -> Self {
        Self {
            model_type,
            classes,
            code: &[],
            fields: &[],
            keys,
            embeds: true,
            generates: true,
            bare_turns: false,
            classifier: None,
            masked_lm: None,
            read,
            gguf: &[],
            read_gguf: None,
        }
    }

    /// The keys of `config.json` that are accepted.
    pub fn accepted_keys(&self) -> Vec<&'static str> {
        self.fields.iter().flat_map(|fields| fields.keys()).chain(self.keys.iter().copied()).collect()
    }

    /// Keys of `config.json` that related families read and this one does not.
    pub(crate) fn foreign_keys(&self) -> Vec<&'static str> {
        let own: Vec<_> = self.fields.iter().flat_map(|fields| fields.keys()).collect();
        let all = self.fields.iter().flat_map(|fields| fields.all());
        all.copied().filter(|key| !own.contains(key)).collect()
    }

    /// Reads `config.json` without [`foreign_keys`](Self::foreign_keys). A file may have them if they are not set, and false is
    /// no value of theirs: in transformers, they change nothing.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn read_config(&self, file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
        let foreign = self.foreign_keys();
        let mut json = file.json.clone();
        if let Some(config) = json.as_object_mut() {
            config.retain(|key, _| !foreign.contains(&key.as_str()));
        }
        (self.read)(&ConfigFile { json: &json, ..*file })
    }

    /// Whether its models can be used so.
    pub fn serves(&self, kind: ModelKind) -> bool {
        match kind {
            ModelKind::Embedding => self.embeds,
            ModelKind::Generator => self.generates,
            ModelKind::Classifier => self.classifier.is_some(),
            ModelKind::Sparse => self.masked_lm.is_some(),
        }
    }
}
