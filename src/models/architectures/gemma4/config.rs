//! `config.json`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::experts::ExpertShape;
use super::model::{Gemma4, LayerInputShape, LogitsHead, TokenTable};
use crate::Result;
use crate::compute::{Activation, Heads, KeySource, LONGEST_HEAD, LayerAttention, Mask, RopeStyle, Rotary};
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

/// Those of generators.
pub(super) const GENERATOR_FIELDS: &[ConfigFields] = &[
    ConfigFields::All(keys_of::<TextConfig>),
    ConfigFields::All(keys_of::<GeneratorConfig>),
    ConfigFields::Only(keys_of::<RopeConfig>, &["rope_parameters"]),
];

/// Those of generators without tables for the inputs of layers, and without experts.
pub(super) const UNIFIED_FIELDS: &[ConfigFields] = &[
    ConfigFields::But(keys_of::<TextConfig>, &["hidden_size_per_layer_input"]),
    ConfigFields::But(
        keys_of::<GeneratorConfig>,
        &[
            "vocab_size_per_layer_input",
            "enable_moe_block",
            "num_experts",
            "top_k_experts",
            "moe_intermediate_size",
        ],
    ),
    ConfigFields::Only(keys_of::<RopeConfig>, &["rope_parameters"]),
];

/// More layers than any model has.
pub(super) const MOST_LAYERS: usize = 4096;

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

/// What the files of generators say.
#[derive(Debug, Clone, Deserialize)]
struct GeneratorConfig {
    tie_word_embeddings: Option<bool>,
    final_logit_softcapping: Option<f32>,
    use_bidirectional_attention: Option<String>,
    vocab_size_per_layer_input: Option<usize>,
    #[serde(default)]
    attention_k_eq_v: bool,
    #[serde(default)]
    num_kv_shared_layers: usize,
    #[serde(default)]
    use_double_wide_mlp: bool,
    // Without the first, transformers reads none of the others.
    #[serde(default)]
    enable_moe_block: bool,
    num_experts: Option<usize>,
    top_k_experts: Option<usize>,
    moe_intermediate_size: Option<usize>,
}

impl GeneratorConfig {
    /// The experts of each layer, if there are some.
    fn experts(&self, file: &ConfigFile<'_>) -> Result<Option<ExpertShape>> {
        if !self.enable_moe_block {
            return Ok(None);
        }
        let given = |key, number: Option<usize>| {
            let missing = || format!("its enable_moe_block needs a {key}, and it gives none");
            let number = number.ok_or_else(|| file.unsupported(missing()))?;
            file.check_sizes(&[(key, number)]).map(|()| number)
        };
        let shape = ExpertShape {
            count: given("num_experts", self.num_experts)?,
            used: given("top_k_experts", self.top_k_experts)?,
            intermediate: given("moe_intermediate_size", self.moe_intermediate_size)?,
        };
        if shape.used > shape.count {
            return Err(file.refuse("top_k_experts", "at most its num_experts"));
        }
        Ok(Some(shape))
    }
}

/// The kind of a layer's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerKind {
    Sliding,
    Full,
}

impl LayerKind {
    pub(super) const ALL: [Self; 2] = [Self::Sliding, Self::Full];

    /// What files call it.
    pub(super) fn name(self) -> &'static str {
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
    let width = config.hidden_size_per_layer_input.unwrap_or(512);
    let embedding = own.embedding_dim.unwrap_or(768);
    let pattern = own.sliding_window_pattern.unwrap_or(6);
    file.check_sizes(&[
        ("hidden_size_per_layer_input", width),
        ("embedding_dim", embedding),
        ("sliding_window_pattern", pattern),
    ])?;
    let full = LayerConfig {
        head_dim: Some(config.global_head_dim.unwrap_or(512)),
        num_key_value_heads: Some(config.num_global_key_value_heads.unwrap_or(1)),
        others: Map::new(),
    };
    let sizes = CommonSizes {
        hidden: 512,
        intermediate: 2048,
        layers: 24,
        heads: 4,
        kv_heads: 2,
        context: 262_144,
        window: 512,
        pattern,
        part: None,
        full,
    };
    // The keys at most so far before or after the query's own.
    let (mut model, _) = model(file, &config, &sizes, [Mask::local, |_| Mask::FULL])?;
    let names = ["ple.", "ple_block."];
    model.input = Some(LayerInputShape { width, names, tokens: None });
    model.embedding = Some(embedding);
    Ok(Box::new(model))
}

