//! Prompt lookup: an answer often repeats a part of its own text, as an answer about a document does. What followed there is
//! a draft of the next tokens, and one pass computes the logits after all of them. A drafted token stays if it is the one that
//! is chosen without a draft, so answers are the same (Saxena, Prompt Lookup Decoding, 2023).

/// Tokens at the end of a text that the draft's place must have too: of fewer, what follows is chance.
const LEAST_MATCH: usize = 3;

/// Of two places, that with more such tokens is used, up to this number.
const LONGEST_MATCH: usize = 12;

/// Tokens of the first draft.
const FIRST_WIDTH: usize = 4;

/// Most steps without a draft after wrong ones.
const LONGEST_PAUSE: u32 = 32;

/// When and how far one sequence looks ahead. Its drafts become longer while they are right, and seldom when they are not.
#[derive(Debug)]
pub(super) struct PromptLookup {
    /// Most tokens of the next draft.
    width: usize,
    /// Steps until then.
    pause: u32,
    /// Drafts of which no token was right, after the last of which one was.
    wrong: u32,
}

impl Default for PromptLookup {
    fn default() -> Self {
        Self { width: FIRST_WIDTH, pause: 0, wrong: 0 }
    }
}

impl PromptLookup {
    /// Appends at most `most` tokens that `text` may go on with to `draft`.
    pub(super) fn draft(&mut self, text: &[u32], most: usize, draft: &mut Vec<u32>) {
        if self.pause > 0 {
            self.pause -= 1;
            return;
        }
        if let Some(next) = following(text) {
            // A text that repeats itself goes on after its own end.
            let period = text.len() - next;
            draft.extend((0..self.width.min(most)).map(|index| text[next + index % period]));
        }
    }

    /// Learns how many tokens of a draft were right.
    pub(super) fn learn(&mut self, drafted: usize, right: usize) {
        if right == 0 {
            self.wrong = self.wrong.saturating_add(1);
            self.pause = 1u32.checked_shl(self.wrong).map_or(LONGEST_PAUSE, |steps| steps.min(LONGEST_PAUSE));
            self.width = (self.width / 2).max(1);
            return;
        }
        self.wrong = 0;
        self.width = if right == drafted { self.width.max(2 * drafted) } else { right + 1 };
    }
}

/// The place after the latest of the longest matches of the text's end. None without a match.
fn following(text: &[u32]) -> Option<usize> {
    let (end, &last) = (text.len(), text.last()?);
    let mut best = (LEAST_MATCH - 1, None);
    for next in (LEAST_MATCH..end).rev() {
        if text[next - 1] != last {
            continue;
        }
        let earlier = text[..next].iter().rev().zip(text.iter().rev());
        let matching = earlier.take(LONGEST_MATCH).take_while(|(a, b)| a == b).count();
        if matching > best.0 {
            best = (matching, Some(next));
            if matching == LONGEST_MATCH {
                break;
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(lookup: &mut PromptLookup, text: &[u32], most: usize) -> Vec<u32> {
        let mut draft = Vec::new();
        lookup.draft(text, most, &mut draft);
        draft
    }

    #[test]
    fn a_draft_is_what_followed_the_longest_match() {
        let first = |text: &[u32], most| draft(&mut PromptLookup::default(), text, most);
        assert_eq!(first(&[1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3], 9), [4, 5, 6, 7]);
        assert_eq!(first(&[1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3], 2), [4, 5]);
        // The latest of two; the longest, although it is not the latest.
        assert_eq!(first(&[1, 2, 3, 7, 1, 2, 3, 8, 0, 1, 2, 3], 1), [8]);
        assert_eq!(first(&[0, 1, 2, 3, 7, 5, 1, 2, 3, 8, 0, 1, 2, 3], 1), [7]);
        // Text that repeats itself goes on.
        assert_eq!(first(&[5, 1, 2, 1, 2, 1, 2], 4), [1, 2, 1, 2]);
        assert_eq!(first(&[4, 4, 4, 4], 4), [4; 4]);
        // Two tokens are too few, and a text does not match itself.
        for text in [&[1, 2, 3, 9, 0, 2, 3][..], &[], &[1], &[1, 1], &[1, 1, 1], &[1, 2, 3]] {
            assert!(first(text, 4).is_empty(), "{text:?}");
        }
    }

    #[test]
    fn drafts_follow_their_success() {
        let (mut lookup, text) = (PromptLookup::default(), [7; 40]);
        let mut widths = Vec::new();
        for right in [4, 8, 3, 0, 1] {
            let tokens = draft(&mut lookup, &text, 16);
            widths.push(tokens.len());
            lookup.learn(tokens.len(), right);
            lookup.pause = 0;
        }
        assert_eq!(widths, [4, 8, 16, 4, 2]);
    }

    #[test]
    fn wrong_drafts_become_seldom_until_one_is_right() {
        let (mut lookup, text) = (PromptLookup::default(), [7; 40]);
        let mut steps = Vec::new();
        for step in 0..200 {
            let tokens = draft(&mut lookup, &text, 16);
            if !tokens.is_empty() {
                steps.push(step);
                lookup.learn(tokens.len(), 0);
            }
        }
        assert_eq!(steps, [0, 3, 8, 17, 34, 67, 100, 133, 166, 199]);
        lookup.learn(1, 1);
        assert_eq!((lookup.wrong, lookup.width), (0, 2));
        lookup.wrong = u32::MAX;
        lookup.learn(1, 0);
        assert_eq!(lookup.pause, LONGEST_PAUSE);
    }
}
