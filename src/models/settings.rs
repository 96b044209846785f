//! What the files of a sentence model and the caller say of it, and what is made of that once the weights are there.

use serde_json::{Map, Value};

use super::adapters::own::OwnAdapters;
use super::architectures::ModelKind;
use super::config::ModelConfig;
use super::head::{Head, bge_tokens, has_lexical_head, late_head, lexical_head};
use super::heads::{Classifier, DenseLayer, Pooling, ScoreConfig};
use super::kind;
use super::late::LateInteraction;
use super::late_texts::LateTexts;
use super::manifest::{ModelAdapter, ModelFiles};
use super::sentence::SentenceConfig;
use super::tokenizers::pair_chat::QWEN3_LENGTH;
use super::tokenizers::{PairChat, TextChat, Tokenizer};
use super::weights::Weights;
use crate::output::Shapes;
use crate::{Error, Result};

/// What replaces what the model's own files say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overrides {
    /// How token states become one vector.
    pub pooling: Option<Pooling>,
    /// Tokens after which a text is cut; at most what the model's positions allow.
    pub max_length: Option<usize>,
    /// What the model is used for.
    pub kind: Option<ModelKind>,
    /// Whether texts go through the model's chat template.
    pub chat_template: Option<bool>,
}

impl Overrides {
    /// What the model of `files` is used for: as given, else as the files say.
    pub fn kind_of(&self, files: &ModelFiles) -> ModelKind {
        let found = || kind::kind_of_files(files).filter(|kind| *kind != ModelKind::Generator);
        self.kind.or_else(found).unwrap_or(ModelKind::Embedding)
    }
}

/// Everything that is known of a model before its tokenizer and weights are read, with its overrides.
pub(super) struct EncoderSettings<'a> {
    files: &'a ModelFiles,
    kind: ModelKind,
    pub(super) config: ModelConfig,
    /// Tokens that the model's positions allow.
    positions: usize,
    late: Option<LateInteraction>,
    pub(super) sentence: SentenceConfig,
    /// Whether it is a language model that judges pairs.
    judges: bool,
    pub(super) pair_chat: Option<PairChat>,
    pub(super) text_chat: Option<TextChat>,
    /// The Dense modules between pooling and normalization.
    layers: Vec<DenseLayer>,
}

impl<'a> EncoderSettings<'a> {
    /// Reads all files but the tokenizer's and the weights.
    ///
    /// # Errors
    /// Those of the files, naming the key or the module.
    pub(super) fn read(files: &'a ModelFiles, overrides: Overrides) -> Result<Self> {
        let kind = overrides.kind_of(files);
        let config = ModelConfig::read(files, kind)?;
        let positions = config.positions()?;
        let late = match kind {
            ModelKind::Embedding if config.gguf.is_none() => LateInteraction::read(files)?,
            _ => None,
        };
        let has_head = kind::trained_for(files) == Some(ModelKind::Classifier);
        let mut sentence = match (&config.gguf, kind) {
            (Some(gguf), _) => SentenceConfig::from_gguf(gguf, &files.model, positions, overrides.pooling)?,
            // Behind the states is the adapter's own head: what sentence-transformers put there for vectors is not used.
            (None, ModelKind::Classifier) if has_head => {
                let bare = ModelFiles { modules: Vec::new(), ..files.clone() };
                SentenceConfig::of_classifier(&bare, positions)?
            }
            (None, ModelKind::Classifier) => SentenceConfig::of_classifier(files, positions)?,
            (None, ModelKind::Sparse) => SentenceConfig::of_sparse(files, positions)?,
            (None, _) => match &late {
                Some(late) => SentenceConfig::of_late(files, positions, late)?,
                None => SentenceConfig::load(files, positions)?,
            },
        };
        if let Some(own) = OwnAdapters::read(&config.path, &config.json)? {
            follow_tasks(&mut sentence, own, files.adapter.as_ref());
        }
        sentence.pooling = overrides.pooling.unwrap_or(sentence.pooling);
        sentence.max_length =
            overrides.max_length.map_or(sentence.max_length, |length| length.min(positions));
        let judges = kind == ModelKind::Classifier && !has_head && kind::judges(&files.modules, &config.json);
        let pair_chat = match kind {
            ModelKind::Classifier => PairChat::load(files, judges, config.family.model_type)?,
            _ => None,
        };
        if pair_chat.as_ref().is_some_and(|chat| chat.of_card) {
            sentence.max_length = sentence.max_length.min(QWEN3_LENGTH);
        }
        let wanted = overrides.chat_template;
        let text_chat = match (&config.gguf, kind) {
            (None, ModelKind::Embedding | ModelKind::Sparse) => {
                TextChat::load(files, wanted, late.is_some())?
            }
            (Some(_), _) if wanted == Some(true) => {
                return Err(no_conversations(files, "a GGUF file embeds texts as they are"));
            }
            (None, _) if wanted.is_some() => {
                return Err(no_conversations(
                    files,
                    "a model that scores makes a prompt of a pair as its files say",
                ));
            }
            _ => None,
        };
        if text_chat.is_some() {
            // Which tokens are those of a prompt is not known there: sentence-transformers pools them all.
            sentence.include_prompt = true;
            late.iter().try_for_each(|late| check_conversations(files, late))?;
        }
        let layers = Vec::new();
        Ok(Self { files, kind, config, positions, late, sentence, judges, pair_chat, text_chat, layers })
    }