/// Reads that of a generator.
///
/// # Errors
/// As [`read_encoder`].
pub(super) fn read_generator(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let unified = file.json["model_type"] == "gemma4_unified_text";
    let (config, own): (TextConfig, GeneratorConfig) = (file.parse()?, file.parse()?);
    if let Some(direction) = own.use_bidirectional_attention.as_deref().filter(|which| *which != "vision") {
        return Err(file.unsupported(format!(
            "its use_bidirectional_attention is {direction:?}; supported are null and \"vision\", which is of images"
        )));
    }
    if let Some(cap) = own.final_logit_softcapping.filter(|cap| *cap <= 0.0 || !cap.is_finite()) {
        return Err(file.unsupported(format!("its final_logit_softcapping is {cap}; it must be above 0")));
    }
    let full = LayerConfig {
        head_dim: Some(config.global_head_dim.unwrap_or(512)),
        // transformers does not read the key in models whose keys are not their values.
        num_key_value_heads: config.num_global_key_value_heads.filter(|_| own.attention_k_eq_v),
        others: Map::new(),
    };
    let sizes = CommonSizes {
        hidden: 2304,
        intermediate: 9216,
        layers: 30,
        heads: 8,
        kv_heads: 4,
        context: if unified { 262_144 } else { 131_072 },
        window: if unified { 1024 } else { 512 },
        pattern: 6,
        part: Some(0.25),
        full,
    };
    let (mut model, kinds) = model(file, &config, &sizes, [Mask::sliding, |_| Mask::CAUSAL])?;
    let layers = kinds.len();
    let own_keys = layers - own.num_kv_shared_layers.min(layers);
    share_keys(&mut model.attention, &kinds, own_keys).map_err(|reason| file.unsupported(reason))?;
    if own.use_double_wide_mlp {
        model.intermediate[own_keys..].iter_mut().for_each(|size| *size *= 2);
        file.check_sizes(&[("intermediate_size", model.intermediate[layers - 1])])?;
    }
    model.keys_are_values =
        kinds.iter().map(|kind| own.attention_k_eq_v && *kind == LayerKind::Full).collect();
    let width = config.hidden_size_per_layer_input.unwrap_or(if unified { 0 } else { 256 });
    if width > 0 {
        let vocabulary = own.vocab_size_per_layer_input.unwrap_or(262_144);
        file.check_sizes(&[
            ("hidden_size_per_layer_input", width),
            ("vocab_size_per_layer_input", vocabulary.saturating_mul(layers)),
        ])?;
        let tokens = Some(TokenTable { vocabulary });
        model.input = Some(LayerInputShape { width, names: ["", ""], tokens });
    }
    model.experts = own.experts(file)?;
    model.head =
        Some(LogitsHead { tied: own.tie_word_embeddings.unwrap_or(true), cap: own.final_logit_softcapping });
    Ok(Box::new(model))
}

/// Lets the layers from `own_keys` on use the keys and values of the last layer of their kind before. Returns why they cannot.
pub(super) fn share_keys(
    attention: &mut [LayerAttention],
    kinds: &[LayerKind],
    own_keys: usize,
) -> std::result::Result<(), String> {
    if own_keys >= kinds.len() {
        return Ok(());
    }
    for kind in LayerKind::ALL.into_iter().filter(|kind| kinds.contains(kind)) {
        let Some(source) = kinds[..own_keys].iter().rposition(|other| *other == kind) else {
            return Err(format!("before its layers with the keys of others, none has {}", kind.name()));
        };
        attention[source].keys = KeySource::Kept;
        for index in (own_keys..kinds.len()).filter(|&index| kinds[index] == kind) {
            attention[index].keys = KeySource::Layer(source);
        }
    }
    Ok(())
}

/// What both kinds of models have in common, and the kinds of the layers. `masks` makes those of layers with a window of so many
/// tokens, and of layers without.
fn model(
    file: &ConfigFile<'_>,
    config: &TextConfig,
    sizes: &CommonSizes,
    masks: [fn(usize) -> Mask; 2],
) -> Result<(Gemma4, Vec<LayerKind>)> {
    let context = config.max_position_embeddings.unwrap_or(sizes.context);
    let (layers, intermediate) = (
        config.num_hidden_layers.unwrap_or(sizes.layers),
        config.intermediate_size.unwrap_or(sizes.intermediate),
    );
    let kinds = kinds(file, config, layers, sizes.pattern)?;
    let heads = heads(file, config, sizes, &kinds)?;
    let rotaries = rotaries(file, context, sizes.part, &kinds, &heads)?;
    let window = window(file, config, sizes.window)?;
    let attention = kinds.iter().zip(&heads).map(|(&kind, &heads)| LayerAttention {
        heads: Some(heads),
        scale: Some(1.0),
        rotary: rotaries[kind as usize].clone(),
        ..LayerAttention::new(masks[kind as usize](window))
    });
    let model = Gemma4 {
        hidden: config.hidden_size.unwrap_or(sizes.hidden),
        intermediate: vec![intermediate; layers],
        vocabulary: config.vocab_size.unwrap_or(262_144),
        context,
        epsilon: config.rms_norm_eps.unwrap_or(1e-6),
        activation: activation(file, config)?,
        bias: config.attention_bias,
        attention: attention.collect(),
        keys_are_values: vec![false; layers],
        input: None,
        experts: None,
        embedding: None,
        head: None,
        placeholders: placeholders(config),
        gguf: false,
    };
    file.check_sizes(&[
        ("vocab_size", model.vocabulary),
        ("hidden_size", model.hidden),
        ("intermediate_size", intermediate),
        ("max_position_embeddings", context),
    ])?;
    Ok((model, kinds))
}

