//! A sentence model or a classifier in memory.

use std::fmt;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;

use super::architectures::{ModelKind, Transformer};
use super::config::ModelConfig;
use super::heads::{
    Classifier, DenseLayer, Pooling, ScoreConfig, SentenceEncoder, SparseBatch, SpladePooling,
};
use super::kind;
use super::manifest::ModelFiles;
use super::sentence::SentenceConfig;
use super::tokenizers::{Bounds, Encoded, Tokenizer};
use super::weights::Weights;
use crate::compute::memory::{joined, zeroed};
use crate::compute::{Backend, Candle, Cpu, Isa, Packed, WeightFormat};
use crate::output::{MultiVector, Output, Shapes};
use crate::sync::Mutex;
use crate::{Error, Result};

/// Makes the transformer from its configuration and weights.
pub type Build<'a> = &'a dyn Fn(&ModelConfig, &Weights) -> Result<Box<dyn SentenceEncoder>>;

/// What replaces what the model's own files say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overrides {
    /// How token states become one vector.
    pub pooling: Option<Pooling>,
    /// Tokens after which a text is cut; at most what the model's positions allow.
    pub max_length: Option<usize>,
    /// What the model is used for.
    pub kind: Option<ModelKind>,
}

impl Overrides {
    /// What the model of `files` is used for: as given, else as the files say.
    pub fn kind_of(&self, files: &ModelFiles) -> ModelKind {
        let found = || kind::of_folder(&files.root).filter(|kind| *kind != ModelKind::Generator);
        self.kind.or_else(found).unwrap_or(ModelKind::Embedding)
    }
}

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

/// The transformer on any device that candle knows, in f32.
///
/// # Errors
/// As [`on_cpu`].
pub fn on_device(
    config: &ModelConfig,
    weights: &Weights,
    device: &candle_core::Device,
) -> Result<Box<dyn SentenceEncoder>> {
    build(Candle::new(device.clone()), config, weights)
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
    /// `model_type` of `config.json`.
    pub architecture: String,
    /// Ids that the model has an embedding of: those below this one.
    pub vocabulary: usize,
    /// Labels and activations of a model that scores.
    pub scores: Option<ScoreConfig>,
    model: Box<dyn SentenceEncoder>,
    head: Head,
}

/// What becomes of the pooled states.
enum Head {
    /// Vectors, through these layers.
    Vectors(Vec<DenseLayer>),
    /// Logits.
    Scores(Classifier),
    /// Weights of this many entries of the vocabulary.
    Sparse(SpladePooling, usize),
}

impl Encoder {
    /// Loads tokenizer and weights. Without a kind in `overrides`, the model's files decide.
    ///
    /// # Errors
    /// Every error of this module but those of downloading.
    pub fn load(files: &ModelFiles, overrides: Overrides, build: Build<'_>) -> Result<Self> {
        let kind = overrides.kind_of(files);
        let config = ModelConfig::read(files, kind)?;
        let positions = config.positions()?;
        let mut sentence = match (&config.gguf, kind) {
            (Some(gguf), _) => SentenceConfig::from_gguf(gguf, &files.model, positions, overrides.pooling)?,
            (None, ModelKind::Classifier) => SentenceConfig::of_classifier(files, positions)?,
            (None, ModelKind::Sparse) => SentenceConfig::of_sparse(files, positions)?,
            (None, _) => SentenceConfig::load(files, positions)?,
        };
        sentence.pooling = overrides.pooling.unwrap_or(sentence.pooling);
        sentence.max_length =
            overrides.max_length.map_or(sentence.max_length, |length| length.min(positions));
        // Before the weights: a damaged module is reported at once.
        let layers = match kind {
            ModelKind::Classifier | ModelKind::Sparse => Vec::new(),
            _ => dense_layers(files, &sentence)?,
        };
        // A tokenizer takes about as long to read as the weights of a small model take to pack.
        let (tokenizer, model) = together(
            || match &config.gguf {
                Some(gguf) => Tokenizer::from_gguf(gguf),
                None => Tokenizer::load(files, sentence.lower_case),
            },
            || {
                let weights = config.weights(files)?;
                let model = build(&config, &weights)?;
                let classifier = match config.family.classifier.filter(|_| kind == ModelKind::Classifier) {
                    Some(head) => Some(Classifier::load(&config, head, &weights)?),
                    None => None,
                };
                weights.check()?;
                Ok::<_, Error>((model, classifier))
            },
        );
        let tokenizer = tokenizer?;
        if sentence.pooling == Pooling::Last && !tokenizer.ends() {
            log::warn!(
                "{}: a text's vector is the state of its last token, but the tokenizer adds no end token",
                files.model
            );
        }
        let (model, classifier) = model?;
        let (head, scores) = match classifier {
            Some(classifier) => {
                sentence.pooling = classifier.pooling;
                let scores = ScoreConfig::read(files, &config, classifier.labels())?;
                (Head::Scores(classifier), Some(scores))
            }
            None if kind == ModelKind::Sparse => {
                let pooling = SentenceConfig::splade(files)?;
                (Head::Sparse(pooling, config.describe().vocabulary), None)
            }
            None => {
                check_widths(&sentence, &layers, model.width())?;
                (Head::Vectors(layers), None)
            }
        };
        let known = tokenizer.id_limit();
        let vocabulary = config.describe().vocabulary;
        if known > vocabulary {
            log::warn!(
                "{}: the tokenizer knows {known} ids, the model {vocabulary}; a text with one of the others will fail",
                files.model
            );
        }
        Ok(Self {
            name: files.model.clone(),
            path: files.root.clone(),
            tokenizer,
            config: sentence,
            architecture: config.family.model_type.to_owned(),
            vocabulary,
            scores,
            model,
            head,
        })
    }

