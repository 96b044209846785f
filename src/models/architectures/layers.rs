//! The layers of a transformer on a backend.

use std::sync::Arc;

use super::architecture::{Architecture, Description, misuse};
use super::tensors::{NormTensors, Tensors};
use crate::Result;
use crate::compute::{Backend, LayerAttention, RopeStyle, Rotary, ShortConvolutionShape};

/// One layer.
pub(super) struct Layer<B: Backend> {
    pub attention: LayerAttention,
    pub relative: Option<B::Relative>,
    /// In the place of attention.
    pub short_convolution: Option<B::ShortConvolution>,
    /// Index of its rotary positions.
    pub rotary: Option<usize>,
    pub attention_norm: Option<B::Norm>,
    /// Queries, keys and values side by side, or the three parts of a convolution's rows.
    pub qkv: B::Linear,
    pub head_norms: Option<(B::Norm, B::Norm)>,
    pub output: B::Linear,
    pub output_norm: Option<B::Norm>,
    pub mlp_norm: Option<B::Norm>,
    pub up: B::Linear,
    pub down: B::Linear,
    pub down_norm: Option<B::Norm>,
}

/// All layers of a model.
pub(super) struct Layers<B: Backend> {
    /// Some may be the same. Each with its number among those with attention, or among those with a convolution.
    layers: Vec<(Arc<Layer<B>>, usize)>,
    /// What those with a convolution keep of a sequence.
    pub short_convolutions: ShortConvolutionShape,
    /// Their rotary positions, each once.
    pub rotaries: Vec<Rotary>,
}

impl<B: Backend> Layers<B> {
    /// Takes the weights from `tensors`.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; those of the backend.
    pub(super) fn load(
        backend: &B,
        architecture: &dyn Architecture,
        tensors: &dyn Tensors,
        description: &Description,
    ) -> Result<Self> {
        let norm = |norm: NormTensors| backend.norm(&norm.scale, norm.shift.as_ref(), norm.epsilon);
        let bias = architecture.distance_bias(tensors)?.map(Arc::new);
        let relative = architecture.relative_table(tensors)?;
        let mut rotaries = Vec::new();
        let mut short_convolutions: Option<ShortConvolutionShape> = None;
        let mut layer = |index: usize| {
            let layer = architecture.layer(tensors, index)?;
            let factors = architecture.short_convolution(tensors, index)?;
            let mut attention = description.attention[index % description.attention.len()].clone();
            attention.bias = attention.bias.or_else(|| bias.clone());
            if layer.head_norms.is_some() && attention.rotary.is_none() {
                // The operation that rotates heads normalizes them too.
                attention.rotary = Some(Rotary::new(1.0, 0, RopeStyle::Neox));
            }
            if let Some(factors) = &factors {
                if !factors.is_causal() && attention.mask.is_causal() {
                    return Err(misuse("a convolution of a causal model sees later rows"));
                }
                let shape = ShortConvolutionShape {
                    layers: 0,
                    before: factors.before,
                    columns: factors.factors.rows(),
                };
                if *short_convolutions.get_or_insert(shape) != shape {
                    return Err(misuse("convolutions of different shapes"));
                }
                attention.rotary = None;
            }
            let rotary = attention.rotary.take().map(|rotary| {
                rotaries.iter().position(|known| *known == rotary).unwrap_or_else(|| {
                    rotaries.push(rotary);
                    rotaries.len() - 1
                })
            });
            let relative = match &relative {
                Some(table) => {
                    let layers = architecture.relative_layers(tensors, index)?;
                    Some(backend.relative(table, &layers, description.heads)?)
                }
                None => None,
            };
            Ok(Layer {
                attention,
                relative,
                short_convolution: factors.map(|factors| backend.short_convolution(&factors)).transpose()?,
                rotary,
                attention_norm: layer.attention_norm.map(norm).transpose()?,
                qkv: backend.linear(&layer.qkv)?,
                head_norms: match layer.head_norms {
                    Some([queries, keys]) => Some((norm(queries)?, norm(keys)?)),
                    None => None,
                },
                output: backend.linear(&[layer.output])?,
                output_norm: layer.output_norm.map(norm).transpose()?,
                mlp_norm: layer.mlp_norm.map(norm).transpose()?,
                up: match layer.gate {
                    Some(gate) => backend.gated(gate, layer.up)?,
                    None => backend.linear(&[layer.up])?,
                },
                down: backend.linear(&[layer.down])?,
                down_norm: layer.down_norm.map(norm).transpose()?,
            })
        };
        let mut layers: Vec<(Arc<Layer<B>>, usize)> = Vec::new();
        let mut convolve = 0;
        for index in 0..description.layers {
            let layer = match layers.get(architecture.same_as(index)) {
                Some((shared, _)) => Arc::clone(shared),
                None => Arc::new(layer(index)?),
            };
            let convolves = layer.short_convolution.is_some();
            layers.push((layer, if convolves { convolve } else { index - convolve }));
            convolve += usize::from(convolves);
        }
        if convolve > 0 && !description.norm_first {
            return Err(misuse("layers with a convolution have their norm first"));
        }
        let short_convolutions =
            ShortConvolutionShape { layers: convolve, ..short_convolutions.unwrap_or_default() };
        Ok(Self { layers, short_convolutions, rotaries })
    }

    /// The number of layers.
    pub(super) fn len(&self) -> usize {
        self.layers.len()
    }

    /// Layer `index`, and its number among those with attention, or among those with a convolution.
    pub(super) fn at(&self, index: usize) -> (&Layer<B>, usize) {
        let (layer, place) = &self.layers[index];
        (layer, *place)
    }

    /// The layers in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Layer<B>> {
        self.layers.iter().map(|(layer, _)| &**layer)
    }
}
