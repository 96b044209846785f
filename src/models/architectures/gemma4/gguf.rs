//! The metadata of GGUF files.

use super::config::{LayerKind, MOST_LAYERS, share_keys};
use super::experts::ExpertShape;
use super::model::{Gemma4, LayerInputShape, LogitsHead, TokenTable};
use crate::compute::{Activation, Heads, LONGEST_HEAD, LayerAttention, Mask, RopeStyle, Rotary};
use crate::models::architectures::architecture::Architecture;
use crate::models::architectures::experts::{GGUF_KEYS, MOST_EXPERTS};
use crate::models::architectures::family::LARGEST_SIZE;
use crate::models::architectures::gguf_keys::Metadata;
use crate::models::formats::gguf::Gguf;
use crate::{Error, Result};

/// Metadata of the architecture that is read.
const READ: &[&str] = &[
    "attention.head_count_kv",
    "attention.key_length",
    "attention.key_length_swa",
    "attention.layer_norm_rms_epsilon",
    "attention.shared_kv_layers",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "attention.value_length_swa",
    "embedding_length_per_layer_input",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.dimension_count_swa",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.type",
];

/// Those that are numbers, or lists with one for each layer.
const LISTS: &[&str] = &["attention.head_count_kv", "feed_forward_length"];

/// Divisors of the frequencies of layers with full attention: those that do not rotate have a large one.
const DIVISORS: &str = "rope_freqs.weight";

/// Reads the metadata of a GGUF file.
///
/// # Errors
/// [`Error::InvalidFile`] naming what is missing, [`Error::Unsupported`].
pub(super) fn from_gguf(gguf: &Gguf) -> Result<Box<dyn Architecture>> {
    let metadata = Metadata::of(gguf);
    let has_experts = metadata.number("expert_count").is_some_and(|count| count > 0);
    metadata.refuse_unknown_but(LISTS, &[READ, if has_experts { GGUF_KEYS } else { &[] }])?;
    if metadata.flag("attention.causal") == Some(false) {
        return Err(metadata.unsupported("its attention is not causal, so it cannot write text"));
    }
    if let Some(kind) = metadata.text("rope.scaling.type").filter(|kind| *kind != "none") {
        return Err(metadata.unsupported(format!("its rotary scaling is {kind:?}; supported is none")));
    }
    let required = |name: &str| metadata.required(name);
    let (hidden, layers, context) =
        (required("embedding_length")?, required("block_count")?, required("context_length")?);
    if !(1..=MOST_LAYERS).contains(&layers) {
        return Err(
            metadata.unsupported(format!("its block_count is {layers}; it must be 1 to {MOST_LAYERS}"))
        );
    }
    let words = "token_embd.weight";
    let vocabulary =
        gguf.shape(words).and_then(<[usize]>::first).copied().ok_or_else(|| {
            Error::invalid_file(metadata.path(), format!("the tensor {words:?} is missing"))
        })?;
    let intermediate = metadata.numbers("feed_forward_length", layers)?;
    let kinds = kinds(&metadata, layers)?;
    let attention = attention(&metadata, &kinds)?;
    let sizes = intermediate.iter().chain([&hidden, &context, &vocabulary]);
    if sizes.copied().any(|size| size == 0 || size > LARGEST_SIZE) {
        return Err(metadata.unsupported(format!(
            "its sizes are 0 or too large: states of {hidden}, a context_length of {context}, {vocabulary} tokens, or its \
             feed_forward_length"
        )));
    }
    let cap = metadata.float("final_logit_softcapping").filter(|cap| *cap != 0.0);
    if let Some(cap) = cap.filter(|cap| *cap < 0.0) {
        return Err(metadata.unsupported(format!("its final_logit_softcapping is {cap}; it must be above 0")));
    }
    let value_tensor = |index: usize| gguf.contains(&format!("blk.{index}.attn_v.weight"));
    let keys_are_values = kinds.iter().enumerate().map(|(index, kind)| {
        *kind == LayerKind::Full && !attention[index].reuses_keys() && !value_tensor(index)
    });
    Ok(Box::new(Gemma4 {
        hidden,
        intermediate,
        vocabulary,
        context,
        epsilon: metadata.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
        activation: Activation::GeluTanh,
        bias: false,
        keys_are_values: keys_are_values.collect(),
        attention,
        input: layer_inputs(&metadata, layers)?,
        experts: if has_experts { Some(experts(&metadata, layers)?) } else { None },
        embedding: None,
        head: Some(LogitsHead { tied: !gguf.contains("output.weight"), cap }),
        placeholders: None,
        gguf: true,
    }))
}

