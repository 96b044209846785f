//! A linear layer over pooled vectors or single states: the Dense module of sentence-transformers, and a head's layers.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::layout::HeadActivation;
use crate::compute::{Isa, Projection};
use crate::models::architectures::{LARGEST_SIZE, Tensors, keys_of};
use crate::models::formats::gguf::Gguf;
use crate::models::json::read_json;
use crate::models::keys::refuse_unknown;
use crate::models::manifest::WeightFiles;
use crate::models::weights::Weights;
use crate::{Error, Result};

/// `activation(W·x + b)`, in f32.
#[derive(Debug)]
pub struct DenseLayer {
    /// Row-major `[outputs, inputs]`.
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    inputs: usize,
    activation: HeadActivation,
}

#[derive(Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: Option<String>,
    #[serde(default)]
    use_residual: bool,
    module_input_name: Option<String>,
    module_output_name: Option<String>,
}

fn yes() -> bool {
    true
}

impl DenseLayer {
    /// Reads the module in `folder`, a layer over the pooled vector. `model` is what messages call it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another activation than Tanh or Identity, a residual, or a layer over token states;
    /// else as for any weights.
    pub fn load(model: &str, folder: &Path) -> Result<Self> {
        Self::load_over(model, folder, &["sentence_embedding"], "the pooled vector")
    }

    /// Reads the module in `folder`, a layer over the states of tokens.
    ///
    /// # Errors
    /// As [`DenseLayer::load`].
    pub fn load_over_tokens(model: &str, folder: &Path) -> Result<Self> {
        // A model that was one of single vectors has the other name.
        Self::load_over(model, folder, &["token_embeddings", "sentence_embedding"], "the states of tokens")
    }

    fn load_over(model: &str, folder: &Path, names: &[&str], what: &str) -> Result<Self> {
        let path = folder.join("config.json");
        let json: Map<String, Value> = read_json(&path)?;
        let config =
            DenseConfig::deserialize(&json).map_err(|e| Error::invalid_file(&path, e.to_string()))?;
        refuse_unknown(model, &path, &json, &[keys_of::<DenseConfig>()])?;
        let unsupported = |problem: String| Error::Unsupported {
            model: model.into(),
            reason: format!("its Dense module {problem}; supported are Tanh and Identity over {what}"),
        };
        // torch's own default is Tanh, and so is the module's.
        let activation = config.activation_function.as_deref().unwrap_or("Tanh");
        let activation = match activation.rsplit('.').next() {
            _ if activation.contains('.') && !activation.starts_with("torch.nn.") => {
                return Err(unsupported(format!("uses {activation}")));
            }
            Some("Tanh") => HeadActivation::Tanh,
            Some("Identity") => HeadActivation::Identity,
            _ => return Err(unsupported(format!("uses {activation}"))),
        };
        if [config.in_features, config.out_features].iter().any(|&n| n == 0 || n > LARGEST_SIZE) {
            return Err(unsupported(format!(
                "has {} inputs and {} outputs, each of which must be 1 to {LARGEST_SIZE}",
                config.in_features, config.out_features
            )));
        }
        if config.use_residual {
            return Err(unsupported("adds its input to its output".into()));
        }
        if let Some(input) = config.module_input_name.filter(|name| !names.contains(&&**name)) {
            return Err(unsupported(format!("reads {input}")));
        }
        if let Some(output) = config.module_output_name.filter(|name| !names.contains(&&**name)) {
            return Err(unsupported(format!("writes {output}")));
        }
        let safetensors = folder.join("model.safetensors");
        let pickle = folder.join("pytorch_model.bin");
        let files = if safetensors.is_file() {
            WeightFiles::Safetensors(vec![safetensors])
        } else if pickle.is_file() {
            WeightFiles::Pickle(vec![pickle])
        } else {
            return Err(Error::MissingFile {
                model: model.into(),
                file: "model.safetensors".into(),
                folder: folder.to_path_buf(),
                remedy: "modules.json names this Dense module; copy its folder too".into(),
            });
        };
        let weights = Weights::open(&files)?;
        let weight = weights.matrix("linear.weight", [config.out_features, config.in_features])?.to_f32()?;
        let bias = match config.bias {
            true => Some(weights.vector("linear.bias", config.out_features)?.to_f32()?),
            false => None,
        };
        let known = |name: &str| name == "linear.weight" || (config.bias && name == "linear.bias");
        // The first by name: the order is that of a hash table.
        if let Some(other) = weights.names().filter(|name| !known(name)).min() {
            let reason = format!(
                "it holds {other:?}, which the config.json next to it does not announce; one of both is wrong"
            );
            return Err(Error::invalid_file(&files.paths()[0], reason));
        }
        Ok(Self { weight, bias, inputs: config.in_features, activation })
    }

