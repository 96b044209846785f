//! Sequence classification: one number for each label of a text or of a pair of texts. Rerankers have one label.

use serde_json::{Map, Value};

use super::dense::DenseLayer;
use super::layout::{ClassifierHead, HeadActivation, HeadNormNames, HeadState, LayerActivation};
use super::pooling::Pooling;
use crate::compute::memory::zeroed;
use crate::compute::{Matrix, PackedBatch};
use crate::models::config::ModelConfig;
use crate::models::json::read_json;
use crate::models::keys::{refusal, refuse_unknown};
use crate::models::manifest::ModelFiles;
use crate::models::tokenizers::Tokenizer;
use crate::models::weights::Weights;
use crate::{Error, Result};

/// What turns a model's logits into scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScoreActivation {
    /// The logits themselves.
    Identity,
    /// Each label alone, between 0 and 1.
    Sigmoid,
    /// All labels together add up to 1.
    Softmax,
}

impl ScoreActivation {
    /// The name of the activation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Sigmoid => "sigmoid",
            Self::Softmax => "softmax",
        }
    }

    /// The activation of this [`Self::name`].
    ///
    /// # Errors
    /// [`Error::Argument`] for any other.
    pub fn parse(name: &str) -> Result<Self> {
        [Self::Identity, Self::Sigmoid, Self::Softmax].into_iter().find(|one| one.name() == name).ok_or_else(
            || Error::argument("activation", format!("={name:?}: expected identity, sigmoid or softmax")),
        )
    }

    /// Applies it to the logits of one input.
    pub fn apply(self, logits: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::Sigmoid => {
                logits.iter_mut().for_each(|x| *x = (1.0 / (1.0 + (-f64::from(*x)).exp())) as f32);
            }
            Self::Softmax => {
                let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
                logits.iter_mut().for_each(|x| *x = (f64::from(*x - most).exp() / sum) as f32);
            }
        }
    }
}

/// What a classifier's labels are called, and how its logits become scores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreConfig {
    /// The labels, in order.
    pub labels: Vec<String>,
    /// What sentence-transformers' `CrossEncoder.predict` applies.
    pub activation: ScoreActivation,
    /// What makes probabilities of the logits.
    pub probabilities: ScoreActivation,
}

impl ScoreConfig {
    /// Reads `config.json`, and `config_sentence_transformers.json` where there is one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an activation that is not known here.
    pub fn read(files: &ModelFiles, config: &ModelConfig, labels: usize) -> Result<Self> {
        let json = &config.json;
        // A head of an adapter with another number of labels has other ones.
        let listed = json["id2label"].as_object().map_or(0, Map::len);
        let are_others = files.adapter.is_some() && listed != labels;
        let named = |index: usize| match are_others {
            true => None,
            false => json["id2label"][index.to_string()].as_str().map(ToOwned::to_owned),
        };
        let names =
            (0..labels).map(|index| named(index).unwrap_or_else(|| format!("LABEL_{index}"))).collect();
        let probabilities = match json["problem_type"].as_str() {
            Some("multi_label_classification") => ScoreActivation::Sigmoid,
            Some("regression") => ScoreActivation::Identity,
            _ if labels == 1 => ScoreActivation::Sigmoid,
            _ => ScoreActivation::Softmax,
        };
        let path = files.root.join("config_sentence_transformers.json");
        let saved: Value = if path.is_file() { read_json(&path)? } else { Value::Null };
        let places = [
            (&config.path, "activation_fn", &json["sentence_transformers"]["activation_fn"]),
            (
                &config.path,
                "sbert_ce_default_activation_function",
                &json["sbert_ce_default_activation_function"],
            ),
            (&path, "activation_fn", &saved["activation_fn"]),
        ];
        let activation = match places.iter().find(|(.., value)| value.is_string()) {
            None if labels == 1 => ScoreActivation::Sigmoid,
            None => ScoreActivation::Identity,
            Some((path, key, value)) => {
                let class = value.as_str().and_then(|class| class.strip_prefix("torch.nn."));
                match class.and_then(|class| class.rsplit('.').next()) {
                    Some("Sigmoid") => ScoreActivation::Sigmoid,
                    Some("Identity") => ScoreActivation::Identity,
                    Some("Softmax") if labels > 1 => ScoreActivation::Softmax,
                    other => {
                        let reason = match other {
                            Some("Softmax") => {
                                "the softmax of one label is always 1; supported are Sigmoid and Identity"
                            }
                            _ => "supported are torch.nn's Sigmoid, Identity and Softmax",
                        };
                        return Err(refusal(&files.model, path, key, value, reason));
                    }
                }
            }
        };
        Ok(Self { labels: names, activation, probabilities })
    }
}

