//! The `config.json` of LFM3.

use serde::Deserialize;

use super::config::MOST_LAYERS;
use super::model::{AttentionForm, AttentionNames, Lfm2};
use crate::Result;
use crate::compute::{
    Heads, LONGEST_HEAD, LONGEST_SHORT_CONVOLUTION, LayerAttention, Mask, RopeStyle, Rotary,
};
use crate::models::architectures::architecture::Architecture;
use crate::models::architectures::family::{ConfigFields, ConfigFile, keys_of};
use crate::models::architectures::rope_scaling::{RopeConfig, RopeDefaults};

/// The keys that are read. Rotary positions are those of each kind of layer: transformers does not read the keys that would be
/// of all layers.
pub(super) const FIELDS: &[ConfigFields] = &[
    ConfigFields::All(keys_of::<Lfm3Config>),
    ConfigFields::Only(keys_of::<RopeConfig>, &["rope_scaling", "rope_parameters"]),
];

/// What `config.json` says, with transformers' values for keys that are absent.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Lfm3Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    max_position_embeddings: usize,
    #[serde(alias = "rms_norm_eps")]
    norm_eps: f32,
    #[serde(rename = "conv_L_cache")]
    conv_cache: usize,
    conv_bias: bool,
    layer_types: Option<Vec<String>>,
    sliding_window: Option<usize>,
    use_sandwich_norm: bool,
    use_attention_gate: bool,
    attention_bias: bool,
    tie_word_embeddings: bool,
    is_causal: Option<bool>,
}

impl Default for Lfm3Config {
    fn default() -> Self {
        Self {
            vocab_size: 128_000,
            hidden_size: 2048,
            intermediate_size: 7680,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            num_key_value_heads: 4,
            head_dim: 128,
            max_position_embeddings: 128_000,
            norm_eps: 1e-5,
            conv_cache: 7,
            conv_bias: false,
            layer_types: None,
            sliding_window: Some(256),
            use_sandwich_norm: true,
            use_attention_gate: true,
            attention_bias: false,
            tie_word_embeddings: true,
            is_causal: None,
        }
    }
}

/// What a layer mixes rows with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lfm3Layer {
    Convolution,
    Sliding,
    Full,
}

impl Lfm3Layer {
    const ALL: [Self; 3] = [Self::Convolution, Self::Sliding, Self::Full];

    fn name(self) -> &'static str {
        match self {
            Self::Convolution => "conv",
            Self::Sliding => "sliding_attention",
            Self::Full => "full_attention",
        }
    }

    /// That of layer `index` where no key says it.
    fn usual(index: usize) -> Self {
        match index % 4 {
            2 => Self::Full,
            0 if index > 0 => Self::Sliding,
            _ => Self::Convolution,
        }
    }
}

/// Reads that of a model whose layers are convolutions, attention in windows and attention to all earlier tokens.
///
/// # Errors
/// [`Error::InvalidFile`](crate::Error::InvalidFile), [`Error::Unsupported`](crate::Error::Unsupported) naming the key.
pub(super) fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: Lfm3Config = file.parse()?;
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_attention_heads", config.num_attention_heads.saturating_mul(LONGEST_HEAD)),
        ("num_key_value_heads", config.num_key_value_heads),
        ("max_position_embeddings", config.max_position_embeddings),
    ])?;
    if !(2..=LONGEST_SHORT_CONVOLUTION).contains(&config.conv_cache) {
        return Err(file.refuse("conv_L_cache", &format!("2 to {LONGEST_SHORT_CONVOLUTION}")));
    }
    if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
        return Err(file.refuse("num_key_value_heads", "a divisor of num_attention_heads"));
    }
    if !(2..=LONGEST_HEAD).contains(&config.head_dim) || !config.head_dim.is_multiple_of(2) {
        return Err(file.refuse("head_dim", &format!("an even number up to {LONGEST_HEAD}")));
    }
    let layers = layers(file, &config)?;
    let rope: RopeConfig = file.parse()?;
    rope.check_layers().map_err(|reason| file.unsupported(reason))?;
    let causal = config.is_causal != Some(false);
    if !causal && layers.contains(&Lfm3Layer::Sliding) {
        return Err(file.unsupported(
            "its is_causal is false, and its layer_types have sliding_attention; supported are windows over earlier tokens",
        ));
    }
    let attention = layers.iter().map(|&layer| {
        let mask = match (layer, config.sliding_window) {
            (Lfm3Layer::Sliding, Some(window @ 1..)) => Mask::sliding(window),
            (Lfm3Layer::Sliding, _) => return Err(file.refuse("sliding_window", "a number of tokens")),
            _ if causal => Mask::CAUSAL,
            _ => Mask::FULL,
        };
        let rotary = match layer {
            Lfm3Layer::Convolution => None,
            attention => Some(rotary(file, &config, &rope, attention)?),
        };
        Ok(LayerAttention { rotary, ..LayerAttention::new(mask) })
    });
    Ok(Box::new(Lfm2 {
        hidden: config.hidden_size,
        intermediate: config.intermediate_size,
        heads: Heads {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            width: config.head_dim,
        },
        vocabulary: config.vocab_size,
        context: config.max_position_embeddings,
        epsilon: config.norm_eps,
        taps: config.conv_cache,
        conv_bias: config.conv_bias,
        conv_channels: true,
        tied: config.tie_word_embeddings,
        centered: false,
        attention: attention.collect::<Result<_>>()?,
        attends: layers.iter().map(|layer| *layer != Lfm3Layer::Convolution).collect(),
        form: AttentionForm {
            names: AttentionNames::LFM3,
            bias: config.attention_bias,
            gates: config.use_attention_gate,
        },
        sandwich: config.use_sandwich_norm,
        experts: None,
    }))
}

/// The kind of each layer.
fn layers(file: &ConfigFile<'_>, config: &Lfm3Config) -> Result<Vec<Lfm3Layer>> {
    let count = config.num_hidden_layers;
    if count > MOST_LAYERS {
        return Err(file.refuse("num_hidden_layers", &format!("up to {MOST_LAYERS}")));
    }
    let Some(types) = &config.layer_types else { return Ok((0..count).map(Lfm3Layer::usual).collect()) };
    if types.len() != count {
        return Err(file.refuse("layer_types", "one for each of num_hidden_layers"));
    }
    let of = |name: &String| Lfm3Layer::ALL.into_iter().find(|layer| layer.name() == name);
    let known: Option<_> = types.iter().map(of).collect();
    known.ok_or_else(|| file.refuse("layer_types", "conv, sliding_attention and full_attention"))
}

/// The rotary positions of a kind of layer.
fn rotary(file: &ConfigFile<'_>, config: &Lfm3Config, rope: &RopeConfig, layer: Lfm3Layer) -> Result<Rotary> {
    let base = if layer == Lfm3Layer::Full { 1_000_000.0 } else { 10_000.0 };
    let (head, context) = (config.head_dim, config.max_position_embeddings);
    let defaults = RopeDefaults { head, context, base, part: None, style: RopeStyle::Neox, odd_parts: false };
    let rotary = match rope.has_parameters() {
        true if !(rope.has(layer.name()) && rope.has_base(layer.name())) => {
            let reason = format!("its rope_parameters give no rope_theta of layers with {}", layer.name());
            return Err(file.unsupported(reason));
        }
        true => rope.rotary(&defaults, Some(layer.name()), &[]),
        false if layer == Lfm3Layer::Full => RopeConfig::proportional(0.5).rotary(&defaults, None, &[]),
        false => RopeConfig::default().rotary(&defaults, None, &[]),
    };
    rotary.map_err(|reason| file.unsupported(reason))
}
