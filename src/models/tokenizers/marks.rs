//! Marks in place of spaces, as SentencePiece has them.

/// What stands for a space.
pub(super) const SPACE: char = '▁';

/// Adds `text` to `to` with marks in place of spaces.
pub(super) fn push_marked(text: &str, to: &mut String) {
    text.split(' ').enumerate().for_each(|(at, part)| {
        to.extend((at > 0).then_some(SPACE));
        to.push_str(part);
    });
}

/// The parts of a text that begins with a mark; each begins with one.
pub(super) fn each_marked(text: &str, word: &mut dyn FnMut(&str)) {
    let mut start = 0;
    while start < text.len() {
        let after = start + SPACE.len_utf8();
        let end = text[after..].find(SPACE).map_or(text.len(), |at| after + at);
        word(&text[start..end]);
        start = end;
    }
}
