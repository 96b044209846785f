//! The metadata of GGUF files.

use super::dialect::{Dialect, ScalingRule, UnrotatedFull, UnsaidWindow, Windows};
use super::mixtures::DIALECTS;
use super::model::{HeadNorms, Llama, NormNames, Variant};
use super::parts::{CLAMPED, NormForm, XieluNumbers, xielu};
use crate::Result;
use crate::compute::{Activation, ClampedSwish, LONGEST_HEAD, LayerAttention, Mask, QueryGrowth, Rotary};
use crate::models::architectures::architecture::{Architecture, Factors};
use crate::models::architectures::experts::{ExpertDefaults, GGUF_KEYS, GGUF_SHARED_KEYS};
use crate::models::architectures::gguf_keys::Metadata;
use crate::models::architectures::rope_scaling::{RopeScaling, Yarn};
use crate::models::formats::gguf::{Gguf, GgufValue};

/// Metadata of the architecture that is read.
const READ: &[&str] = &[
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
];
/// And by families with windows.
const WINDOWED: &[&str] = &["attention.sliding_window"];

/// And by encoders: the tensors of their Dense modules say these sizes too.
const DENSE: &[&str] = &["dense_2_feat_in", "dense_2_feat_out", "dense_3_feat_in", "dense_3_feat_out"];

/// Reads the metadata of a GGUF file.
///
/// # Errors
/// [`Error::InvalidFile`](crate::Error::InvalidFile) naming what is missing,
/// [`Error::Unsupported`](crate::Error::Unsupported).
pub(super) fn from_gguf(gguf: &Gguf) -> Result<Box<dyn Architecture>> {
    let metadata = Metadata::of(gguf);
    let own = |dialect: &Dialect| dialect.gguf.iter().find(|own| own.architecture == metadata.architecture);
    let found = DIALECTS.iter().find_map(|dialect| Some((dialect, own(dialect)?)));
    let Some((mut dialect, family)) = found else { return Err(metadata.unsupported("it is of no family")) };
    // Of two families whose files have one name.
    let marked =
        dialect.gguf_marked.filter(|(mark, _)| metadata.number(mark).is_some_and(|number| number > 0));
    if let Some((_, model_type)) = marked {
        dialect = DIALECTS.iter().find(|other| other.model_type == model_type).unwrap_or(dialect);
    }
    let windowed = match dialect.windows {
        Windows::Always | Windows::AllBut(_) => WINDOWED,
        _ => &[],
    };
    let dense = if family.generates { &[] } else { DENSE };
    // Files of a Llama may have experts: those of Mixtral.
    let counted = dialect.experts.is_some() || metadata.number("expert_count").is_some_and(|count| count > 0);
    let experts = dialect.gguf_experts.filter(|_| counted && family.generates);
    let expert_keys: [&[&str]; 2] = match experts {
        Some(ExpertDefaults { shared: Some(_), .. }) => [GGUF_KEYS, GGUF_SHARED_KEYS],
        Some(_) => [GGUF_KEYS, &[]],
        None => [&[], &[]],
    };
    metadata.refuse_unknown_but(
        &["attention.head_count_kv"],
        &[READ, windowed, dialect.gguf_keys, dense, expert_keys[0], expert_keys[1]],
    )?;
    let (hidden, heads) =
        (metadata.required("embedding_length")?, metadata.required("attention.head_count")?);
    let head = metadata.number("attention.key_length").unwrap_or(hidden / heads.max(1)).min(LONGEST_HEAD + 1);
    let vocabulary = gguf.shape("token_embd.weight").and_then(<[usize]>::first).copied();
    let one = Factors::default();
    let mut llama = Llama {
        hidden,
        intermediate: intermediate(&metadata, dialect)?,
        layers: metadata.required("block_count")?,
        heads,
        kv_heads: kv_heads(&metadata)?.unwrap_or(heads),
        head,
        vocabulary: vocabulary.unwrap_or(0),
        context: metadata.required("context_length")?,
        epsilon: metadata.float(epsilon_key(dialect)).unwrap_or(1e-5),
        tied: !gguf.contains("output.weight"),
        activation: match dialect.activation {
            _ if dialect.gemma => Activation::GeluTanh,
            "relu2" => Activation::ReluSquared,
            // Each layer has numbers of its own for it.
            "xielu" => Activation::Identity,
            CLAMPED => Activation::ClampedSwish(ClampedSwish { steepness: 1.702, limit: 7.0 }),
            _ => Activation::Silu,
        },
        xielu: if dialect.activation == "xielu" { Some(xielu_numbers(&metadata)?) } else { None },
        factors: Factors {
            embedding: if dialect.gemma {
                (hidden as f32).sqrt()
            } else {
                metadata.float("embedding_scale").unwrap_or(one.embedding)
            },
            residual: metadata.float("residual_scale").unwrap_or(one.residual),
            logits: match (dialect.logit_scale, metadata.float("logit_scale")) {
                (Some(_), Some(scale)) => scale,
                (Some(_), None) => return Err(metadata.unsupported("its metadata has no logit_scale")),
                (None, scale) => 1.0 / scale.unwrap_or(1.0),
            },
            logits_cap: metadata.float("final_logit_softcapping").or(dialect.caps.map(|caps| caps[1])),
        },
        attention: Vec::new(),
        variant: variant(&metadata, head, dialect)?,
        experts: None,
    };
    llama.check(&metadata.model())?;
    let experts = experts.map(|own| own.of_gguf(&metadata, llama.layers, llama.intermediate));
    llama.experts = experts.transpose()?;
    let causal = metadata.flag("attention.causal").unwrap_or(family.generates);
    llama.attention = attention(&metadata, &llama, dialect, causal)?;
    Ok(Box::new(llama))
}

