//! The metadata of GGUF files.

use super::config::{EXPERTS, MOST_LAYERS};
use super::model::{AttentionForm, Lfm2};
use crate::compute::{
    Heads, LONGEST_HEAD, LONGEST_SHORT_CONVOLUTION, LayerAttention, Mask, RopeStyle, Rotary,
};
use crate::models::architectures::architecture::Architecture;
use crate::models::architectures::experts::{GGUF_DENSE_KEYS, GGUF_KEYS};
use crate::models::architectures::family::LARGEST_SIZE;
use crate::models::architectures::gguf_keys::Metadata;
use crate::models::formats::gguf::Gguf;
use crate::{Error, Result};

/// Metadata of the architecture that is read.
const READ: &[&str] = &[
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "shortconv.l_cache",
];

/// Reads the metadata of a GGUF file. Layers without heads of keys have a convolution.
///
/// # Errors
/// [`Error::InvalidFile`] naming what is missing,
/// [`Error::Unsupported`].
pub(super) fn from_gguf(gguf: &Gguf) -> Result<Box<dyn Architecture>> {
    let metadata = Metadata::of(gguf);
    let has_experts = metadata.architecture == "lfm2moe";
    let expert_keys = if has_experts { [GGUF_KEYS, GGUF_DENSE_KEYS] } else { [&[][..]; 2] };
    metadata.refuse_unknown_but(&["attention.head_count_kv"], &[READ, expert_keys[0], expert_keys[1]])?;
    if metadata.flag("attention.causal") == Some(false) {
        return Err(metadata.unsupported("its attention is not causal, so it cannot write text"));
    }
    if let Some(kind) = metadata.text("rope.scaling.type").filter(|kind| *kind != "none") {
        return Err(metadata.unsupported(format!("its rotary scaling is {kind:?}; supported is none")));
    }
    let (hidden, heads) =
        (metadata.required("embedding_length")?, metadata.required("attention.head_count")?);
    let layers = metadata.required("block_count")?;
    let words = "token_embd.weight";
    let vocabulary =
        gguf.shape(words).and_then(<[usize]>::first).copied().ok_or_else(|| {
            Error::invalid_file(metadata.path(), format!("the tensor {words:?} is missing"))
        })?;
    let (intermediate, context) =
        (metadata.required("feed_forward_length")?, metadata.required("context_length")?);
    let taps = metadata.required("shortconv.l_cache")?;
    let sizes = [hidden, heads, intermediate, layers, context, vocabulary];
    let sound = sizes.iter().all(|&size| size > 0 && size <= LARGEST_SIZE)
        && layers <= MOST_LAYERS
        && (2..=LONGEST_SHORT_CONVOLUTION).contains(&taps)
        && hidden.is_multiple_of(2 * heads)
        && hidden / heads <= LONGEST_HEAD;
    if !sound {
        return Err(metadata.unsupported(format!(
            "its sizes do not fit together: {heads} heads, states of {hidden}, {layers} layers, a feed_forward_length of \
             {intermediate}, a context_length of {context}, a shortconv.l_cache of {taps} (2 to {LONGEST_SHORT_CONVOLUTION})"
        )));
    }
    let counts = metadata.numbers("attention.head_count_kv", layers)?;
    let kv_heads = counts.iter().copied().max().unwrap_or(0).max(1);
    if counts.iter().any(|&count| count != 0 && count != kv_heads) || !heads.is_multiple_of(kv_heads) {
        let reason =
            format!("its layers have {counts:?} heads of keys; supported is one divisor of {heads}, or 0");
        return Err(metadata.unsupported(reason));
    }
    let width = hidden / heads;
    let rotated = metadata.number("rope.dimension_count").unwrap_or(width);
    let base = metadata.float("rope.freq_base").unwrap_or(1_000_000.0);
    if rotated != width || !(base > 1.0 && base.is_finite()) {
        let reason =
            format!("it rotates {rotated} of {width} numbers of a head, from {base} on; supported are all");
        return Err(metadata.unsupported(reason));
    }
    let experts = has_experts.then(|| EXPERTS.of_gguf(&metadata, layers, intermediate)).transpose()?;
    Ok(Box::new(Lfm2 {
        hidden,
        intermediate,
        heads: Heads { heads, kv_heads, width },
        vocabulary,
        context,
        epsilon: metadata.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
        taps,
        conv_bias: has_bias(gguf, layers),
        conv_channels: false,
        tied: !gguf.contains("output.weight"),
        centered: false,
        attention: vec![LayerAttention::new(Mask::CAUSAL).with_rotary(Rotary::new(
            base,
            width,
            RopeStyle::Neox,
        ))],
        attends: counts.iter().map(|&count| count > 0).collect(),
        form: AttentionForm::LFM2,
        sandwich: false,
        experts,
    }))
}

/// Whether the convolutions have biases.
fn has_bias(gguf: &Gguf, layers: usize) -> bool {
    (0..layers).any(|layer| gguf.contains(&format!("blk.{layer}.shortconv.conv.bias")))
}