    /// The layer of the tensors `name.weight`, whose inputs are `inputs`, and `name.bias`, if there is one.
    ///
    /// # Errors
    /// As for any weights.
    pub fn of(weights: &Weights, name: &str, inputs: usize, activation: HeadActivation) -> Result<Self> {
        let tensor = format!("{name}.weight");
        let outputs = weights.shape(&tensor).and_then(<[usize]>::first).copied().unwrap_or(1);
        let weight = weights.matrix(&tensor, [outputs, inputs])?.to_f32()?;
        let bias = format!("{name}.bias");
        let bias =
            if weights.contains(&bias) { Some(weights.vector(&bias, outputs)?.to_f32()?) } else { None };
        Ok(Self { weight, bias, inputs, activation })
    }

    /// The layer of these weights, row-major `[outputs, inputs]`, alone.
    pub fn linear(weight: Vec<f32>, inputs: usize) -> Self {
        Self::biased(weight, None, inputs)
    }

    /// The layer of these weights and a bias.
    pub fn biased(weight: Vec<f32>, bias: Option<Vec<f32>>, inputs: usize) -> Self {
        Self { weight, bias, inputs, activation: HeadActivation::Identity }
    }

    /// The same for the many rows of texts' tokens, and the function after it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn packed(&self, isa: Isa) -> Result<(Projection, HeadActivation)> {
        let projection = Projection::new(isa, &self.weight, self.bias.as_deref(), self.inputs)?;
        Ok((projection, self.activation))
    }

    /// The layers of a GGUF file between pooling and normalization. The first one gets `width` numbers. They have neither
    /// a bias nor an activation.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the tensor that does not fit, [`Error::Unsupported`] for a bias.
    pub fn of_gguf(gguf: &Gguf, mut width: usize) -> Result<Vec<Self>> {
        let mut layers = Vec::new();
        for name in ["dense_2", "dense_3"] {
            let tensor = format!("{name}.weight");
            if gguf.contains(&format!("{name}.bias")) {
                return Err(Error::Unsupported {
                    model: gguf.path().display().to_string(),
                    reason: format!("the layer {name} has a bias, which is not supported in GGUF files"),
                });
            }
            let Some(shape) = gguf.shape(&tensor) else { continue };
            let &[outputs, inputs] = shape else { continue };
            if inputs != width || outputs == 0 || outputs > LARGEST_SIZE {
                return Err(Error::invalid_file(
                    gguf.path(),
                    format!(
                        "the tensor {tensor:?} has shape {shape:?}, but gets vectors of {width} dimensions"
                    ),
                ));
            }
            let weight = gguf.matrix(&tensor)?.to_f32()?;
            layers.push(Self { weight, bias: None, inputs, activation: HeadActivation::Identity });
            width = outputs;
        }
        Ok(layers)
    }

    /// The length of the vectors it takes.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The length of the vectors it gives.
    pub fn outputs(&self) -> usize {
        self.weight.len().checked_div(self.inputs).unwrap_or(0)
    }

    /// Bytes held.
    pub fn memory_bytes(&self) -> u64 {
        (4 * (self.weight.len() + self.bias.as_ref().map_or(0, Vec::len))) as u64
    }

    /// `vectors` row-major `[n, inputs]` → `[n, outputs]`.
    pub fn apply(&self, vectors: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(vectors.len() / self.inputs.max(1) * self.outputs());
        for vector in vectors.chunks_exact(self.inputs) {
            for (row, weights) in self.weight.chunks_exact(self.inputs).enumerate() {
                let sum = dot(weights, vector) + self.bias.as_ref().map_or(0.0, |bias| bias[row]);
                out.push(self.activation.apply(sum));
            }
        }
        out
    }
}

