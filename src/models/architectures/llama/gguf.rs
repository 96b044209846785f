//! The metadata of GGUF files.

use super::config::{Llama, Variant};
use crate::compute::{LONGEST_HEAD, Matrix, RopeStyle, Rotary};
use crate::models::architectures::transformer::Architecture;
use crate::models::formats::gguf::{Gguf, GgufValue};
use crate::{Error, Result};

/// What the metadata of a GGUF file says; `prefix` is its architecture.
///
/// # Errors
/// [`Error::InvalidFile`] naming what is missing, [`Error::Unsupported`].
pub(super) fn from_gguf(gguf: &Gguf, prefix: &str) -> Result<Box<dyn Architecture>> {
    let key = |name: &str| format!("{prefix}.{name}");
    let (hidden, heads) =
        (gguf.required(&key("embedding_length"))?, gguf.required(&key("attention.head_count"))?);
    let model = gguf.path().display().to_string();
    check_metadata(gguf, prefix)?;
    let head =
        gguf.number(&key("attention.key_length")).unwrap_or(hidden / heads.max(1)).min(LONGEST_HEAD + 1);
    let turned = gguf.number(&key("rope.dimension_count")).unwrap_or(head);
    let llama = prefix == "llama";
    let base = gguf.float(&key("rope.freq_base")).unwrap_or(10_000.0);
    let style = if llama { RopeStyle::Interleaved } else { RopeStyle::Neox };
    let mut rotary = Rotary::new(base, turned.min(head), style);
    match gguf.text(&key("rope.scaling.type")) {
        None | Some("none") => {}
        Some("linear") => {
            let factor = gguf.float(&key("rope.scaling.factor")).filter(|&x| x > 0.0).unwrap_or(1.0);
            rotary.frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
        }
        Some(other) => {
            let reason = format!("its rotary scaling is {other:?}; supported are none and linear");
            return Err(Error::Unsupported { model, reason });
        }
    }
    if gguf.contains("rope_freqs.weight")
        && let Matrix::Plain(factors) = gguf.matrix("rope_freqs.weight")?
    {
        for (frequency, factor) in rotary.frequencies.iter_mut().zip(factors.to_f32()?) {
            *frequency /= factor;
        }
    }
    let vocabulary = gguf.shape("token_embd.weight").and_then(<[usize]>::first).copied();
    let described = Llama {
        hidden,
        intermediate: gguf.required(&key("feed_forward_length"))?,
        layers: gguf.required(&key("block_count"))?,
        heads,
        kv_heads: gguf.number(&key("attention.head_count_kv")).unwrap_or(heads),
        head,
        vocabulary: vocabulary.unwrap_or(0),
        context: gguf.required(&key("context_length"))?,
        epsilon: gguf.float(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5),
        tied: !gguf.contains("output.weight"),
        rotary,
        causal: gguf.flag(&key("attention.causal")).unwrap_or(true),
        variant: Variant {
            qkv_bias: gguf.contains("blk.0.attn_q.bias"),
            output_bias: gguf.contains("blk.0.attn_output.bias"),
            mlp_bias: gguf.contains("blk.0.ffn_up.bias"),
            head_norms: gguf.contains("blk.0.attn_q_norm.weight"),
        },
    };
    described.check(&model)?;
    Ok(Box::new(described))
}

/// Metadata of the architecture that is read, here or for pooling.
const READ: [&str; 17] = [
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.causal",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "pooling_type",
    // Of other kinds of scaling, which are refused by their type.
    "rope.scaling.original_context_length",
    // The tensors say it.
    "vocab_size",
    // A note of the first converters.
    "tensor_data_layout",
];

/// Metadata of the architecture whose one supported value changes nothing.
fn is_neutral(gguf: &Gguf, prefix: &str, name: &str) -> bool {
    let key = format!("{prefix}.{name}");
    match gguf.get(&key) {
        Some(GgufValue::Bool(false)) => true,
        Some(GgufValue::Integer(0)) => {
            matches!(name, "expert_count" | "expert_used_count" | "attention.sliding_window")
        }
        Some(GgufValue::Integer(n)) if name == "attention.value_length" => {
            let head = gguf.number(&format!("{prefix}.attention.key_length"));
            let heads = gguf.number(&format!("{prefix}.attention.head_count")).unwrap_or(0).max(1);
            let hidden = gguf.number(&format!("{prefix}.embedding_length")).unwrap_or(0);
            i128::try_from(head.unwrap_or(hidden / heads)) == Ok(*n)
        }
        // What scales by one does not scale.
        Some(GgufValue::Float(x)) if name.starts_with("rope.scal") => *x == 1.0,
        Some(GgufValue::Bool(_)) => name == "rope.scaling.finetuned",
        _ => false,
    }
}

/// Refuses metadata of the architecture that nothing here reads.
fn check_metadata(gguf: &Gguf, prefix: &str) -> Result<()> {
    let own = |key: &'_ str| key.strip_prefix(prefix)?.strip_prefix('.').map(str::to_owned);
    let mut names: Vec<String> = gguf.keys().filter_map(own).collect();
    names.sort_unstable();
    let unknown = names.iter().find(|name| !READ.contains(&name.as_str()) && !is_neutral(gguf, prefix, name));
    if let Some(name) = unknown {
        return Err(Error::Unsupported {
            model: gguf.path().display().to_string(),
            reason: format!(
                "its metadata has {prefix}.{name}, which this package does not know and which may change results; \
                 choose another file of the model"
            ),
        });
    }
    let key = format!("{prefix}.attention.head_count_kv");
    if gguf.get(&key).is_some() && gguf.number(&key).is_none() {
        return Err(Error::Unsupported {
            model: gguf.path().display().to_string(),
            reason: format!("its {key} is not one number: layers of different shapes are not supported"),
        });
    }
    Ok(())
}
