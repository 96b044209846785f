//! The tensors that a transformer is made of.

use std::sync::Weak;

use crate::compute::file::WeightFile;
use crate::compute::memory::zeroed;
use crate::compute::{
    Activation, Biased, DeltaRuleFactors, ExpertNorms, ExpertRouting, Matrix, ShortConvolutionFactors, Weight,
};
use crate::{Error, Result};

/// Named tensors of any file format, under the names that transformers gives them.
pub trait Tensors {
    /// Whether there is such a tensor.
    fn contains(&self, name: &str) -> bool;

    /// A matrix of `[outputs, inputs]`.
    ///
    /// # Errors
    /// When it is missing or has another shape; the error names the file, the tensor and both shapes.
    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix>;

    /// A vector.
    ///
    /// # Errors
    /// When it is missing or has another length; as for [`matrix`](Self::matrix).
    fn vector(&self, name: &str, length: usize) -> Result<Weight>;

    /// Matrices of `[count, outputs, inputs]` in one tensor, as one matrix of `[count * outputs, inputs]`.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix); [`Error::Unsupported`] where there are none.
    fn stacked(&self, name: &str, _shape: [usize; 3]) -> Result<Matrix> {
        let reason = "these files have vectors and matrices alone".into();
        Err(Error::Unsupported { model: name.into(), reason })
    }

    /// Matrices of `[count, outputs, inputs]` whose numbers have four bits and a scale for each 32 of a row (MXFP4): the tensors
    /// `name_blocks` and `name_scales`, as one matrix of `[count * outputs, inputs]`.
    ///
    /// # Errors
    /// As [`stacked`](Self::stacked).
    fn microscaled(&self, name: &str, _shape: [usize; 3]) -> Result<Matrix> {
        let reason = "these files have no numbers of four bits".into();
        Err(Error::Unsupported { model: name.into(), reason })
    }

    /// A tensor of plain numbers, of any number of dimensions.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix); [`Error::Unsupported`] for quantized numbers.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let refused = |reason: &str| Error::Unsupported { model: name.into(), reason: reason.into() };
        match *shape {
            [length] => self.vector(name, length),
            [rows, columns] => match self.matrix(name, [rows, columns])? {
                Matrix::Plain(weight) => Ok(weight),
                Matrix::Blocks(_) => Err(refused("its numbers are quantized")),
            },
            _ => Err(refused("these files have vectors and matrices alone")),
        }
    }

    /// The matrix of logits of a model that ties it to the table `words`. A file that has one as `head` all the same keeps it, as
    /// in transformers since version 5.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    fn tied_matrix(&self, words: &str, head: &str, shape: [usize; 2]) -> Result<Matrix> {
        self.matrix(if self.contains(head) { head } else { words }, shape)
    }

    /// The error for the tensor `name`, whose numbers cannot be computed with: `what` says why.
    fn damaged(&self, name: &str, what: &str) -> Error {
        Error::Unsupported { model: name.into(), reason: what.into() }
    }

    /// The files that the tensors come from. A model that still reads rows from one of them checks it after each pass.
    fn files(&self) -> Vec<Weak<WeightFile>> {
        Vec::new()
    }
}

/// The parameters of a normalization.
#[derive(Debug, Clone)]
pub struct NormTensors {
    /// Factor of each number.
    pub scale: Weight,
    /// Added to each number: a layer normalization. Without it, an RMS normalization.
    pub shift: Option<Weight>,
    /// Added to the variance, or to the mean square.
    pub epsilon: f32,
}

/// What tokens become first.
#[derive(Debug)]
pub struct EmbeddingTensors {
    /// A row for each token of the vocabulary.
    pub words: Matrix,
    /// A row for each position.
    pub positions: Option<Matrix>,
    /// A row for each token type.
    pub token_types: Option<Matrix>,
    /// After their sum.
    pub norm: Option<NormTensors>,
    /// After the norm, where embeddings are narrower than states.
    pub projection: Option<Biased>,
    /// After the projection.
    pub projection_norm: Option<NormTensors>,
}

impl EmbeddingTensors {
    /// Rows for tokens alone.
    pub fn new(words: Matrix) -> Self {
        Self {
            words,
            positions: None,
            token_types: None,
            norm: None,
            projection: None,
            projection_norm: None,
        }
    }
}

