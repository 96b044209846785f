//! The model, whatever file describes it.

use std::f32::consts::FRAC_1_SQRT_2;

use super::experts::ExpertShape;
use crate::Result;
use crate::compute::{Activation, Biased, Heads, LayerAttention, Matrix, Positions, Weight};
use crate::models::architectures::architecture::{Architecture, Description, Factors, Placeholders, misuse};
use crate::models::architectures::tensors::{
    EmbeddingTensors, LayerInputTensors, LayerTensors, LayerTokenTensors, MixerTensors, MlpTensors,
    NormTensors, PrefixedTensors, Tensors,
};

/// The table of tokens for the inputs of layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenTable {
    /// Its rows.
    pub vocabulary: usize,
}

/// What layers have inputs of their own of.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerInputShape {
    /// Length of an input.
    pub width: usize,
    /// What the names of the tensors of all layers begin with, and those of one.
    pub names: [&'static str; 2],
    /// Of a generator.
    pub tokens: Option<TokenTable>,
}

/// What a model writes text with.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogitsHead {
    pub tied: bool,
    /// The soft cap of logits.
    pub cap: Option<f32>,
}

/// A model whose configuration was checked.
#[derive(Debug, Clone)]
pub(in crate::models::architectures) struct Gemma4 {
    /// Length of a state.
    pub hidden: usize,
    /// Columns between the matrices of the perceptron of each layer.
    pub intermediate: Vec<usize>,
    pub vocabulary: usize,
    pub context: usize,
    /// Of the normalizations.
    pub epsilon: f32,
    pub activation: Activation,
    /// Whether attention's layers have biases.
    pub bias: bool,
    /// The attention of each layer, with its heads.
    pub attention: Vec<LayerAttention>,
    /// Of each layer, whether its keys, before their norm, are its values too.
    pub keys_are_values: Vec<bool>,
    /// Of the inputs that layers have of their own, if they have some.
    pub input: Option<LayerInputShape>,
    /// Next to the perceptron of each layer, if there are some.
    pub experts: Option<ExpertShape>,
    /// Length of an output row, of an encoder.
    pub embedding: Option<usize>,
    pub head: Option<LogitsHead>,
    pub placeholders: Option<Placeholders>,
    /// Whether its tensors have the names of GGUF files where those of others do not lead to them.
    pub gguf: bool,
}

const WORDS: &str = "embed_tokens.weight";

impl Gemma4 {
    fn tensors<'a>(&self, tensors: &'a dyn Tensors) -> PrefixedTensors<'a> {
        PrefixedTensors::new(tensors, self.words(), if self.gguf { &[""] } else { &["model.", ""] })
    }

    fn words(&self) -> &'static str {
        if self.gguf { "token_embd.weight" } else { WORDS }
    }

    /// The name of a part of a layer, or of the whole. Those of experts have their endings.
    fn part<'n>(&self, name: &'n str) -> &'n str {
        match name {
            _ if !self.gguf => name,
            "post_attention_layernorm" => "post_attention_norm",
            "pre_feedforward_layernorm" => "ffn_norm",
            "post_feedforward_layernorm" => "post_ffw_norm",
            "per_layer_input_gate" => "inp_gate",
            "per_layer_projection" => "proj",
            "post_per_layer_input_norm" => "post_norm",
            "layer_scalar" => "layer_output_scale",
            "per_layer_model_projection" => "per_layer_model_proj",
            "per_layer_projection_norm" => "per_layer_proj_norm",
            "embed_tokens_per_layer" => "per_layer_token_embd",
            "norm" => "output_norm",
            "router.proj.weight" => "ffn_gate_inp.weight",
            "router.scale" => "ffn_gate_inp.scale",
            "router.per_expert_scale" => "ffn_down_exps.scale",
            "experts.gate_up_proj" => "ffn_gate_up_exps.weight",
            "experts.gate_proj" => "ffn_gate_exps.weight",
            "experts.up_proj" => "ffn_up_exps.weight",
            "experts.down_proj" => "ffn_down_exps.weight",
            "pre_feedforward_layernorm_2.weight" => "pre_ffw_norm_2.weight",
            "post_feedforward_layernorm_1.weight" => "post_ffw_norm_1.weight",
            "post_feedforward_layernorm_2.weight" => "post_ffw_norm_2.weight",
            other => other,
        }
    }

    fn norm(&self, tensors: &PrefixedTensors<'_>, name: &str, length: usize) -> Result<NormTensors> {
        let scale = tensors.vector(&format!("{name}.weight"), length)?;
        Ok(NormTensors { scale, shift: None, epsilon: self.epsilon })
    }

    fn heads(&self, index: usize) -> Result<Heads> {
        self.attention[index].heads.ok_or_else(|| misuse("every layer has heads"))
    }
}

