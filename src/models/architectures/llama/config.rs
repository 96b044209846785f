//! `config.json` as transformers writes it, before and since version 5.

use super::dialect::{Dialect, ScalingRule, UnrotatedFull, Windows};
use super::fields::{DialectConfig, LlamaConfig, Pattern};
use super::mixtures::DIALECTS;
use super::model::{HeadNorms, Llama, Variant};
use super::parts::{CLAMPED, NormForm, XieluNumbers};
use crate::compute::{Activation, ClampedSwish, LONGEST_HEAD, LayerAttention, Mask, Rotary};
use crate::models::architectures::architecture::{Architecture, Factors};
use crate::models::architectures::experts::ExpertConfig;
use crate::models::architectures::family::ConfigFile;
use crate::models::architectures::rope_scaling::{RopeConfig, RopeDefaults, check_part};
use crate::{Error, Result};
use serde_json::Value;

pub(super) fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let model_type = file.json["model_type"].as_str().unwrap_or_default();
    let dialect = DIALECTS.iter().find(|dialect| dialect.model_type == model_type);
    let dialect = dialect.ok_or_else(|| file.unsupported(format!("its model_type is {model_type:?}")))?;
    check_fixed(file, dialect)?;
    if dialect.part.is_some_and(|part| part != 1.0) {
        check_part(file)?;
    }
    Ok(Box::new(ConfigParts::parse(file, dialect)?.llama(file.model, dialect)?))
}

/// Checks the keys of which one value is computed.
fn check_fixed(file: &ConfigFile<'_>, dialect: &Dialect) -> Result<()> {
    for key in dialect.fixed {
        let (found, value) = (&file.json[key.name], serde_json::from_str::<Value>(key.value));
        // 1 and 1.0 are the same number.
        let same = match (found.as_f64(), value.as_ref().ok().and_then(Value::as_f64)) {
            (Some(one), Some(other)) => one == other,
            _ => value.is_ok_and(|value| *found == value),
        };
        if !same && (key.required || !found.is_null()) {
            return Err(file.refuse(key.name, key.value));
        }
    }
    Ok(())
}

/// Keys of `rope_parameters` where queries grow; the second repeats a number of the file.
const GROWTH: [&str; 2] = ["llama_4_scaling_beta", "max_position_embeddings"];

/// A `config.json`.
struct ConfigParts {
    common: LlamaConfig,
    own: DialectConfig,
    rope: RopeConfig,
    /// Of families that may have experts.
    experts: Option<ExpertConfig>,
}

impl ConfigParts {
    fn parse(file: &ConfigFile<'_>, dialect: &Dialect) -> Result<Self> {
        let (common, own) = (file.parse()?, file.parse()?);
        let experts = dialect.experts.map(|_| file.parse()).transpose()?;
        Ok(Self { common, own, rope: file.parse()?, experts })
    }

    /// Checks the configuration of `model` and brings it into the common form.
    fn llama(&self, model: &str, dialect: &Dialect) -> Result<Llama> {
        let unsupported = |reason: String| Error::Unsupported { model: model.into(), reason };
        let all = self.own.use_bias.unwrap_or(false);
        let bias = self.own.attention_bias.unwrap_or(dialect.attention_bias) || all;
        if let Some(clip) = self.own.clip_qkv {
            return Err(unsupported(format!("its clip_qkv is {clip}; supported is null")));
        }
        self.check_repeated().map_err(unsupported)?;
        let (layers, mut intermediate) = (self.common.num_hidden_layers, self.common.intermediate_size);
        if let Some(own) = dialect.shared_mlp {
            intermediate = self.own.shared_intermediate_size.unwrap_or(own);
        }
        let own_epsilon = match dialect.variant.norm_form {
            NormForm::Rms => self.common.rms_norm_eps,
            NormForm::Layer | NormForm::Unshifted => self.own.layer_norm_eps.or(self.own.norm_eps),
        };
        let xielu = self.common.hidden_act.as_deref().unwrap_or(dialect.activation) == "xielu";
        let mut llama = Llama {
            hidden: self.common.hidden_size,
            intermediate,
            layers,
            heads: self.common.num_attention_heads,
            kv_heads: (self.common.num_key_value_heads.or(dialect.kv_heads))
                .unwrap_or(self.common.num_attention_heads),
            head: self.head(dialect).map_err(unsupported)?,
            vocabulary: self.common.vocab_size,
            context: self.common.max_position_embeddings,
            epsilon: own_epsilon.unwrap_or(dialect.epsilon),
            tied: self.common.tie_word_embeddings.unwrap_or(dialect.tied),
            activation: self.activation(dialect).map_err(unsupported)?,
            xielu: xielu.then_some(XieluNumbers::Tensors),
            factors: self.factors(dialect).map_err(unsupported)?,
            attention: Vec::new(),
            variant: Variant {
                qkv_bias: self.own.qkv_bias.unwrap_or(dialect.variant.qkv_bias) || bias,
                output_bias: self.own.attention_out_bias.unwrap_or(dialect.output_bias && bias),
                mlp_bias: self.own.mlp_bias || all,
                head_norms: match dialect.variant.head_norms {
                    HeadNorms::None if self.own.use_qk_norm => HeadNorms::Own,
                    own => own,
                },
                ..dialect.variant
            },
            experts: None,
        };
        llama.check(model)?;
        let experts = dialect.experts.zip(self.experts.as_ref());
        let experts = experts.map(|(own, said)| own.of_config(said, layers, intermediate));
        llama.experts = experts.transpose().map_err(unsupported)?;
        llama.attention = self.attention(&llama, dialect).map_err(unsupported)?;
        Ok(llama)
    }

