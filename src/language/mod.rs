//! Which language a text is in, as the chatbot decides it.
//!
//! The score is `0.7 · (Turkish letters ÷ characters) + 0.3 · (Turkish words ÷ words)`; above 0.1 a text is Turkish. Words
//! are Python's `\b\w+\b` of the lower-cased text. The detector is coarse by design ("Merhaba dünya" is not Turkish to
//! it): clients have stored vectors by its decisions, so it must decide as it always has. [`improved`] is a better one for
//! those who have none.

pub mod improved;

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// Letters that English does not have, in both cases; plain `I` counts because it is the capital of `ı`.
const LETTERS: &str = "çğıöşüÇĞIİÖŞÜ";

/// Common words and suffixes, as the chatbot lists them.
const WORDS: &[&str] = &[
    "ve", "ile", "bir", "bu", "şu", "ne", "nasıl", "nedir", "niye", "niçin", "için", "den", "dan", "dır",
    "dir", "dur", "dür", "mı", "mi", "mu", "mü", "da", "de", "ta", "te", "la", "le", "ya", "ye", "sa", "se",
    "ka", "ke", "ben", "sen", "o", "biz", "siz", "onlar", "benim", "senin", "bizim", "sizin", "onların",
    "var", "yok", "varsa", "yoksa", "gibi", "kadar", "çok", "az", "büyük", "küçük", "iyi", "kötü", "güzel",
    "çirkin",
];

/// Bytes of the longest of them ("küçük", "onların"): longer words need no search.
const LONGEST_WORD: usize = 8;

/// The chatbot's weights and threshold.
const LETTER_WEIGHT: f64 = 0.7;
const WORD_WEIGHT: f64 = 0.3;
const THRESHOLD: f64 = 0.1;

/// Whether the chatbot's detector calls `text` Turkish. The text is taken as it is: routing passes the normalized one.
#[must_use]
pub fn is_turkish(text: &str) -> bool {
    let (mut characters, mut letters) = (0u32, 0u32);
    for character in text.chars() {
        characters += 1;
        letters += u32::from(is_turkish_letter(character));
    }
    // `to_lowercase` is Unicode's full mapping, as Python's: İ becomes i + U+0307, a final Σ becomes ς.
    let lowered = text.to_lowercase();
    let (mut words, mut turkish) = (0u32, 0u32);
    for word in lowered.split(|character| !is_word(character)).filter(|word| !word.is_empty()) {
        words += 1;
        turkish += u32::from(word.len() <= LONGEST_WORD && WORDS.contains(&word));
    }
    share(letters, characters) * LETTER_WEIGHT + share(turkish, words) * WORD_WEIGHT > THRESHOLD
}

/// Most characters are ASCII, of which only `I` counts: they need no search.
fn is_turkish_letter(character: char) -> bool {
    if character.is_ascii() { character == 'I' } else { LETTERS.contains(character) }
}

fn share(part: u32, whole: u32) -> f64 {
    if whole == 0 { 0.0 } else { f64::from(part) / f64::from(whole) }
}

/// Python's `\w`: letters, numbers, underscore. Unlike the `regex` crate's it excludes combining marks, so "i̇de"
/// (İde, lower-cased) is the words "i" and "de".
fn is_word(character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_alphanumeric() || character == '_';
    }
    matches!(character.general_category_group(), GeneralCategoryGroup::Letter | GeneralCategoryGroup::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decides_as_the_chatbot_always_has() {
        for text in
            ["Bugün üretim nasıl?", "vardiya ne zaman ve nerede", "şu", "IBM", "İ", "İde", "i\u{307}de"]
        {
            assert!(is_turkish(text), "{text}");
        }
        for text in
            ["", "   ", "test", "Merhaba dünya", "ibm", "The machine is running", "123", "…", "日本語"]
        {
            assert!(!is_turkish(text), "{text}");
        }
    }

    #[test]
    fn the_short_cuts_decide_as_the_lists_do() {
        assert_eq!(WORDS.iter().map(|word| word.len()).max(), Some(LONGEST_WORD));
        for character in ('\0'..='\u{17f}').chain(LETTERS.chars()) {
            assert_eq!(is_turkish_letter(character), LETTERS.contains(character), "{character:?}");
        }
    }

    #[test]
    fn every_listed_word_alone_is_turkish() {
        for word in WORDS {
            assert!(is_turkish(word) && is_turkish(&format!("x {word}.")), "{word}");
        }
    }

    #[test]
    fn combining_marks_separate_words_as_in_python() {
        assert!(is_word('é') && is_word('²') && is_word('Ⅷ') && is_word('_') && is_word('中'));
        assert!(!is_word('\u{307}') && !is_word('-') && !is_word('\u{1c}') && !is_word('€'));
    }
}
