//! Two texts as one sequence, as transformers encodes a pair.

use std::borrow::Cow;

use super::long::Bounds;
use super::pair_template::PairTemplate;
use super::tokenizer::Tokenizer;
use crate::batching::Encoded;
use crate::{Error, Result};

/// The tokens of one text of a pair, without special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairText<'a> {
    text: Cow<'a, str>,
    /// At least as many as a pair has room for, if the text has as many.
    ids: Vec<u32>,
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
        text: impl Into<Cow<'a, str>>,
        max_length: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<PairText<'a>> {
        // One token more shows that the text is cut.
        let room = self.pair_room(max_length)?.saturating_add(1);
        let text = text.into();
        let ids = self.content(&text, room, bounds)?;
        Ok(PairText { text, ids })
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
            a = self.count_within(&first.text, bounds)?;
            b = self.count_within(&second.text, bounds)?;
        }
        let truncated = a.saturating_add(b) > room;
        let (a, b) = longest_first(a, b, room);
        let mut ids = Vec::with_capacity(a + b + template.special());
        ids.extend_from_slice(&template.before);
        ids.extend_from_slice(self.cut(&first.ids, a));
        let between = ids.len();
        ids.extend_from_slice(&template.between);
        ids.extend_from_slice(self.cut(&second.ids, b));
        ids.extend_from_slice(&template.after);
        let second = template.typed.map_or(ids.len(), |typed| between + typed);
        Ok(Encoded { ids, second: u32::try_from(second).unwrap_or(u32::MAX), truncated })
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
