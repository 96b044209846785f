//! `config.json`.

use serde::Deserialize;

use super::model::{AttentionForm, Lfm2};
use crate::Result;
use crate::compute::{ExpertScores, LONGEST_SHORT_CONVOLUTION, LayerAttention, Mask, RopeStyle};
use crate::models::architectures::architecture::Architecture;
use crate::models::architectures::experts::{ExpertConfig, ExpertDefaults};
use crate::models::architectures::family::{ConfigFields, ConfigFile, keys_of};
use crate::models::architectures::rope_scaling::{RopeConfig, RopeDefaults};

/// The keys that are read.
pub(super) const FIELDS: &[ConfigFields] = &[ConfigFields::All(keys_of::<Lfm2Config>), RopeConfig::WHOLE];

/// Those of the family with experts, whose perceptrons have the size that the file says.
pub(super) const EXPERT_FIELDS: &[ConfigFields] = &[
    ConfigFields::But(
        keys_of::<Lfm2Config>,
        &[
            "block_ff_dim",
            "block_auto_adjust_ff_dim",
            "block_ffn_dim_multiplier",
            "block_multiple_of",
            "full_attn_idxs",
        ],
    ),
    RopeConfig::WHOLE,
    ConfigFields::But(
        keys_of::<ExpertConfig>,
        &["num_local_experts", "shared_expert_intermediate_size", "mlp_only_layers", "decoder_sparse_step"],
    ),
];

/// What its files mean by what they do not say of experts.
pub(super) const EXPERTS: ExpertDefaults = ExpertDefaults {
    blocks: &["feed_forward"],
    count: 32,
    used: 4,
    intermediate: Some(1792),
    dense: 2,
    scores: ExpertScores::Sigmoid,
    normalized: true,
    epsilon: 1e-6,
    choice_bias: true,
    ..ExpertDefaults::QWEN3
};

/// What the first files say a second time; transformers does not read it.
pub(super) const IGNORED: &[&str] = &[
    "block_dim",
    "block_mlp_init_scale",
    "block_norm_eps",
    "block_out_init_scale",
    "block_use_swiglu",
    "block_use_xavier_init",
    "conv_dim",
    "conv_dim_out",
    "conv_use_xavier_init",
    "num_heads",
    "theta",
    "use_pos_enc",
];

/// What `config.json` says, with transformers' values for keys that are absent.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Lfm2Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    block_ff_dim: Option<usize>,
    block_auto_adjust_ff_dim: bool,
    block_ffn_dim_multiplier: f64,
    block_multiple_of: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    max_position_embeddings: usize,
    norm_eps: f32,
    #[serde(rename = "conv_L_cache")]
    conv_cache: usize,
    conv_bias: bool,
    layer_types: Option<Vec<String>>,
    full_attn_idxs: Option<Vec<usize>>,
    tie_word_embeddings: bool,
    tie_embedding: Option<bool>,
    is_causal: Option<bool>,
}

impl Default for Lfm2Config {
    fn default() -> Self {
        Self {
            vocab_size: 65_536,
            hidden_size: 2560,
            intermediate_size: 12_288,
            block_ff_dim: None,
            block_auto_adjust_ff_dim: true,
            block_ffn_dim_multiplier: 1.0,
            block_multiple_of: 256,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            max_position_embeddings: 128_000,
            norm_eps: 1e-5,
            conv_cache: 3,
            conv_bias: false,
            layer_types: None,
            full_attn_idxs: None,
            tie_word_embeddings: true,
            tie_embedding: None,
            is_causal: None,
        }
    }
}

impl Lfm2Config {
    /// Columns between the matrices of a perceptron.
    fn wide(&self) -> usize {
        let size = self.block_ff_dim.unwrap_or(self.intermediate_size);
        if !self.block_auto_adjust_ff_dim {
            return size;
        }
        let third = (2.0 * size as f64 / 3.0) as usize;
        ((self.block_ffn_dim_multiplier * third as f64) as usize).next_multiple_of(self.block_multiple_of)
    }
}

/// More layers than any model has.
pub(super) const MOST_LAYERS: usize = 4096;

/// Reads that of a model whose convolutions see no later token; its attention does if `is_causal` is false.
///
/// # Errors
/// [`Error::InvalidFile`](crate::Error::InvalidFile), [`Error::Unsupported`](crate::Error::Unsupported) naming the key.
pub(super) fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    Ok(Box::new(lfm2(file, &file.parse()?, false)?))
}

