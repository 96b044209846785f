//! ConvBERT: a post-norm encoder with fewer heads of attention, next to which stands a convolution along the text whose factors
//! depend on the rows that it sees.
//!
//! Jiang et al., "ConvBERT: Improving BERT with Span-based Dynamic Convolution", 2020.

use serde::Deserialize;

use super::architecture::{Architecture, Description, Factors};
use super::family::{ConfigFields, ConfigFile, Family, keys_of};
use super::tensors::{
    BERT_WORDS, DynamicConvolutionTensors, EmbeddingTensors, LayerTensors, MixerTensors, MlpTensors,
    PrefixedTensors, Tensors,
};
use crate::Result;
use crate::compute::memory::zeroed;
use crate::compute::{
    Activation, Biased, Heads, LONGEST_SHORT_CONVOLUTION, LayerAttention, Mask, Positions,
    ShortConvolutionFactors, Weight,
};
use crate::models::heads::layout;

/// ConvBERT.
pub(super) const FAMILIES: &[Family] = &[Family {
    generates: false,
    classifier: Some(&layout::CONVBERT),
    fields: &[ConfigFields::All(keys_of::<ConvBertConfig>)],
    // Of the head of masked language models, which is not used.
    ..Family::new("convbert", "ConvBert", &["tie_word_embeddings"], read)
}];

/// What `config.json` says, with transformers' values for keys that are absent.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct ConvBertConfig {
    vocab_size: usize,
    hidden_size: usize,
    embedding_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    /// What the number of heads is divided by.
    head_ratio: usize,
    /// Rows that an output of the convolution sees.
    conv_kernel_size: usize,
    /// Of the two linear layers of a perceptron.
    num_groups: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    hidden_act: String,
    layer_norm_eps: f32,
    // What files say in the names of the code that trained them.
    conv_type: Option<String>,
    linear_groups: Option<usize>,
    position_embedding_type: Option<String>,
}

impl Default for ConvBertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30_522,
            hidden_size: 768,
            embedding_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            head_ratio: 2,
            conv_kernel_size: 9,
            num_groups: 1,
            intermediate_size: 3072,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-12,
            conv_type: None,
            linear_groups: None,
            position_embedding_type: None,
        }
    }
}

/// A ConvBERT whose configuration was checked.
#[derive(Debug)]
struct ConvBert {
    config: ConvBertConfig,
    heads: Heads,
    activation: Activation,
}

fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: ConvBertConfig = file.parse()?;
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("embedding_size", config.embedding_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_attention_heads", config.num_attention_heads),
        ("head_ratio", config.head_ratio),
        ("intermediate_size", config.intermediate_size),
        ("max_position_embeddings", config.max_position_embeddings),
        ("type_vocab_size", config.type_vocab_size),
    ])?;
    let kernel = config.conv_kernel_size;
    if kernel.is_multiple_of(2) || kernel > LONGEST_SHORT_CONVOLUTION {
        let odd = format!("an odd number up to {}", LONGEST_SHORT_CONVOLUTION - 1);
        return Err(file.refuse("conv_kernel_size", &odd));
    }
    let groups = config.num_groups;
    let divides = |size: usize| groups > 0 && size.is_multiple_of(groups);
    if !divides(config.hidden_size) || !divides(config.intermediate_size) {
        return Err(file.refuse("num_groups", "a divisor of hidden_size and of intermediate_size"));
    }
    if config.linear_groups.is_some_and(|own| own != groups) {
        return Err(file.refuse("linear_groups", "the value of num_groups"));
    }
    for (key, value, known) in [
        ("conv_type", &config.conv_type, "sdconv"),
        ("position_embedding_type", &config.position_embedding_type, "absolute"),
    ] {
        if value.as_deref().is_some_and(|value| value != known) {
            return Err(file.refuse(key, &format!("{known:?}")));
        }
    }
    let count = (config.num_attention_heads / config.head_ratio).max(1);
    if !config.hidden_size.is_multiple_of(2 * count) {
        return Err(file.unsupported(format!(
            "half of its hidden_size {} does not divide into {count} attention heads (num_attention_heads / head_ratio)",
            config.hidden_size
        )));
    }
    let heads = file.heads(config.hidden_size / 2, count)?;
    let activation = file.activation("hidden_act", &config.hidden_act)?;
    Ok(Box::new(ConvBert { config, heads, activation }))
}

/// What the names of tensors begin with in some files.
const PREFIXES: &[&str] = &["", "convbert."];

impl ConvBert {
    /// Numbers of all heads, and of the convolution's outputs.
    fn half(&self) -> usize {
        self.heads.heads * self.heads.width
    }

