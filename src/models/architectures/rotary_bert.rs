//! BERTs with rotary positions: GTE ("new"), Nomic BERT, and Jina's third embedding model, whose adapters are changes of weights.
//!
//! Zhang et al., "mGTE: Generalized Long-Context Text Representation and Reranking Models", 2024;
//! Nussbaum et al., "Nomic Embed: Training a Reproducible Long Context Text Embedder", 2024;
//! Sturua et al., "jina-embeddings-v3: Multilingual Embeddings With Task LoRA", 2024.

use serde::Deserialize;
use serde_json::Value;

use super::architecture::{Architecture, Description, Factors};
use super::family::{ConfigFields, ConfigFile, Family, GgufFamily, ReadConfig, keys_of};
use super::gguf_keys::Metadata;
use super::nomic_experts::{NomicExpertConfig, NomicExperts};
use super::nomic_spellings::said_once;
use super::rope_scaling::{RopeConfig, RopeDefaults};
use super::tensors::{EmbeddingTensors, LayerTensors, MixerTensors, MlpTensors, PrefixedTensors, Tensors};
use crate::Result;
use crate::compute::{Activation, Heads, LayerAttention, Mask, Positions, RopeStyle, Rotary};
use crate::models::formats::gguf::Gguf;
use crate::models::heads::layout;

/// GTE as it was published and as transformers has it, Nomic BERT, and Jina's third.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        classifier: Some(&layout::BERT),
        fields: &[SIZES, RopeConfig::WHOLE, ConfigFields::All(keys_of::<GteConfig>)],
        ..family("new", "New", NEW, read_gte)
    },
    Family { classifier: Some(&layout::BERT), ..family("gte", "Gte", IGNORED, read_gte) },
    Family {
        fields: &[
            ConfigFields::All(keys_of::<RotaryBertConfig>),
            RopeConfig::WHOLE,
            ConfigFields::All(keys_of::<NomicConfig>),
            ConfigFields::All(keys_of::<NomicExpertConfig>),
        ],
        code: &["NomicBertForMultipleChoice"],
        gguf: &[GgufFamily::encoders("nomic-bert"), GgufFamily::encoders("nomic-bert-moe")],
        read_gguf: Some(from_gguf),
        ..family("nomic_bert", "NomicBert", NOMIC, read_nomic)
    },
    family("jina_embeddings_v3", "JinaEmbeddingsV3", IGNORED, read_jina),
    Family {
        fields: &[SIZES, ConfigFields::All(keys_of::<PublishedJinaConfig>)],
        code: &[
            "XLMRobertaFlashConfig",
            "XLMRobertaLoRA",
            "XLMRobertaForMaskedLM",
            "XLMRobertaForPreTraining",
            "XLMRobertaForSequenceClassification",
        ],
        ..family("xlm_roberta_lora", "XLMRobertaLoRA", PUBLISHED_JINA, read_published_jina)
    },
];

const fn family(
    model_type: &'static str,
    classes: &'static str,
    keys: &'static [&'static str],
    read: ReadConfig,
) -> Family {
    let fields = &[SIZES, RopeConfig::WHOLE];
    Family { generates: false, fields, ..Family::new(model_type, classes, keys, read) }
}

/// The keys of a rotary BERT's sizes under transformers' names, without those of GPT-2.
const SIZES: ConfigFields = ConfigFields::But(
    keys_of::<RotaryBertConfig>,
    &["n_embd", "n_layer", "n_head", "n_inner", "n_positions", "activation_function", "layer_norm_epsilon"],
);

/// There is no head whose weights could be shared.
const IGNORED: &[&str] = &["tie_word_embeddings"];

/// Keys of the published GTE that change nothing.
const NEW: &[&str] = &[
    // There is no head whose weights could be shared.
    "tie_word_embeddings",
    // The tensors show it.
    "pack_qkv",
    // How the computation is carried out.
    "unpad_inputs",
    "use_memory_efficient_attention",
    // Without logn_attention_scale, which is refused, it says nothing.
    "logn_attention_clip1",
];

/// Keys of the published Nomic BERT that change nothing.
const NOMIC: &[&str] = &[
    // There is no head whose weights could be shared.
    "tie_word_embeddings",
    // How the computation is carried out.
    "fused_bias_fc",
    "fused_dropout_add_ln",
    "moe_impl",
    // Of the head of its masked language model.
    "dense_seq_output",
    "use_xentropy",
    // Training.
    "router_aux_loss_coef",
];

/// Keys of Jina's third as it was published that change nothing.
const PUBLISHED_JINA: &[&str] = &[
    // There is no head whose weights could be shared.
    "tie_word_embeddings",
    // How the model's own code pools; the files of sentence-transformers say it.
    "emb_pooler",
    // Training of its adapters.
    "lora_dropout_p",
    "lora_main_params_trainable",
];

