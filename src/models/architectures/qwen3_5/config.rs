//! `config.json`.

use serde::Deserialize;

use super::model::{Qwen35, TensorForm};
use crate::Result;
use crate::compute::{DeltaHeads, Heads, LONGEST_HEAD, LONGEST_SHORT_CONVOLUTION, RopeStyle};
use crate::models::architectures::architecture::Architecture;
use crate::models::architectures::experts::{ExpertConfig, ExpertDefaults};
use crate::models::architectures::family::{ConfigFields, ConfigFile, keys_of};
use crate::models::architectures::rope_scaling::{RopeConfig, RopeDefaults, check_part};

/// The keys that are read.
pub(super) const FIELDS: &[ConfigFields] = &[ConfigFields::All(keys_of::<Qwen35Config>), RopeConfig::PARTIAL];

/// Those of the family with experts in every layer.
pub(super) const EXPERT_FIELDS: &[ConfigFields] = &[
    ConfigFields::But(keys_of::<Qwen35Config>, &["intermediate_size"]),
    RopeConfig::PARTIAL,
    ConfigFields::Only(
        keys_of::<ExpertConfig>,
        &["num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size"],
    ),
];

/// Those of Qwen3-Next.
pub(super) const NEXT_FIELDS: &[ConfigFields] = &[
    ConfigFields::All(keys_of::<Qwen35Config>),
    RopeConfig::PARTIAL,
    ConfigFields::Only(
        keys_of::<ExpertConfig>,
        &[
            "num_experts",
            "num_experts_per_tok",
            "norm_topk_prob",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "mlp_only_layers",
            "decoder_sparse_step",
        ],
    ),
];

/// What transformers does not read. States are in float32 here as there; the layers that predict several tokens are not used;
/// the loss is of training.
pub(super) const IGNORED: &[&str] =
    &["mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"];

/// The same of the family with experts in every layer, whose perceptrons have another size.
pub(super) const EXPERT_IGNORED: &[&str] = &[
    "mamba_ssm_dtype",
    "mtp_num_hidden_layers",
    "mtp_use_dedicated_embeddings",
    "router_aux_loss_coef",
    "intermediate_size",
];

/// The same of Qwen3-Next.
pub(super) const NEXT_IGNORED: &[&str] = &["router_aux_loss_coef"];

/// Keys of `rope_parameters` that divide frequencies among the three positions of a part of an image. Those of a token of text
/// are the same.
const IMAGE_POSITIONS: [&str; 2] = ["mrope_section", "mrope_interleaved"];

/// The experts of Qwen3.5. The weights of those that a token uses have the sum 1.
pub(super) const EXPERTS: ExpertDefaults = ExpertDefaults {
    count: 256,
    used: 8,
    intermediate: Some(512),
    shared: Some(512),
    normalized: true,
    ..ExpertDefaults::QWEN3
};

const NEXT_EXPERTS: ExpertDefaults = ExpertDefaults { count: 512, used: 10, ..EXPERTS };

/// What `config.json` says.
#[derive(Debug, Clone, Deserialize)]
struct Qwen35Config {
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    linear_conv_kernel_dim: Option<usize>,
    linear_key_head_dim: Option<usize>,
    linear_value_head_dim: Option<usize>,
    linear_num_key_heads: Option<usize>,
    linear_num_value_heads: Option<usize>,
    layer_types: Option<Vec<String>>,
    full_attention_interval: Option<usize>,
    attn_output_gate: Option<bool>,
    output_gate_type: Option<String>,
    is_causal: Option<bool>,
}

/// What transformers takes for keys that the files of a family do not give.
#[derive(Debug)]
pub(super) struct FileDefaults {
    vocabulary: usize,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    kv_heads: usize,
    experts: Option<&'static ExpertDefaults>,
    form: TensorForm,
}

pub(super) const DENSE: FileDefaults = FileDefaults {
    vocabulary: 248_320,
    hidden: 4096,
    intermediate: 12_288,
    layers: 32,
    kv_heads: 4,
    experts: None,
    form: TensorForm::Split,
};

pub(super) const MIXTURE: FileDefaults =
    FileDefaults { hidden: 2048, layers: 40, kv_heads: 2, experts: Some(&EXPERTS), ..DENSE };

pub(super) const NEXT: FileDefaults = FileDefaults {
    vocabulary: 151_936,
    intermediate: 5632,
    layers: 48,
    experts: Some(&NEXT_EXPERTS),
    form: TensorForm::Fused,
    ..MIXTURE
};

/// More layers, heads, or numbers of a head than any model has.
pub(super) const MOST_LAYERS: usize = 4096;
pub(super) const MOST_DELTA_HEADS: usize = 4096;
pub(super) const WIDEST_DELTA_HEAD: usize = 1024;

