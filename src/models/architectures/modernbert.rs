//! ModernBERT: rotary positions, local attention in most layers, gated perceptrons, norms first and without a shift.
//!
//! Warner et al., "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder", 2024.

use serde::Deserialize;
use serde_json::Value;

use super::architecture::{Architecture, Description, Factors};
use super::family::{ConfigFields, ConfigFile, Family, GgufFamily, keys_of};
use super::gguf_keys::Metadata;
use super::rope_scaling::{RopeConfig, RopeDefaults};
use super::tensors::{
    EmbeddingTensors, LayerTensors, MixerTensors, MlpTensors, NormTensors, PrefixedTensors, Tensors,
};
use crate::Result;
use crate::compute::{Activation, Heads, LayerAttention, Mask, Positions, RopeStyle};
use crate::models::formats::gguf::Gguf;
use crate::models::heads::layout;

/// ModernBERT.
pub(super) const FAMILIES: &[Family] = &[Family {
    generates: false,
    classifier: Some(&layout::MODERNBERT),
    gguf: &[GgufFamily::encoders("modern-bert")],
    read_gguf: Some(from_gguf),
    fields: &[
        ConfigFields::All(keys_of::<ModernBertConfig>),
        ConfigFields::Only(keys_of::<RopeConfig>, &["rope_scaling", "rope_parameters"]),
    ],
    ..Family::new("modernbert", "ModernBert", OTHERS, read)
}];

/// Keys that change no state.
const OTHERS: &[&str] = &[
    // There is no head whose weights could be shared.
    "tie_word_embeddings",
    // Keys that transformers writes and this model never reads.
    "position_embedding_type",
    "layer_norm_eps",
    // The head of classifiers reads them, but for the bias: the tensors show it.
    "classifier_activation",
    "classifier_bias",
    "classifier_pooling",
    // How the computation is carried out, and heads that are not used.
    "initializer_cutoff_factor",
    "deterministic_flash_attn",
    "reference_compile",
    "repad_logits_with_grad",
    "sparse_prediction",
    "sparse_pred_ignore_index",
    "decoder_bias",
];

/// What `config.json` says of a ModernBERT, before and since version 5 of transformers.
#[derive(Debug, Clone, Deserialize)]
struct ModernBertConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    hidden_activation: String,
    #[serde(default = "epsilon")]
    norm_eps: f32,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "window")]
    local_attention: usize,
    #[serde(default)]
    sliding_window: Value,
    #[serde(default = "three")]
    global_attn_every_n_layers: usize,
    layer_types: Option<Vec<String>>,
    global_rope_theta: Option<f32>,
    local_rope_theta: Option<f32>,
}

fn gelu() -> String {
    "gelu".into()
}

fn epsilon() -> f32 {
    1e-5
}

fn window() -> usize {
    128
}

fn three() -> usize {
    3
}

/// The metadata of a GGUF file.
const GGUF_KEYS: &[&str] = &[
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "hidden_activation",
    "rope.freq_base",
    "rope.freq_base_swa",
];

fn from_gguf(gguf: &Gguf) -> Result<Box<dyn Architecture>> {
    let metadata = Metadata::of(gguf);
    let mut json = metadata.encoder_config("modernbert", GGUF_KEYS)?;
    json["norm_eps"] = json["layer_norm_eps"].take();
    json["hidden_activation"] = metadata.text("hidden_activation").unwrap_or("gelu").into();
    json["local_attention"] = metadata.required("attention.sliding_window")?.into();
    json["global_attn_every_n_layers"] =
        metadata.number("attention.sliding_window_pattern").unwrap_or_else(three).into();
    json["norm_bias"] = gguf.contains("output_norm.bias").into();
    json["attention_bias"] = gguf.contains("blk.0.attn_qkv.bias").into();
    json["mlp_bias"] = gguf.contains("blk.0.ffn_up.bias").into();
    json["global_rope_theta"] = metadata.float("rope.freq_base").unwrap_or(160_000.0).into();
    json["local_rope_theta"] = metadata.float("rope.freq_base_swa").unwrap_or(10_000.0).into();
    read(&ConfigFile { model: &metadata.model(), path: gguf.path(), json: &json })
}

/// A ModernBERT whose configuration was checked.
#[derive(Debug)]
struct ModernBert {
    config: ModernBertConfig,
    heads: Heads,
    activation: Activation,
    attention: Vec<LayerAttention>,
}

fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let (config, rope): (ModernBertConfig, RopeConfig) = (file.parse()?, file.parse()?);
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("intermediate_size", config.intermediate_size),
        ("max_position_embeddings", config.max_position_embeddings),
        ("local_attention", config.local_attention),
        ("global_attn_every_n_layers", config.global_attn_every_n_layers),
    ])?;
    // transformers computes with half of `local_attention`, and writes that half next to it.
    let half = config.local_attention / 2;
    if config.sliding_window.as_u64().is_some_and(|window| window != half as u64) {
        return Err(file.refuse("sliding_window", "half of local_attention"));
    }
    let heads = file.heads(config.hidden_size, config.num_attention_heads)?;
    let activation = file.activation("hidden_activation", &config.hidden_activation)?;
    let attention = |kind: &str, mask, base: f32| {
        let (head, context) = (heads.width, config.max_position_embeddings);
        let defaults =
            RopeDefaults { head, context, base, part: None, style: RopeStyle::Neox, odd_parts: false };
        let rotary = rope.rotary(&defaults, Some(kind), &[]);
        Ok(LayerAttention::new(mask).with_rotary(rotary.map_err(|reason| file.unsupported(reason))?))
    };
    let full = attention("full_attention", Mask::FULL, config.global_rope_theta.unwrap_or(160_000.0))?;
    let local = Mask::local(half);
    let local = attention("sliding_attention", local, config.local_rope_theta.unwrap_or(10_000.0))?;
    let of_type = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(full.clone()),
        "sliding_attention" => Ok(local.clone()),
        _ => Err(file.refuse("layer_types", "full_attention and sliding_attention")),
    };
    let attention = match &config.layer_types {
        Some(types) if types.len() != config.num_hidden_layers => {
            return Err(file.refuse("layer_types", "one for each of num_hidden_layers"));
        }
        Some(types) => types.iter().map(of_type).collect::<Result<_>>()?,
        None => {
            let every = config.global_attn_every_n_layers.min(config.num_hidden_layers);
            (0..every).map(|index| if index == 0 { full.clone() } else { local.clone() }).collect()
        }
    };
    Ok(Box::new(ModernBert { config, heads, activation, attention }))
}

impl ModernBert {
    fn norm(&self, scope: &PrefixedTensors<'_>, name: &str) -> Result<NormTensors> {
        let ModernBertConfig { hidden_size, norm_eps, norm_bias, .. } = self.config;
        if norm_bias {
            return scope.layer_norm(name, hidden_size, norm_eps);
        }
        scope.layer_norm_without_shift(name, hidden_size, norm_eps)
    }

    fn scope<'a>(&self, tensors: &'a dyn Tensors) -> PrefixedTensors<'a> {
        PrefixedTensors::new(tensors, "embeddings.tok_embeddings.weight", &["", "model."])
    }
}

impl Architecture for ModernBert {
    fn describe(&self) -> Description {
        Description {
            hidden: self.config.hidden_size,
            layers: self.config.num_hidden_layers,
            heads: self.heads,
            attention: self.attention.clone(),
            vocabulary: self.config.vocab_size,
            context: self.config.max_position_embeddings,
            activation: self.activation,
            norm_first: true,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let (scope, shape) = (self.scope(tensors), [self.config.vocab_size, self.config.hidden_size]);
        let words = scope.matrix("embeddings.tok_embeddings.weight", shape)?;
        Ok(EmbeddingTensors {
            norm: Some(self.norm(&scope, "embeddings.norm")?),
            ..EmbeddingTensors::new(words)
        })
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let ModernBertConfig { hidden_size: hidden, attention_bias, mlp_bias, .. } = self.config;
        let (scope, wide) = (self.scope(tensors), self.config.intermediate_size);
        let name = |rest: &str| format!("layers.{index}.{rest}");
        let qkv = vec![scope.maybe_biased(&name("attn.Wqkv"), [3 * hidden, hidden], attention_bias)?];
        let output = scope.maybe_biased(&name("attn.Wo"), [hidden, hidden], attention_bias)?;
        let [gate, up] = scope.halves(&name("mlp.Wi"), [wide, hidden], mlp_bias)?;
        let down = scope.maybe_biased(&name("mlp.Wo"), [hidden, wide], mlp_bias)?;
        // The embeddings are normalized already.
        let attention_norm = (index > 0).then(|| self.norm(&scope, &name("attn_norm"))).transpose()?;
        Ok(LayerTensors {
            attention_norm,
            mlp_norm: Some(self.norm(&scope, &name("mlp_norm"))?),
            ..LayerTensors::new(MixerTensors::attention(qkv), output, MlpTensors::gated(gate, up, down))
        })
    }

    fn final_norm(&self, tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        self.norm(&self.scope(tensors), "final_norm").map(Some)
    }
}