/// A convolution of the embeddings along the text, which is added to the first layer's states.
#[derive(Debug)]
pub struct ConvolutionTensors {
    /// Rows of a text that one output sees; its own is in the middle.
    pub size: usize,
    /// From the rows side by side, the first one's numbers first.
    pub linear: Biased,
    /// Of the convolution's outputs.
    pub activation: Activation,
    /// Of the sum.
    pub norm: NormTensors,
}

/// A convolution along the text whose factors each row makes of its query and of the rows around it. Its outputs follow those
/// of attention.
#[derive(Debug)]
pub struct DynamicConvolutionTensors {
    /// Of each column of the layer's input.
    pub depthwise: ShortConvolutionFactors,
    /// From its outputs to what is multiplied by the queries.
    pub keys: Biased,
    /// From these products to the scores of each head, one for each row that it sees.
    pub scores: Biased,
    /// From the layer's input to what the factors multiply.
    pub values: Biased,
}

/// What a layer mixes the rows of a text with.
#[derive(Debug)]
pub enum MixerTensors {
    /// Attention.
    Attention {
        /// Queries, keys and values: matrices whose outputs lie side by side in this order.
        qkv: Vec<Biased>,
        /// Normalizations of queries and of keys. RMS normalizations are of each head, or as long as all heads and of all of
        /// them together. Layer normalizations are of each head; those as long as all heads have parameters for each.
        head_norms: Option<[NormTensors; 2]>,
    },
    /// A convolution of gated rows.
    ShortConvolution {
        /// Makes the three parts of its rows.
        input: Biased,
        /// What it multiplies and adds.
        factors: ShortConvolutionFactors,
    },
    /// A gated delta rule.
    DeltaRule {
        /// Makes the parts of its rows: matrices whose outputs lie side by side.
        input: Vec<Biased>,
        /// What it multiplies and adds.
        factors: DeltaRuleFactors,
    },
}

impl MixerTensors {
    /// Attention without norms of queries and keys.
    pub fn attention(qkv: Vec<Biased>) -> Self {
        Self::Attention { qkv, head_norms: None }
    }
}

/// The multilayer perceptron of a layer.
#[derive(Debug)]
pub enum MlpTensors {
    /// One for all rows.
    Dense {
        /// The gate of `up`, if there is one.
        gate: Option<Biased>,
        /// The first matrix.
        up: Biased,
        /// The second.
        down: Biased,
    },
    /// Several, of which each row uses a few.
    Experts(ExpertTensors),
}

impl MlpTensors {
    /// One without a gate.
    pub fn plain(up: Biased, down: Biased) -> Self {
        Self::Dense { gate: None, up, down }
    }

    /// One with a gate.
    pub fn gated(gate: Biased, up: Biased, down: Biased) -> Self {
        Self::Dense { gate: Some(gate), up, down }
    }
}

/// A mixture of experts.
#[derive(Debug)]
pub struct ExpertTensors {
    /// Makes a number for each expert, `[experts, inputs]`.
    pub router: Biased,
    /// How these numbers choose.
    pub routing: ExpertRouting,
    /// A number for each expert that is added to the scores which choose, and not to weights.
    pub choice_bias: Option<Weight>,
    /// A number for each expert that its weights are multiplied by in addition.
    pub weight_factors: Option<Weight>,
    /// Those that rows choose from.
    pub experts: Vec<ExpertMatrices>,
    /// An expert that all rows use.
    pub shared: Option<Box<SharedTensors>>,
    /// Added once to what the experts of a row make together.
    pub bias: Option<Weight>,
    /// Where the router and the chosen experts have norms of their own. The norm before the perceptron then is that of the
    /// shared expert, which has no gate.
    pub norms: Option<Box<ExpertNorms<NormTensors>>>,
}

/// The matrices of an expert.
#[derive(Debug)]
pub struct ExpertMatrices {
    /// The gate of `up`, if there is one.
    pub gate: Option<Biased>,
    /// The first matrix.
    pub up: Biased,
    /// The second.
    pub down: Biased,
}

impl ExpertMatrices {
    /// Those of an expert with a gate.
    pub fn gated([gate, up, down]: [Biased; 3]) -> Self {
        Self { gate: Some(gate), up, down }
    }
}