    /// Reads the Dense modules: before the weights, so that a damaged one is reported at once.
    ///
    /// # Errors
    /// Those of their files.
    pub(super) fn read_layers(&mut self) -> Result<()> {
        let has_layers = self.kind == ModelKind::Embedding && self.late.is_none();
        if has_layers {
            self.layers = match &self.config.gguf {
                Some(gguf) => DenseLayer::of_gguf(gguf, self.config.output_width())?,
                None => dense_layers(self.files, &self.sentence)?,
            };
        }
        Ok(())
    }

    /// The shapes of what the model will give, as far as its small files say: widths are those of its states.
    pub(super) fn expected_shapes(&self) -> Shapes {
        let model = self.config.describe();
        let (states, none) = (Some(self.config.output_width()), Shapes::default());
        match self.kind {
            ModelKind::Classifier => Shapes { scores: Some(self.expected_labels()), ..none },
            ModelKind::Sparse => Shapes { sparse: Some(model.vocabulary), ..none },
            _ if self.late.is_some() => Shapes { multi: states, states, ..none },
            _ => {
                let sparse = has_lexical_head(self.files).then_some(model.vocabulary);
                Shapes { dense: states, sparse, multi: states, states, ..none }
            }
        }
    }

    /// Refuses a model for scores or sparse vectors whose `config.json` names another class: its weights have no layers for
    /// them.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub(super) fn check_class(&self) -> Result<()> {
        let (suits, what): (fn(&Value) -> bool, _) = match self.kind {
            ModelKind::Classifier if !self.judges && kind::trained_for(self.files).is_none() => {
                (kind::classifies, "scores")
            }
            ModelKind::Sparse => (kind::fills_gaps, "sparse vectors"),
            _ => return Ok(()),
        };
        let classes = self.config.json["architectures"].as_array().map_or(&[][..], Vec::as_slice);
        match classes.first() {
            Some(class) if !classes.iter().any(suits) => {
                let reason =
                    format!("its config.json names the class {class}, which has no layers for {what}");
                Err(Error::Unsupported { model: self.files.model.clone(), reason })
            }
            _ => Ok(()),
        }
    }

    /// As transformers counts them: a label for each name, else as many as the number says, else two.
    fn expected_labels(&self) -> usize {
        let json = &self.config.json;
        let named = json["id2label"].as_object().map(Map::len);
        let counted = || json["num_labels"].as_u64().and_then(|labels| usize::try_from(labels).ok());
        if self.judges { 1 } else { named.or_else(counted).unwrap_or(2) }
    }

    /// The tokenizer.
    pub(super) fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = match &self.config.gguf {
            Some(gguf) => Tokenizer::from_gguf(gguf),
            None => Tokenizer::load(self.files, self.sentence.lower_case),
        }?;
        self.text_chat.iter().try_for_each(|chat| chat.check_tokenizer(&tokenizer))?;
        Ok(tokenizer)
    }

    /// What follows the transformer, whose states have `width` values; labels and activations of a model that scores.
    ///
    /// # Errors
    /// Those of the weights and of the files of modules.
    pub(super) fn head(
        &mut self,
        weights: &Weights,
        tokenizer: &Tokenizer,
        width: usize,
    ) -> Result<(Head, Option<ScoreConfig>)> {
        let (files, config) = (self.files, &self.config);
        if let Some(head) = config.family.classifier.filter(|_| self.kind == ModelKind::Classifier) {
            let classifier = match self.judges {
                true => Classifier::judging(files, config, weights, tokenizer)?,
                false => Classifier::load(config, head, weights)?,
            };
            self.sentence.pooling = classifier.pooling;
            let scores = ScoreConfig::read(files, config, classifier.labels())?;
            return Ok((Head::Scores(classifier), Some(scores)));
        }
        if self.kind == ModelKind::Sparse {
            let pooling = SentenceConfig::splade(files)?;
            return Ok((Head::Sparse(pooling, config.describe().vocabulary), None));
        }
        if let Some(late) = &self.late {
            return Ok((Head::Tokens(late_head(files, late, weights, width)?), None));
        }
        let dense = std::mem::take(&mut self.layers);
        check_widths(&self.sentence, &dense, width)?;
        let lexical = lexical_head(files, config, tokenizer, width)?;
        let tokens = bge_tokens(files, config, width)?;
        Ok((Head::Vectors { dense, lexical, tokens }, None))
    }

    /// How queries and documents of late interaction become ids, where the model is one of it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where tokens have to be hidden and the architecture cannot.
    pub(super) fn late_texts(
        &mut self,
        tokenizer: &Tokenizer,
        overrides: Overrides,
    ) -> Result<Option<LateTexts>> {
        let Some(late) = &self.late else { return Ok(None) };
        let (files, positions) = (self.files, self.positions);
        let mut texts = LateTexts::new(files, late, tokenizer, self.sentence.max_length, positions)?;
        if texts.hides() && !self.config.architecture.hides_tokens() {
            let reason = format!(
                "its queries are filled with tokens to which none attends, which is not computed for {}; an \
                 \"attend_to_expansion_tokens\" of true, or of \"do_query_expansion\" false, is",
                self.config.family.model_type
            );
            return Err(Error::Unsupported { model: files.model.clone(), reason });
        }
        self.sentence.max_length =
            overrides.max_length.map_or(texts.document_length, |length| length.min(positions));
        texts.document_length = self.sentence.max_length;
        Ok(Some(texts))
    }

    /// Logs what makes vectors worse, or texts fail, although the files can be used. `scores`: it gives no vectors.
    pub(super) fn warn_of_tokenizer(&self, tokenizer: &Tokenizer, scores: bool) {
        let name = &self.files.model;
        let ends = tokenizer.ends() || self.text_chat.is_some();
        if self.sentence.pooling == Pooling::Last && !ends && !scores {
            log::warn!(
                "{name}: a text's vector is the state of its last token, but the tokenizer adds no end token"
            );
        }
        let (known, vocabulary) = (tokenizer.id_limit(), self.config.describe().vocabulary);
        if known > vocabulary {
            log::warn!(
                "{name}: the tokenizer knows {known} ids, the model {vocabulary}; a text with one of the others will fail"
            );
        }
    }
}