/// The length of the perceptron's gate. Granite 4 has that of its shared expert, which is its perceptron.
fn intermediate(metadata: &Metadata<'_>, dialect: &Dialect) -> Result<usize> {
    let key = "expert_shared_feed_forward_length";
    let shared = metadata.number(key).filter(|_| dialect.gguf_keys.contains(&key));
    shared.map_or_else(|| metadata.required("feed_forward_length"), Ok)
}

/// The heads of keys, as a number, or as a list that has the same one for each layer.
fn kv_heads(metadata: &Metadata<'_>) -> Result<Option<usize>> {
    let key = "attention.head_count_kv";
    let heads = match metadata.gguf.get(&format!("{}.{key}", metadata.architecture)) {
        None => return Ok(None),
        Some(GgufValue::Array(_)) => {
            let layers = metadata.numbers(key, metadata.required("block_count")?)?;
            layers.first().copied().filter(|first| layers.iter().all(|heads| heads == first))
        }
        Some(_) => metadata.number(key),
    };
    let reason = || format!("its {key} is no number: layers of different shapes are not supported");
    heads.map(Some).ok_or_else(|| metadata.unsupported(reason()))
}

fn epsilon_key(dialect: &Dialect) -> &'static str {
    match dialect.variant.norm_form {
        NormForm::Rms => "attention.layer_norm_rms_epsilon",
        NormForm::Layer | NormForm::Unshifted => "attention.layer_norm_epsilon",
    }
}

/// The numbers of each layer's activation, which lie outside of the architecture's metadata.
fn xielu_numbers(metadata: &Metadata<'_>) -> Result<XieluNumbers> {
    let layers = metadata.required("block_count")?;
    let list = |name: &str| {
        let number = |value: &GgufValue| match value {
            GgufValue::Float(number) => Some(*number as f32),
            GgufValue::Integer(number) => Some(*number as f32),
            _ => None,
        };
        let found =
            metadata.gguf.understood(&format!("xielu.{name}"), "a list of numbers", |value| match value {
                GgufValue::Array(values) => values.iter().map(number).collect::<Option<Vec<f32>>>(),
                _ => None,
            });
        found.filter(|list| list.len() == layers).ok_or_else(|| {
            metadata.unsupported(format!("its metadata has no xielu.{name} with a number for each layer"))
        })
    };
    let (positive, negative) = (list("alpha_p")?, list("alpha_n")?);
    let (slope, cut) = (list("beta")?, list("eps")?);
    let of = |index: usize| xielu(positive[index], negative[index], slope[index], cut[index]);
    let numbers = (0..layers).map(of).collect::<Result<_, _>>();
    numbers.map(XieluNumbers::Known).map_err(|reason| metadata.unsupported(reason))
}