/// What `config.json` says of a rotary BERT. Nomic's own files spell the sizes as GPT-2's do.
#[derive(Debug, Clone, Deserialize)]
struct RotaryBertConfig {
    vocab_size: usize,
    #[serde(alias = "n_embd")]
    hidden_size: usize,
    #[serde(alias = "n_layer")]
    num_hidden_layers: usize,
    #[serde(alias = "n_head")]
    num_attention_heads: usize,
    #[serde(alias = "n_inner")]
    intermediate_size: usize,
    #[serde(alias = "n_positions")]
    max_position_embeddings: usize,
    type_vocab_size: usize,
    #[serde(alias = "activation_function")]
    hidden_act: String,
    #[serde(alias = "layer_norm_epsilon")]
    layer_norm_eps: f32,
    #[serde(default)]
    head_dim: Value,
}

/// What only the published files of GTE say.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct GteConfig {
    position_embedding_type: Value,
    layer_norm_type: Value,
}

/// What only the published files of Nomic BERT say.
#[derive(Debug, Clone, Deserialize)]
struct NomicConfig {
    rotary_emb_base: Option<f32>,
    #[serde(default = "one")]
    rotary_emb_fraction: f32,
    rotary_scaling_factor: Option<f32>,
    max_trained_positions: Option<usize>,
    pad_vocab_size_multiple: Option<usize>,
    #[serde(default)]
    qkv_proj_bias: bool,
    #[serde(default)]
    mlp_fc1_bias: bool,
    #[serde(default)]
    mlp_fc2_bias: bool,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
}

/// What only the published files of Jina's third say. Those of its adapters are read with the weights.
#[derive(Debug, Clone, Deserialize)]
struct PublishedJinaConfig {
    position_embedding_type: String,
    #[serde(default = "ten_thousand")]
    rotary_emb_base: f32,
    #[serde(default, rename = "lora_adaptations")]
    _names: Value,
    #[serde(default, rename = "lora_rank")]
    _rank: Value,
    #[serde(default, rename = "lora_alpha")]
    _alpha: Value,
    #[serde(default, rename = "task_instructions")]
    _instructions: Value,
    #[serde(default, rename = "load_trained_adapters")]
    _trained: Value,
}

fn ten_thousand() -> f32 {
    10_000.0
}

fn one() -> f32 {
    1.0
}

fn yes() -> bool {
    true
}

/// Which linear layers have a bias, and whether the perceptron has a gate.
#[derive(Debug, Clone, Copy)]
struct BlockVariant {
    attention_bias: bool,
    up_bias: bool,
    down_bias: bool,
    gated: bool,
}

/// A rotary BERT whose configuration was checked.
#[derive(Debug)]
struct RotaryBert {
    config: RotaryBertConfig,
    heads: Heads,
    activation: Activation,
    rotary: Rotary,
    variant: BlockVariant,
    experts: Option<NomicExperts>,
}

fn read_gte(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let own: GteConfig = file.parse()?;
    for (key, value, supported) in [
        ("position_embedding_type", own.position_embedding_type, "rope"),
        ("layer_norm_type", own.layer_norm_type, "layer_norm"),
    ] {
        if value.as_str().is_some_and(|value| value != supported) {
            return Err(file.refuse(key, supported));
        }
    }
    let base = if file.json["model_type"] == "gte" { 160_000.0 } else { 10_000.0 };
    let variant = BlockVariant { attention_bias: true, up_bias: false, down_bias: true, gated: true };
    Ok(Box::new(read(file, file.parse()?, base, variant)?))
}

fn read_jina(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let variant = BlockVariant { attention_bias: true, up_bias: true, down_bias: true, gated: false };
    Ok(Box::new(read(file, file.parse()?, 20_000.0, variant)?))
}

/// As its own code computes it: the base where no adapter is chosen.
fn read_published_jina(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let own: PublishedJinaConfig = file.parse()?;
    if own.position_embedding_type != "rotary" {
        return Err(file.refuse("position_embedding_type", "rotary"));
    }
    let variant = BlockVariant { attention_bias: true, up_bias: true, down_bias: true, gated: false };
    Ok(Box::new(read(file, file.parse()?, own.rotary_emb_base, variant)?))
}