/// The layers between a text's state and its logits, in f32.
#[derive(Debug)]
pub struct Classifier {
    /// How token states become the state that the layers begin with.
    pub pooling: Pooling,
    layers: Vec<(DenseLayer, Option<HeadNorm>)>,
    /// The token at the end of a sequence that transformers takes for padding, where the last other token's state counts.
    padding: Option<u32>,
}

/// A layer normalization of single vectors.
#[derive(Debug)]
struct HeadNorm {
    scale: Vec<f32>,
    shift: Option<Vec<f32>>,
    epsilon: f32,
}

impl Classifier {
    /// Reads the head of a model from its weights.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a pooling or an activation that is not known here; those of the weights.
    pub fn load(config: &ModelConfig, head: &ClassifierHead, weights: &Weights) -> Result<Self> {
        let pooling = match head.state {
            HeadState::First => Pooling::Cls,
            HeadState::Last => Pooling::Last,
            HeadState::Configured(key) => match config.json[key].as_str() {
                None | Some("cls") => Pooling::Cls,
                Some("mean") => Pooling::Mean,
                Some(_) => {
                    let reason = "supported are cls and mean";
                    return Err(refusal(&config.model, &config.path, key, &config.json[key], reason));
                }
            },
        };
        let mut width = config.describe().hidden;
        let mut layers = Vec::new();
        for layer in head.layers {
            let found = layer.names.iter().find(|name| weights.shape(&format!("{name}.weight")).is_some());
            let name = found.or(layer.names.first()).copied().unwrap_or_default();
            let dense = DenseLayer::of(weights, name, width, layer.activation.read(config)?)?;
            width = dense.outputs();
            let norm = layer.norm.map(|names| HeadNorm::of(config, weights, &names, width)).transpose()?;
            layers.push((dense, norm));
        }
        // No earlier token sees a later one, so that those behind may be left out.
        let padding = config.json["pad_token_id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let padding = padding.filter(|_| pooling == Pooling::Last && config.describe().is_causal());
        Ok(Self { pooling, layers, padding })
    }

    /// The head of a language model whose score is what it thinks of two tokens: the logit of one, less that of the other, as
    /// sentence-transformers' `LogitScore` has it. Without that module the tokens are "yes" and "no".
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model that attends in both directions, or whose logits are not linear, and for tokens that
    /// it does not have; those of the weights.
    pub fn judging(
        files: &ModelFiles,
        config: &ModelConfig,
        weights: &Weights,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let unsupported = |reason: String| Error::Unsupported { model: config.model.clone(), reason };
        let description = config.describe();
        if !description.is_causal() {
            return Err(unsupported(
                "it attends in both directions, so it gives no logits that score".into(),
            ));
        }
        if description.factors.logits_cap.is_some() {
            return Err(unsupported("its logits have a soft cap, which is not supported for scores".into()));
        }
        let JudgingTokens { for_it, against } = JudgingTokens::read(files, tokenizer)?;
        let Matrix::Plain(head) = config.architecture.head(weights)? else {
            return Err(unsupported(
                "its matrix of logits is quantized, which is not supported for scores".into(),
            ));
        };
        let row = |id: usize| -> Result<Vec<f32>> {
            if id >= description.vocabulary {
                let known = description.vocabulary;
                return Err(unsupported(format!("it scores by token {id}, but knows {known} tokens")));
            }
            let mut row = zeroed(description.hidden)?;
            head.add_row_f32(id, &mut row)?;
            Ok(row)
        };
        let mut score = row(for_it)?;
        if let Some(against) = against {
            score.iter_mut().zip(row(against)?).for_each(|(x, other)| *x -= other);
        }
        score.iter_mut().for_each(|x| *x *= description.factors.logits);
        Ok(Self {
            pooling: Pooling::Last,
            layers: vec![(DenseLayer::linear(score, description.hidden), None)],
            padding: None,
        })
    }

    /// Ids and offsets of `batch` without the padding at the end of its sequences; `None` if there is none. A sequence of
    /// padding alone keeps its first token.
    pub(crate) fn without_padding(&self, batch: &PackedBatch<'_>) -> Option<(Vec<u32>, Vec<u32>)> {
        let padding = self.padding?;
        if !batch.ranges().any(|range| range.len() > 1 && batch.ids[range.end - 1] == padding) {
            return None;
        }
        let (mut ids, mut offsets) = (Vec::with_capacity(batch.ids.len()), vec![0]);
        for range in batch.ranges() {
            let sequence = &batch.ids[range];
            let kept = sequence.iter().rposition(|&id| id != padding).map_or(1, |last| last + 1);
            ids.extend_from_slice(&sequence[..kept.min(sequence.len())]);
            offsets.push(u32::try_from(ids.len()).unwrap_or(u32::MAX));
        }
        Some((ids, offsets))
    }

    /// The number of labels.
    pub fn labels(&self) -> usize {
        self.layers.last().map_or(0, |(dense, _)| dense.outputs())
    }

    /// Bytes held.
    pub fn memory_bytes(&self) -> u64 {
        self.layers.iter().map(|(dense, _)| dense.memory_bytes()).sum()
    }

    /// The logits of pooled states, row-major.
    pub fn apply(&self, mut states: Vec<f32>) -> Vec<f32> {
        for (dense, norm) in &self.layers {
            states = dense.apply(&states);
            if let Some(norm) = norm {
                states.chunks_exact_mut(norm.scale.len()).for_each(|row| norm.apply(row));
            }
        }
        states
    }
}

/// The tokens whose logits are a score.
struct JudgingTokens {
    for_it: usize,
    against: Option<usize>,
}

impl JudgingTokens {
    fn read(files: &ModelFiles, tokenizer: &Tokenizer) -> Result<Self> {
        let Some(module) = files.modules.iter().find(|module| module.kind == "LogitScore") else {
            let id = |token: &str| {
                tokenizer.id(token).map(|id| id as usize).ok_or_else(|| Error::Unsupported {
                    model: files.model.clone(),
                    reason: format!(
                        "its vocabulary has no token {token:?}, by which a language model scores"
                    ),
                })
            };
            return Ok(Self { for_it: id("yes")?, against: Some(id("no")?) });
        };
        let path = files.root.join(&module.path).join("config.json");
        let json: Map<String, Value> = read_json(&path)?;
        const KEYS: &[&str] = &["true_token_id", "false_token_id", "module_input_name"];
        refuse_unknown(&files.model, &path, &json, &[KEYS])?;
        if let Some(input) = json.get("module_input_name").filter(|input| *input != "causal_logits") {
            let reason = "only causal_logits is supported";
            return Err(refusal(&files.model, &path, "module_input_name", input, reason));
        }
        let id = |key: &str| {
            let number = |value: &Value| value.as_u64().and_then(|id| usize::try_from(id).ok());
            let wrong = |value| refusal(&files.model, &path, key, value, "the id of a token is expected");
            json.get(key).map(|value| number(value).ok_or_else(|| wrong(value))).transpose()
        };
        let missing = || Error::invalid_file(&path, "it has no true_token_id, which is the id of a token");
        Ok(Self { for_it: id("true_token_id")?.ok_or_else(missing)?, against: id("false_token_id")? })
    }
}

impl LayerActivation {
    fn read(self, config: &ModelConfig) -> Result<HeadActivation> {
        match self {
            Self::Fixed(activation) => Ok(activation),
            Self::Configured(key) => match config.json[key].as_str() {
                None => Ok(HeadActivation::Gelu),
                Some(name) => HeadActivation::from_name(name).ok_or_else(|| {
                    let reason = "supported are gelu, silu, relu, tanh and linear";
                    refusal(&config.model, &config.path, key, &config.json[key], reason)
                }),
            },
        }
    }
}

impl HeadNorm {
    fn of(config: &ModelConfig, weights: &Weights, names: &HeadNormNames, width: usize) -> Result<Self> {
        use crate::models::architectures::Tensors as _;
        let name = names.tensors;
        let epsilon = config.json[names.epsilon].as_f64().map_or(names.default, |epsilon| epsilon as f32);
        let scale = weights.vector(&format!("{name}.weight"), width)?.to_f32()?;
        let bias = format!("{name}.bias");
        let shift =
            if weights.contains(&bias) { Some(weights.vector(&bias, width)?.to_f32()?) } else { None };
        Ok(Self { scale, shift, epsilon })
    }

