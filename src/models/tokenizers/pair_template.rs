//! The special tokens around the two texts of a pair.

use tokenizers::{Encoding, Token};

use super::config::TokenizerConfig;
use super::pipeline::{Pipeline, guarded};

/// The special tokens of a pair, and where type 1 begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PairTemplate {
    pub(super) before: Vec<u32>,
    pub(super) between: Vec<u32>,
    pub(super) after: Vec<u32>,
    /// The number of `between` from which on tokens have type 1.
    pub(super) typed: Option<usize>,
}

impl PairTemplate {
    /// Found by sending a pair of single tokens through the post-processor; `None` when it does not keep the texts'
    /// tokens in two pieces in their order.
    ///
    /// # Errors
    /// When the post-processor cannot run.
    pub(crate) fn of(inner: &Pipeline, settings: &TokenizerConfig) -> tokenizers::Result<Option<Self>> {
        let probe = |id, kind| Encoding::from_tokens(vec![Token::new(id, String::new(), (0, 0))], kind);
        let dressed = guarded(|| inner.dress(probe(0, 0), Some(probe(1, 1))))?;
        let mask = dressed.get_special_tokens_mask();
        let own: Vec<usize> = (0..mask.len()).filter(|&at| mask[at] == 0).collect();
        let ids = dressed.get_ids();
        let [first, second] = own[..] else { return Ok(None) };
        if (ids[first], ids[second]) != (0, 1) {
            return Ok(None);
        }
        let types = dressed.get_type_ids();
        let begins = types.iter().position(|&kind| kind != 0).unwrap_or(types.len());
        // Type 1 from somewhere between the texts to the end, or not at all.
        let known =
            types[begins..].iter().all(|&kind| kind == 1) && (begins > first || begins == types.len());
        if !known || (begins > second && begins < types.len()) {
            return Ok(None);
        }
        let typed = (begins < types.len() && has_types(settings)).then(|| begins - first - 1);
        let part = |range: std::ops::Range<usize>| ids[range].to_vec();
        Ok(Some(Self {
            before: part(0..first),
            between: part(first + 1..second),
            after: part(second + 1..ids.len()),
            typed,
        }))
    }

    /// How many special tokens a pair gets.
    pub(super) fn special(&self) -> usize {
        self.before.len() + self.between.len() + self.after.len()
    }
}

/// Whether transformers gives the types to the model: a file can say, and so does the tokenizer's class.
fn has_types(settings: &TokenizerConfig) -> bool {
    if let Some(names) = settings.value("model_input_names").as_array() {
        return names.iter().any(|name| name == "token_type_ids");
    }
    match settings.word("tokenizer_class") {
        None => true,
        Some(class) => ["Bert", "Electra", "ConvBert", "MobileBert", "Funnel"]
            .iter()
            .any(|known| class.starts_with(known)),
    }
}