/// Products summed in lanes, which the compiler turns into vector instructions.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    fn module(config: &str) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config).unwrap();
        let header = r#"{"linear.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"linear.bias":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend([2.0f32, -1.0, 0.5].iter().flat_map(|x| x.to_le_bytes()));
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        folder
    }

    #[test]
    fn linear_then_activation() {
        let tanh = module(
            r#"{"in_features":2,"out_features":1,"bias":true,"activation_function":"torch.nn.modules.activation.Tanh"}"#,
        );
        let dense = DenseLayer::load("m", tanh.path()).unwrap();
        assert_eq!((dense.inputs(), dense.outputs(), dense.memory_bytes()), (2, 1, 12));
        assert_eq!(dense.apply(&[0.25, 0.5, 1.0, 1.0]), [0.5f32.tanh(), 1.5f32.tanh()]);
        let identity = module(
            r#"{"in_features":2,"out_features":1,"activation_function":"torch.nn.modules.linear.Identity"}"#,
        );
        assert_eq!(DenseLayer::load("m", identity.path()).unwrap().apply(&[1.0, 1.0]), [1.5]);
        let without = module(r#"{"in_features":2,"out_features":1,"bias":false}"#);
        let error = DenseLayer::load("m", without.path()).unwrap_err().to_string();
        assert!(error.contains("it holds \"linear.bias\""), "{error}");
    }

    #[test]
    fn weights_left_behind_are_named() {
        let folder = module(r#"{"in_features":2,"out_features":1}"#);
        fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        let error = DenseLayer::load("m", folder.path()).unwrap_err();
        assert!(matches!(&error, Error::MissingFile { file, .. } if file == "model.safetensors"), "{error}");
    }

    #[test]
    fn what_is_not_run_is_refused() {
        for extra in [
            r#""activation_function":"torch.nn.GELU""#,
            // The last word alone does not say which function it is.
            r#""activation_function":"my.own.Tanh""#,
            r#""use_residual":true"#,
            r#""scale":2.0"#,
            r#""module_input_name":"token_embeddings""#,
        ] {
            let folder = module(&format!(r#"{{"in_features":2,"out_features":1,{extra}}}"#));
            assert!(
                matches!(DenseLayer::load("m", folder.path()), Err(Error::Unsupported { .. })),
                "{extra}"
            );
        }
        let folder = module(r#"{"in_features":3,"out_features":1}"#);
        assert!(matches!(DenseLayer::load("m", folder.path()), Err(Error::InvalidFile { .. })));
    }

    #[test]
    fn sizes_are_bounded_before_the_weights_are_looked_at() {
        let most = LARGEST_SIZE;
        for (inputs, outputs) in [(0, 1), (2, 0), (most + 1, 1), (2, most + 1), (usize::MAX, usize::MAX)] {
            let folder = module(&format!(r#"{{"in_features":{inputs},"out_features":{outputs}}}"#));
            match DenseLayer::load("m", folder.path()) {
                Err(Error::Unsupported { reason, .. }) => {
                    assert!(reason.contains(&format!("{inputs} inputs and {outputs} outputs")), "{reason}");
                }
                other => panic!("{inputs} inputs, {outputs} outputs: {other:?}"),
            }
        }
        // The largest there may be are compared with the tensor.
        let folder = module(&format!(r#"{{"in_features":{most},"out_features":{most}}}"#));
        assert!(matches!(DenseLayer::load("m", folder.path()), Err(Error::InvalidFile { .. })));
    }
}