/// The experts of each layer. All Gemma 4 models choose alike, so files need not say how; one that says otherwise is refused.
fn experts(metadata: &Metadata<'_>, layers: usize) -> Result<ExpertShape> {
    if let Some(other) = metadata.number("expert_gating_func").filter(|scores| *scores > 1) {
        return Err(
            metadata.unsupported(format!("its expert_gating_func is {other}; supported is 1 (softmax)"))
        );
    }
    if metadata.flag("expert_weights_norm") == Some(false) {
        return Err(metadata.unsupported("its expert_weights_norm is false; supported is true"));
    }
    // In llama.cpp, a scale of 0 is none.
    if let Some(other) = metadata.float("expert_weights_scale").filter(|scale| ![0.0, 1.0].contains(scale)) {
        return Err(metadata.unsupported(format!("its expert_weights_scale is {other}; supported is 1")));
    }
    let stored = |layer: usize| metadata.gguf.shape(&format!("blk.{layer}.ffn_down_exps.weight"));
    let wide = (0..layers).find_map(stored).filter(|shape| shape.len() == 3).map(|shape| shape[2]);
    let shape = ExpertShape {
        count: metadata.required("expert_count")?,
        used: metadata.required("expert_used_count")?,
        intermediate: match (metadata.number("expert_feed_forward_length"), wide) {
            (Some(known), _) | (None, Some(known)) => known,
            (None, None) => metadata.required("expert_feed_forward_length")?,
        },
    };
    let ExpertShape { count, used, intermediate } = shape;
    let sound = count <= MOST_EXPERTS && (1..=count).contains(&used);
    if sound && (1..=LARGEST_SIZE).contains(&intermediate) {
        return Ok(shape);
    }
    Err(metadata.unsupported(format!(
        "its experts do not fit together: {used} of {count} for each token (expert_used_count, expert_count), of \
         {intermediate} columns (expert_feed_forward_length)"
    )))
}

/// What layers have inputs of their own of, and how many tokens the table of those has.
fn layer_inputs(metadata: &Metadata<'_>, layers: usize) -> Result<Option<LayerInputShape>> {
    let table = "per_layer_token_embd.weight";
    let found = metadata.gguf.shape(table);
    match (metadata.number("embedding_length_per_layer_input").unwrap_or(0), found) {
        (0, None) => Ok(None),
        (width, Some(&[vocabulary, columns])) if width > 0 && Some(columns) == width.checked_mul(layers) => {
            let tokens = Some(TokenTable { vocabulary });
            Ok(Some(LayerInputShape { width, names: ["", ""], tokens }))
        }
        (width, found) => Err(metadata.unsupported(format!(
            "its embedding_length_per_layer_input is {width}, which {table} of {found:?} does not fit"
        ))),
    }
}

/// The kind of each layer.
fn kinds(metadata: &Metadata<'_>, layers: usize) -> Result<Vec<LayerKind>> {
    let flags = metadata.flags("attention.sliding_window_pattern").filter(|flags| flags.len() == layers);
    let flags = flags.ok_or_else(|| {
        metadata.unsupported(
            "its attention.sliding_window_pattern does not say of each layer whether it has a window",
        )
    })?;
    if flags.last() == Some(&true) {
        return Err(metadata.unsupported(
            "its attention.sliding_window_pattern gives the last layer a window; that of a Gemma 4 has none",
        ));
    }
    Ok(flags.iter().map(|&window| if window { LayerKind::Sliding } else { LayerKind::Full }).collect())
}

