//! The model, whatever file describes it.

use crate::Result;
use crate::compute::{
    Activation, Biased, DeltaHeads, DeltaRuleFactors, Heads, LayerAttention, Mask, Matrix, Positions, Rotary,
    Weight,
};
use crate::models::architectures::architecture::{Architecture, Description, Factors};
use crate::models::architectures::experts::Mixture;
use crate::models::architectures::tensors::{
    EmbeddingTensors, LayerTensors, MixerTensors, MlpTensors, NormTensors, Tensors,
};

/// How files store the tensors of delta rules and of norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models::architectures) enum TensorForm {
    /// Queries, keys and values in one matrix, and one for gates, `b` and `a` each.
    Split,
    /// One matrix of queries, keys, values and gates, and one of `b` and `a`, in which all rows of a head of keys follow one
    /// another.
    Fused,
    /// As [`Split`](Self::Split), under the names of GGUF files. The heads of values go through those of keys in turn, rates
    /// are what the exponential is of, and the scales of norms are whole.
    Gguf,
}

/// A Qwen3.5 or Qwen3-Next whose configuration was checked.
#[derive(Debug, Clone)]
pub(in crate::models::architectures) struct Qwen35 {
    /// Length of a state.
    pub hidden: usize,
    /// Columns between the matrices of the perceptron.
    pub intermediate: usize,
    pub heads: Heads,
    pub vocabulary: usize,
    pub context: usize,
    /// Of the normalizations.
    pub epsilon: f32,
    pub tied: bool,
    /// Whether the matrices of attention have biases.
    pub bias: bool,
    pub rotary: Rotary,
    /// Of each layer, whether it is attention.
    pub attends: Vec<bool>,
    /// The heads of delta rules.
    pub delta: DeltaHeads,
    /// Rows that an output of a convolution sees.
    pub taps: usize,
    /// The mixtures of experts in the place of perceptrons.
    pub experts: Option<Mixture>,
    pub form: TensorForm,
}

const WORDS: &str = "model.embed_tokens.weight";

/// One layer's tensors.
#[derive(Clone, Copy)]
struct OfLayer<'a> {
    model: &'a Qwen35,
    tensors: &'a dyn Tensors,
    index: usize,
}