    fn apply(&self, row: &mut [f32]) {
        let count = row.len() as f64;
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
        let scale = 1.0 / (variance + f64::from(self.epsilon)).sqrt();
        for (index, x) in row.iter_mut().enumerate() {
            let normal = (f64::from(*x) - mean) * scale * f64::from(self.scale[index]);
            *x = normal as f32 + self.shift.as_ref().map_or(0.0, |shift| shift[index]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_of_logits() {
        let apply = |activation: ScoreActivation, mut logits: Vec<f32>| {
            activation.apply(&mut logits);
            logits
        };
        assert_eq!(apply(ScoreActivation::Identity, vec![3.0, -1.0]), [3.0, -1.0]);
        assert_eq!(apply(ScoreActivation::Sigmoid, vec![0.0, 200.0, -200.0]), [0.5, 1.0, 0.0]);
        assert_eq!(apply(ScoreActivation::Softmax, vec![1000.0, 1000.0]), [0.5, 0.5]);
        for activation in [ScoreActivation::Identity, ScoreActivation::Sigmoid, ScoreActivation::Softmax] {
            assert_eq!(ScoreActivation::parse(activation.name()), Ok(activation));
        }
        assert!(ScoreActivation::parse("tanh").unwrap_err().to_string().contains("softmax"));
    }
}
