//! Static models: a row for each token of the vocabulary, and the mean of the rows of a text. There is no transformer.
//!
//! They come in two forms: that of model2vec, and the StaticEmbedding module of sentence-transformers. A folder with
//! `modules.json` is computed as sentence-transformers computes it, one without as model2vec does.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};

use super::architectures::{LARGEST_SIZE, ModelKind};
use super::heads::{Pooling, SentenceEncoder};
use super::json::{read_json, read_json_with_nulls};
use super::keys::{HARMLESS, refusal, refuse_unknown};
use super::manifest::ModelFiles;
use super::sentence::SentenceConfig;
use super::tokenizers::Tokenizer;
use super::weights::{StoredTensor, Weights};
use crate::compute::file::{Bytes, WeightFile};
use crate::compute::memory::zeroed;
use crate::compute::{PackedBatch, Stored, Threads, Weight};
use crate::sync::Mutex;
use crate::{Error, Result};

/// The keys of model2vec's `config.json` that are read, and those that say how the model was made.
const KEYS: &[&str] = &[
    "model_type",
    "normalize",
    "max_length",
    // The tensors show it.
    "embedding_dtype",
    "vocabulary_quantization",
    "hidden_dim",
    // How the model was made.
    "apply_pca",
    "apply_zipf",
    "pooling",
    "seq_length",
    "sif_coefficient",
    "tokenizer_name",
];
/// Those by which a `config.json` without `model_type` is known as model2vec's.
const MARKS: &[&str] = &["embedding_dtype", "vocabulary_quantization", "apply_zipf", "sif_coefficient"];
/// Tokens after which model2vec cuts a text, where its file does not say.
const LONGEST: usize = 512;
/// Numbers of a batch below which one thread computes it faster.
const WORTH_FORKING: usize = 1 << 16;

/// How a static model is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StaticForm {
    /// By model2vec: unknown tokens do not count, and a long text is cut.
    Model2Vec {
        /// Vectors are divided by their length.
        normalize: bool,
        /// Tokens after which a text is cut.
        max_length: Option<usize>,
    },
    /// By sentence-transformers: every token counts.
    StaticEmbedding,
}

impl StaticForm {
    /// What messages and descriptions call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Model2Vec { .. } => "model2vec",
            Self::StaticEmbedding => "StaticEmbedding",
        }
    }

    /// Tokens after which a text is cut, where the configuration says it.
    pub(crate) fn max_length(self) -> Option<usize> {
        if let Self::Model2Vec { max_length, .. } = self { max_length } else { None }
    }

    /// The settings of the model of `files`, if it can be used so.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another use and for a stage that cannot be run, [`Error::InvalidFile`].
    pub(crate) fn sentence(self, files: &ModelFiles, kind: Option<ModelKind>) -> Result<SentenceConfig> {
        if let Some(kind) = kind.filter(|kind| *kind != ModelKind::Embedding) {
            let reason = format!("it is a static model, which has no {}", kind.result());
            return Err(Error::Unsupported { model: files.model.clone(), reason });
        }
        match self {
            Self::StaticEmbedding => SentenceConfig::of_static(files),
            Self::Model2Vec { normalize, .. } => Ok(SentenceConfig { normalize, ..SentenceConfig::plain() }),
        }
    }
}