impl OfLayer<'_> {
    fn name(&self, part: &str) -> String {
        format!("model.layers.{}.{part}", self.index)
    }

    /// The name of a part in the files of transformers, or in GGUF files.
    fn of_form(&self, theirs: &str, gguf: &str) -> String {
        self.name(if self.model.form == TensorForm::Gguf { gguf } else { theirs })
    }

    fn linear(&self, part: &str, shape: [usize; 2]) -> Result<Biased> {
        let name = self.name(part);
        let matrix = self.tensors.matrix(&format!("{name}.weight"), shape)?;
        let bias = self.model.bias.then(|| self.tensors.vector(&format!("{name}.bias"), shape[0]));
        Ok((matrix, bias.transpose()?))
    }

    /// The matrices of the queries of each head, or of their gates, which stand after them.
    fn queries(&self, gates: bool) -> Result<Vec<Biased>> {
        let Heads { heads, width, .. } = self.model.heads;
        let (matrix, bias) = self.linear("self_attn.q_proj", [2 * heads * width, self.model.hidden])?;
        let first = if gates { width } else { 0 };
        let rows = (0..heads).map(|head| 2 * head * width + first).map(|start| start..start + width);
        Ok(rows
            .map(|rows| {
                let bias = bias.as_ref().map(|bias| bias.slice_rows(rows.clone()));
                (matrix.slice_rows(rows), bias)
            })
            .collect())
    }

    fn attention(&self) -> Result<(MixerTensors, Biased)> {
        let Heads { heads, kv_heads, width } = self.model.heads;
        let mut qkv = self.queries(false)?;
        qkv.push(self.linear("self_attn.k_proj", [kv_heads * width, self.model.hidden])?);
        qkv.push(self.linear("self_attn.v_proj", [kv_heads * width, self.model.hidden])?);
        let norm = |part| self.model.norm(self.tensors, &self.name(part), width);
        let head_norms = Some([norm("self_attn.q_norm")?, norm("self_attn.k_norm")?]);
        let output = self.linear("self_attn.o_proj", [self.model.hidden, heads * width])?;
        Ok((MixerTensors::Attention { qkv, head_norms }, output))
    }

    fn delta_rule(&self) -> Result<(MixerTensors, Biased)> {
        let Qwen35 { delta, hidden, taps, form, .. } = *self.model;
        let (columns, values) = (delta.columns(), delta.all_values());
        let convolution = self.of_form("linear_attn.conv1d.weight", "ssm_conv1d.weight");
        let convolution = match form {
            TensorForm::Gguf => self.tensors.tensor(&convolution, &[columns, taps])?,
            _ => self.tensors.tensor(&convolution, &[columns, 1, taps])?.reshaped(&[columns, taps]),
        };
        let vector = |theirs, gguf| self.tensors.vector(&self.of_form(theirs, gguf), delta.values);
        let rates = vector("linear_attn.A_log", "ssm_a")?;
        let rates = if form == TensorForm::Gguf { rates } else { rates_of(&rates, delta.values)? };
        let norm = self.of_form("linear_attn.norm.weight", "ssm_norm.weight");
        let factors = DeltaRuleFactors {
            heads: delta,
            convolution,
            rates: checked_rates(self.tensors, &self.of_form("linear_attn.A_log", "ssm_a"), rates)?,
            shift: vector("linear_attn.dt_bias", "ssm_dt.bias")?,
            norm: self.tensors.vector(&norm, delta.value_width)?,
            epsilon: self.model.epsilon,
        };
        let input = if form == TensorForm::Fused { self.fused_input()? } else { self.split_input()? };
        let output = self.of_form("linear_attn.out_proj.weight", "ssm_out.weight");
        let output = (self.tensors.matrix(&output, [hidden, values])?, None);
        Ok((MixerTensors::DeltaRule { input, factors }, output))
    }

    /// The matrices of queries, keys and values, of gates, of `b` and of `a`.
    fn split_input(&self) -> Result<Vec<Biased>> {
        let Qwen35 { delta, hidden, .. } = *self.model;
        let part = |theirs: &str, gguf: &str, rows: usize| -> Result<Biased> {
            let name = self.of_form(theirs, gguf);
            Ok((self.tensors.matrix(&format!("{name}.weight"), [rows, hidden])?, None))
        };
        Ok(vec![
            part("linear_attn.in_proj_qkv", "attn_qkv", delta.columns())?,
            part("linear_attn.in_proj_z", "attn_gate", delta.all_values())?,
            part("linear_attn.in_proj_b", "ssm_beta", delta.values)?,
            part("linear_attn.in_proj_a", "ssm_alpha", delta.values)?,
        ])
    }

    /// The same, gathered from the rows of each head of keys.
    fn fused_input(&self) -> Result<Vec<Biased>> {
        let Qwen35 { delta, hidden, .. } = *self.model;
        let group = delta.values / delta.keys;
        let (key, values) = (delta.key_width, group * delta.value_width);
        let name = |part: &str| self.name(&format!("linear_attn.{part}.weight"));
        let all = delta.columns() + delta.all_values();
        let qkvz = self.tensors.matrix(&name("in_proj_qkvz"), [all, hidden])?;
        let ba = self.tensors.matrix(&name("in_proj_ba"), [2 * delta.values, hidden])?;
        // Of the rows of each head of keys, the parts of a kind.
        let parts = |of: &Matrix, size: usize, first: usize, rows: usize| -> Vec<Biased> {
            let starts = (0..delta.keys).map(|head| head * size + first);
            starts.map(|start| (of.slice_rows(start..start + rows), None)).collect()
        };
        let size = 2 * key + 2 * values;
        let kinds = [(0, key), (key, key), (2 * key, values), (2 * key + values, values)];
        let mut input: Vec<Biased> =
            kinds.into_iter().flat_map(|(first, rows)| parts(&qkvz, size, first, rows)).collect();
        input.extend(parts(&ba, 2 * group, 0, group));
        input.extend(parts(&ba, 2 * group, group, group));
        Ok(input)
    }
}

