//! What one call gives to a model: texts, pairs of texts, or token ids of the model's own vocabulary.

use super::info::ModelInfo;
use super::options::EmbedOptions;
use crate::batching::Encoded;
use crate::cache::Content;
use crate::compute::{Threads, map_in_order};
use crate::models::{Bounds, Encoder, PairStart};
use crate::output::OutputKind;
use crate::{Error, Result};

/// Bytes of a usual text for one token, to compare the lengths of both.
pub(super) const BYTES_PER_TOKEN: usize = 4;
/// Bytes of text that one thread tokenizes before it looks for other work: some tenths of a millisecond.
pub(super) const PART_BYTES: usize = 1 << 10;

/// Bytes of text that are tokenized at a time. Longer texts have a dispatcher of their own: other calls do not wait for
/// them.
pub(super) const LONG_TEXT: usize = 64 << 10;

/// Bytes up to which a prompt, or the query of many documents, may be of any call.
const SHORT_SHARED: usize = 256 << 10;
/// Bytes of one text that all inputs share, times these inputs: about as many are hashed, copied and tokenized.
const MOST_SHARED: usize = 512 << 20;

/// What one call gives to a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inputs {
    /// Texts, which get the call's prompt and the model's special tokens.
    Texts(Vec<String>),
    /// Token ids, which the model reads as they are: nothing is put before, between or after them.
    Tokens(Vec<Vec<u32>>),
    /// Pairs of texts.
    Pairs(Pairs),
}

/// Pairs of texts, each of which a model reads as one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs {
    firsts: Vec<String>,
    seconds: Vec<String>,
    /// The argument that a caller gave them by.
    param: &'static str,
}

impl Pairs {
    /// One query with each of the documents.
    #[must_use]
    pub fn of_query(query: String, documents: Vec<String>) -> Self {
        Self { firsts: vec![query], seconds: documents, param: "documents" }
    }

    /// Each first text with the second text of the same number.
    ///
    /// # Errors
    /// [`Error::Input`] when there are not as many of both.
    pub fn new(firsts: Vec<String>, seconds: Vec<String>) -> Result<Self> {
        if firsts.len() != seconds.len() {
            return Err(Error::Input(format!(
                "pairs have two texts each, and there are {} first and {} second ones",
                firsts.len(),
                seconds.len()
            )));
        }
        Ok(Self { firsts, seconds, param: "texts" })
    }

    fn get(&self, input: usize) -> (&str, &str) {
        // A query has number 0 for all.
        let first = if self.firsts.len() == 1 { 0 } else { input };
        (&self.firsts[first], &self.seconds[input])
    }
}

impl From<Vec<String>> for Inputs {
    fn from(texts: Vec<String>) -> Self {
        Self::Texts(texts)
    }
}

impl From<Vec<Vec<u32>>> for Inputs {
    fn from(ids: Vec<Vec<u32>>) -> Self {
        Self::Tokens(ids)
    }
}