    /// Checks keys that repeat what others say, or say how tensors are stored.
    fn check_repeated(&self) -> Result<(), String> {
        let used = self.experts.as_ref().and_then(|experts| experts.num_experts_per_tok);
        if let (Some(one), Some(other)) = (self.own.experts_per_token, used)
            && one != other
        {
            return Err(format!("its experts_per_token is {one} and its num_experts_per_tok is {other}"));
        }
        match self.own.quantization_config.as_ref().map(|config| &config["quant_method"]) {
            Some(method) if method != "mxfp4" => Err(format!(
                "its quantization_config has the quant_method {method}; supported is \"mxfp4\", so choose the model as it was \
                     published, or a GGUF file"
            )),
            _ => Ok(()),
        }
    }

    /// The length of a head.
    fn head(&self, dialect: &Dialect) -> Result<usize, String> {
        let divided = self.common.hidden_size / self.common.num_attention_heads.max(1);
        match self.common.head_dim {
            Some(Some(head)) if dialect.whole_heads && head != divided => {
                Err(format!("its head_dim is {head}; supported is {divided}: its heads divide a state"))
            }
            Some(Some(head)) => Ok(head),
            Some(None) if dialect.null_head => Ok(divided),
            _ if dialect.head == 0 => Ok(divided),
            _ => Ok(dialect.head),
        }
    }

    fn activation(&self, dialect: &Dialect) -> Result<Activation, String> {
        if dialect.gemma {
            return match self.own.hidden_activation.as_deref().or(self.common.hidden_act.as_deref()) {
                None | Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
                Some("gelu") if dialect.gelu_is_tanh => Ok(Activation::GeluTanh),
                Some("gelu") => Ok(Activation::Gelu),
                Some(other) => Err(format!(
                    "its hidden_activation is {other:?}; supported are gelu_pytorch_tanh and gelu"
                )),
            };
        }
        if dialect.activation == CLAMPED {
            let numbers = [self.own.swiglu_alpha.unwrap_or(1.702), self.own.swiglu_limit.unwrap_or(7.0)];
            let [steepness, limit] = numbers;
            if numbers.iter().any(|number| !(number.is_finite() && *number > 0.0)) {
                return Err(format!(
                    "its swiglu_alpha is {steepness} and its swiglu_limit {limit}; both must be above 0"
                ));
            }
            return Ok(Activation::ClampedSwish(ClampedSwish { steepness, limit }));
        }
        match self.common.hidden_act.as_deref().unwrap_or(dialect.activation) {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            "relu2" => Ok(Activation::ReluSquared),
            // Each layer has numbers of its own for it.
            "xielu" if dialect.activation == "xielu" => Ok(Activation::Identity),
            other => Err(format!(
                "its hidden_act is {other:?}; supported are silu, gelu, gelu_pytorch_tanh, relu and relu2"
            )),
        }
    }

    fn factors(&self, dialect: &Dialect) -> Result<Factors, String> {
        let one = Factors::default();
        let factors = Factors {
            embedding: if dialect.gemma {
                (self.common.hidden_size as f32).sqrt()
            } else {
                self.own.embedding_multiplier.unwrap_or(one.embedding)
            },
            residual: self.own.residual_multiplier.unwrap_or(one.residual),
            logits: match dialect.logit_scale {
                Some(own) => self.own.logit_scale.unwrap_or(own),
                None => 1.0 / self.own.logits_scaling.unwrap_or(1.0),
            },
            logits_cap: self.own.final_logit_softcapping.unwrap_or(dialect.caps.map(|caps| caps[1])),
        };
        let numbers =
            [factors.embedding, factors.residual, factors.logits, factors.logits_cap.unwrap_or(1.0)];
        if numbers.iter().all(|x| x.is_finite()) && numbers[3] > 0.0 {
            return Ok(factors);
        }
        Err("one of its factors (…_multiplier, logits_scaling, …_softcapping) is not a positive number"
            .into())
    }

