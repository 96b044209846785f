//! What stands behind the transformer of a model, as its files say.

use super::config::ModelConfig;
use super::heads::tokens::saved_layer;
use super::heads::{Classifier, DenseLayer, HeadActivation, LexicalHead, SpladePooling, TokenHead};
use super::late::LateInteraction;
use super::manifest::ModelFiles;
use super::tokenizers::Tokenizer;
use super::tokenizers::config::TokenizerConfig;
use super::weights::Weights;
use crate::Result;
use crate::compute::Isa;
use crate::output::Shapes;

/// What becomes of the pooled states.
#[derive(Debug)]
pub(super) enum Head {
    /// Vectors, through these layers; and what else a pass gives: weights by token, and vectors of tokens.
    Vectors { dense: Vec<DenseLayer>, lexical: Option<Box<LexicalHead>>, tokens: Option<TokenHead> },
    /// Vectors of tokens alone.
    Tokens(TokenHead),
    /// Logits.
    Scores(Classifier),
    /// Weights of this many entries of the vocabulary.
    Sparse(SpladePooling, usize),
}

impl Head {
    /// The shapes of what follows from states of this width. `has_states`: they are those of a text's tokens, as the rows of a
    /// static model are not.
    pub(super) fn shapes(&self, states: usize, vocabulary: usize, has_states: bool) -> Shapes {
        let none = Shapes::default();
        match self {
            Self::Vectors { dense, lexical, tokens } => {
                let width = dense.last().map_or(states, DenseLayer::outputs);
                let multi = tokens.as_ref().map_or(states, |tokens| tokens.width(states));
                let sparse = lexical.as_ref().map(|_| vocabulary);
                let (multi, states) = (has_states.then_some(multi), has_states.then_some(states));
                Shapes { dense: Some(width), sparse, multi, states, ..none }
            }
            Self::Tokens(tokens) => {
                Shapes { multi: Some(tokens.width(states)), states: Some(states), ..none }
            }
            Self::Scores(classifier) => Shapes { scores: Some(classifier.labels()), ..none },
            Self::Sparse(_, vocabulary) => Shapes { sparse: Some(*vocabulary), ..none },
        }
    }
}

/// The layers of a model of late interaction.
pub(super) fn late_head(
    files: &ModelFiles,
    late: &LateInteraction,
    weights: &Weights,
    width: usize,
) -> Result<TokenHead> {
    let isa = Isa::from_env()?;
    let mut head = match &late.dense {
        Some(folders) => {
            let layers = folders.iter().map(|folder| DenseLayer::load_over_tokens(&files.model, folder));
            TokenHead::new(layers.collect::<Result<_>>()?, width, isa, &|index| {
                folders[index].join("config.json")
            })?
        }
        None => {
            let layer = DenseLayer::of(weights, "linear", width, HeadActivation::Identity)?;
            TokenHead::new(vec![layer], width, isa, &|_| files.root.clone())?
        }
    };
    head.normalize = late.normalize;
    Ok(head)
}

/// bge-m3's layer of weights by token.
pub(super) const SPARSE_LINEAR: &str = "sparse_linear.pt";

/// Whether the folder has bge-m3's layer of weights by token.
pub(super) fn has_lexical_head(files: &ModelFiles) -> bool {
    files.root.join(SPARSE_LINEAR).is_file()
}

/// bge-m3's layer of weights by token, if the folder has one.
pub(super) fn lexical_head(
    files: &ModelFiles,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    width: usize,
) -> Result<Option<Box<LexicalHead>>> {
    let layer = match config.gguf {
        None => saved_layer(&files.root, SPARSE_LINEAR, width, Some(1))?,
        Some(_) => None,
    };
    let Some(layer) = layer else { return Ok(None) };
    let settings = TokenizerConfig::read(files)?;
    let names = ["cls_token", "eos_token", "pad_token", "unk_token"];
    let unused = names.iter().filter_map(|name| tokenizer.id(&settings.word(name)?)).collect();
    LexicalHead::new(&layer, Isa::from_env()?, unused).map(|head| Some(Box::new(head)))
}

/// bge-m3's layer of vectors of tokens, if the folder has one.
pub(super) fn bge_tokens(
    files: &ModelFiles,
    config: &ModelConfig,
    width: usize,
) -> Result<Option<TokenHead>> {
    let layer = match config.gguf {
        None => saved_layer(&files.root, "colbert_linear.pt", width, None)?,
        Some(_) => None,
    };
    let Some(layer) = layer else { return Ok(None) };
    let mut head = TokenHead::new(vec![layer], width, Isa::from_env()?, &|_| files.root.clone())?;
    (head.normalize, head.without_first) = (true, true);
    Ok(Some(head))
}