    /// The shapes of what it gives.
    pub fn shapes(&self) -> Shapes {
        let none = Shapes::default();
        match &self.head {
            Head::Vectors(dense) => {
                let states = self.model.width();
                let width = dense.last().map_or(states, DenseLayer::outputs);
                Shapes { dense: Some(width), multi: Some(states), ..none }
            }
            Head::Scores(classifier) => Shapes { scores: Some(classifier.labels()), ..none },
            Head::Sparse(_, vocabulary) => Shapes { sparse: Some(*vocabulary), ..none },
        }
    }

    /// Length of the vectors, or the number of labels.
    pub fn width(&self) -> usize {
        let shapes = self.shapes();
        shapes.dense.or(shapes.scores).unwrap_or(0)
    }

    /// Bytes held by weights; the tokenizer's tables are not counted.
    pub fn memory_bytes(&self) -> u64 {
        let head = match &self.head {
            Head::Vectors(dense) => dense.iter().map(DenseLayer::memory_bytes).sum(),
            Head::Scores(classifier) => classifier.memory_bytes(),
            Head::Sparse(..) => 0,
        };
        self.model.memory_bytes() + head
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

    fn ids(
        &self,
        prompt: &str,
        text: &str,
        max_length: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<(Vec<u32>, bool)> {
        if prompt.is_empty() {
            return self.tokenizer.encode_noting(text, max_length, bounds);
        }
        self.tokenizer.encode_noting(&joined(&[prompt, text])?, max_length, bounds)
    }

    /// The vectors of a batch, or its logits, into `out`, row-major `[sequences, width]`: pooled, through the layers of
    /// the head, and L2-normalized when the model itself does that. Whether they are finite is for the caller to see.
    ///
    /// # Errors
    /// Those of the transformer.
    pub fn encode(&self, batch: &Packed<'_>, out: &mut [f32]) -> Result<()> {
        let pooling = self.config.pooling;
        let pooled = || -> Result<Vec<f32>> {
            let mut states = zeroed(batch.sequences() * self.model.width())?;
            self.model.encode(batch, pooling, &mut states)?;
            Ok(states)
        };
        match &self.head {
            Head::Vectors(dense) if dense.is_empty() => self.model.encode(batch, pooling, out)?,
            Head::Vectors(dense) => {
                let vectors = dense.iter().fold(pooled()?, |vectors, layer| layer.apply(&vectors));
                out.copy_from_slice(&vectors);
            }
            Head::Scores(classifier) => out.copy_from_slice(&classifier.apply(pooled()?)),
            Head::Sparse(..) => return Err(misuse("a model of sparse vectors pools no states")),
        }
        if self.config.normalize {
            out.chunks_exact_mut(self.width().max(1)).for_each(normalize);
        }
        Ok(())
    }

    /// The items of a batch into `out`, whose shape is one of [`Encoder::shapes`].
    ///
    /// # Errors
    /// Those of the transformer.
    pub fn compute(&self, batch: &Packed<'_>, out: &mut Output) -> Result<()> {
        match (out, &self.head) {
            (Output::Dense(out) | Output::Scores(out), _) => self.encode(batch, out.values_mut()),
            (Output::Sparse(out), Head::Sparse(pooling, _)) => {
                let sparse = SparseBatch::new(batch.sequences());
                self.model
                    .logits(batch, &|sequence, first, rows| sparse.add(*pooling, sequence, first, rows))?;
                out.items.iter_mut().zip(sparse.into_vectors()).for_each(|(item, vector)| *item = vector);
                Ok(())
            }
            (Output::Sparse(_), _) => Err(misuse("this model gives no sparse vectors")),
            (Output::Multi(out), _) => {
                let items: Vec<Mutex<MultiVector>> =
                    (0..batch.sequences()).map(|_| Mutex::default()).collect();
                self.model.states(batch, &|sequence, _, rows| {
                    let values: Vec<f32> = rows.iter().flatten().copied().collect();
                    *items[sequence].lock() =
                        MultiVector { values: values.into(), width: self.model.width() };
                })?;
                out.items = items.into_iter().map(Mutex::into_inner).collect();
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoder({}, {:?}, {})", self.name, self.shapes(), self.dtype())
    }
}

fn misuse(reason: &str) -> Error {
    Error::Internal { place: "encoder".into(), reason: reason.into() }
}

/// The Dense modules between pooling and normalization.
fn dense_layers(files: &ModelFiles, sentence: &SentenceConfig) -> Result<Vec<DenseLayer>> {
    sentence.dense.iter().map(|folder| DenseLayer::load(&files.model, folder)).collect()
}

/// Refuses Dense modules that do not take what the one before them gives; the first one gets `width` values.
fn check_widths(sentence: &SentenceConfig, layers: &[DenseLayer], mut width: usize) -> Result<()> {
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

/// Both results, `aside` computed on a thread of its own where one can be had. A panic of it goes on in the caller.
fn together<A: Send, B>(aside: impl Fn() -> A + Sync, here: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("mm-tokenizer".into());
        match builder.spawn_scoped(scope, &aside) {
            Ok(thread) => {
                let b = here();
                (thread.join().unwrap_or_else(|panic| resume_unwind(panic)), b)
            }
            Err(_) => (aside(), here()),
        }
    })
}

/// Divides by the Euclidean length; a zero vector stays zero (PyTorch's `normalize`, whose floor is 1e-12).
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
}
