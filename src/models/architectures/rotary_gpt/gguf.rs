//! The metadata of GGUF files.

use super::falcon;
use super::model::{GGUF, NormsOfHeads, QkvForm, RotaryGpt, RotaryGptVariant, TensorNames};
use crate::Result;
use crate::compute::{Activation, Heads, LONGEST_HEAD, LayerAttention, Mask, RopeStyle, Rotary};
use crate::models::architectures::architecture::Architecture;
use crate::models::architectures::family::{LARGEST_SIZE, is_size};
use crate::models::architectures::gguf_keys::Metadata;
use crate::models::formats::gguf::Gguf;

/// The window of the published StarCoder 2 models. Their files do not name it.
const STARCODER2_WINDOW: usize = 4096;

/// Metadata of the architecture that is read.
const READ: &[&str] = &[
    "attention.head_count_kv",
    "attention.layer_norm_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
];

/// Reads the metadata of a GGUF file.
///
/// # Errors
/// [`Error::InvalidFile`](crate::Error::InvalidFile) naming what is missing,
/// [`Error::Unsupported`](crate::Error::Unsupported).
pub(super) fn from_gguf(gguf: &Gguf) -> Result<Box<dyn Architecture>> {
    let metadata = Metadata::of(gguf);
    let own: &[&str] = match metadata.architecture {
        "gptneox" | "stablelm" => &["use_parallel_residual"],
        "starcoder2" => &["attention.sliding_window"],
        _ => &[],
    };
    metadata.refuse_unknown(&[READ, own])?;
    if metadata.flag("attention.causal") == Some(false) {
        return Err(metadata.unsupported("its attention is not causal, so it cannot write text"));
    }
    if let Some(kind) = metadata.text("rope.scaling.type").filter(|kind| *kind != "none") {
        return Err(metadata.unsupported(format!("its rotary scaling is {kind:?}; supported is none")));
    }
    let hidden = metadata.required("embedding_length")?;
    let heads = heads(&metadata, hidden)?;
    let names = if metadata.architecture == "falcon" { falcon::gguf_names(&metadata, heads)? } else { GGUF };
    let rotated = metadata.number("rope.dimension_count").unwrap_or(heads.width);
    if rotated > heads.width || !rotated.is_multiple_of(2) {
        return Err(metadata.unsupported(format!(
            "its rope.dimension_count is {rotated}; heads of {} have at most as many, in pairs",
            heads.width
        )));
    }
    let mut context = metadata.required("context_length")?;
    let mut mask = Mask::CAUSAL;
    if metadata.architecture == "starcoder2" {
        match metadata.number("attention.sliding_window").filter(|&window| window > 0) {
            Some(window) => mask = Mask::sliding(window),
            // Up to here, texts are the same with and without the window.
            None => context = context.min(STARCODER2_WINDOW),
        }
    }
    let vocabulary = gguf.shape("token_embd.weight").and_then(<[usize]>::first).copied().unwrap_or(0);
    let (intermediate, layers) =
        (metadata.required("feed_forward_length")?, metadata.required("block_count")?);
    let sizes = [
        ("embedding_length", hidden),
        ("feed_forward_length", intermediate),
        ("block_count", layers),
        ("context_length", context),
        ("number of tokens", vocabulary),
    ];
    if let Some((key, size)) = sizes.iter().find(|(_, size)| !is_size(*size)) {
        return Err(metadata.unsupported(format!("its {key} is {size}; it must be 1 to {LARGEST_SIZE}")));
    }
    let base = metadata.float("rope.freq_base").unwrap_or(10_000.0);
    if !(base > 1.0 && base.is_finite()) {
        return Err(metadata.unsupported(format!("its rope.freq_base is {base}; it must be above 1")));
    }
    Ok(Box::new(RotaryGpt {
        hidden,
        intermediate,
        layers,
        heads,
        vocabulary,
        context,
        epsilon: metadata.float("attention.layer_norm_epsilon").unwrap_or(1e-5),
        activation: match metadata.architecture {
            "stablelm" => Activation::Silu,
            "gptneox" | "falcon" => Activation::Gelu,
            _ => Activation::GeluTanh,
        },
        attention: LayerAttention::new(mask).with_rotary(Rotary::new(base, rotated, RopeStyle::Neox)),
        variant: variant(&metadata, names),
    }))
}

fn heads(metadata: &Metadata<'_>, hidden: usize) -> Result<Heads> {
    let heads = metadata.required("attention.head_count")?;
    let kv_heads = metadata.number("attention.head_count_kv").unwrap_or(heads);
    let fits = heads > 0 && kv_heads > 0 && hidden.is_multiple_of(heads) && heads.is_multiple_of(kv_heads);
    if fits && hidden / heads <= LONGEST_HEAD {
        return Ok(Heads { heads, kv_heads, width: hidden / heads });
    }
    Err(metadata.unsupported(format!(
        "its sizes do not fit together: {heads} query heads, {kv_heads} key heads, states of {hidden}"
    )))
}

/// Which tensors there are says how the model differs from others.
fn variant(metadata: &Metadata<'_>, names: TensorNames) -> RotaryGptVariant {
    let gguf = metadata.gguf;
    let has = |name: &str| gguf.contains(&format!("blk.0.{name}"));
    let shared_norm = !has(&format!("{}.weight", names.mlp_norm));
    RotaryGptVariant {
        names,
        qkv: if has("attn_qkv.weight") { QkvForm::Fused } else { QkvForm::Separate },
        qkv_bias: has("attn_qkv.bias") || has("attn_q.bias"),
        output_bias: has("attn_output.bias"),
        mlp_bias: has("ffn_up.bias"),
        head_bias: gguf.contains("output.bias"),
        gated: has("ffn_gate.weight"),
        // Converters write the flag of StableLM whatever the model is, so one norm for both blocks decides.
        parallel: match metadata.architecture {
            "falcon" => true,
            "gptneox" => shared_norm || metadata.flag("use_parallel_residual") != Some(false),
            _ => shared_norm,
        },
        shared_norm,
        head_norms: if has("attn_q_norm.weight") { NormsOfHeads::EachStacked } else { NormsOfHeads::None },
        tied: !gguf.contains("output.weight"),
    }
}
