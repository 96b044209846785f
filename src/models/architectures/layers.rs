//! The layers of a transformer on a backend.

use std::sync::Arc;

use super::architecture::{Architecture, Description, misuse};
use super::dynamic_convolution::DynamicConvolution;
use super::tensors::{
    ExpertMatrices, ExpertTensors, LayerInputTensors, LayerTokenTensors, MixerTensors, MlpTensors,
    NormTensors, SharedTensors, Tensors,
};
use crate::Result;
use crate::compute::{
    Activation, Backend, Biased, CacheShape, DeltaRuleFactors, DeltaRuleShape, DistanceBias, ExpertLayers,
    ExpertNorms, Experts, Heads, KeySource, LayerAttention, LayerShapes, Pass, RelativeTable, RopeStyle,
    Rotary, SharedExpert, ShortConvolutionFactors, ShortConvolutionShape, StatesOf, TokenRows, Weight,
};

/// What a layer mixes the rows of a sequence with.
pub(super) enum Mixer<B: Backend> {
    Attention {
        /// Queries, keys and values side by side.
        qkv: B::Linear,
        heads: Heads,
        head_norms: Option<(B::Norm, B::Norm)>,
        value_norm: Option<B::Norm>,
        /// Index of its rotary positions.
        rotary: Option<usize>,
        /// Index of positions that rotate nothing, where norms follow the rotation.
        unrotated: Option<usize>,
        attention: Box<LayerAttention>,
        relative: Option<B::Relative>,
        /// Its outputs follow those of attention.
        dynamic: Option<DynamicConvolution<B>>,
        /// Makes a number for each output, or for each head's outputs, whose sigmoid multiplies them.
        gate: Option<B::Linear>,
    },
    ShortConvolution {
        /// The three parts of its rows side by side.
        input: B::Linear,
        convolution: B::ShortConvolution,
    },
    DeltaRule {
        /// The parts of its rows side by side.
        input: B::Linear,
        rule: B::DeltaRule,
    },
}

impl<B: Backend> Mixer<B> {
    /// Makes what it mixes.
    pub(super) fn input(&self) -> &B::Linear {
        match self {
            Self::Attention { qkv, .. } => qkv,
            Self::ShortConvolution { input, .. } | Self::DeltaRule { input, .. } => input,
        }
    }
}

/// The multilayer perceptron of a layer.
pub(super) enum Mlp<B: Backend> {
    Dense {
        /// Gated, if it has a gate.
        up: B::Linear,
        down: B::Linear,
    },
    Experts(Experts<B::Linear, B::Norm>),
}

/// The block of an input that a layer has of its own: see [`LayerInputTensors`].
pub(super) struct LayerInput<B: Backend> {
    pub projection: B::Linear,
    pub norm: B::Norm,
    pub gate: B::Linear,
    pub output: B::Linear,
    pub output_norm: B::Norm,
    pub tokens: Option<LayerTokens<B>>,
}

/// A row for each token that is added to the input: row `each * token + at` of a table that all layers share.
pub(super) struct LayerTokens<B: Backend> {
    table: Arc<B::Table>,
    each: usize,
    at: usize,
    factor: f32,
}

/// One layer.
pub(super) struct Layer<B: Backend> {
    pub attention_norm: Option<B::Norm>,
    pub mixer: Mixer<B>,
    pub output: B::Linear,
    pub output_norm: Option<B::Norm>,
    pub mlp_norm: Option<B::Norm>,
    pub mlp: Mlp<B>,
    /// Of the perceptron, and of the gate of its input.
    pub activation: Activation,
    pub down_norm: Option<B::Norm>,
    pub input: Option<LayerInput<B>>,
    /// Of the states after it.
    pub factor: f32,
}

