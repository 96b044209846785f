//! What the heads of families look like: the names of their tensors, and the functions between them.

use crate::compute::Activation;

/// The function after a linear layer of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadActivation {
    /// None.
    Identity,
    /// Hyperbolic tangent.
    Tanh,
    /// The exact GELU.
    Gelu,
    /// `x * sigmoid(x)`.
    Silu,
    /// Negative numbers become zero.
    Relu,
}

impl HeadActivation {
    /// By transformers' name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "linear" => Some(Self::Identity),
            "tanh" => Some(Self::Tanh),
            "gelu" => Some(Self::Gelu),
            "silu" | "swish" => Some(Self::Silu),
            "relu" => Some(Self::Relu),
            _ => None,
        }
    }

    /// The function of one number.
    pub(crate) fn apply(self, x: f32) -> f32 {
        match self {
            Self::Identity => x,
            Self::Tanh => x.tanh(),
            Self::Gelu => Activation::Gelu.of(x),
            Self::Silu => Activation::Silu.of(x),
            // `max` would hide a NaN.
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
        }
    }
}

/// How the models of a family score a text, as transformers' `…ForSequenceClassification` does.
#[derive(Debug, Clone, Copy)]
pub struct ClassifierHead {
    /// The state that the layers begin with.
    pub state: HeadState,
    /// The layers, in order.
    pub layers: &'static [HeadLayer],
}

/// The state that a head begins with.
#[derive(Debug, Clone, Copy)]
pub enum HeadState {
    /// That of the first token.
    First,
    /// That of the last token.
    Last,
    /// The pooling that this key of `config.json` names; without it that of the first token.
    Configured(&'static str),
}

/// One linear layer of a head.
#[derive(Debug, Clone, Copy)]
pub struct HeadLayer {
    /// What its tensors may be called, without `.weight` and `.bias`. The first that exists is used.
    pub names: &'static [&'static str],
    /// After it.
    pub activation: LayerActivation,
    /// The layer normalization after that.
    pub norm: Option<HeadNormNames>,
}

/// A layer normalization of a head.
#[derive(Debug, Clone, Copy)]
pub struct HeadNormNames {
    /// The name of its tensors.
    pub tensors: &'static str,
    /// The key of `config.json` with its epsilon.
    pub epsilon: &'static str,
    /// The epsilon of a file without that key.
    pub default: f32,
}

/// The function after a layer.
#[derive(Debug, Clone, Copy)]
pub enum LayerActivation {
    /// Always this one.
    Fixed(HeadActivation),
    /// That which this key of `config.json` names; without it GELU.
    Configured(&'static str),
}

const fn layer(names: &'static [&'static str], activation: HeadActivation) -> HeadLayer {
    HeadLayer { names, activation: LayerActivation::Fixed(activation), norm: None }
}

/// Of BERT: the pooler, and a layer over it. GTE and its kin are the same.
pub const BERT: ClassifierHead = ClassifierHead {
    state: HeadState::First,
    layers: &[
        layer(
            &["bert.pooler.dense", "new.pooler.dense", "gte.pooler.dense", "pooler.dense"],
            HeadActivation::Tanh,
        ),
        layer(&["classifier"], HeadActivation::Identity),
    ],
};
/// Of ALBERT.
pub const ALBERT: ClassifierHead = ClassifierHead {
    state: HeadState::First,
    layers: &[
        layer(&["albert.pooler", "pooler"], HeadActivation::Tanh),
        layer(&["classifier"], HeadActivation::Identity),
    ],
};
/// Of RoBERTa and its kin, and of MPNet.
pub const ROBERTA: ClassifierHead = ClassifierHead {
    state: HeadState::First,
    layers: &[
        layer(&["classifier.dense"], HeadActivation::Tanh),
        layer(&["classifier.out_proj"], HeadActivation::Identity),
    ],
};
/// Of DistilBERT.
pub const DISTILBERT: ClassifierHead = ClassifierHead {
    state: HeadState::First,
    layers: &[
        layer(&["pre_classifier"], HeadActivation::Relu),
        layer(&["classifier"], HeadActivation::Identity),
    ],
};
/// Of ELECTRA.
pub const ELECTRA: ClassifierHead = ClassifierHead {
    state: HeadState::First,
    layers: &[
        layer(&["classifier.dense"], HeadActivation::Gelu),
        layer(&["classifier.out_proj"], HeadActivation::Identity),
    ],
};
/// Of ConvBERT.
pub const CONVBERT: ClassifierHead = ClassifierHead {
    state: HeadState::First,
    layers: &[
        HeadLayer {
            names: &["classifier.dense"],
            activation: LayerActivation::Configured("hidden_act"),
            norm: None,
        },
        layer(&["classifier.out_proj"], HeadActivation::Identity),
    ],
};
/// Of DeBERTa-v2.
pub const DEBERTA: ClassifierHead = ClassifierHead {
    state: HeadState::First,
    layers: &[
        HeadLayer {
            names: &["pooler.dense"],
            activation: LayerActivation::Configured("pooler_hidden_act"),
            norm: None,
        },
        layer(&["classifier"], HeadActivation::Identity),
    ],
};
/// Of ModernBERT.
pub const MODERNBERT: ClassifierHead = ClassifierHead {
    state: HeadState::Configured("classifier_pooling"),
    layers: &[
        HeadLayer {
            names: &["head.dense"],
            activation: LayerActivation::Configured("classifier_activation"),
            norm: Some(HeadNormNames { tensors: "head.norm", epsilon: "norm_eps", default: 1e-5 }),
        },
        layer(&["classifier"], HeadActivation::Identity),
    ],
};
/// Of Llama, Qwen2 and Qwen3: a layer over the last token's state.
pub const CAUSAL: ClassifierHead =
    ClassifierHead { state: HeadState::Last, layers: &[layer(&["score"], HeadActivation::Identity)] };

/// The head of a family's masked language models: `norm(activation(dense(x)))`, and a row for each token of the vocabulary.
#[derive(Debug, Clone, Copy)]
pub struct MaskedHead {
    /// The name of the dense layer's tensors.
    pub dense: &'static str,
    /// After it; `None` is that of the perceptrons.
    pub activation: Option<Activation>,
    /// The name of the layer normalization's tensors.
    pub norm: &'static str,
    /// The matrix of the vocabulary. A file without it has that of the word embeddings.
    pub decoder: &'static str,
    /// Its bias, in files that have it under a name of its own.
    pub decoder_bias: &'static str,
    /// Its bias in all others.
    pub bias: &'static str,
}

/// Of BERT.
pub const MASKED_BERT: MaskedHead = MaskedHead {
    dense: "cls.predictions.transform.dense",
    activation: None,
    norm: "cls.predictions.transform.LayerNorm",
    decoder: "cls.predictions.decoder.weight",
    decoder_bias: "cls.predictions.decoder.bias",
    bias: "cls.predictions.bias",
};
/// Of RoBERTa and its kin.
pub const MASKED_ROBERTA: MaskedHead = MaskedHead {
    dense: "lm_head.dense",
    activation: Some(Activation::Gelu),
    norm: "lm_head.layer_norm",
    decoder: "lm_head.decoder.weight",
    decoder_bias: "lm_head.decoder.bias",
    bias: "lm_head.bias",
};
/// Of DistilBERT.
pub const MASKED_DISTILBERT: MaskedHead = MaskedHead {
    dense: "vocab_transform",
    activation: None,
    norm: "vocab_layer_norm",
    decoder: "vocab_projector.weight",
    decoder_bias: "vocab_projector.bias",
    bias: "vocab_projector.bias",
};