/// The error of an override that asks for a chat template.
pub(super) fn no_conversations(files: &ModelFiles, reason: &str) -> Error {
    let reason = format!("it is registered with a chat_template, and {reason}; leave that out");
    Error::Unsupported { model: files.model.clone(), reason }
}

/// Refuses a model whose queries are conversations and are filled up, or have tokens before them: so does sentence-transformers.
fn check_conversations(files: &ModelFiles, late: &LateInteraction) -> Result<()> {
    if late.expansion.is_none() && late.markers.is_empty() {
        return Ok(());
    }
    Err(Error::Unsupported {
        model: files.model.clone(),
        reason: "its texts go through its chat template, and its queries are expanded or have a prefix (query_expansion, \
                 query_prefix), which does not go together; register it with chat_template=False, or let the template add the \
                 tokens"
            .into(),
    })
}

/// Takes the instructions of tasks as prompts. That of the adapter in use goes before every text, as in the model's own code.
fn follow_tasks(sentence: &mut SentenceConfig, own: OwnAdapters, adapter: Option<&ModelAdapter>) {
    for (name, text) in own.instructions {
        sentence.prompts.entry(name).or_insert(text);
    }
    if let Some(ModelAdapter::Own(name)) = adapter
        && sentence.prompts.get(name).is_some_and(|text| !text.is_empty())
    {
        sentence.default_prompt_name = Some(name.clone());
    }
}

/// The Dense modules between pooling and normalization.
pub(super) fn dense_layers(files: &ModelFiles, sentence: &SentenceConfig) -> Result<Vec<DenseLayer>> {
    sentence.dense.iter().map(|folder| DenseLayer::load(&files.model, folder)).collect()
}

/// Refuses Dense modules that do not take what the one before them gives; the first one gets `width` values.
pub(super) fn check_widths(sentence: &SentenceConfig, layers: &[DenseLayer], mut width: usize) -> Result<()> {
    for (folder, layer) in sentence.dense.iter().zip(layers) {
        if layer.inputs() != width {
            return Err(Error::invalid_file(
                folder.join("config.json"),
                format!("it takes vectors of {} dimensions, but gets {width}", layer.inputs()),
            ));
        }
        width = layer.outputs();
    }
    Ok(())
}