    fn is_causal(&self, dialect: &Dialect) -> Result<bool, String> {
        match (self.common.is_causal, self.common.use_bidirectional_attention) {
            (Some(true), _) if !dialect.causal => {
                Err("its is_causal is true, and models of its family attend in both directions".into())
            }
            (Some(true), Some(true)) | (Some(false), Some(false)) => Err(
                "its config.json contradicts itself: is_causal and use_bidirectional_attention have the same value; remove \
                 the wrong one"
                    .into(),
            ),
            (is_causal, bidirectional) => Ok(is_causal.unwrap_or(dialect.causal) && !bidirectional.unwrap_or(false)),
        }
    }

    /// The attention of every layer, or one for all.
    fn attention(&self, llama: &Llama, dialect: &Dialect) -> Result<Vec<LayerAttention>, String> {
        let causal = self.is_causal(dialect)?;
        let [full, local] = self.rotaries(llama, dialect)?;
        let scale = match self.own.query_pre_attn_scalar.or(dialect.query_scalar) {
            Some(scalar) if scalar > 0.0 => Some(1.0 / scalar.sqrt()),
            Some(scalar) => return Err(format!("its query_pre_attn_scalar is {scalar}; it must be above 0")),
            None => self.own.attention_multiplier.or(dialect.multiplier),
        };
        // Gemma 3 has the key and does not use it.
        let soft_cap = dialect.caps.and_then(|[own, _]| self.own.attn_logit_softcapping.unwrap_or(Some(own)));
        if let Some(cap) = soft_cap.filter(|cap| *cap <= 0.0 || !cap.is_finite()) {
            return Err(format!("its attn_logit_softcapping is {cap}; it must be above 0"));
        }
        let layer = |index: usize| {
            let window = self.window(index, llama.layers, dialect)?;
            let mask = match (causal, window) {
                (true, None) => Mask::CAUSAL,
                (true, Some(tokens)) => Mask::sliding(tokens),
                (false, None) => Mask::FULL,
                // No text is longer.
                (false, Some(tokens)) if tokens >= llama.context => Mask::FULL,
                // Half of the window on each side, where this key alone says so.
                (false, Some(tokens)) if dialect.gemma && self.common.is_causal.is_none() => {
                    Mask::local(tokens / 2)
                }
                (false, Some(_)) => {
                    return Err(
                        "its is_causal is false, and a window in both directions is not known for its family"
                            .into(),
                    );
                }
            };
            let rotary = if window.is_some() { &local } else { &full };
            let unrotated_full = match dialect.unrotated_full {
                UnrotatedFull::Never => false,
                UnrotatedFull::WithWindows => self.window_size(dialect).is_some(),
                UnrotatedFull::Always => true,
            };
            let rotated =
                self.is_rotated(index, llama.layers, dialect)? && !(unrotated_full && window.is_none());
            let rotary = rotated.then(|| rotary.clone());
            Ok(LayerAttention { scale, soft_cap, rotary, ..LayerAttention::new(mask) })
        };
        let mut layers = (0..llama.layers).map(layer).collect::<Result<Vec<_>, String>>()?;
        if layers.iter().all(|layer| *layer == layers[0]) {
            layers.truncate(1);
        }
        Ok(layers)
    }

    /// Rotary positions of layers without a window, and of those with one.
    fn rotaries(&self, llama: &Llama, dialect: &Dialect) -> Result<[Rotary; 2], String> {
        let defaults = RopeDefaults {
            head: llama.head.min(LONGEST_HEAD),
            context: llama.context,
            base: dialect.base,
            part: dialect.part,
            style: dialect.styles[0],
            odd_parts: true,
        };
        let mut rope = self.rope.clone();
        if let ScalingRule::LongRope(original) = dialect.scaling {
            // Files of Phi 3 may call LongRoPE "yarn".
            if !matches!(rope.kind(), None | Some("default" | "longrope" | "su")) {
                return Err(format!("its rotary scaling is {:?}; supported is longrope", rope.kind()));
            }
            rope.set_original(original);
        }
        let grows = dialect.scaling == ScalingRule::Growing;
        let given = matches!(dialect.scaling, ScalingRule::Given | ScalingRule::Untruncated);
        if (grows || given) && !rope.has_parameters() {
            return Err("it has no rope_parameters, without which its family has a scaling of its own; write them into \
                        its config.json"
                .into());
        }
        if dialect.scaling == ScalingRule::Alpha
            && let Some(larger) = rope.with_alpha(dialect.base, defaults.head)?
        {
            rope = larger;
        }
        let others: &[&str] = if grows { &GROWTH } else { &[] };
        let full = rope.rotary(&defaults, Some("full_attention"), others)?;
        if grows && full.query_growth.is_none() {
            return Err("its rope_parameters have no llama_4_scaling_beta, which its family needs".into());
        }
        let Some(base) = dialect.local_base else { return Ok([full.clone(), full]) };
        rope.check_layers()?;
        if rope.has_flat_parameters() {
            return Err("its rope_parameters are not divided into full_attention and sliding_attention, and transformers \
                        reads none of them in its family"
                .into());
        }
        let base = self.own.rope_local_base_freq.unwrap_or(base);
        let local = RopeDefaults { base, ..defaults };
        // Scaling, and a base outside of the object, are of layers without a window.
        let local = if rope.has("sliding_attention") {
            rope.rotary(&local, Some("sliding_attention"), &[])?
        } else {
            RopeConfig::default().rotary(&local, None, &[])?
        };
        Ok([full, local])
    }

