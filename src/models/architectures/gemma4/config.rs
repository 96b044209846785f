//! `config.json`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::model::Gemma4;
use crate::Result;
use crate::compute::{Heads, LONGEST_HEAD, LayerAttention, Mask, RopeStyle, Rotary};
use crate::models::architectures::architecture::{Architecture, Placeholders};
use crate::models::architectures::family::{ConfigFields, ConfigFile, keys_of};
use crate::models::architectures::rope_scaling::{RopeConfig, RopeDefaults};
use crate::models::keys::is_unset;

/// The keys that are read.
pub(super) const FIELDS: &[ConfigFields] = &[
    ConfigFields::All(keys_of::<TextConfig>),
    ConfigFields::All(keys_of::<EncoderConfig>),
    ConfigFields::Only(keys_of::<RopeConfig>, &["rope_parameters"]),
];

/// More layers than any model has.
const MOST_LAYERS: usize = 4096;

/// What the files of all families say.
#[derive(Debug, Clone, Deserialize)]
struct TextConfig {
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_activation: Option<String>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    #[serde(default)]
    attention_bias: bool,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
    hidden_size_per_layer_input: Option<usize>,
    // Heads of layers with full attention, unless there are `per_layer_config`.
    global_head_dim: Option<usize>,
    num_global_key_value_heads: Option<usize>,
    per_layer_config: Option<BTreeMap<String, LayerConfig>>,
    // Of a model that has more than texts: see `text_part`.
    #[serde(default)]
    placeholder_token_ids: Vec<u32>,
    pad_token_id: Option<u32>,
}

/// What a layer has of its own.
#[derive(Debug, Clone, Deserialize)]
struct LayerConfig {
    head_dim: Option<usize>,
    num_key_value_heads: Option<usize>,
    /// Keys that are not read; they are refused.
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// What the files of the encoder say.
#[derive(Debug, Clone, Deserialize)]
struct EncoderConfig {
    embedding_dim: Option<usize>,
    sliding_window_pattern: Option<usize>,
}

/// The kind of a layer's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LayerKind {
    Sliding,
    Full,
}

impl LayerKind {
    const ALL: [Self; 2] = [Self::Sliding, Self::Full];

    /// What files call it.
    fn name(self) -> &'static str {
        match self {
            Self::Sliding => "sliding_attention",
            Self::Full => "full_attention",
        }
    }
}

/// Reads that of an encoder, with transformers' values for keys that are absent.
///
/// # Errors
/// [`Error::InvalidFile`](crate::Error::InvalidFile), [`Error::Unsupported`](crate::Error::Unsupported) naming the key.
pub(super) fn read_encoder(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let (config, own): (TextConfig, EncoderConfig) = (file.parse()?, file.parse()?);
    let hidden = config.hidden_size.unwrap_or(512);
    let width = config.hidden_size_per_layer_input.unwrap_or(512);
    let embedding = own.embedding_dim.unwrap_or(768);
    let pattern = own.sliding_window_pattern.unwrap_or(6);
    let sizes = CommonSizes {
        layers: config.num_hidden_layers.unwrap_or(24),
        heads: config.num_attention_heads.unwrap_or(4),
        kv_heads: config.num_key_value_heads.unwrap_or(2),
        head: config.head_dim.unwrap_or(256),
        context: config.max_position_embeddings.unwrap_or(262_144),
        pattern,
        full: LayerConfig {
            head_dim: Some(config.global_head_dim.unwrap_or(512)),
            num_key_value_heads: Some(config.num_global_key_value_heads.unwrap_or(1)),
            others: Map::new(),
        },
    };
    file.check_sizes(&[
        ("hidden_size_per_layer_input", width),
        ("embedding_dim", embedding),
        ("sliding_window_pattern", pattern),
    ])?;
    let kinds = kinds(file, &config, &sizes)?;
    let heads = heads(file, &config, &sizes, &kinds)?;
    let rotaries = rotaries(file, &sizes, &kinds, &heads, 1_000_000.0)?;
    let Some(radius) = window(file, &config)? else {
        return Err(file.refuse("sliding_window", "a number of tokens"));
    };
    let attention = kinds.iter().zip(&heads).map(|(kind, heads)| {
        let mask = match kind {
            // The keys at most so far before or after the query's own.
            LayerKind::Sliding => Mask::local(radius),
            LayerKind::Full => Mask::FULL,
        };
        let rotary = rotaries[*kind as usize].clone();
        LayerAttention { heads: Some(*heads), scale: Some(1.0), rotary, ..LayerAttention::new(mask) }
    });
    let model = Gemma4 {
        hidden,
        intermediate: config.intermediate_size.unwrap_or(2048),
        vocabulary: config.vocab_size.unwrap_or(262_144),
        context: sizes.context,
        epsilon: config.rms_norm_eps.unwrap_or(1e-6),
        activation: activation(file, &config)?,
        bias: config.attention_bias,
        attention: attention.collect(),
        input_width: width,
        embedding,
        placeholders: placeholders(&config),
    };
    file.check_sizes(&[
        ("vocab_size", model.vocabulary),
        ("hidden_size", model.hidden),
        ("intermediate_size", model.intermediate),
        ("max_position_embeddings", model.context),
    ])?;
    Ok(Box::new(model))
}

/// Sizes that a family has defaults for.
struct CommonSizes {
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
    context: usize,
    /// Each so-many-th layer has full attention, where no key says which.
    pattern: usize,
    /// What layers with full attention have of their own, where no key says what.
    full: LayerConfig,
}

fn activation(file: &ConfigFile<'_>, config: &TextConfig) -> Result<crate::compute::Activation> {
    let name = config.hidden_activation.as_deref().unwrap_or("gelu_pytorch_tanh");
    file.activation("hidden_activation", name)
}

