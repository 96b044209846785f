//! A sentence model or a classifier in memory.

use std::fmt;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;

use super::adapter_files::warn_of_unused;
use super::architectures::{ModelKind, Transformer};
use super::config::ModelConfig;
use super::head::Head;
use super::heads::{DenseLayer, Pooling, ScoreConfig, SentenceEncoder, TokenHead};
use super::late_texts::LateTexts;
use super::manifest::ModelFiles;
use super::sentence::SentenceConfig;
use super::settings::{EncoderSettings, Overrides, check_widths, dense_layers, no_conversations};
use super::static_embedding::{StaticForm, StaticModel};
use super::tokenizers::{Bounds, ChatText, PairChat, TextChat, Tokenizer};
use super::weights::Weights;
use crate::batching::Encoded;
#[cfg(feature = "cuda")]
use crate::compute::Cuda;
use crate::compute::memory::joined;
use crate::compute::{Backend, Candle, CandleDevice, Cpu, Isa, WeightFormat};
use crate::output::Shapes;
use crate::{Error, Result, held_log};

/// Makes the transformer from its configuration and weights.
pub type Build<'a> = &'a dyn Fn(&ModelConfig, &Weights) -> Result<Box<dyn SentenceEncoder>>;

/// The transformer on the CPU, with the kernels of `isa` and weights in `format`.
///
/// # Errors
/// [`Error::InvalidFile`] when `config.json` lacks a number; those of the weights.
pub fn on_cpu(
    config: &ModelConfig,
    weights: &Weights,
    isa: Isa,
    format: WeightFormat,
) -> Result<Box<dyn SentenceEncoder>> {
    build(Cpu::new(isa, format), config, weights)
}

/// The transformer on a device: NVIDIA's cards with their own kernels, others with candle's.
///
/// # Errors
/// As [`on_cpu`].
pub fn on_device(
    config: &ModelConfig,
    weights: &Weights,
    device: impl Into<CandleDevice>,
) -> Result<Box<dyn SentenceEncoder>> {
    let device = device.into();
    #[cfg(feature = "cuda")]
    if device.device.is_cuda() && config.architecture.has_kernels_on_cards() {
        return build(Cuda::new(device)?, config, weights);
    }
    build(Candle::new(device), config, weights)
}

fn build<B: Backend>(
    backend: B,
    config: &ModelConfig,
    weights: &Weights,
) -> Result<Box<dyn SentenceEncoder>> {
    let architecture = &*config.architecture;
    let masked = config.family.masked_lm.filter(|_| config.kind == ModelKind::Sparse);
    Ok(Box::new(match masked {
        Some(head) => Transformer::load_masked(backend, architecture, weights, head)?,
        None => Transformer::load(backend, architecture, weights)?,
    }))
}

/// A sentence model in memory: tokenizer, transformer, and what sentence-transformers put around it.
pub struct Encoder {
    /// The source, as messages name it.
    pub name: String,
    /// The model's folder.
    pub path: PathBuf,
    /// Text → ids.
    pub tokenizer: Tokenizer,
    /// Pooling, normalization, length, prompts.
    pub config: SentenceConfig,
    /// The adapter that changes its weights, as the one who loaded it first calls it.
    pub adapter: Option<String>,
    /// What the adapter contains.
    pub adapter_content: Option<String>,
    /// `model_type` of `config.json`.
    pub architecture: String,
    /// The type of most weights of a GGUF file.
    pub file_type: Option<&'static str>,
    /// Ids that the model has an embedding of: those below this one.
    pub vocabulary: usize,
    /// Labels and activations of a model that scores.
    pub scores: Option<ScoreConfig>,
    /// Characters after which a text is cut before it is tokenized.
    pub(super) characters: Option<usize>,
    /// How a pair becomes a conversation, where it does.
    pub(super) pair_chat: Option<PairChat>,
    /// How a text becomes a conversation, where it does.
    pub(super) text_chat: Option<TextChat>,
    /// How queries and documents become ids of late interaction.
    pub(super) late: Option<LateTexts>,
    pub(super) model: Box<dyn SentenceEncoder>,
    pub(super) head: Head,
}