/// Which tensors there are says how the model differs from Llama.
fn variant(metadata: &Metadata<'_>, head: usize, dialect: &Dialect) -> Result<Variant> {
    let gguf = metadata.gguf;
    let has = |name: &str| gguf.contains(&format!("blk.0.{name}"));
    let norm = |name: &'static str| has(&format!("{name}.weight")).then_some(name);
    let head_norms = match gguf.shape("blk.0.attn_q_norm.weight") {
        None => HeadNorms::None,
        Some(shape) if shape == [head] => HeadNorms::Each,
        Some([_, _]) => HeadNorms::Own,
        Some(_) => HeadNorms::All,
    };
    let Variant { norm_form, rotates_first, gated, parallel, .. } = dialect.variant;
    if !gated && has("ffn_gate.weight") {
        return Err(
            metadata.unsupported("its perceptron has a gate (ffn_gate), and those of its family have none")
        );
    }
    let first = dialect.gguf_mlp_norm == "post_attention_norm";
    Ok(Variant {
        qkv_bias: has("attn_q.bias") || has("attn_qkv.bias"),
        output_bias: has("attn_output.bias"),
        mlp_bias: has("ffn_up.bias"),
        head_norms,
        norms: NormNames {
            attention: norm("attn_norm"),
            output: norm("post_attention_norm").filter(|_| !first),
            mlp: norm(dialect.gguf_mlp_norm),
            down: norm("post_ffw_norm"),
        },
        norm_form,
        rotates_first,
        sinks: dialect.variant.sinks,
        gated,
        parallel,
        // Converters have added it already.
        norm_offset: 0.0,
        fused_qkv: has("attn_qkv.weight"),
        fused_mlp: gated && has("ffn_up.weight") && !has("ffn_gate.weight"),
        ..Variant::LLAMA
    })
}

fn attention(
    metadata: &Metadata<'_>,
    llama: &Llama,
    dialect: &Dialect,
    causal: bool,
) -> Result<Vec<LayerAttention>> {
    let full = rotary(metadata, llama, dialect)?;
    // Layers with a window that have a base of their own have no scaling.
    let local = dialect.local_base.map(|base| {
        let one = metadata.float("rope.freq_base").filter(|_| dialect.gguf_one_base);
        metadata.float("rope.freq_base_swa").or(one).unwrap_or(base)
    });
    let local = local.map(|base| Rotary::new(base, llama.head, dialect.styles[1]));
    let local = local.unwrap_or_else(|| full.clone());
    let unsaid = match dialect.unsaid_window {
        UnsaidWindow::Never => false,
        UnsaidWindow::OfLayers(layers) => layers == llama.layers,
        UnsaidWindow::Always => true,
    };
    let size = metadata.number("attention.sliding_window").or(dialect.window.filter(|_| unsaid));
    let size = size.filter(|&size| size > 0);
    let period = metadata.number("attention.sliding_window_pattern");
    let flags = metadata.flags("attention.sliding_window_pattern");
    if flags.as_ref().is_some_and(|flags| flags.len() != llama.layers) {
        return Err(metadata.unsupported("its attention.sliding_window_pattern does not name all layers"));
    }
    let window = |index: usize| match (dialect.windows, &flags) {
        (Windows::Always, _) => size,
        (Windows::AllBut(_), Some(flags)) => size.filter(|_| flags[index]),
        (Windows::AllBut(own), None) => {
            let period = period.unwrap_or(own);
            size.filter(|_| period == 0 || !(index + 1).is_multiple_of(period))
        }
        _ => None,
    };
    let scale = if dialect.unsaid_scale == Some(llama.layers) {
        Some(((llama.hidden / llama.heads) as f32).sqrt().recip())
    } else {
        metadata.float("attention.scale").filter(|scale| *scale != 0.0)
    };
    let soft_cap = metadata.float("attn_logit_softcapping").or(dialect.caps.map(|caps| caps[0]));
    let layer = |index: usize| {
        let mask = match (causal, window(index)) {
            (true, None) => Mask::CAUSAL,
            (true, Some(tokens)) => Mask::sliding(tokens),
            (false, None) => Mask::FULL,
            (false, Some(tokens)) => Mask::local(tokens / 2),
        };
        let rotated = match dialect.windows {
            Windows::Unrotated => !(index + 1).is_multiple_of(4),
            _ => match dialect.unrotated_full {
                UnrotatedFull::Never => true,
                UnrotatedFull::WithWindows => size.is_none() || window(index).is_some(),
                UnrotatedFull::Always => window(index).is_some(),
            },
        };
        let off = dialect.gguf_switched && metadata.flag("rope.scaling.finetuned") == Some(false);
        let rotated = rotated && !off;
        let rotary = if window(index).is_some() { &local } else { &full };
        LayerAttention {
            scale,
            soft_cap,
            rotary: rotated.then(|| rotary.clone()),
            ..LayerAttention::new(mask)
        }
    };
    let mut layers: Vec<_> = (0..llama.layers).map(layer).collect();
    if layers.iter().all(|layer| *layer == layers[0]) {
        layers.truncate(1);
    }
    Ok(layers)
}