impl ModelFiles {
    /// How the model is computed, if it is a static one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a key of model2vec's configuration that is not known, [`Error::InvalidFile`].
    pub(crate) fn static_form(&self) -> Result<Option<StaticForm>> {
        if self.modules.iter().any(|module| module.kind == "StaticEmbedding") {
            return Ok(Some(StaticForm::StaticEmbedding));
        }
        let Some(path) = self.beside_weights("config.json").filter(|_| self.modules.is_empty()) else {
            return Ok(None);
        };
        if !is_model2vec(&path)? {
            return Ok(None);
        }
        let json: Map<String, Value> = read_json_with_nulls(&path)?;
        refuse_unknown(&self.model, &path, &json, &[KEYS, HARMLESS])?;
        let normalize = match json.get("normalize") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(normalize)) => *normalize,
            Some(other) => {
                return Err(refusal(&self.model, &path, "normalize", other, "true or false is expected"));
            }
        };
        // Null means that nothing is cut.
        let max_length = match json.get("max_length") {
            None => Some(LONGEST),
            Some(Value::Null) => None,
            Some(length) => {
                Some(length.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0).ok_or_else(
                    || refusal(&self.model, &path, "max_length", length, "a number of tokens is expected"),
                )?)
            }
        };
        Ok(Some(StaticForm::Model2Vec { normalize, max_length }))
    }
}

/// Whether a `config.json` is that of a model2vec model. Its first versions wrote no `model_type`.
fn is_model2vec(config: &Path) -> Result<bool> {
    let json: Value = read_json(config)?;
    Ok(match json["model_type"].as_str() {
        Some(model_type) => model_type == "model2vec",
        None => MARKS.iter().any(|key| !json[*key].is_null()),
    })
}

/// The rows of a table, in the format of their file.
#[derive(Debug)]
enum VectorTable {
    Plain(Weight),
    /// Bytes of other formats: one for each number, or eight.
    Int8(Bytes),
    Float64(Bytes),
}

/// A static model.
#[derive(Debug)]
pub(crate) struct StaticModel {
    table: VectorTable,
    rows: usize,
    width: usize,
    /// The row of each token, where several share one.
    mapping: Option<Vec<u32>>,
    /// The factor of each token.
    weights: Option<Vec<f32>>,
    /// A token that does not count.
    ignored: Option<u32>,
    file: Option<Arc<WeightFile>>,
    memory: Arc<AtomicU64>,
}

impl StaticModel {
    /// Reads the table of `weights`, whose rows are those of the ids of `tokenizer`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the tensor that is missing or of a wrong shape, or whose numbers are wrong.
    pub(crate) fn load(
        weights: &Weights,
        form: StaticForm,
        tokenizer: &Tokenizer,
        unknown: Option<u32>,
    ) -> Result<Self> {
        let own = form == StaticForm::StaticEmbedding && weights.shape("embedding.weight").is_some();
        let name = if own { "embedding.weight" } else { "embeddings" };
        let found = weights.stored(name)?;
        let wrong = |name: &str, reason: String| {
            Error::invalid_file(weights.path_of(name), format!("the tensor {name:?} {reason}"))
        };
        let (rows, width) = match found.shape() {
            &[rows, width] if rows > 0 && width > 0 && rows.max(width) <= LARGEST_SIZE => (rows, width),
            shape => {
                return Err(wrong(name, format!("has shape {shape:?}; a row for each token is expected")));
            }
        };
        let memory = Arc::default();
        let table = match &found {
            StoredTensor::Plain(weight) => VectorTable::Plain(weight.table(&memory)?),
            StoredTensor::Other { format, bytes, .. } => match format.as_str() {
                "I8" => VectorTable::Int8(bytes.table(&memory)?),
                "F64" => VectorTable::Float64(bytes.table(&memory)?),
                other => {
                    return Err(wrong(
                        name,
                        format!("is stored as {other}; F32, F16, BF16, F64 and I8 can be read"),
                    ));
                }
            },
        };
        let optional = |name: &str| match weights.shape(name).is_some_and(|_| !own) {
            true => weights.stored(name).map(Some),
            false => Ok(None),
        };
        let mapping = match optional("mapping")? {
            Some(stored) => Some(mapping(&stored, rows).map_err(|reason| wrong("mapping", reason))?),
            None => None,
        };
        let tokens = mapping.as_ref().map_or(rows, Vec::len);
        let factors = match optional("weights")? {
            Some(stored) => Some(factors(&stored, tokens)?.map_err(|reason| wrong("weights", reason))?),
            None => None,
        };
        if tokenizer.id_limit() > tokens {
            return Err(wrong(
                if mapping.is_some() { "mapping" } else { name },
                format!(
                    "has {tokens} tokens, and the tokenizer has {} ids; they belong to different models",
                    tokenizer.id_limit()
                ),
            ));
        }
        let bytes = 4 * (mapping.as_ref().map_or(0, Vec::len) + factors.as_ref().map_or(0, Vec::len));
        memory.fetch_add(bytes as u64, Ordering::Relaxed);
        let ignored = unknown.filter(|_| form != StaticForm::StaticEmbedding);
        Ok(Self { table, rows, width, mapping, weights: factors, ignored, file: found.file(), memory })
    }