impl Encoder {
    /// Loads tokenizer and weights. Without a kind in `overrides`, the model's files decide.
    ///
    /// # Errors
    /// Every error of this module but those of downloading.
    pub fn load(files: &ModelFiles, overrides: Overrides, build: Build<'_>) -> Result<Self> {
        if let Some(form) = files.static_form()? {
            return Self::load_static(files, form, overrides);
        }
        let mut settings = EncoderSettings::read(files, overrides)?;
        settings.read_layers()?;
        // A tokenizer takes about as long to read as the weights of a small model take to pack.
        let (tokenizer, loaded) = together(
            || settings.tokenizer(),
            || {
                let weights = settings.config.weights(files)?;
                let model = build(&settings.config, &weights)?;
                weights.check_read()?;
                Ok::<_, Error>((weights, model))
            },
        );
        let (tokenizer, (weights, model)) = (tokenizer?, loaded?);
        let (head, scores) = settings.head(&weights, &tokenizer, model.width())?;
        weights.check_adapter_read(settings.config.kind)?;
        let adapter_content = files.adapter_content()?;
        weights.check()?;
        let late = settings.late_texts(&tokenizer, overrides)?;
        settings.warn_of_tokenizer(&tokenizer, scores.is_some());
        warn_of_unused(files);
        Ok(Self {
            name: files.model.clone(),
            path: files.root.clone(),
            tokenizer,
            config: settings.sentence,
            adapter: files.adapter.as_ref().map(|adapter| adapter.name().to_owned()),
            adapter_content,
            architecture: settings.config.family.model_type.to_owned(),
            file_type: settings.config.gguf.as_ref().and_then(|gguf| gguf.file_type()),
            vocabulary: settings.config.describe().vocabulary,
            scores,
            pair_chat: settings.pair_chat,
            text_chat: settings.text_chat,
            late,
            characters: None,
            model,
            head,
        })
    }

    /// A static model, on the CPU in the format of its file.
    pub(super) fn load_static(files: &ModelFiles, form: StaticForm, overrides: Overrides) -> Result<Self> {
        let mut sentence = form.sentence(files, overrides.kind)?;
        if let Some(pooling) = overrides.pooling.filter(|pooling| *pooling != Pooling::Mean) {
            let reason = format!("pooling {:?}; a static model is the mean of its rows", pooling.name());
            return Err(Error::Unsupported { model: files.model.clone(), reason });
        }
        if overrides.chat_template == Some(true) {
            return Err(no_conversations(files, "a static model embeds texts as they are"));
        }
        let layers = dense_layers(files, &sentence)?;
        let (tokenizer, vocabulary) = Tokenizer::of_table(files)?;
        let own = match form {
            StaticForm::StaticEmbedding => vocabulary.max_length,
            StaticForm::Model2Vec { max_length, .. } => max_length,
        };
        let length = overrides.max_length.or(own);
        sentence.max_length = length.unwrap_or(usize::MAX);
        let model2vec = form != StaticForm::StaticEmbedding;
        let characters = length.filter(|_| model2vec).map(|tokens| tokens.saturating_mul(vocabulary.median));
        let weights = Weights::open(&files.weights)?;
        let model = StaticModel::load(&weights, form, &tokenizer, vocabulary.unknown)?;
        weights.check()?;
        check_widths(&sentence, &layers, model.width())?;
        Ok(Self {
            name: files.model.clone(),
            path: files.root.clone(),
            tokenizer,
            config: sentence,
            adapter: None,
            adapter_content: None,
            architecture: form.name().to_owned(),
            file_type: None,
            vocabulary: model.tokens(),
            scores: None,
            pair_chat: None,
            text_chat: None,
            late: None,
            characters,
            model: Box::new(model),
            head: Head::Vectors { dense: layers, lexical: None, tokens: None },
        })
    }

    /// Whether a text may be cut after some characters, before its tokens are counted.
    pub fn cuts_characters(&self) -> bool {
        self.characters.is_some()
    }

    /// The shapes of what it gives.
    pub fn shapes(&self) -> Shapes {
        self.head.shapes(self.model.width(), self.vocabulary, self.model.has_states())
    }

    /// Length of the vectors, or the number of labels.
    pub fn width(&self) -> usize {
        let shapes = self.shapes();
        shapes.dense.or(shapes.scores).unwrap_or(0)
    }

    /// Bytes held by weights; the tokenizer's tables are not counted.
    pub fn memory_bytes(&self) -> u64 {
        let head = match &self.head {
            Head::Vectors { dense, lexical, tokens } => {
                dense.iter().map(DenseLayer::memory_bytes).sum::<u64>()
                    + lexical.as_ref().map_or(0, |head| head.memory_bytes())
                    + tokens.as_ref().map_or(0, TokenHead::memory_bytes)
            }
            Head::Tokens(tokens) => tokens.memory_bytes(),
            Head::Scores(classifier) => classifier.memory_bytes(),
            Head::Sparse(..) => 0,
        };
        self.model.memory_bytes() + head
    }

    /// Of those, bytes on a device with a memory of its own.
    pub fn device_bytes(&self) -> u64 {
        self.model.device_bytes()
    }