impl Architecture for Gemma4 {
    fn describe(&self) -> Description {
        Description {
            hidden: self.hidden,
            layers: self.attention.len(),
            heads: self.attention[0].heads.unwrap_or(Heads { heads: 0, kv_heads: 0, width: 0 }),
            attention: self.attention.clone(),
            vocabulary: self.vocabulary,
            context: self.context,
            activation: self.activation,
            norm_first: true,
            positions: Positions::FromZero,
            factors: Factors {
                embedding: (self.hidden as f32).sqrt(),
                logits_cap: self.head.and_then(|head| head.cap),
                ..Factors::default()
            },
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let shape = [self.vocabulary, self.hidden];
        self.tensors(tensors).matrix(self.words(), shape).map(EmbeddingTensors::new)
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let tensors = self.tensors(tensors);
        let (hidden, Heads { heads, kv_heads, width }) = (self.hidden, self.heads(index)?);
        let name = |part: &str| format!("layers.{index}.{}", self.part(part));
        let attention = |part, shape| tensors.maybe_biased(&name(part), shape, self.bias);
        let linear = |part, shape| tensors.maybe_biased(&name(part), shape, false);
        let norm = |part, length| self.norm(&tensors, &name(part), length);
        let mut qkv = vec![attention("self_attn.q_proj", [heads * width, hidden])?];
        let mut head_norms = [norm("self_attn.q_norm", width)?, norm("self_attn.q_norm", width)?];
        let one = [kv_heads * width, hidden];
        let values = if self.keys_are_values[index] { "self_attn.k_proj" } else { "self_attn.v_proj" };
        if !self.attention[index].reuses_keys() {
            qkv.push(attention("self_attn.k_proj", one)?);
            qkv.push(attention(values, one)?);
            head_norms[1] = norm("self_attn.k_norm", width)?;
        } else if tensors.contains(&name("self_attn.k_proj.weight")) {
            // Files have what such layers would make of their own; nothing uses it.
            attention("self_attn.k_proj", one)?;
            attention(values, one)?;
            norm("self_attn.k_norm", width)?;
        }
        let wide = [self.intermediate[index], hidden];
        let (gate, up) = (linear("mlp.gate_proj", wide)?, linear("mlp.up_proj", wide)?);
        let down = linear("mlp.down_proj", [hidden, self.intermediate[index]])?;
        let mlp = match &self.experts {
            Some(shape) => {
                let all = [gate, up, down].map(|(matrix, _)| matrix);
                MlpTensors::Experts(shape.tensors(&tensors, &name, (hidden, self.epsilon), all)?)
            }
            None => MlpTensors::gated(gate, up, down),
        };
        let output = attention("self_attn.o_proj", [hidden, heads * width])?;
        Ok(LayerTensors {
            attention_norm: Some(norm("input_layernorm", hidden)?),
            output_norm: Some(norm("post_attention_layernorm", hidden)?),
            mlp_norm: Some(norm("pre_feedforward_layernorm", hidden)?),
            down_norm: Some(norm("post_feedforward_layernorm", hidden)?),
            ..LayerTensors::new(MixerTensors::Attention { qkv, head_norms: Some(head_norms) }, output, mlp)
        })
    }

    fn value_norm(&self, _tensors: &dyn Tensors, index: usize) -> Result<Option<NormTensors>> {
        if self.attention[index].reuses_keys() {
            return Ok(None);
        }
        let width = self.heads(index)?.width;
        let scale = Weight::from_f32(&vec![1.0; width], &[width])?;
        Ok(Some(NormTensors { scale, shift: None, epsilon: self.epsilon }))
    }

    fn layer_input(&self, tensors: &dyn Tensors, index: usize) -> Result<Option<LayerInputTensors>> {
        let Some(LayerInputShape { width, names: [all, own], tokens: table }) = self.input else {
            return Ok(None);
        };
        let tensors = self.tensors(tensors);
        let (hidden, layers) = (self.hidden, self.attention.len());
        let name = |part: &str| format!("layers.{index}.{own}{}", self.part(part));
        let linear = |part, shape| tensors.maybe_biased(&name(part), shape, false);
        let projections = format!("{all}{}.weight", self.part("per_layer_model_projection"));
        let projections = tensors.matrix(&projections, [layers * width, hidden])?;
        // The outputs are divided by the root of a state's length before their norm: what it adds to their mean square counts
        // for as many times more.
        let norm = format!("{all}{}", self.part("per_layer_projection_norm"));
        let mut norm = self.norm(&tensors, &norm, width)?;
        if table.is_some() {
            // Its sum with the row of the token is divided by the root of two.
            let scale: Vec<f32> = norm.scale.to_f32()?.iter().map(|x| x * FRAC_1_SQRT_2).collect();
            norm.scale = Weight::from_f32(&scale, &[width])?;
        }
        Ok(Some(LayerInputTensors {
            projection: (projections.slice_rows(index * width..(index + 1) * width), None),
            norm: NormTensors { epsilon: self.epsilon * hidden as f32, ..norm },
            gate: linear("per_layer_input_gate", [width, hidden])?,
            output: linear("per_layer_projection", [hidden, width])?,
            output_norm: self.norm(&tensors, &name("post_per_layer_input_norm"), hidden)?,
        }))
    }

    fn layer_tokens(&self, tensors: &dyn Tensors) -> Result<Option<LayerTokenTensors>> {
        let Some(LayerInputShape { width, tokens: Some(TokenTable { vocabulary }), .. }) = self.input else {
            return Ok(None);
        };
        let layers = self.attention.len();
        let name = format!("{}.weight", self.part("embed_tokens_per_layer"));
        let tensors = self.tensors(tensors);
        let table = match tensors.matrix(&name, [vocabulary, layers * width])? {
            Matrix::Plain(table) => Matrix::Plain(table.reshaped(&[vocabulary * layers, width])),
            Matrix::Blocks(table) => table.with_columns(width).map(Matrix::Blocks).ok_or_else(|| {
                tensors.damaged(&name, &format!("the {width} numbers of a layer are no whole blocks"))
            })?,
        };
        Ok(Some(LayerTokenTensors { table, factor: (width as f32).sqrt() * FRAC_1_SQRT_2 }))
    }

    fn layer_factor(&self, tensors: &dyn Tensors, index: usize) -> Result<f32> {
        let mut name = format!("layers.{index}.{}", self.part("layer_scalar"));
        let tensors = self.tensors(tensors);
        if self.gguf && !tensors.contains(&name) {
            name.push_str(".weight");
        }
        let factor = tensors.vector(&name, 1)?.to_f32()?[0];
        if factor.is_finite() {
            return Ok(factor);
        }
        Err(tensors.damaged(&name, &format!("{factor} is no factor of states")))
    }

    fn final_norm(&self, tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        self.norm(&self.tensors(tensors), self.part("norm"), self.hidden).map(Some)
    }

    fn output_projection(&self, tensors: &dyn Tensors) -> Result<Option<Biased>> {
        let Some(embedding) = self.embedding else { return Ok(None) };
        let shape = [embedding, self.hidden];
        self.tensors(tensors).maybe_biased("embedding_projection", shape, false).map(Some)
    }

    fn output_width(&self) -> usize {
        self.embedding.unwrap_or(self.hidden)
    }

    fn placeholders(&self) -> Option<&Placeholders> {
        self.placeholders.as_ref()
    }

    fn has_kernels_on_cards(&self) -> bool {
        false
    }

    fn head(&self, tensors: &dyn Tensors) -> Result<Matrix> {
        let head = self.head.ok_or_else(|| misuse("an encoder has no head that writes text"))?;
        let (shape, name) = ([self.vocabulary, self.hidden], "lm_head.weight");
        let words = format!("model.{WORDS}");
        if head.tied { tensors.tied_matrix(&words, name, shape) } else { tensors.matrix(name, shape) }
    }
}