/// Reads that of a model with experts.
///
/// # Errors
/// As [`read`].
pub(super) fn read_experts(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let mut config: Lfm2Config = file.parse()?;
    config.block_auto_adjust_ff_dim = false;
    // Other defaults than those of the models without experts.
    for (key, size, own) in [
        ("hidden_size", &mut config.hidden_size, 2048),
        ("intermediate_size", &mut config.intermediate_size, 7168),
    ] {
        if file.json.get(key).is_none() {
            *size = own;
        }
    }
    if config.layer_types.is_none() {
        return Err(file.unsupported(
            "its config.json has no layer_types, without which transformers makes no such model",
        ));
    }
    let mut model = lfm2(file, &config, false)?;
    let experts = EXPERTS.of_config(&file.parse()?, model.attends.len(), model.intermediate);
    model.experts = Some(experts.map_err(|reason| file.unsupported(reason))?);
    Ok(Box::new(model))
}

/// Reads that of a model which sees in both directions.
///
/// # Errors
/// As [`read`].
pub(super) fn read_bidirectional(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    Ok(Box::new(lfm2(file, &file.parse()?, true)?))
}

fn lfm2(file: &ConfigFile<'_>, config: &Lfm2Config, centered: bool) -> Result<Lfm2> {
    let rope: RopeConfig = file.parse()?;
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.block_ff_dim.unwrap_or(config.intermediate_size)),
        ("block_multiple_of", config.block_multiple_of),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_key_value_heads", config.num_key_value_heads),
        ("max_position_embeddings", config.max_position_embeddings),
    ])?;
    if !(0.0..=64.0).contains(&config.block_ffn_dim_multiplier) {
        return Err(file.refuse("block_ffn_dim_multiplier", "0 to 64"));
    }
    let intermediate = config.wide();
    file.check_sizes(&[("block_ff_dim", intermediate)])?;
    if !(2..=LONGEST_SHORT_CONVOLUTION).contains(&config.conv_cache) {
        return Err(file.refuse("conv_L_cache", &format!("2 to {LONGEST_SHORT_CONVOLUTION}")));
    }
    let mut heads = file.heads(config.hidden_size, config.num_attention_heads)?;
    if !heads.heads.is_multiple_of(config.num_key_value_heads) {
        return Err(file.refuse("num_key_value_heads", "a divisor of num_attention_heads"));
    }
    heads.kv_heads = config.num_key_value_heads;
    let attends = attends(file, config)?;
    let defaults = RopeDefaults {
        head: heads.width,
        context: config.max_position_embeddings,
        base: 1_000_000.0,
        part: None,
        style: RopeStyle::Neox,
        odd_parts: false,
    };
    let rotary = rope.rotary(&defaults, None, &[]).map_err(|reason| file.unsupported(reason))?;
    let causal = !centered && config.is_causal != Some(false);
    Ok(Lfm2 {
        hidden: config.hidden_size,
        intermediate,
        heads,
        vocabulary: config.vocab_size,
        context: config.max_position_embeddings,
        epsilon: config.norm_eps,
        taps: config.conv_cache,
        conv_bias: config.conv_bias,
        conv_channels: true,
        tied: config.tie_embedding.unwrap_or(config.tie_word_embeddings),
        centered,
        attention: vec![
            LayerAttention::new(if causal { Mask::CAUSAL } else { Mask::FULL }).with_rotary(rotary),
        ],
        attends,
        form: AttentionForm::LFM2,
        sandwich: false,
        experts: None,
    })
}

/// Of each layer, whether it is attention.
fn attends(file: &ConfigFile<'_>, config: &Lfm2Config) -> Result<Vec<bool>> {
    let layers = config.num_hidden_layers;
    match (&config.layer_types, &config.full_attn_idxs) {
        (Some(types), _) if types.len() != layers => {
            Err(file.refuse("layer_types", "one for each of num_hidden_layers"))
        }
        (Some(types), _) => {
            let of = |kind: &String| match kind.as_str() {
                "full_attention" => Ok(true),
                "conv" => Ok(false),
                _ => Err(file.refuse("layer_types", "full_attention and conv")),
            };
            types.iter().map(of).collect()
        }
        (None, _) if layers > MOST_LAYERS => {
            Err(file.refuse("num_hidden_layers", &format!("up to {MOST_LAYERS}")))
        }
        (None, Some(indices)) => Ok((0..layers).map(|index| indices.contains(&index)).collect()),
        (None, None) => Ok(vec![true; layers]),
    }
}