impl<B: Backend> Layer<B> {
    /// What ends a layer whose mixer and perceptron made `x`. `embeddings` has its rows.
    pub(super) fn end<'a>(
        &self,
        pass: &mut B::Pass<'a>,
        mut x: StatesOf<'a, B>,
        embeddings: Option<&StatesOf<'a, B>>,
    ) -> Result<StatesOf<'a, B>> {
        if let Some(input) = &self.input {
            let embeddings = embeddings.ok_or_else(|| misuse("embeddings were not kept"))?;
            let gate = pass.norm_linear(&x, None, &input.gate, self.activation)?;
            let tokens = input.tokens.as_ref().map(|LayerTokens { table, each, at, factor }| TokenRows {
                table: &**table,
                each: *each,
                at: *at,
                factor: *factor,
            });
            let made_by = (&input.projection, &input.norm);
            let product = pass.multiply_by_inputs(gate, embeddings, made_by, tokens)?;
            pass.linear_add(product, &input.output, Some(&input.output_norm), 1.0, &mut x)?;
        }
        if self.factor == 1.0 { Ok(x) } else { pass.scale(x, self.factor) }
    }
}

/// A layer and its place in caches.
pub(super) struct PlacedLayer<B: Backend> {
    /// Others may have the same one.
    pub layer: Arc<Layer<B>>,
    /// Its number among the layers with attention, those with a convolution, or those with a delta rule.
    pub cache_index: usize,
}

/// All layers of a model.
pub(super) struct Layers<B: Backend> {
    /// In their order.
    pub placed: Vec<PlacedLayer<B>>,
    /// What caches keep of a sequence.
    pub cache: CacheShape,
    /// Their rotary positions, each once.
    pub rotaries: Vec<Rotary>,
    /// The last layer whose mixer needs all rows: it makes keys, values or states of them. After that mixer, no row needs
    /// what layers make of another one.
    pub last_of_all_rows: usize,
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
        let mut loader = LayerLoader {
            backend,
            architecture,
            tensors,
            description,
            bias: architecture.distance_bias(tensors)?.map(Arc::new),
            relative: architecture.relative_table(tensors)?,
            tokens: None,
            rotaries: Vec::new(),
            short_convolution: None,
            delta_rule: None,
        };
        if let Some(LayerTokenTensors { table, factor }) = architecture.layer_tokens(tensors)? {
            loader.tokens = Some((Arc::new(backend.table(table)?), factor));
        }
        let mut placed: Vec<PlacedLayer<B>> = Vec::new();
        let [mut convolutions, mut delta_rules] = [0; 2];
        let mut caches = CacheLayers::new(description.heads);
        for index in 0..description.layers {
            let layer = match placed.get(architecture.same_as(index)) {
                Some(shared) => Arc::clone(&shared.layer),
                None => Arc::new(loader.layer(index)?),
            };
            let cache_index = match &layer.mixer {
                Mixer::Attention { attention, heads, .. } => match attention.keys {
                    KeySource::Layer(source) => {
                        let source = placed.get(source).ok_or_else(|| misuse("keys of a later layer"))?;
                        source.cache_index
                    }
                    KeySource::Own | KeySource::Kept => caches.place(*heads)?,
                },
                Mixer::ShortConvolution { .. } => {
                    convolutions += 1;
                    convolutions - 1
                }
                Mixer::DeltaRule { .. } => {
                    delta_rules += 1;
                    delta_rules - 1
                }
            };
            placed.push(PlacedLayer { layer, cache_index });
        }
        if convolutions + delta_rules > 0 && !description.norm_first {
            return Err(misuse("layers with a convolution or a delta rule have their norm first"));
        }
        if convolutions > 0 && delta_rules > 0 {
            return Err(misuse("a model has convolutions or delta rules"));
        }
        // Layers with other heads are counted after the others.
        for PlacedLayer { layer, cache_index } in &mut placed {
            if let Mixer::Attention { heads, .. } = &layer.mixer
                && caches.is_other(*heads)
            {
                *cache_index += caches.shapes[0].layers;
            }
        }
        let shape = loader.short_convolution.unwrap_or_default();
        let short_convolutions = ShortConvolutionShape { layers: convolutions, ..shape };
        let [LayerShapes { layers, kv_heads, width }, others] = caches.shapes;
        let shape = loader.delta_rule.unwrap_or(DeltaRuleShape::NONE);
        let delta_rules = DeltaRuleShape { layers: delta_rules, ..shape };
        let cache = CacheShape { layers, kv_heads, width, others, short_convolutions, delta_rules };
        let only_reads = |placed: &PlacedLayer<B>| match &placed.layer.mixer {
            Mixer::Attention { attention, .. } => attention.reuses_keys(),
            _ => false,
        };
        let last_of_all_rows = placed.iter().rposition(|placed| !only_reads(placed)).unwrap_or(0);
        Ok(Self { placed, cache, rotaries: loader.rotaries, last_of_all_rows })
    }
}