/// An expert that all rows use.
#[derive(Debug)]
pub struct SharedTensors {
    /// Its gate, first and second matrix.
    pub matrices: [Matrix; 3],
    /// Makes the number of a row whose sigmoid multiplies the output, `[1, inputs]`.
    pub gate: Option<Matrix>,
}

/// One layer.
#[derive(Debug)]
pub struct LayerTensors {
    /// Of the mixer's block: before it, or after it and the residual.
    pub attention_norm: Option<NormTensors>,
    /// What it mixes rows with.
    pub mixer: MixerTensors,
    /// After the mixer.
    pub output: Biased,
    /// Of what `output` gives, before it is added to the residual.
    pub output_norm: Option<NormTensors>,
    /// Of the multilayer perceptron: before it, or after it and the residual.
    pub mlp_norm: Option<NormTensors>,
    /// The multilayer perceptron.
    pub mlp: MlpTensors,
    /// Of what the perceptron gives, before it is added to the residual.
    pub down_norm: Option<NormTensors>,
}

impl LayerTensors {
    /// A layer without norms.
    pub fn new(mixer: MixerTensors, output: Biased, mlp: MlpTensors) -> Self {
        Self { attention_norm: None, mixer, output, output_norm: None, mlp_norm: None, mlp, down_norm: None }
    }
}

/// A block at the end of a layer with an input of its own: `x += output_norm(output(activation(gate(x)) * input))`, where the
/// input is `norm(projection(e))` of the embeddings `e`.
#[derive(Debug)]
pub struct LayerInputTensors {
    /// From embeddings to the input.
    pub projection: Biased,
    /// Of its outputs.
    pub norm: NormTensors,
    /// From states to what multiplies the input.
    pub gate: Biased,
    /// From the product to states.
    pub output: Biased,
    /// Of its outputs.
    pub output_norm: NormTensors,
}

/// Rows of tokens that are added to the inputs of layers.
#[derive(Debug)]
pub struct LayerTokenTensors {
    /// Row `layers * token + layer`.
    pub table: Matrix,
    /// What a row is multiplied by.
    pub factor: f32,
}

/// The names of the parts of a layer of BERT's form, under the name of the layer: each block ends with the norm of its residual.
pub(super) struct PostNormNames {
    /// Queries, keys, values and output, under `attention`.
    pub attention: [&'static str; 4],
    /// The two matrices of the perceptron.
    pub mlp: [&'static str; 2],
    /// After attention and after the perceptron.
    pub norms: [&'static str; 2],
}

/// The table of words in files of BERT and its kin.
pub(super) const BERT_WORDS: &str = "embeddings.word_embeddings.weight";

/// Tensors whose names have a prefix in some files: that of the model that the encoder was part of.
pub(super) struct PrefixedTensors<'a> {
    tensors: &'a dyn Tensors,
    prefix: &'static str,
}

impl<'a> PrefixedTensors<'a> {
    /// Those of the first prefix under which there is a tensor `probe`.
    pub(super) fn new(tensors: &'a dyn Tensors, probe: &str, prefixes: &[&'static str]) -> Self {
        let prefix = prefixes.iter().find(|prefix| tensors.contains(&format!("{prefix}{probe}")));
        Self { tensors, prefix: prefix.copied().unwrap_or_default() }
    }

    /// Those of a BERT or one of its kin.
    pub(super) fn of_bert(tensors: &'a dyn Tensors, prefixes: &[&'static str]) -> Self {
        Self::new(tensors, BERT_WORDS, prefixes)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains(&format!("{}{name}", self.prefix))
    }

    /// The first of some spellings of a layer's name with which there is a weight; the first of all without one.
    pub(super) fn spelled(&self, layer: &str, names: &[&str]) -> String {
        let full = |name: &&str| format!("{layer}.{name}");
        let found = names.iter().map(full).find(|name| self.contains(&format!("{name}.weight")));
        found.unwrap_or_else(|| full(&names[0]))
    }