    /// Ids that it has a row of: those below this one.
    pub(crate) fn tokens(&self) -> usize {
        self.mapping.as_ref().map_or(self.rows, Vec::len)
    }

    /// Row `row` into `out`.
    fn row(&self, row: usize, out: &mut [f32], scratch: &mut Vec<u8>) -> Result<()> {
        match &self.table {
            VectorTable::Plain(weight) => weight.rows_f32(row..row + 1, out, scratch)?,
            VectorTable::Int8(bytes) => {
                let read = bytes.read(row * self.width..(row + 1) * self.width, scratch)?;
                out.iter_mut().zip(read).for_each(|(x, byte)| *x = f32::from(*byte as i8));
            }
            VectorTable::Float64(bytes) => {
                let read = bytes.read(8 * row * self.width..8 * (row + 1) * self.width, scratch)?;
                out.iter_mut()
                    .zip(read.as_chunks().0)
                    .for_each(|(x, raw)| *x = f64::from_le_bytes(*raw) as f32);
            }
        }
        Ok(())
    }

    /// The mean of the rows of `ids` into `out`; zeros without any.
    fn mean(&self, ids: &[u32], out: &mut [f32], scratch: &mut Scratch) -> Result<()> {
        let Scratch { bytes, row, sum } = scratch;
        sum.fill(0.0);
        let mut count = 0_usize;
        for &id in ids.iter().filter(|&&id| Some(id) != self.ignored) {
            let token = id as usize;
            let place = match &self.mapping {
                Some(mapping) => mapping.get(token).map(|&row| row as usize),
                None => Some(token).filter(|&row| row < self.rows),
            };
            let Some(place) = place else {
                return Err(Error::Input(format!(
                    "token {id} lies outside the model's vocabulary ({})",
                    self.tokens()
                )));
            };
            self.row(place, row, bytes)?;
            let factor = self.weights.as_ref().map_or(1.0, |weights| weights[token]);
            sum.iter_mut().zip(row.iter()).for_each(|(sum, &x)| *sum += f64::from(x * factor));
            count += 1;
        }
        let count = count.max(1) as f64;
        out.iter_mut().zip(sum.iter()).for_each(|(x, sum)| *x = (sum / count) as f32);
        Ok(())
    }
}

/// Memory of one thread.
struct Scratch {
    bytes: Vec<u8>,
    row: Vec<f32>,
    sum: Vec<f64>,
}

impl SentenceEncoder for StaticModel {
    fn width(&self) -> usize {
        self.width
    }

    fn encode(&self, batch: &PackedBatch<'_>, _: Pooling, out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), batch.sequences() * self.width, "one row of output for each sequence");
        let threads = Threads::global();
        let forked = batch.tokens() * self.width >= WORTH_FORKING;
        let parts = if forked { (4 * threads.count()).min(batch.sequences()) } else { 1 };
        let size = batch.sequences().div_ceil(parts.max(1)).max(1);
        let outputs: Vec<_> = out.chunks_mut(size * self.width).map(Mutex::new).collect();
        let fault = Mutex::new(None);
        threads.run(outputs.len(), &|part| {
            let work = || -> Result<()> {
                let (row, sum) = (zeroed(self.width)?, zeroed(self.width)?);
                let mut scratch = Scratch { bytes: Vec::new(), row, sum };
                for (index, out) in outputs[part].lock().chunks_exact_mut(self.width).enumerate() {
                    self.mean(&batch.ids[batch.range(part * size + index)], out, &mut scratch)?;
                }
                Ok(())
            };
            if let Err(error) = work() {
                fault.lock().get_or_insert(error);
            }
        })?;
        fault.into_inner().map_or(Ok(()), Err)?;
        self.check()
    }