/// The layers of caches: those with the heads that the model describes, and those with others.
struct CacheLayers {
    shapes: [LayerShapes; 2],
}

impl CacheLayers {
    fn new(Heads { kv_heads, width, .. }: Heads) -> Self {
        Self { shapes: [LayerShapes { layers: 0, kv_heads, width }, LayerShapes::default()] }
    }

    fn is_other(&self, heads: Heads) -> bool {
        (self.shapes[0].kv_heads, self.shapes[0].width) != (heads.kv_heads, heads.width)
    }

    /// The number of a layer among those of its kind.
    fn place(&mut self, heads: Heads) -> Result<usize> {
        let is_other = self.is_other(heads);
        let kind = &mut self.shapes[usize::from(is_other)];
        if kind.layers == 0 {
            (kind.kv_heads, kind.width) = (heads.kv_heads, heads.width);
        }
        if (kind.kv_heads, kind.width) != (heads.kv_heads, heads.width) {
            return Err(misuse("layers with more than two kinds of heads"));
        }
        kind.layers += 1;
        Ok(kind.layers - 1)
    }
}

/// Puts layers on a backend, and gathers what they have in common.
struct LayerLoader<'l, B: Backend> {
    backend: &'l B,
    architecture: &'l dyn Architecture,
    tensors: &'l dyn Tensors,
    description: &'l Description,
    /// Of all layers whose attention has none of its own.
    bias: Option<Arc<DistanceBias>>,
    relative: Option<RelativeTable>,
    /// Rows of tokens that are added to the inputs of layers, and their factor.
    tokens: Option<(Arc<B::Table>, f32)>,
    /// Those of the layers so far, each once.
    rotaries: Vec<Rotary>,
    /// Of one layer with a convolution, if there was one.
    short_convolution: Option<ShortConvolutionShape>,
    /// The same of one with a delta rule.
    delta_rule: Option<DeltaRuleShape>,
}