/// The attention of each layer.
fn attention(metadata: &Metadata<'_>, kinds: &[LayerKind]) -> Result<Vec<LayerAttention>> {
    let heads = metadata.required("attention.head_count")?;
    let kv_heads = metadata.numbers("attention.head_count_kv", kinds.len())?;
    let own_keys = kinds.len().saturating_sub(metadata.number("attention.shared_kv_layers").unwrap_or(0));
    let mut of_kinds = [None, None];
    for kind in LayerKind::ALL.into_iter().filter(|kind| kinds.contains(kind)) {
        let mut counts =
            kinds.iter().zip(&kv_heads).filter(|(other, _)| **other == kind).map(|(_, count)| *count);
        let count = counts.next().unwrap_or(0);
        let suffix = if kind == LayerKind::Full { "" } else { "_swa" };
        let width = metadata.required(&format!("attention.key_length{suffix}"))?;
        let sound = counts.all(|other| other == count)
            && count > 0
            && (1..=LARGEST_SIZE).contains(&heads)
            && heads.is_multiple_of(count)
            && (2..=LONGEST_HEAD).contains(&width)
            && width.is_multiple_of(2);
        let rotated = metadata.required(&format!("rope.dimension_count{suffix}"))?;
        if !sound
            || metadata.required(&format!("attention.value_length{suffix}"))? != width
            || rotated != width
        {
            return Err(metadata.unsupported(format!(
                "its layers with {} have {heads} heads with {kv_heads:?} of keys, {width} wide, of which {rotated} numbers \
                 rotate; all of them must, values must be as wide, and heads of keys must divide the others",
                kind.name()
            )));
        }
        let key = format!("rope.freq_base{suffix}");
        let base = metadata.float(&key).ok_or_else(|| {
            Error::invalid_file(metadata.path(), format!("the metadata gemma4.{key} is missing"))
        })?;
        let mut rotary = Rotary::new(base, width, RopeStyle::Neox);
        if kind == LayerKind::Full {
            divide(metadata, &mut rotary.frequencies)?;
        }
        let mask = match kind {
            LayerKind::Full => Mask::CAUSAL,
            LayerKind::Sliding => match metadata.required("attention.sliding_window")? {
                0 => {
                    return Err(
                        metadata.unsupported("its attention.sliding_window is 0, and layers have one")
                    );
                }
                window => Mask::sliding(window),
            },
        };
        let heads = Heads { heads, kv_heads: count, width };
        of_kinds[kind as usize] = Some(LayerAttention {
            heads: Some(heads),
            scale: Some(1.0),
            ..LayerAttention::new(mask).with_rotary(rotary)
        });
    }
    let mut attention: Vec<_> = kinds.iter().filter_map(|&kind| of_kinds[kind as usize].clone()).collect();
    share_keys(&mut attention, kinds, own_keys).map_err(|reason| metadata.unsupported(reason))?;
    Ok(attention)
}

/// Divides the frequencies of layers with full attention. Those of Gemma 4 rotate a part of each head.
fn divide(metadata: &Metadata<'_>, frequencies: &mut [f32]) -> Result<()> {
    let divisors = metadata.tensor(DIVISORS)?.ok_or_else(|| {
        let reason = format!("without the tensor {DIVISORS}, which part of a head rotates is not known");
        metadata.unsupported(reason)
    })?;
    let sound = divisors.len() == frequencies.len() && divisors.iter().all(|divisor| *divisor > 0.0);
    if !sound {
        return Err(metadata.unsupported(format!(
            "its {DIVISORS} has {} numbers for {} pairs of a head, or one that is not above 0",
            divisors.len(),
            frequencies.len()
        )));
    }
    frequencies.iter_mut().zip(divisors).for_each(|(frequency, divisor)| *frequency /= divisor);
    Ok(())
}
