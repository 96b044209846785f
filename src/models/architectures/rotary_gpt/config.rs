//! `config.json` as transformers writes it, and as the models were published.

use serde::Deserialize;

use super::model::{
    NEOX, NormsOfHeads, PHI, QkvForm, RotaryGpt, RotaryGptVariant, STABLELM, STARCODER2, TensorNames,
};
use crate::Result;
use crate::compute::{LayerAttention, Mask, RopeStyle};
use crate::models::architectures::architecture::Architecture;
use crate::models::architectures::family::ConfigFile;
use crate::models::architectures::rope_scaling::{RopeConfig, RopeDefaults, check_part};

/// What a family has where its file does not say.
struct Defaults {
    model_type: &'static str,
    names: TensorNames,
    activation: &'static str,
    /// `partial_rotary_factor`; `None` if whole heads are rotated.
    part: Option<f32>,
    /// `num_key_value_heads`; without it, as many as queries.
    kv_heads: Option<usize>,
    tied: bool,
}

const FAMILIES: [Defaults; 4] = [
    Defaults {
        model_type: "gpt_neox",
        names: NEOX,
        activation: "gelu",
        part: Some(0.25),
        kv_heads: None,
        tied: false,
    },
    Defaults {
        model_type: "phi",
        names: PHI,
        activation: "gelu_new",
        part: Some(0.5),
        kv_heads: None,
        tied: false,
    },
    Defaults {
        model_type: "stablelm",
        names: STABLELM,
        activation: "silu",
        part: Some(0.25),
        kv_heads: Some(32),
        tied: false,
    },
    Defaults {
        model_type: "starcoder2",
        names: STARCODER2,
        activation: "gelu_pytorch_tanh",
        part: None,
        kv_heads: Some(2),
        tied: true,
    },
];

/// What the files of all families say.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct RotaryGptConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    is_causal: Option<bool>,
}

/// What those of some families say.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct VariantConfig {
    num_key_value_heads: Option<usize>,
    layer_norm_eps: Option<f32>,
    norm_epsilon: Option<f32>,
    sliding_window: Option<usize>,
    // Biases.
    attention_bias: Option<bool>,
    use_bias: Option<bool>,
    use_qkv_bias: Option<bool>,
    // The form of a layer.
    use_parallel_residual: Option<bool>,
    qk_layernorm: Option<bool>,
    // Rotary positions of GPT-NeoX.
    rotary_pct: Option<f32>,
    rotary_emb_base: Option<f32>,
    // What must say what the others say too.
    mlp_type: Option<String>,
    norm_type: Option<String>,
    scale_attn_weights: Option<bool>,
}

pub(super) fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let model_type = file.json["model_type"].as_str().unwrap_or_default();
    let defaults = FAMILIES.iter().find(|family| family.model_type == model_type);
    let defaults = defaults.ok_or_else(|| file.unsupported(format!("its model_type is {model_type:?}")))?;
    let config: RotaryGptConfig = file.parse()?;
    let (own, rope): (VariantConfig, RopeConfig) = (file.parse()?, file.parse()?);
    config.check(file)?;
    own.check(file)?;
    check_rope(file, defaults)?;
    if defaults.part.is_some() {
        check_part(file)?;
    }
    let mut heads = file.heads(config.hidden_size, config.num_attention_heads)?;
    heads.kv_heads = own.num_key_value_heads.or(defaults.kv_heads).unwrap_or(heads.heads);
    if heads.kv_heads == 0 || !heads.heads.is_multiple_of(heads.kv_heads) {
        return Err(file.unsupported(format!(
            "its {} query heads do not divide among {} heads of keys",
            heads.heads, heads.kv_heads
        )));
    }
    let rotary = rope.rotary(
        &RopeDefaults {
            head: heads.width,
            context: config.max_position_embeddings,
            base: own.rotary_emb_base.unwrap_or(10_000.0),
            part: own.rotary_pct.or(defaults.part),
            style: RopeStyle::Neox,
            // transformers cuts the queries of the others to the odd number, and then fails.
            odd_parts: defaults.model_type == "gpt_neox",
        },
        None,
        &[],
    );
    let rotary = rotary.map_err(|reason| file.unsupported(reason))?;
    let mask = own.sliding_window.map_or(Mask::CAUSAL, Mask::sliding);
    let activation = config.hidden_act.as_deref().unwrap_or(defaults.activation);
    Ok(Box::new(RotaryGpt {
        hidden: config.hidden_size,
        intermediate: config.intermediate_size,
        layers: config.num_hidden_layers,
        heads,
        vocabulary: config.vocab_size,
        context: config.max_position_embeddings,
        epsilon: own.layer_norm_eps.or(own.norm_epsilon).unwrap_or(1e-5),
        activation: file.activation("hidden_act", activation)?,
        attention: LayerAttention::new(mask).with_rotary(rotary),
        variant: RotaryGptVariant {
            tied: config.tie_word_embeddings.unwrap_or(defaults.tied),
            ..own.variant(defaults)
        },
    }))
}