/// As transformers computes it, or as its own code does, which has perceptrons without gates and mixtures of experts too.
fn read_nomic(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let json = said_once(file)?;
    let file = &ConfigFile { json: &json, ..*file };
    let (mut config, nomic): (RotaryBertConfig, NomicConfig) = (file.parse()?, file.parse()?);
    if nomic.rotary_emb_fraction != 1.0 {
        return Err(file.refuse("rotary_emb_fraction", "1"));
    }
    if !nomic.scale_attn_weights {
        return Err(file.refuse("scale_attn_weights", "true"));
    }
    let (function, gated) = match file.json["activation_function"].as_str() {
        Some("swiglu") => ("silu", true),
        Some("geglu") => ("gelu", true),
        Some("gelu") => ("gelu", false),
        Some(_) => return Err(file.refuse("activation_function", "swiglu, geglu and gelu")),
        // What transformers calls the function of the gate.
        None if config.hidden_act == "swiglu" => ("silu", true),
        None => (config.hidden_act.as_str(), true),
    };
    let experts = NomicExperts::read(file, config.num_hidden_layers)?;
    if experts.is_some() && gated {
        return Err(file.unsupported(
            "it has num_experts, and its activation_function is not \"gelu\": experts with gates are not computed",
        ));
    }
    config.hidden_act = function.into();
    if nomic.rotary_scaling_factor.is_some() {
        // Frequencies change with the length of longer texts.
        let trained = nomic.max_trained_positions.unwrap_or(2048);
        config.max_position_embeddings = config.max_position_embeddings.min(trained);
    }
    let multiple = nomic.pad_vocab_size_multiple.unwrap_or(1).max(1);
    // No size is larger than what is refused below.
    config.vocab_size = config.vocab_size.checked_next_multiple_of(multiple).unwrap_or(usize::MAX);
    let variant = BlockVariant {
        attention_bias: nomic.qkv_proj_bias,
        up_bias: nomic.mlp_fc1_bias,
        down_bias: nomic.mlp_fc2_bias,
        gated,
    };
    let model = read(file, config, nomic.rotary_emb_base.unwrap_or(1000.0), variant)?;
    Ok(Box::new(RotaryBert { experts, ..model }))
}

/// Nomic BERT: other rotary BERTs have no GGUF files.
fn from_gguf(gguf: &Gguf) -> Result<Box<dyn Architecture>> {
    let metadata = Metadata::of(gguf);
    const EXPERTS: [&str; 3] = ["expert_count", "expert_used_count", "moe_every_n_layers"];
    let read: &[&str] = &["rope.freq_base", EXPERTS[0], EXPERTS[1], EXPERTS[2]];
    let with_experts = metadata.architecture == "nomic-bert-moe";
    let mut json = metadata.encoder_config("nomic_bert", if with_experts { read } else { &read[..1] })?;
    if with_experts {
        let keys = ["num_experts", "moe_top_k", "moe_every_n_layers"];
        for (key, name) in keys.into_iter().zip(EXPERTS) {
            json[key] = metadata.required(name)?.into();
        }
    }
    json["activation_function"] = if with_experts { "gelu" } else { "swiglu" }.into();
    json["qkv_proj_bias"] = gguf.contains("blk.0.attn_qkv.bias").into();
    json["mlp_fc1_bias"] = gguf.contains("blk.0.ffn_up.bias").into();
    json["mlp_fc2_bias"] = gguf.contains("blk.0.ffn_down.bias").into();
    json["rope_theta"] = metadata.float("rope.freq_base").unwrap_or(10_000.0).into();
    read_nomic(&ConfigFile { model: &metadata.model(), path: gguf.path(), json: &json })
}

fn read(
    file: &ConfigFile<'_>,
    config: RotaryBertConfig,
    base: f32,
    variant: BlockVariant,
) -> Result<RotaryBert> {
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("intermediate_size", config.intermediate_size),
        ("max_position_embeddings", config.max_position_embeddings),
        ("type_vocab_size", config.type_vocab_size.max(1)),
    ])?;
    let heads = file.heads(config.hidden_size, config.num_attention_heads)?;
    if config.head_dim.as_u64().is_some_and(|width| width != heads.width as u64) {
        return Err(file.refuse("head_dim", "hidden_size / num_attention_heads"));
    }
    let (head, context) = (heads.width, config.max_position_embeddings);
    let defaults = RopeDefaults { head, context, base, part: None, style: RopeStyle::Neox, odd_parts: false };
    let rope: RopeConfig = file.parse()?;
    let rotary = rope.rotary(&defaults, None, &[]).map_err(|reason| file.unsupported(reason))?;
    let activation = file.activation("hidden_act", &config.hidden_act)?;
    Ok(RotaryBert { config, heads, activation, rotary, variant, experts: None })
}

/// What the names of tensors begin with in some files.
const PREFIXES: &[&str] = &["", "new.", "gte.", "bert.", "nomic_bert.", "roberta."];

