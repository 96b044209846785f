//! The metadata of GGUF files.

use super::config::{EXPERTS, MOST_DELTA_HEADS, MOST_LAYERS, WIDEST_DELTA_HEAD};
use super::model::{Qwen35, TensorForm};
use crate::compute::{DeltaHeads, Heads, LONGEST_HEAD, LONGEST_SHORT_CONVOLUTION, RopeStyle, Rotary};
use crate::models::architectures::architecture::Architecture;
use crate::models::architectures::experts::{GGUF_KEYS, GGUF_SHARED_KEYS};
use crate::models::architectures::family::LARGEST_SIZE;
use crate::models::architectures::gguf_keys::Metadata;
use crate::models::formats::gguf::{Gguf, GgufValue};
use crate::{Error, Result};

/// Metadata of the architecture that is read.
const READ: &[&str] = &[
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "full_attention_interval",
    "nextn_predict_layers",
    "rope.dimension_count",
    // Frequencies of the three positions of a part of an image: those of a token of text are the same.
    "rope.dimension_sections",
    "rope.freq_base",
    "rope.scaling.type",
    "ssm.conv_kernel",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
];

/// Reads the metadata of a GGUF file. Its heads of values go through those of keys in turn, as llama.cpp's converter writes
/// them.
///
/// # Errors
/// [`Error::InvalidFile`] naming what is missing, [`Error::Unsupported`].
pub(super) fn from_gguf(gguf: &Gguf) -> Result<Box<dyn Architecture>> {
    let metadata = Metadata::of(gguf);
    let has_experts = metadata.architecture == "qwen35moe";
    let expert_keys = if has_experts { [GGUF_KEYS, GGUF_SHARED_KEYS] } else { [&[][..]; 2] };
    metadata.refuse_unknown(&[READ, expert_keys[0], expert_keys[1]])?;
    if metadata.flag("attention.causal") == Some(false) {
        return Err(metadata.unsupported("its attention is not causal"));
    }
    if let Some(kind) = metadata.text("rope.scaling.type").filter(|kind| *kind != "none") {
        return Err(metadata.unsupported(format!("its rotary scaling is {kind:?}; supported is none")));
    }
    if let Some(value) = gguf.get(&format!("{}.rope.dimension_sections", metadata.architecture))
        && !matches!(value, GgufValue::Array(_))
    {
        return Err(metadata.unsupported("its rope.dimension_sections is no list"));
    }
    let required = |name: &str| metadata.required(name);
    let (hidden, blocks, context) =
        (required("embedding_length")?, required("block_count")?, required("context_length")?);
    // The last blocks predict several tokens at once.
    let others = metadata.number("nextn_predict_layers").unwrap_or(0);
    let layers = blocks.saturating_sub(others);
    let words = "token_embd.weight";
    let vocabulary =
        gguf.shape(words).and_then(<[usize]>::first).copied().ok_or_else(|| {
            Error::invalid_file(metadata.path(), format!("the tensor {words:?} is missing"))
        })?;
    // Files with experts in all layers need not have it.
    let intermediate = match metadata.number("feed_forward_length") {
        None | Some(0) if has_experts => 1,
        _ => required("feed_forward_length")?,
    };
    let heads = Heads {
        heads: required("attention.head_count")?,
        kv_heads: required("attention.head_count_kv")?,
        width: required("attention.key_length")?,
    };
    let (values, inner) = (required("ssm.time_step_rank")?, required("ssm.inner_size")?);
    let delta = DeltaHeads {
        keys: required("ssm.group_count")?,
        values,
        key_width: required("ssm.state_size")?,
        value_width: inner / values.max(1),
        in_turn: true,
    };
    let (taps, interval) =
        (required("ssm.conv_kernel")?, metadata.number("full_attention_interval").unwrap_or(4));
    let rotated = metadata.number("rope.dimension_count").unwrap_or(heads.width);
    let (sizes, widths) =
        ([hidden, intermediate, context, vocabulary, interval], [delta.key_width, delta.value_width]);
    let sound = sizes.iter().all(|&size| size > 0 && size <= LARGEST_SIZE)
        && (1..=MOST_LAYERS).contains(&layers)
        && heads.kv_heads > 0
        && (1..=LARGEST_SIZE).contains(&heads.heads)
        && heads.heads.is_multiple_of(heads.kv_heads)
        && (2..=LONGEST_HEAD).contains(&heads.width)
        && heads.width.is_multiple_of(2)
        && metadata.number("attention.value_length").is_none_or(|width| width == heads.width)
        && rotated <= heads.width
        && rotated.is_multiple_of(2)
        && (1..=MOST_DELTA_HEADS).contains(&delta.values)
        && delta.keys > 0
        && delta.values.is_multiple_of(delta.keys)
        && widths.iter().all(|width| (1..=WIDEST_DELTA_HEAD).contains(width))
        && inner == delta.all_values()
        && (2..=LONGEST_SHORT_CONVOLUTION).contains(&taps);
    if !sound {
        return Err(metadata.unsupported(format!(
            "its sizes do not fit together: {heads:?} of which {rotated} numbers rotate, {delta:?} of {inner} numbers, states \
             of {hidden}, {layers} of {blocks} blocks, convolutions of {taps} rows"
        )));
    }
    for block in layers..blocks {
        gguf.pass_over(&format!("blk.{block}."));
    }
    let base = metadata.float("rope.freq_base").unwrap_or(10_000.0);
    let experts = has_experts.then(|| EXPERTS.of_gguf(&metadata, layers, intermediate)).transpose()?;
    Ok(Box::new(Qwen35 {
        hidden,
        intermediate,
        heads,
        vocabulary,
        context,
        epsilon: metadata.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
        tied: !gguf.contains("output.weight"),
        bias: gguf.contains(&format!("blk.{}.attn_q.bias", interval - 1)),
        rotary: Rotary::new(base, rotated, RopeStyle::Neox),
        attends: (1..=layers).map(|number| number.is_multiple_of(interval)).collect(),
        delta,
        taps,
        experts,
        form: TensorForm::Gguf,
    }))
}