/// What a family takes for keys that are absent.
struct CommonSizes {
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    context: usize,
    window: usize,
    /// Each so-many-th layer has full attention, where no key says which.
    pattern: usize,
    /// The part of a head that layers with full attention rotate, as proportional scaling does.
    part: Option<f32>,
    /// What layers with full attention have of their own, where no key says what.
    full: LayerConfig,
}

fn activation(file: &ConfigFile<'_>, config: &TextConfig) -> Result<Activation> {
    let name = config.hidden_activation.as_deref().unwrap_or("gelu_pytorch_tanh");
    file.activation("hidden_activation", name)
}

fn placeholders(config: &TextConfig) -> Option<Placeholders> {
    let ids = config.placeholder_token_ids.clone();
    (!ids.is_empty()).then(|| Placeholders { ids, token: config.pad_token_id.unwrap_or(0) })
}

/// The tokens of a window.
fn window(file: &ConfigFile<'_>, config: &TextConfig, usual: usize) -> Result<usize> {
    let size = match (config.sliding_window, file.json.get("sliding_window")) {
        (Some(size), _) => size,
        (None, None) => usual,
        (None, Some(_)) => return Err(file.refuse("sliding_window", "a number of tokens")),
    };
    file.check_sizes(&[("sliding_window", size)])?;
    Ok(size)
}

/// The kind of each layer. transformers lets the last one attend to all tokens, whatever its file says.
fn kinds(
    file: &ConfigFile<'_>,
    config: &TextConfig,
    layers: usize,
    pattern: usize,
) -> Result<Vec<LayerKind>> {
    if !(1..=MOST_LAYERS).contains(&layers) {
        return Err(
            file.unsupported(format!("its num_hidden_layers is {}; it must be 1 to {MOST_LAYERS}", layers))
        );
    }
    let mut kinds: Vec<LayerKind> = match &config.layer_types {
        Some(types) if types.len() != layers => {
            return Err(file.refuse("layer_types", "one for each of num_hidden_layers"));
        }
        Some(types) => {
            let of = |name: &String| LayerKind::ALL.into_iter().find(|kind| kind.name() == name);
            let known: Option<_> = types.iter().map(of).collect();
            known.ok_or_else(|| file.refuse("layer_types", "full_attention and sliding_attention"))?
        }
        None => {
            let is_full = |index: usize| (index + 1).is_multiple_of(pattern);
            let of = |index| if is_full(index) { LayerKind::Full } else { LayerKind::Sliding };
            (0..layers).map(of).collect()
        }
    };
    kinds[layers - 1] = LayerKind::Full;
    Ok(kinds)
}

/// The heads of each layer. Layers of a kind have the same.
fn heads(
    file: &ConfigFile<'_>,
    config: &TextConfig,
    sizes: &CommonSizes,
    kinds: &[LayerKind],
) -> Result<Vec<Heads>> {
    let kv_heads = config.num_key_value_heads.unwrap_or(sizes.kv_heads);
    let width = config.head_dim.unwrap_or(256);
    let of_layer = |own: Option<&LayerConfig>| Heads {
        heads: config.num_attention_heads.unwrap_or(sizes.heads),
        kv_heads: own.and_then(|own| own.num_key_value_heads).unwrap_or(kv_heads),
        width: own.and_then(|own| own.head_dim).unwrap_or(width),
    };
    let mut heads = Vec::new();
    // A null is given, and is of no layer.
    match file.json.get("per_layer_config") {
        Some(_) => {
            let mut own = vec![None; kinds.len()];
            for (index, layer) in config.per_layer_config.iter().flatten() {
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
    file.check_sizes(&[("num_attention_heads", heads[0].heads.saturating_mul(LONGEST_HEAD))])?;
    Ok(heads)
}

/// The rotary positions of layers with a window, and of those without.
fn rotaries(
    file: &ConfigFile<'_>,
    context: usize,
    part: Option<f32>,
    kinds: &[LayerKind],
    heads: &[Heads],
) -> Result<[Option<Rotary>; 2]> {
    let rope: RopeConfig = file.parse()?;
    let mut rotaries = [None, None];
    for kind in LayerKind::ALL {
        let Some((_, heads)) = kinds.iter().zip(heads).find(|(other, _)| **other == kind) else { continue };
        let base = if kind == LayerKind::Full { 1_000_000.0 } else { 10_000.0 };
        let (head, style) = (heads.width, RopeStyle::Neox);
        let defaults = RopeDefaults { head, context, base, part: None, style, odd_parts: false };
        if rope.has_parameters() && !(rope.has(kind.name()) && rope.has_base(kind.name())) {
            let reason = format!("its rope_parameters give no rope_theta of layers with {}", kind.name());
            return Err(file.unsupported(reason));
        }
        let rotary = match part.filter(|_| kind == LayerKind::Full && !rope.has_parameters()) {
            Some(part) => RopeConfig::proportional(part).rotary(&defaults, None, &[]),
            None => rope.rotary(&defaults, Some(kind.name()), &[]),
        };
        rotaries[kind as usize] = Some(rotary.map_err(|reason| file.unsupported(reason))?);
    }
    Ok(rotaries)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