impl Architecture for RotaryBert {
    fn describe(&self) -> Description {
        Description {
            hidden: self.config.hidden_size,
            layers: self.config.num_hidden_layers,
            heads: self.heads,
            attention: vec![LayerAttention::new(Mask::FULL).with_rotary(self.rotary.clone())],
            vocabulary: self.config.vocab_size,
            context: self.config.max_position_embeddings,
            activation: self.activation,
            norm_first: false,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let (config, scope) = (&self.config, PrefixedTensors::of_bert(tensors, PREFIXES));
        let table = |name: &str, rows| {
            scope.matrix(&format!("embeddings.{name}_embeddings.weight"), [rows, config.hidden_size])
        };
        let types = config.type_vocab_size;
        let norm = if scope.contains("emb_ln.weight") { "emb_ln" } else { "embeddings.LayerNorm" };
        Ok(EmbeddingTensors {
            token_types: (types > 0).then(|| table("token_type", types)).transpose()?,
            norm: Some(scope.layer_norm(norm, config.hidden_size, config.layer_norm_eps)?),
            ..EmbeddingTensors::new(table("word", config.vocab_size)?)
        })
    }

    /// The names are those of GTE, Nomic and Jina, those that transformers has for all of them, and those of GGUF files.
    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let (config, scope, variant) =
            (&self.config, PrefixedTensors::of_bert(tensors, PREFIXES), self.variant);
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let layer =
            ["encoder.layer", "encoder.layers", "layers", "blk"].map(|list| format!("{list}.{index}"));
        let norms = ["attn_ln", "norm1", "post_attention_layernorm", "attn_output_norm"];
        let known =
            |layer: &&String| norms.iter().any(|norm| scope.contains(&format!("{layer}.{norm}.weight")));
        let layer = layer.iter().find(known).unwrap_or(&layer[0]);
        let name = |names: &[&str]| scope.spelled(layer, names);
        let norm = |names: &[&str]| scope.layer_norm(&name(names), hidden, config.layer_norm_eps).map(Some);
        let fused = name(&["attention.qkv_proj", "attn.Wqkv", "mixer.Wqkv", "attn_qkv"]);
        let qkv = if scope.contains(&format!("{fused}.weight")) {
            vec![scope.maybe_biased(&fused, [3 * hidden, hidden], variant.attention_bias)?]
        } else {
            let part = |own: &str| {
                let name = name(&[&format!("self_attn.{own}_proj"), &format!("attention.{own}_proj")]);
                scope.maybe_biased(&name, [hidden, hidden], variant.attention_bias)
            };
            vec![part("q")?, part("k")?, part("v")?]
        };
        let output =
            name(&["self_attn.o_proj", "attention.o_proj", "attn.out_proj", "mixer.out_proj", "attn_output"]);
        let output = scope.maybe_biased(&output, [hidden, hidden], variant.attention_bias)?;
        let mlp = match self.experts.filter(|experts| experts.is_in(index)) {
            Some(experts) => MlpTensors::Experts(experts.tensors(&scope, layer, [wide, hidden])?),
            None => self.perceptron(&scope, layer)?,
        };
        Ok(LayerTensors {
            attention_norm: norm(&norms)?,
            mlp_norm: norm(&["mlp_ln", "norm2", "post_mlp_layernorm", "layer_output_norm"])?,
            ..LayerTensors::new(MixerTensors::attention(qkv), output, mlp)
        })
    }

    fn has_kernels_on_cards(&self) -> bool {
        self.experts.is_none()
    }
}

impl RotaryBert {
    /// The tensors of a perceptron for all rows.
    fn perceptron(&self, scope: &PrefixedTensors<'_>, layer: &str) -> Result<MlpTensors> {
        let (hidden, wide, variant) = (self.config.hidden_size, self.config.intermediate_size, self.variant);
        let name = |names: &[&str]| scope.spelled(layer, names);
        let fused = format!("{layer}.mlp.up_gate_proj");
        let up = |names: &[&str]| scope.maybe_biased(&name(names), [wide, hidden], variant.up_bias);
        let (up, gate) = if scope.contains(&format!("{fused}.weight")) {
            let [up, gate] = scope.halves(&fused, [wide, hidden], variant.up_bias)?;
            (up, Some(gate))
        } else if variant.gated {
            (
                up(&["mlp.up_proj", "mlp.fc11", "ffn_up"])?,
                Some(up(&["mlp.gate_proj", "mlp.fc12", "ffn_gate"])?),
            )
        } else {
            (up(&["mlp.fc1", "ffn_up"])?, None)
        };
        let down = name(&["mlp.down_proj", "mlp.fc2", "ffn_down"]);
        let down = scope.maybe_biased(&down, [hidden, wide], variant.down_bias)?;
        Ok(MlpTensors::Dense { gate, up, down })
    }
}