fn rotary(metadata: &Metadata<'_>, llama: &Llama, dialect: &Dialect) -> Result<Rotary> {
    let width = metadata.number("rope.dimension_count").unwrap_or(llama.head).min(llama.head) / 2 * 2;
    let base = metadata.float("rope.freq_base").unwrap_or(10_000.0);
    let original = metadata.number("rope.scaling.original_context_length").unwrap_or(llama.context).max(1);
    let factor = metadata.float("rope.scaling.factor").filter(|&factor| factor > 0.0);
    let long = metadata.tensor("rope_factors_long.weight")?;
    let long = long.zip(metadata.tensor("rope_factors_short.weight")?);
    let scaling = match (long, metadata.text("rope.scaling.type"), factor) {
        (Some((long, short)), ..) => RopeScaling::LongRope {
            short,
            long,
            original,
            attention: metadata.float("rope.scaling.attn_factor").unwrap_or(1.0),
        },
        (None, None | Some("none"), _) | (None, Some("linear"), None) => RopeScaling::None,
        (None, Some("linear"), Some(factor)) => RopeScaling::Linear { factor },
        (None, Some("yarn"), Some(factor)) => RopeScaling::Yarn(Yarn {
            factor,
            original: original as f32,
            fast: metadata.float("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
            slow: metadata.float("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
            // The converter does not write it.
            truncate: dialect.scaling != ScalingRule::Untruncated,
            // Ministral 3 divides the growth away again.
            attention: match metadata
                .float("rope.scaling.attn_factor")
                .or(metadata.float("rope.scaling.yarn_attn_factor"))
            {
                Some(attention) => attention,
                None if dialect.scaling == ScalingRule::Growing => 1.0,
                None => Yarn::growth(factor, 1.0),
            },
        }),
        (_, Some(other), _) => {
            return Err(metadata.unsupported(format!(
                "its rotary scaling is {other:?} without what belongs to it; supported are none, linear and yarn with a \
                 factor, and longrope with tensors of factors"
            )));
        }
    };
    let style = dialect.styles[1];
    let mut rotary =
        scaling.rotary(base, llama.head, width, style).map_err(|reason| metadata.unsupported(reason))?;
    if let Some(factors) = metadata.tensor("rope_freqs.weight")? {
        if factors.len() != rotary.frequencies.len() {
            return Err(metadata.unsupported("its rope_freqs.weight does not fit its heads"));
        }
        rotary.frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
    }
    if let Some(rate) = metadata.float("attention.temperature_scale").filter(|rate| *rate != 0.0) {
        rotary.query_growth = Some(QueryGrowth { rate, length: original });
    }
    Ok(rotary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::formats::gguf::tests::{Writer, f32s};

    /// The attention of the layers of a model of four heads of eight, whose states have 64 elements.
    fn layers(architecture: &str, layers: u32) -> Vec<LayerAttention> {
        let mut writer = Writer::default().text("general.architecture", architecture);
        for (key, number) in [
            ("block_count", layers),
            ("embedding_length", 64),
            ("feed_forward_length", 64),
            ("context_length", 64),
            ("attention.head_count", 4),
            ("attention.key_length", 8),
        ] {
            writer = writer.number(&format!("{architecture}.{key}"), number);
        }
        let (_folder, path) = writer.tensor("token_embd.weight", &[2, 64], 0, &f32s(&[0.0; 128])).write();
        from_gguf(&Gguf::open(&path).unwrap()).unwrap().describe().attention
    }

    #[test]
    fn models_whose_files_leave_something_out_are_known_by_their_layers() {
        for (architecture, largest) in [("gemma2", 46), ("gemma3", 62)] {
            assert_eq!(layers(architecture, largest)[0].scale, Some(0.25), "{architecture}");
            assert_eq!(layers(architecture, largest - 1)[0].scale, None, "{architecture}");
        }
        let [exaone, smaller] = [64, 32].map(|count| layers("exaone4", count));
        assert_eq!((exaone.len(), smaller.len()), (64, 1));
        assert_eq!((exaone[0].mask, exaone[3].mask), (Mask::sliding(4096), Mask::CAUSAL));
        assert!(exaone[0].rotary.is_some() && exaone[3].rotary.is_none());
        assert!(smaller[0].mask == Mask::CAUSAL && smaller[0].rotary.is_some());
    }
}