    fn has_states(&self) -> bool {
        false
    }

    fn check(&self) -> Result<()> {
        let bytes = match &self.table {
            VectorTable::Plain(weight) => weight.bytes(),
            VectorTable::Int8(bytes) | VectorTable::Float64(bytes) => bytes,
        };
        // A table in memory does not depend on its file.
        match &self.file {
            Some(file) if !matches!(bytes, Bytes::Memory(_)) => file.check(),
            _ => Ok(()),
        }
    }

    fn memory_bytes(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    fn dtype(&self) -> &'static str {
        match &self.table {
            VectorTable::Plain(weight) => match weight.stored() {
                Stored::F32 => "float32",
                Stored::F16 => "float16",
                Stored::Bf16 => "bfloat16",
            },
            VectorTable::Int8(_) => "int8",
            VectorTable::Float64(_) => "float64",
        }
    }
}

/// The row of each token; each is one of `rows`.
fn mapping(stored: &StoredTensor, rows: usize) -> Result<Vec<u32>, String> {
    if stored.shape().len() != 1 {
        return Err(format!("has shape {:?}; one row number for each token is expected", stored.shape()));
    }
    let StoredTensor::Other { format, bytes, .. } = stored else {
        return Err("holds no whole numbers".into());
    };
    let mut scratch = Vec::new();
    let read = bytes.read(0..bytes.len(), &mut scratch).map_err(|error| error.to_string())?;
    let numbers: Vec<i64> = match format.as_str() {
        "I64" => read.as_chunks().0.iter().map(|raw| i64::from_le_bytes(*raw)).collect(),
        "I32" => read.as_chunks().0.iter().map(|raw| i32::from_le_bytes(*raw).into()).collect(),
        "U32" => read.as_chunks().0.iter().map(|raw| u32::from_le_bytes(*raw).into()).collect(),
        "U16" => read.as_chunks().0.iter().map(|raw| u16::from_le_bytes(*raw).into()).collect(),
        other => {
            return Err(format!("is stored as {other}; whole numbers (I64, I32, U32, U16) are expected"));
        }
    };
    let row = |(token, &number): (usize, &i64)| match u32::try_from(number) {
        Ok(row) if (row as usize) < rows => Ok(row),
        _ => Err(format!("gives token {token} the row {number} of {rows}")),
    };
    numbers.iter().enumerate().map(row).collect()
}

/// The factor of each of `tokens`.
fn factors(stored: &StoredTensor, tokens: usize) -> Result<Result<Vec<f32>, String>> {
    if stored.shape() != [tokens] {
        return Ok(Err(format!("has shape {:?}; the model has {tokens} tokens", stored.shape())));
    }
    let values = match stored {
        StoredTensor::Plain(weight) => weight.to_f32()?,
        StoredTensor::Other { format, bytes, .. } if format == "F64" => {
            let mut scratch = Vec::new();
            let read = bytes.read(0..bytes.len(), &mut scratch)?;
            read.as_chunks().0.iter().map(|raw| f64::from_le_bytes(*raw) as f32).collect()
        }
        StoredTensor::Other { format, .. } => {
            return Ok(Err(format!("is stored as {format}; F32, F16, BF16 and F64 can be read")));
        }
    };
    Ok(match values.iter().position(|value| !value.is_finite()) {
        Some(token) => Err(format!("gives token {token} the factor {}", values[token])),
        None => Ok(values),
    })
}

#[cfg(test)]
#[path = "static_embedding_tests.rs"]
mod tests;