    /// The format that the transformer computes in.
    pub fn dtype(&self) -> &'static str {
        self.model.dtype()
    }

    /// Checks that no file that is still read from was changed since the model was loaded.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the one that was.
    pub fn check(&self) -> Result<()> {
        self.model.check()
    }

    /// The ids of `prompt` and `text` together, special tokens included, cut to the model's maximum.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn tokenize(&self, prompt: &str, text: &str, bounds: &mut Bounds<'_>) -> Result<Encoded> {
        let (ids, truncated) = self.ids(prompt, text, self.config.max_length, bounds)?;
        Ok(Encoded { truncated, ..ids.into() })
    }

    /// The same, with nothing cut.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn tokenize_whole(&self, prompt: &str, text: &str, bounds: &mut Bounds<'_>) -> Result<Vec<u32>> {
        self.ids(prompt, text, usize::MAX, bounds).map(|(ids, _)| ids)
    }

    /// The ids of a query or a document of late interaction, cut to its length if `truncate`. `None` for a model that makes no
    /// difference between them.
    ///
    /// # Errors
    /// Those of the tokenizer; [`Error::Input`] for a text that is too long, unless `truncate`.
    pub fn tokenize_late(
        &self,
        prompt: &str,
        text: &str,
        query: bool,
        truncate: bool,
        bounds: &mut Bounds<'_>,
    ) -> Result<Option<Encoded>> {
        let Some(late) = &self.late else { return Ok(None) };
        let longest = late.longest(query);
        let most = if truncate { longest } else { usize::MAX };
        let read = match &self.text_chat {
            Some(chat) => {
                let text = ChatText { prompt, text, query: Some(query) };
                chat.encode(&self.tokenizer, text, most, longest, bounds)?
            }
            None => late.read(&self.tokenizer, &joined(&[prompt, text])?, most, bounds)?,
        };
        late.encoded(&self.name, read, query).map(Some)
    }

    /// The number of ids of `prompt` and `text` together, special tokens included, nothing cut.
    ///
    /// # Errors
    /// Those of the tokenizer, and of the model's template.
    pub fn count(&self, prompt: &str, text: &str, bounds: &mut Bounds<'_>) -> Result<usize> {
        if let Some(chat) = &self.text_chat {
            return chat.count(
                &self.tokenizer,
                ChatText { prompt, text, query: self.late.as_ref().map(|_| false) },
                bounds,
            );
        }
        let whole = if prompt.is_empty() { None } else { Some(joined(&[prompt, text])?) };
        self.tokenizer.count_within(whole.as_deref().unwrap_or(text), bounds)
    }

    /// Whether a text, or a pair of them, is a conversation that the model's chat template makes a prompt of.
    pub fn reads_conversations(&self) -> bool {
        self.text_chat.is_some() || self.pair_chat.is_some()
    }

    fn ids(
        &self,
        prompt: &str,
        text: &str,
        max_length: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<(Vec<u32>, bool)> {
        if self.pair_chat.is_some() {
            return Err(Error::Input(format!(
                "{:?} scores pairs of texts, and this is a text alone",
                self.name
            )));
        }
        if let Some(chat) = &self.text_chat {
            let text = ChatText { prompt, text, query: None };
            return chat.encode(&self.tokenizer, text, max_length, self.config.max_length, bounds);
        }
        let whole = if prompt.is_empty() { None } else { Some(joined(&[prompt, text])?) };
        let text = whole.as_deref().unwrap_or(text);
        let characters = self.characters.filter(|_| max_length != usize::MAX);
        let end = characters.and_then(|characters| text.char_indices().nth(characters));
        let (ids, cut) =
            self.tokenizer.encode_noting(end.map_or(text, |(end, _)| &text[..end]), max_length, bounds)?;
        Ok((ids, cut || end.is_some()))
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoder({}, {:?}, {})", self.name, self.shapes(), self.dtype())
    }
}

pub(super) fn misuse(reason: &str) -> Error {
    Error::internal("encoder", reason)
}

/// Both results, `aside` computed on a thread of its own where one can be had. A panic of it goes on in the caller. Where
/// the caller holds its log lines back, those of the thread wait with them.
fn together<A: Send, B>(aside: impl Fn() -> A + Sync, here: impl FnOnce() -> B) -> (A, B) {
    let holding = held_log::is_holding();
    let aside = || match holding {
        true => {
            let (a, lines) = held_log::hold(&aside);
            (a, Some(lines))
        }
        false => (aside(), None),
    };
    let ((a, lines), b) = thread::scope(|scope| {
        let builder = thread::Builder::new().name("mm-tokenizer".into());
        match builder.spawn_scoped(scope, aside) {
            Ok(thread) => {
                let b = here();
                (thread.join().unwrap_or_else(|panic| resume_unwind(panic)), b)
            }
            Err(_) => (aside(), here()),
        }
    });
    if let Some(lines) = lines {
        lines.write();
    }
    (a, b)
}