    /// `name.weight` and `name.bias` of a linear layer of the perceptron.
    fn grouped(&self, scope: &PrefixedTensors<'_>, name: &str, shape: [usize; 2]) -> Result<Biased> {
        let groups = self.config.num_groups;
        if groups == 1 {
            return scope.linear(name, shape);
        }
        // An output sees the inputs of its group alone; all other factors are zero.
        let [outputs, inputs] = shape.map(|size| size / groups);
        let stored = scope.tensor(&format!("{name}.weight"), &[groups, inputs, outputs])?.to_f32()?;
        let mut matrix: Vec<f32> = zeroed(shape[0] * shape[1])?;
        for (output, row) in matrix.chunks_exact_mut(shape[1]).enumerate() {
            let (group, place) = (output / outputs, output % outputs);
            let own = stored[group * inputs * outputs..].chunks_exact(outputs);
            row[group * inputs..][..inputs].iter_mut().zip(own).for_each(|(x, own)| *x = own[place]);
        }
        Ok((
            Weight::from_f32(&matrix, &shape)?.into(),
            Some(scope.vector(&format!("{name}.bias"), shape[0])?),
        ))
    }
}

impl Architecture for ConvBert {
    fn describe(&self) -> Description {
        Description {
            hidden: self.config.hidden_size,
            layers: self.config.num_hidden_layers,
            heads: self.heads,
            attention: vec![LayerAttention::new(Mask::FULL)],
            vocabulary: self.config.vocab_size,
            context: self.config.max_position_embeddings,
            activation: self.activation,
            norm_first: false,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let (scope, config) = (PrefixedTensors::of_bert(tensors, PREFIXES), &self.config);
        let (hidden, width) = (config.hidden_size, config.embedding_size);
        let table = |name: &str, rows| scope.matrix(&format!("embeddings.{name}.weight"), [rows, width]);
        let projection = (width != hidden).then(|| scope.linear("embeddings_project", [hidden, width]));
        Ok(EmbeddingTensors {
            positions: Some(table("position_embeddings", config.max_position_embeddings)?),
            token_types: Some(table("token_type_embeddings", config.type_vocab_size)?),
            norm: Some(scope.layer_norm("embeddings.LayerNorm", width, config.layer_norm_eps)?),
            projection: projection.transpose()?,
            ..EmbeddingTensors::new(scope.matrix(BERT_WORDS, [config.vocab_size, width])?)
        })
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let ConvBertConfig { hidden_size: hidden, intermediate_size: wide, layer_norm_eps, .. } = self.config;
        let scope = PrefixedTensors::of_bert(tensors, PREFIXES);
        let name = |rest: &str| format!("encoder.layer.{index}.{rest}");
        let part = |rest: &str| scope.linear(&name(&format!("attention.self.{rest}")), [self.half(), hidden]);
        let norm = |rest: &str| scope.layer_norm(&name(rest), hidden, layer_norm_eps).map(Some);
        Ok(LayerTensors {
            attention_norm: norm("attention.output.LayerNorm")?,
            mlp_norm: norm("output.LayerNorm")?,
            ..LayerTensors::new(
                MixerTensors::attention(vec![part("query")?, part("key")?, part("value")?]),
                scope.linear(&name("attention.output.dense"), [hidden, hidden])?,
                MlpTensors::plain(
                    self.grouped(&scope, &name("intermediate.dense"), [wide, hidden])?,
                    self.grouped(&scope, &name("output.dense"), [hidden, wide])?,
                ),
            )
        })
    }

    fn dynamic_convolution(
        &self,
        tensors: &dyn Tensors,
        index: usize,
    ) -> Result<Option<DynamicConvolutionTensors>> {
        let ConvBertConfig { hidden_size: hidden, conv_kernel_size: size, .. } = self.config;
        let (scope, half) = (PrefixedTensors::of_bert(tensors, PREFIXES), self.half());
        let name = |rest: &str| format!("encoder.layer.{index}.attention.self.{rest}");
        let reshaped = |rest: &str, stored: &[usize], shape: &[usize]| {
            Weight::from_f32(&scope.tensor(&name(rest), stored)?.to_f32()?, shape)
        };
        let factors = reshaped("key_conv_attn_layer.depthwise.weight", &[hidden, 1, size], &[hidden, size])?;
        let keys = reshaped("key_conv_attn_layer.pointwise.weight", &[half, hidden, 1], &[half, hidden])?;
        let shift = reshaped("key_conv_attn_layer.bias", &[half, 1], &[half])?;
        Ok(Some(DynamicConvolutionTensors {
            depthwise: ShortConvolutionFactors { factors, shift: None, before: size / 2 },
            keys: (keys.into(), Some(shift)),
            scores: scope.linear(&name("conv_kernel_layer"), [self.heads.heads * size, half])?,
            values: scope.linear(&name("conv_out_layer"), [half, hidden])?,
        }))
    }

    /// transformers' convolutions see hidden tokens, and the padding of a batch.
    fn hides_tokens(&self) -> bool {
        false
    }

    fn has_kernels_on_cards(&self) -> bool {
        false
    }
}

#[cfg(test)]
#[path = "convbert_tests.rs"]
mod tests;