impl<B: Backend> LayerLoader<'_, B> {
    fn layer(&mut self, index: usize) -> Result<Layer<B>> {
        let layer = self.architecture.layer(self.tensors, index)?;
        let activation = self.architecture.layer_activation(self.tensors, index)?;
        let mixer = match layer.mixer {
            MixerTensors::Attention { qkv, head_norms } => self.attention(index, &qkv, head_norms)?,
            MixerTensors::ShortConvolution { input, factors } => {
                self.short_convolution(index, input, &factors)?
            }
            MixerTensors::DeltaRule { input, factors } => self.delta_rule(index, &input, &factors)?,
        };
        Ok(Layer {
            attention_norm: self.optional_norm(layer.attention_norm)?,
            mixer,
            output: self.backend.linear(&[layer.output])?,
            output_norm: self.optional_norm(layer.output_norm)?,
            mlp_norm: self.optional_norm(layer.mlp_norm)?,
            mlp: match layer.mlp {
                MlpTensors::Dense { gate: Some(gate), up, down } => {
                    Mlp::Dense { up: self.backend.gated(gate, up)?, down: self.backend.linear(&[down])? }
                }
                MlpTensors::Dense { gate: None, up, down } => {
                    Mlp::Dense { up: self.backend.linear(&[up])?, down: self.backend.linear(&[down])? }
                }
                MlpTensors::Experts(experts) => Mlp::Experts(self.experts(experts)?),
            },
            activation: activation.unwrap_or(self.description.activation),
            down_norm: self.optional_norm(layer.down_norm)?,
            input: self.input(index)?,
            factor: self.architecture.layer_factor(self.tensors, index)?,
        })
    }

    fn input(&self, index: usize) -> Result<Option<LayerInput<B>>> {
        let Some(tensors) = self.architecture.layer_input(self.tensors, index)? else { return Ok(None) };
        if !self.description.norm_first {
            return Err(misuse("inputs of layers are for blocks that begin with their norm"));
        }
        let LayerInputTensors { projection, norm, gate, output, output_norm } = tensors;
        Ok(Some(LayerInput {
            projection: self.backend.linear(&[projection])?,
            norm: self.norm(&norm)?,
            gate: self.backend.linear(&[gate])?,
            output: self.backend.linear(&[output])?,
            output_norm: self.norm(&output_norm)?,
            tokens: self.tokens.as_ref().map(|(table, factor)| LayerTokens {
                table: Arc::clone(table),
                each: self.description.layers,
                at: index,
                factor: *factor,
            }),
        }))
    }

    fn attention(
        &mut self,
        index: usize,
        qkv: &[Biased],
        head_norms: Option<[NormTensors; 2]>,
    ) -> Result<Mixer<B>> {
        let mut attention = Box::new(self.described(index).clone());
        let heads = attention.heads.take().unwrap_or(self.description.heads);
        attention.bias = attention.bias.or_else(|| self.bias.clone());
        if let Some(sinks) = self.architecture.sinks(self.tensors, index)? {
            attention.sinks = Some(sinks.to_f32()?.into());
        }
        // The operation that rotates heads normalizes them too, and before.
        let nothing = || Rotary::new(1.0, 0, RopeStyle::Neox);
        let norms_last = self.architecture.rotates_first() && attention.rotary.is_some();
        let unrotated = (norms_last && head_norms.is_some()).then(|| self.rotary_index(nothing()));
        if head_norms.is_some() && attention.rotary.is_none() {
            attention.rotary = Some(nothing());
        }
        let rotary = attention.rotary.take().map(|rotary| self.rotary_index(rotary));
        let relative = match &self.relative {
            Some(table) => {
                let layers = self.architecture.relative_layers(self.tensors, index)?;
                Some(self.backend.relative(table, &layers, heads)?)
            }
            None => None,
        };
        let head_norms = match head_norms {
            Some([queries, keys]) => Some((self.norm(&queries)?, self.norm(&keys)?)),
            None => None,
        };
        let dynamic = self.architecture.dynamic_convolution(self.tensors, index)?;
        if dynamic.is_some() && self.description.norm_first {
            return Err(misuse("a convolution next to attention is for blocks that end with their norm"));
        }
        let dynamic = dynamic.map(|dynamic| DynamicConvolution::load(self.backend, dynamic)).transpose()?;
        let value_norm = self.optional_norm(self.architecture.value_norm(self.tensors, index)?)?;
        let gate = self.architecture.attention_gate(self.tensors, index)?;
        if gate.is_some() && !self.description.norm_first {
            return Err(misuse("gates of attention are for blocks that begin with their norm"));
        }
        let gate = gate.map(|parts| self.backend.linear(&parts)).transpose()?;
        let qkv = self.backend.linear(qkv)?;
        Ok(Mixer::Attention {
            qkv,
            heads,
            head_norms,
            value_norm,
            rotary,
            unrotated,
            attention,
            relative,
            dynamic,
            gate,
        })
    }

    fn experts(&self, experts: ExpertTensors) -> Result<Experts<B::Linear, B::Norm>> {
        let ExpertTensors { router, routing, choice_bias, weight_factors, experts, shared, bias, norms } =
            experts;
        let count = experts.len();
        if self.architecture.has_parallel_blocks() {
            return Err(misuse("experts are for blocks that follow one another"));
        }
        let numbers = |numbers: Option<Weight>| -> Result<Vec<f32>> {
            Ok(numbers.map(|numbers| numbers.to_f32()).transpose()?.unwrap_or_default())
        };
        let (choice_bias, weight_factors) = (numbers(choice_bias)?, numbers(weight_factors)?);
        let of_each = |numbers: &[f32]| numbers.is_empty() || numbers.len() == count;
        let fit = of_each(&choice_bias) && of_each(&weight_factors);
        if router.0.rows() != count || !(1..=count).contains(&routing.used) || !fit {
            return Err(misuse("a router chooses some of its experts"));
        }
        if norms.is_some() && shared.as_ref().is_some_and(|shared| shared.gate.is_some()) {
            return Err(misuse("a shared expert with norms of its own has no gate"));
        }
        let norms = match norms.map(|norms| *norms) {
            Some(ExpertNorms { router, input, output, shared_output }) => Some(ExpertNorms {
                router: self.norm(&router)?,
                input: self.norm(&input)?,
                output: self.norm(&output)?,
                shared_output: self.norm(&shared_output)?,
            }),
            None => None,
        };
        let layers = |ExpertMatrices { gate, up, down }| -> Result<ExpertLayers<B::Linear>> {
            let up = match gate {
                Some(gate) => self.backend.gated(gate, up)?,
                None => self.backend.linear(&[up])?,
            };
            Ok(ExpertLayers { up, down: self.backend.linear(&[down])? })
        };
        let shared = match shared.map(|shared| *shared) {
            Some(SharedTensors { matrices, gate }) => {
                let gate = gate.map(|gate| self.backend.exact_linear(&(gate, None))).transpose()?;
                let matrices = ExpertMatrices::gated(matrices.map(|matrix| (matrix, None)));
                Some(SharedExpert { layers: layers(matrices)?, gate })
            }
            None => None,
        };
        Ok(Experts {
            router: self.backend.exact_linear(&router)?,
            routing,
            choice_bias,
            weight_factors,
            experts: experts.into_iter().map(layers).collect::<Result<_>>()?,
            shared,
            bias: numbers(bias)?,
            norms,
        })
    }

    fn short_convolution(
        &mut self,
        index: usize,
        input: Biased,
        factors: &ShortConvolutionFactors,
    ) -> Result<Mixer<B>> {
        if !factors.is_causal() && self.described(index).mask.is_causal() {
            return Err(misuse("a convolution of a causal model sees later rows"));
        }
        let shape =
            ShortConvolutionShape { layers: 0, before: factors.before, columns: factors.factors.rows() };
        if *self.short_convolution.get_or_insert(shape) != shape {
            return Err(misuse("convolutions of different shapes"));
        }
        let convolution = self.backend.short_convolution(factors)?;
        Ok(Mixer::ShortConvolution { input: self.backend.linear(&[input])?, convolution })
    }

    fn delta_rule(&mut self, index: usize, input: &[Biased], factors: &DeltaRuleFactors) -> Result<Mixer<B>> {
        if !self.described(index).mask.is_causal() {
            return Err(misuse("a delta rule sees earlier rows alone"));
        }
        let before = factors.convolution.columns().saturating_sub(1);
        let shape = DeltaRuleShape { layers: 0, before, heads: factors.heads };
        if *self.delta_rule.get_or_insert(shape) != shape {
            return Err(misuse("delta rules of different shapes"));
        }
        let rule = self.backend.delta_rule(factors)?;
        Ok(Mixer::DeltaRule { input: self.backend.linear(input)?, rule })
    }

    /// The attention that the model describes for layer `index`.
    fn described(&self, index: usize) -> &LayerAttention {
        &self.description.attention[index % self.description.attention.len()]
    }

    fn rotary_index(&mut self, rotary: Rotary) -> usize {
        self.rotaries.iter().position(|known| *known == rotary).unwrap_or_else(|| {
            self.rotaries.push(rotary);
            self.rotaries.len() - 1
        })
    }

    fn norm(&self, norm: &NormTensors) -> Result<B::Norm> {
        self.backend.norm(&norm.scale, norm.shift.as_ref(), norm.epsilon)
    }

    fn optional_norm(&self, norm: Option<NormTensors>) -> Result<Option<B::Norm>> {
        norm.map(|norm| self.norm(&norm)).transpose()
    }
}