fn placeholders(config: &TextConfig) -> Option<Placeholders> {
    let ids = config.placeholder_token_ids.clone();
    (!ids.is_empty()).then(|| Placeholders { ids, token: config.pad_token_id.unwrap_or(0) })
}

/// The window's tokens; `None` for null.
fn window(file: &ConfigFile<'_>, config: &TextConfig) -> Result<Option<usize>> {
    let size = match (config.sliding_window, file.json.get("sliding_window")) {
        (Some(size), _) => size,
        (None, None) => 512,
        (None, Some(_)) => return Ok(None),
    };
    file.check_sizes(&[("sliding_window", size)])?;
    Ok(Some(size))
}

/// The kind of each layer. transformers lets the last one attend to all tokens, whatever its file says.
fn kinds(file: &ConfigFile<'_>, config: &TextConfig, sizes: &CommonSizes) -> Result<Vec<LayerKind>> {
    if !(1..=MOST_LAYERS).contains(&sizes.layers) {
        return Err(file.unsupported(format!(
            "its num_hidden_layers is {}; it must be 1 to {MOST_LAYERS}",
            sizes.layers
        )));
    }
    let mut kinds: Vec<LayerKind> = match &config.layer_types {
        Some(types) if types.len() != sizes.layers => {
            return Err(file.refuse("layer_types", "one for each of num_hidden_layers"));
        }
        Some(types) => {
            let of = |name: &String| LayerKind::ALL.into_iter().find(|kind| kind.name() == name);
            let known: Option<_> = types.iter().map(of).collect();
            known.ok_or_else(|| file.refuse("layer_types", "full_attention and sliding_attention"))?
        }
        None => {
            let is_full = |index: usize| (index + 1).is_multiple_of(sizes.pattern);
            let of = |index| if is_full(index) { LayerKind::Full } else { LayerKind::Sliding };
            (0..sizes.layers).map(of).collect()
        }
    };
    kinds[sizes.layers - 1] = LayerKind::Full;
    Ok(kinds)
}

/// The heads of each layer. Layers of a kind have the same.
fn heads(
    file: &ConfigFile<'_>,
    config: &TextConfig,
    sizes: &CommonSizes,
    kinds: &[LayerKind],
) -> Result<Vec<Heads>> {
    let of_layer = |own: Option<&LayerConfig>| Heads {
        heads: sizes.heads,
        kv_heads: own.and_then(|own| own.num_key_value_heads).unwrap_or(sizes.kv_heads),
        width: own.and_then(|own| own.head_dim).unwrap_or(sizes.head),
    };
    let mut heads = Vec::new();
    match &config.per_layer_config {
        Some(layers) => {
            let mut own = vec![None; kinds.len()];
            for (index, layer) in layers {
                if let Some((key, value)) = layer.others.iter().find(|(_, value)| !is_unset(value)) {
                    let reason =
                        format!("its per_layer_config sets {key:?} to {value}, which is not supported");
                    return Err(file.unsupported(reason));
                }
                match index.parse().ok().and_then(|index: usize| own.get_mut(index)) {
                    Some(own) => *own = Some(layer),
                    None => {
                        return Err(file.refuse("per_layer_config", "an object for each number of a layer"));
                    }
                }
            }
            heads.extend(own.into_iter().map(of_layer));
        }
        None => {
            heads
                .extend(kinds.iter().map(|kind| of_layer((*kind == LayerKind::Full).then_some(&sizes.full))));
        }
    }
    for kind in LayerKind::ALL {
        let mut own = kinds.iter().zip(&heads).filter(|(other, _)| **other == kind).map(|(_, heads)| heads);
        let Some(&first) = own.next() else { continue };
        if own.any(|other| *other != first) {
            let reason = format!("its per_layer_config gives layers with {} different heads", kind.name());
            return Err(file.unsupported(reason));
        }
        let Heads { heads, kv_heads, width } = first;
        let sound = kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads);
        if !sound || !(2..=LONGEST_HEAD).contains(&width) || !width.is_multiple_of(2) {
            return Err(file.unsupported(format!(
                "its layers with {} have {heads} heads with {kv_heads} of keys, {width} wide; heads of keys must divide \
                 the others, and be an even number wide, up to {LONGEST_HEAD}",
                kind.name()
            )));
        }
    }
    file.check_sizes(&[("num_attention_heads", sizes.heads.saturating_mul(LONGEST_HEAD))])?;
    Ok(heads)
}

/// The rotary positions of layers with a window, and of those without.
fn rotaries(
    file: &ConfigFile<'_>,
    sizes: &CommonSizes,
    kinds: &[LayerKind],
    heads: &[Heads],
    full_base: f32,
) -> Result<[Option<Rotary>; 2]> {
    let rope: RopeConfig = file.parse()?;
    let mut rotaries = [None, None];
    for kind in LayerKind::ALL {
        let Some((_, heads)) = kinds.iter().zip(heads).find(|(other, _)| **other == kind) else { continue };
        let base = if kind == LayerKind::Full { full_base } else { 10_000.0 };
        let defaults = RopeDefaults {
            head: heads.width,
            context: sizes.context,
            base,
            part: None,
            style: RopeStyle::Neox,
        };
        if rope.has_parameters() && !(rope.has(kind.name()) && rope.has_base(kind.name())) {
            let reason = format!("its rope_parameters give no rope_theta of layers with {}", kind.name());
            return Err(file.unsupported(reason));
        }
        let rotary = rope.rotary(&defaults, Some(kind.name()), &[]);
        rotaries[kind as usize] = Some(rotary.map_err(|reason| file.unsupported(reason))?);
    }
    Ok(rotaries)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