impl FileDefaults {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`](crate::Error::InvalidFile), [`Error::Unsupported`](crate::Error::Unsupported) naming the key.
    pub(super) fn read(&self, file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
        let (config, rope): (Qwen35Config, RopeConfig) = (file.parse()?, file.parse()?);
        check_part(file)?;
        let (hidden, layers) =
            (config.hidden_size.unwrap_or(self.hidden), config.num_hidden_layers.unwrap_or(self.layers));
        let intermediate = config.intermediate_size.unwrap_or(self.intermediate);
        let heads = Heads {
            heads: config.num_attention_heads.unwrap_or(16),
            kv_heads: config.num_key_value_heads.unwrap_or(self.kv_heads),
            width: config.head_dim.unwrap_or(256),
        };
        let delta = DeltaHeads {
            keys: config.linear_num_key_heads.unwrap_or(16),
            values: config.linear_num_value_heads.unwrap_or(32),
            key_width: config.linear_key_head_dim.unwrap_or(128),
            value_width: config.linear_value_head_dim.unwrap_or(128),
            in_turn: false,
        };
        let (vocabulary, context) =
            (config.vocab_size.unwrap_or(self.vocabulary), config.max_position_embeddings.unwrap_or(32_768));
        file.check_sizes(&[
            ("vocab_size", vocabulary),
            ("hidden_size", hidden),
            ("intermediate_size", intermediate),
            ("max_position_embeddings", context),
        ])?;
        for (key, size, most) in [
            ("num_hidden_layers", layers, MOST_LAYERS),
            ("num_attention_heads", heads.heads, hidden.max(MOST_DELTA_HEADS)),
            ("num_key_value_heads", heads.kv_heads, heads.heads),
            ("head_dim", heads.width, LONGEST_HEAD),
            ("linear_num_key_heads", delta.keys, MOST_DELTA_HEADS),
            ("linear_num_value_heads", delta.values, MOST_DELTA_HEADS),
            ("linear_key_head_dim", delta.key_width, WIDEST_DELTA_HEAD),
            ("linear_value_head_dim", delta.value_width, WIDEST_DELTA_HEAD),
        ] {
            if !(1..=most).contains(&size) {
                return Err(file.refuse(key, &format!("1 to {most}")));
            }
        }
        if !heads.heads.is_multiple_of(heads.kv_heads) {
            return Err(file.refuse("num_key_value_heads", "a divisor of num_attention_heads"));
        }
        if !heads.width.is_multiple_of(2) {
            return Err(file.refuse("head_dim", "an even number"));
        }
        if !delta.values.is_multiple_of(delta.keys) {
            return Err(file.refuse("linear_num_value_heads", "a multiple of linear_num_key_heads"));
        }
        let taps = config.linear_conv_kernel_dim.unwrap_or(4);
        if !(2..=LONGEST_SHORT_CONVOLUTION).contains(&taps) {
            return Err(file.refuse("linear_conv_kernel_dim", &format!("2 to {LONGEST_SHORT_CONVOLUTION}")));
        }
        if config.hidden_act.as_deref().is_some_and(|name| !matches!(name, "silu" | "swish")) {
            return Err(file.refuse("hidden_act", "silu"));
        }
        if config.is_causal == Some(false) {
            // transformers changes its attention alone.
            return Err(file.refuse("is_causal", "true"));
        }
        if config.attn_output_gate == Some(false) {
            return Err(file.refuse("attn_output_gate", "true"));
        }
        if config.output_gate_type.as_deref().is_some_and(|name| !matches!(name, "silu" | "swish")) {
            return Err(file.refuse("output_gate_type", "swish"));
        }
        let defaults = RopeDefaults {
            head: heads.width,
            context,
            base: 10_000.0,
            part: Some(0.25),
            style: RopeStyle::Neox,
            odd_parts: true,
        };
        let others: &[&str] = if self.form == TensorForm::Fused { &[] } else { &IMAGE_POSITIONS };
        let rotary = rope.rotary(&defaults, None, others).map_err(|reason| file.unsupported(reason))?;
        let experts = match self.experts {
            Some(own) => Some(own.of_config(&file.parse()?, layers, intermediate)),
            None => None,
        };
        Ok(Box::new(Qwen35 {
            hidden,
            intermediate,
            heads,
            vocabulary,
            context,
            epsilon: config.rms_norm_eps.unwrap_or(1e-6),
            tied: config.tie_word_embeddings.unwrap_or(false),
            bias: config.attention_bias.unwrap_or(false),
            rotary,
            attends: attends(file, &config, layers)?,
            delta,
            taps,
            experts: experts.transpose().map_err(|reason| file.unsupported(reason))?,
            form: self.form,
        }))
    }
}

/// Of each layer, whether it is attention.
fn attends(file: &ConfigFile<'_>, config: &Qwen35Config, layers: usize) -> Result<Vec<bool>> {
    match (&config.layer_types, config.full_attention_interval.unwrap_or(4)) {
        (Some(types), _) if types.len() != layers => {
            Err(file.refuse("layer_types", "one for each of num_hidden_layers"))
        }
        (Some(types), _) => {
            let of = |kind: &String| match kind.as_str() {
                "full_attention" => Ok(true),
                "linear_attention" => Ok(false),
                _ => Err(file.refuse("layer_types", "full_attention and linear_attention")),
            };
            types.iter().map(of).collect()
        }
        (None, 0) => Err(file.refuse("full_attention_interval", "1 or more")),
        (None, interval) => Ok((1..=layers).map(|number| number.is_multiple_of(interval)).collect()),
    }
}
