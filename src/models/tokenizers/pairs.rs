//! Two texts as one sequence, as transformers encodes a pair.

use tokenizers::{Encoding, Token};

use super::config::TokenizerConfig;
use super::long::Bounds;
use super::pipeline::Pipeline;
use super::tokenizer::{Tokenizer, guarded};
use crate::{Error, Result};

/// What a model reads: token ids, and where the second text begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Ids, special ones included.
    pub ids: Vec<u32>,
    /// The token from which on tokens have type 1; the number of ids where all have type 0.
    pub second: u32,
}

impl From<Vec<u32>> for Encoded {
    /// One text: all tokens have type 0.
    fn from(ids: Vec<u32>) -> Self {
        Self { second: u32::try_from(ids.len()).unwrap_or(u32::MAX), ids }
    }
}

/// The special tokens of a pair, and where type 1 begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PairTemplate {
    before: Vec<u32>,
    between: Vec<u32>,
    after: Vec<u32>,
    /// The number of `between` from which on tokens have type 1.
    typed: Option<usize>,
}

/// The tokens of one text of a pair, without special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairText<'a> {
    text: &'a str,
    /// At least as many as a pair has room for, if the text has as many.
    ids: Vec<u32>,
}

impl PairText<'_> {
    /// Whether it is this text.
    pub fn is_of(&self, text: &str) -> bool {
        self.text == text
    }
}

impl PairTemplate {
    /// Found by sending a pair of single tokens through the post-processor; `None` when it does not keep the texts'
    /// tokens in two pieces in their order.
    ///
    /// # Errors
    /// When the post-processor cannot run.
    pub(crate) fn of(inner: &dyn Pipeline, settings: &TokenizerConfig) -> tokenizers::Result<Option<Self>> {
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

    fn special(&self) -> usize {
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

impl Tokenizer {
    fn template(&self) -> Result<&PairTemplate> {
        self.pair.as_ref().ok_or_else(|| {
            Error::Input(
                "this model's tokenizer does not keep the two texts of a pair in two pieces, so it scores no pairs".into(),
            )
        })
    }

    /// Tokens that `max_length` leaves for the texts of a pair.
    fn pair_room(&self, max_length: usize) -> Result<usize> {
        let special = self.template()?.special();
        match max_length.saturating_sub(special) {
            0 => Err(Error::Input(format!(
                "max_length={max_length} leaves no room for text: this model adds {special} special tokens to a pair"
            ))),
            room => Ok(room),
        }
    }

    /// One text of a pair, which can be paired several times.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_within`].
    pub fn pair_text<'a>(
        &self,
        text: &'a str,
        max_length: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<PairText<'a>> {
        // One more tells a text that is cut.
        let room = self.pair_room(max_length)?.saturating_add(1);
        Ok(PairText { text, ids: self.content(text, room, bounds)? })
    }

    /// The ids of two texts with the model's special tokens, at most `max_length`: the longer one is cut first.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_within`].
    pub fn pair(
        &self,
        first: &PairText<'_>,
        second: &PairText<'_>,
        max_length: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<Encoded> {
        let (room, template) = (self.pair_room(max_length)?, self.template()?);
        let (mut a, mut b) = (first.ids.len(), second.ids.len());
        if a > room && b > room && room % 2 == 1 {
            // The odd token goes to the longer text.
            a = self.count_within(first.text, bounds)?;
            b = self.count_within(second.text, bounds)?;
        }
        let (a, b) = longest_first(a, b, room);
        let mut ids = Vec::with_capacity(a + b + template.special());
        ids.extend_from_slice(&template.before);
        ids.extend_from_slice(self.cut(&first.ids, a));
        let between = ids.len();
        ids.extend_from_slice(&template.between);
        ids.extend_from_slice(self.cut(&second.ids, b));
        ids.extend_from_slice(&template.after);
        let second = template.typed.map_or(ids.len(), |typed| between + typed);
        Ok(Encoded { ids, second: u32::try_from(second).unwrap_or(u32::MAX) })
    }
}

/// How many tokens of two texts stay in `room`: the longer one is cut to the length of the other, then both to one half.
fn longest_first(first: usize, second: usize, room: usize) -> (usize, usize) {
    if first.saturating_add(second) <= room {
        return (first, second);
    }
    let short = first.min(second);
    let (short, long) = match short.max(room.saturating_sub(short)) {
        long if short + long <= room => (short, long),
        _ => (room / 2, room - room / 2),
    };
    if first > second { (long, short) } else { (short, long) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_text_is_cut_first() {
        for (first, second, room, expected) in [
            (3, 4, 10, (3, 4)),
            (3, 40, 10, (3, 7)),
            (40, 3, 10, (7, 3)),
            (40, 50, 11, (5, 6)),
            (50, 40, 11, (6, 5)),
            (40, 40, 11, (5, 6)),
            (0, 40, 10, (0, 10)),
            (6, 6, 10, (5, 5)),
            (1, 1, 1, (0, 1)),
            (2, 1, 1, (1, 0)),
        ] {
            assert_eq!(longest_first(first, second, room), expected, "{first} {second} {room}");
        }
    }
}