/// GPT-NeoX has its own names for two numbers; transformers ignores the others' names.
fn check_rope(file: &ConfigFile<'_>, defaults: &Defaults) -> Result<()> {
    if defaults.model_type != "gpt_neox" {
        return Ok(());
    }
    for (key, own, default) in
        [("rope_theta", "rotary_emb_base", 10_000.0), ("partial_rotary_factor", "rotary_pct", 0.25)]
    {
        let number = |key: &str| file.json[key].as_f64();
        if number(key).is_some_and(|value| value != number(own).unwrap_or(default)) {
            return Err(file.refuse(key, &format!("the value of {own}")));
        }
    }
    Ok(())
}

impl RotaryGptConfig {
    fn check(&self, file: &ConfigFile<'_>) -> Result<()> {
        file.check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        if self.is_causal == Some(false) {
            return Err(file.refuse("is_causal", "true: such a model cannot write text"));
        }
        Ok(())
    }
}

impl VariantConfig {
    fn check(&self, file: &ConfigFile<'_>) -> Result<()> {
        if self.sliding_window == Some(0) {
            return Err(file.refuse("sliding_window", "null, or a number above 0"));
        }
        if self.mlp_type.as_deref().is_some_and(|kind| kind != "default") {
            return Err(file.refuse("mlp_type", "\"default\""));
        }
        if self.norm_type.as_deref().is_some_and(|kind| kind != "layer_norm") {
            return Err(file.refuse("norm_type", "\"layer_norm\""));
        }
        if self.scale_attn_weights == Some(false) {
            return Err(file.refuse("scale_attn_weights", "true"));
        }
        Ok(())
    }

    fn variant(&self, defaults: &Defaults) -> RotaryGptVariant {
        let normed = self.qk_layernorm.unwrap_or(false);
        let none = RotaryGptVariant {
            names: defaults.names,
            qkv: QkvForm::Separate,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            head_bias: false,
            gated: false,
            parallel: false,
            shared_norm: false,
            head_norms: NormsOfHeads::None,
            tied: defaults.tied,
        };
        match defaults.model_type {
            "gpt_neox" => {
                let bias = self.attention_bias.unwrap_or(true);
                RotaryGptVariant {
                    qkv: QkvForm::FusedByGroup,
                    qkv_bias: bias,
                    output_bias: bias,
                    mlp_bias: true,
                    parallel: self.use_parallel_residual.unwrap_or(true),
                    ..none
                }
            }
            "phi" => RotaryGptVariant {
                qkv_bias: true,
                output_bias: true,
                mlp_bias: true,
                head_bias: true,
                parallel: true,
                shared_norm: true,
                head_norms: if normed { NormsOfHeads::Shared } else { NormsOfHeads::None },
                ..none
            },
            "stablelm" => {
                let parallel = self.use_parallel_residual.unwrap_or(false);
                RotaryGptVariant {
                    qkv_bias: self.use_qkv_bias.unwrap_or(false),
                    gated: true,
                    parallel,
                    shared_norm: parallel,
                    head_norms: if normed { NormsOfHeads::Each } else { NormsOfHeads::None },
                    ..none
                }
            }
            _ => {
                let bias = self.use_bias.unwrap_or(true);
                RotaryGptVariant { qkv_bias: bias, output_bias: bias, mlp_bias: bias, ..none }
            }
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