    pub(super) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        self.tensors.matrix(&format!("{}{name}", self.prefix), shape)
    }

    pub(super) fn vector(&self, name: &str, length: usize) -> Result<Weight> {
        self.tensors.vector(&format!("{}{name}", self.prefix), length)
    }

    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        self.tensors.tensor(&format!("{}{name}", self.prefix), shape)
    }

    /// `name.weight` of `[outputs, inputs]` and `name.bias`.
    pub(super) fn linear(&self, name: &str, shape: [usize; 2]) -> Result<Biased> {
        self.maybe_biased(name, shape, true)
    }

    /// `name.weight` of `[outputs, inputs]` and, if there is one, `name.bias`.
    pub(super) fn maybe_biased(&self, name: &str, shape: [usize; 2], bias: bool) -> Result<Biased> {
        let matrix = self.matrix(&format!("{name}.weight"), shape)?;
        let shift = bias.then(|| self.vector(&format!("{name}.bias"), shape[0])).transpose()?;
        Ok((matrix, shift))
    }

    /// The halves of a layer that a file stores as one.
    pub(super) fn halves(&self, name: &str, shape: [usize; 2], bias: bool) -> Result<[Biased; 2]> {
        let (matrix, shift) = self.maybe_biased(name, [2 * shape[0], shape[1]], bias)?;
        Ok([0, shape[0]].map(|first| {
            let rows = first..first + shape[0];
            let shift = shift.as_ref().map(|shift| shift.slice_rows(rows.clone()));
            (matrix.slice_rows(rows), shift)
        }))
    }

    /// A layer of BERT's form, of states of `hidden` numbers: every linear layer has a bias, the perceptron of `wide` no gate.
    pub(super) fn post_norm_layer(
        &self,
        layer: &str,
        names: &PostNormNames,
        [hidden, wide]: [usize; 2],
        epsilon: f32,
    ) -> Result<LayerTensors> {
        let linear = |name: &str, shape| self.linear(&format!("{layer}.{name}"), shape);
        let [q, k, v, output] =
            names.attention.map(|name| linear(&format!("attention.{name}"), [hidden, hidden]));
        let [up, down] = names.mlp;
        let (up, down) = (linear(up, [wide, hidden])?, linear(down, [hidden, wide])?);
        let [attention_norm, mlp_norm] =
            names.norms.map(|name| self.layer_norm(&format!("{layer}.{name}"), hidden, epsilon));
        Ok(LayerTensors {
            attention_norm: Some(attention_norm?),
            mlp_norm: Some(mlp_norm?),
            ..LayerTensors::new(
                MixerTensors::attention(vec![q?, k?, v?]),
                output?,
                MlpTensors::plain(up, down),
            )
        })
    }

    /// A layer normalization. Old files call its parameters gamma and beta.
    pub(super) fn layer_norm(&self, name: &str, length: usize, epsilon: f32) -> Result<NormTensors> {
        let old = self.contains(&format!("{name}.gamma"));
        let (scale, shift) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        Ok(NormTensors {
            scale: self.vector(&format!("{name}.{scale}"), length)?,
            shift: Some(self.vector(&format!("{name}.{shift}"), length)?),
            epsilon,
        })
    }

    /// A layer normalization that shifts by zero.
    pub(super) fn layer_norm_without_shift(
        &self,
        name: &str,
        length: usize,
        epsilon: f32,
    ) -> Result<NormTensors> {
        let scale = self.vector(&format!("{name}.weight"), length)?;
        Ok(NormTensors { scale, shift: Some(Weight::from_f32(&zeroed(length)?, &[length])?), epsilon })
    }
}

impl Tensors for PrefixedTensors<'_> {
    fn contains(&self, name: &str) -> bool {
        // The method of the type, not this one; and below.
        PrefixedTensors::contains(self, name)
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        PrefixedTensors::matrix(self, name, shape)
    }

    fn vector(&self, name: &str, length: usize) -> Result<Weight> {
        PrefixedTensors::vector(self, name, length)
    }

    fn stacked(&self, name: &str, shape: [usize; 3]) -> Result<Matrix> {
        self.tensors.stacked(&format!("{}{name}", self.prefix), shape)
    }

    fn microscaled(&self, name: &str, shape: [usize; 3]) -> Result<Matrix> {
        self.tensors.microscaled(&format!("{}{name}", self.prefix), shape)
    }

    fn damaged(&self, name: &str, what: &str) -> Error {
        self.tensors.damaged(&format!("{}{name}", self.prefix), what)
    }
}