impl Inputs {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Tokens(ids) => ids.len(),
            Self::Pairs(pairs) => pairs.seconds.len(),
        }
    }

    /// The argument that gives the inputs.
    fn param(&self) -> &'static str {
        match self {
            Self::Texts(_) | Self::Tokens(_) => "texts",
            Self::Pairs(pairs) => pairs.param,
        }
    }

    pub(super) fn get(&self, input: usize) -> Content<'_> {
        match self {
            Self::Texts(texts) => Content::Text(&texts[input]),
            Self::Tokens(ids) => Content::Tokens(&ids[input]),
            Self::Pairs(pairs) => {
                let (first, second) = pairs.get(input);
                Content::Pair(first, second)
            }
        }
    }

    /// A measure to sort inputs by: the greater, the more tokens.
    pub(super) fn length(&self, input: usize) -> usize {
        match self.get(input) {
            Content::Text(text) => text.len(),
            Content::Tokens(ids) => ids.len() * BYTES_PER_TOKEN,
            Content::Pair(first, second) => first.len() + second.len(),
        }
    }

    /// Refuses inputs that no model can answer under `options`, before anything is loaded.
    pub(super) fn check(&self, options: &EmbedOptions) -> Result<()> {
        if let Some(prompt) = &options.prompt {
            self.check_shared("prompt", prompt)?;
        }
        if let Self::Pairs(Pairs { firsts, .. }) = self
            && let [query] = &firsts[..]
        {
            self.check_shared("query", query)?;
        }
        let Self::Tokens(ids) = self else { return options.one_prompt() };
        if options.prompt_name.is_some() || options.prompt.as_ref().is_some_and(|prompt| !prompt.is_empty()) {
            return Err(Error::Input(
                "token ids are read as they are and take no prompt: put the prompt's ids in front of them, or embed \
                 the text"
                    .into(),
            ));
        }
        match ids.iter().position(Vec::is_empty) {
            Some(input) => Err(Error::item(self.param(), &[input], " holds no token ids")),
            None => Ok(()),
        }
    }

    /// Refuses a text that every input shares when it is read too often.
    fn check_shared(&self, param: &'static str, text: &str) -> Result<()> {
        let (bytes, inputs) = (text.len(), self.len());
        if bytes <= SHORT_SHARED || bytes.saturating_mul(inputs) <= MOST_SHARED {
            return Ok(());
        }
        let most = MOST_SHARED / bytes;
        let reason = format!(
            " has {bytes} bytes and is read with each of {inputs} texts; with one of this length give at most {most}, or \
             shorten it to {SHORT_SHARED} bytes, which is more than models read"
        );
        Err(Error::argument(param, reason))
    }

    /// The prompt that is put before each of them.
    pub(super) fn prompt<'a>(&self, info: &'a ModelInfo, options: &'a EmbedOptions) -> Result<&'a str> {
        match self {
            Self::Texts(_) | Self::Pairs(_) => info.prompt(options),
            Self::Tokens(_) => Ok(""),
        }
    }

    /// What `encoder` reads for some of them, each at most as long as it takes. The threads of the pool share the work,
    /// unless a text is long.
    pub(super) fn sequences(
        &self,
        numbers: &[usize],
        encoder: &Encoder,
        prompt: &str,
        options: &EmbedOptions,
        bounds: &mut Bounds<'_>,
    ) -> Result<Vec<Encoded>> {
        let max_bytes = bounds.max_bytes;
        let bytes: usize = numbers.iter().map(|&input| self.length(input)).sum();
        if numbers.len() <= 1 || matches!(self, Self::Tokens(_)) || bytes > LONG_TEXT {
            return self.sequences_of(numbers, encoder, prompt, options, bounds);
        }
        (bounds.check)()?;
        let weight = |at: usize| self.length(numbers[at]);
        map_in_order(&Threads::global(), numbers.len(), PART_BYTES, &weight, &|part, check| {
            let mut bounds = Bounds { max_bytes, check };
            self.sequences_of(&numbers[part], encoder, prompt, options, &mut bounds)
        })
    }

    fn sequences_of(
        &self,
        numbers: &[usize],
        encoder: &Encoder,
        prompt: &str,
        options: &EmbedOptions,
        bounds: &mut Bounds<'_>,
    ) -> Result<Vec<Encoded>> {
        let (truncate, query) = (options.truncate, options.kind == OutputKind::Queries);
        // The first text of neighboring pairs is often the same.
        let mut start: Option<PairStart<'_>> = None;
        let mut sequences = Vec::with_capacity(numbers.len());
        // A template refuses one of the texts.
        let named = |error: Error, input: usize| match error {
            Error::Input(reason) if encoder.reads_conversations() => {
                Error::item(self.param(), &[input], format!(": {reason}"))
            }
            other => other,
        };
        for &input in numbers {
            let late = match self.get(input) {
                Content::Text(text) => {
                    let late = encoder.tokenize_late(prompt, text, query, truncate, bounds);
                    late.map_err(|error| named(error, input))?
                }
                _ => None,
            };
            if let Some(late) = late {
                sequences.push(late);
                continue;
            }
            let sequence = match self.get(input) {
                Content::Text(text) if truncate => {
                    encoder.tokenize(prompt, text, bounds).map_err(|error| named(error, input))?
                }
                Content::Text(text) => {
                    let ids = encoder.tokenize_whole(prompt, text, bounds);
                    ids.map_err(|error| named(error, input))?.into()
                }
                Content::Tokens(ids) => {
                    let truncated = truncate && ids.len() > encoder.config.max_length;
                    Encoded { truncated, ..self.ids(input, ids, encoder, truncate)?.into() }
                }
                Content::Pair(query, document) => {
                    let most = if truncate { encoder.config.max_length } else { usize::MAX };
                    let begun = match start.take().filter(|known| known.is_of(query)) {
                        Some(known) => known,
                        None => encoder.pair_start(prompt, query, most, bounds)?,
                    };
                    let pair = encoder.pair(&begun, document, most, bounds)?;
                    start = Some(begun);
                    pair
                }
            };
            let (tokens, longest) = (sequence.ids.len(), encoder.config.max_length);
            if tokens > longest {
                let name = &encoder.name;
                let rest = match self.get(input) {
                    Content::Pair(..) => format!(
                        " has {tokens} tokens together with the other text of its pair, and {name:?} reads at most {longest}: \
                         shorten one of them, or let the longer one be cut (truncate=True)"
                    ),
                    Content::Text(_) | Content::Tokens(_) => format!(
                        " has {tokens} tokens, and {name:?} reads at most {longest}: split it (chunk), or let it be cut \
                         (truncate=True)"
                    ),
                };
                return Err(Error::item(self.param(), &[input], rest));
            }
            sequences.push(sequence);
        }
        Ok(sequences)
    }

    /// The ids of an input, checked and cut.
    fn ids(&self, input: usize, ids: &[u32], encoder: &Encoder, truncate: bool) -> Result<Vec<u32>> {
        if let Some(wrong) = ids.iter().find(|id| **id as usize >= encoder.vocabulary) {
            let rest = format!(
                " holds the token id {wrong}, which is not in the vocabulary of {:?}: its ids are 0 to {}",
                encoder.name,
                encoder.vocabulary.saturating_sub(1)
            );
            return Err(Error::item(self.param(), &[input], rest));
        }
        let longest = encoder.config.max_length;
        Ok(if truncate { encoder.tokenizer.cut(ids, longest).to_vec() } else { ids.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(inputs: &Inputs, prompt: Option<String>) -> Option<String> {
        let options = EmbedOptions { prompt, ..EmbedOptions::default() };
        inputs.check(&options).err().map(|error| error.to_string())
    }

    #[test]
    fn a_long_text_is_shared_by_few_inputs() {
        let long = || "x".repeat(SHORT_SHARED + 1);
        let most = MOST_SHARED / (SHORT_SHARED + 1);
        for (inputs, refused) in [(1, false), (most, false), (most + 1, true)] {
            let texts = vec![String::new(); inputs];
            let reason = refusal(&Inputs::Texts(texts.clone()), Some(long()));
            assert_eq!(reason.is_some(), refused, "{inputs} texts");
            assert!(reason.is_none_or(|reason| reason.starts_with("prompt has 262145 bytes")));
            let pairs = Inputs::Pairs(Pairs::of_query(long(), texts.clone()));
            let reason = refusal(&pairs, None);
            assert_eq!(reason.is_some(), refused, "{inputs} documents");
            assert!(reason.is_none_or(|reason| reason.starts_with("query has 262145 bytes")));
            // One of `SHORT_SHARED` bytes is taken with any number, and so are pairs without a common text.
            assert_eq!(refusal(&Inputs::Texts(texts.clone()), Some("x".repeat(SHORT_SHARED))), None);
            if inputs > 1 {
                let pairs = Pairs::new(texts.clone(), texts).unwrap();
                assert_eq!(refusal(&Inputs::Pairs(pairs), None), None);
            }
        }
    }
}