    fn is_rotated(&self, index: usize, layers: usize, dialect: &Dialect) -> Result<bool, String> {
        if dialect.named_rotation {
            return match self.own.position_embedding_type.as_deref() {
                Some("rope") => Ok(true),
                None | Some("nope") => Ok(false),
                Some(other) => {
                    Err(format!("its position_embedding_type is {other:?}; supported are rope and nope"))
                }
            };
        }
        match (&self.own.no_rope_layers, dialect.windows) {
            (Some(list), Windows::Unrotated) if list.len() < layers => {
                Err(format!("its no_rope_layers name {} of {layers} layers", list.len()))
            }
            (Some(list), Windows::Unrotated) => Ok(list[index] != 0),
            (None, Windows::Unrotated) => match self.own.no_rope_layer_interval.unwrap_or(4) {
                0 => Err("its no_rope_layer_interval is 0".into()),
                interval => Ok(!(index + 1).is_multiple_of(interval)),
            },
            _ => Ok(true),
        }
    }

    /// The length of sliding windows, if layers may have one.
    fn window_size(&self, dialect: &Dialect) -> Option<usize> {
        let flagged = match dialect.windows {
            Windows::Flagged | Windows::AllFlagged | Windows::EvenFlagged => true,
            Windows::Unrotated => self.own.layer_types.is_empty(),
            _ => false,
        };
        let size = self.own.sliding_window.unwrap_or(dialect.window);
        size.filter(|_| !flagged || self.own.use_sliding_window)
    }

    /// The sliding window of a layer, if it has one.
    fn window(&self, index: usize, layers: usize, dialect: &Dialect) -> Result<Option<usize>, String> {
        let size = self.window_size(dialect);
        if !self.own.layer_types.is_empty() && self.own.layer_types.len() != layers {
            return Err(format!("its layer_types name {} of {layers} layers", self.own.layer_types.len()));
        }
        let slides = match (self.own.layer_types.get(index).map(String::as_str), dialect.windows) {
            (Some("full_attention" | "attention"), _) | (None, Windows::Never) => false,
            (None, Windows::Listed) => {
                return Err(
                    "it has no layer_types, without which its layers have no attention (mamba)".into()
                );
            }
            (Some("sliding_attention"), _) => true,
            (Some(other), _) => {
                return Err(format!(
                    "its layer_types name {other:?}; supported are full_attention and sliding_attention"
                ));
            }
            (None, Windows::Always | Windows::AllFlagged) => size.is_some(),
            (None, Windows::AllBut(own)) => match &self.own.sliding_window_pattern {
                Some(Pattern::Letters(letters)) => {
                    return Err(format!(
                        "its sliding_window_pattern is {letters:?} and it has no layer_types; supported is a number"
                    ));
                }
                Some(Pattern::AllBut(0)) => size.is_some(),
                Some(Pattern::AllBut(period)) => !(index + 1).is_multiple_of(*period),
                None if own == 0 => size.is_some(),
                None => !(index + 1).is_multiple_of(own),
            },
            (None, Windows::Flagged) => size.is_some() && index >= self.own.max_window_layers,
            (None, Windows::EvenFlagged) => {
                size.is_some() && index.is_multiple_of(2) && index < self.own.max_window_layers
            }
            (None, Windows::Unrotated) => size.is_some() && !self.is_rotated(index, layers, dialect)?,
        };
        match size.filter(|&tokens| tokens > 0) {
            Some(tokens) => Ok(slides.then_some(tokens)),
            None if slides => {
                Err("its layers have a sliding window, whose length (sliding_window) it does not \
                                   give"
                    .into())
            }
            None => Ok(None),
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "forms_tests.rs"]
mod forms;