/// The rates whose logarithms, without their signs, are `logarithms`.
fn rates_of(logarithms: &Weight, heads: usize) -> Result<Weight> {
    let rates: Vec<f32> = logarithms.to_f32()?.into_iter().map(|log| -log.exp()).collect();
    Weight::from_f32(&rates, &[heads])
}

/// A state that grows has no bound: every rate is 0 or less.
fn checked_rates(tensors: &dyn Tensors, name: &str, rates: Weight) -> Result<Weight> {
    match rates.to_f32()?.into_iter().find(|rate| !(*rate <= 0.0 && rate.is_finite())) {
        None => Ok(rates),
        Some(rate) => Err(tensors.damaged(name, &format!("a head forgets at a rate of {rate}"))),
    }
}

impl Qwen35 {
    fn norm(&self, tensors: &dyn Tensors, name: &str, length: usize) -> Result<NormTensors> {
        let mut scale = tensors.vector(&format!("{name}.weight"), length)?;
        if self.form != TensorForm::Gguf {
            let whole: Vec<f32> = scale.to_f32()?.into_iter().map(|x| 1.0 + x).collect();
            scale = Weight::from_f32(&whole, &[length])?;
        }
        Ok(NormTensors { scale, shift: None, epsilon: self.epsilon })
    }
}

impl Architecture for Qwen35 {
    fn describe(&self) -> Description {
        Description {
            hidden: self.hidden,
            layers: self.attends.len(),
            heads: self.heads,
            attention: vec![LayerAttention::new(Mask::CAUSAL).with_rotary(self.rotary.clone())],
            vocabulary: self.vocabulary,
            context: self.context,
            activation: Activation::Silu,
            norm_first: true,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        tensors.matrix(WORDS, [self.vocabulary, self.hidden]).map(EmbeddingTensors::new)
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let layer = OfLayer { model: self, tensors, index };
        let (mixer, output) = if self.attends[index] { layer.attention()? } else { layer.delta_rule()? };
        let mlp = match self.experts.as_ref().filter(|experts| experts.is_in(index)) {
            Some(experts) => {
                let place = format!("model.layers.{index}");
                MlpTensors::Experts(experts.tensors(tensors, &place, self.hidden)?)
            }
            None => {
                let part = |part: &str, shape| -> Result<Biased> {
                    Ok((tensors.matrix(&layer.name(&format!("mlp.{part}.weight")), shape)?, None))
                };
                let wide = [self.intermediate, self.hidden];
                let down = part("down_proj", [self.hidden, self.intermediate])?;
                MlpTensors::gated(part("gate_proj", wide)?, part("up_proj", wide)?, down)
            }
        };
        let norm = |name: &str| self.norm(tensors, name, self.hidden).map(Some);
        Ok(LayerTensors {
            attention_norm: norm(&layer.name("input_layernorm"))?,
            mlp_norm: norm(&layer.of_form("post_attention_layernorm", "post_attention_norm"))?,
            ..LayerTensors::new(mixer, output, mlp)
        })
    }

    fn attention_gate(&self, tensors: &dyn Tensors, index: usize) -> Result<Option<Vec<Biased>>> {
        let layer = OfLayer { model: self, tensors, index };
        if self.attends[index] { layer.queries(true).map(Some) } else { Ok(None) }
    }

    fn has_kernels_on_cards(&self) -> bool {
        false
    }

    fn final_norm(&self, tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        self.norm(tensors, "model.norm", self.hidden).map(Some)
    }

    fn head(&self, tensors: &dyn Tensors) -> Result<Matrix> {
        let (shape, head) = ([self.vocabulary, self.hidden], "lm_head.weight");
        if self.tied { tensors.tied_matrix(WORDS, head, shape) } else { tensors.matrix(head, shape) }
    }
}
