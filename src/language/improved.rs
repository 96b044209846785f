//! A detector that knows short texts, and Turkish in ASCII letters ("calisma saatleri").
//!
//! Letters, words and endings that only one of the languages has decide. Where they are even, the crate `whichlang` does,
//! which knows sixteen languages by their letter sequences.

use std::cmp::Ordering;

use whichlang::{Lang, detect_language};

/// Common Turkish words that are no English ones, in ASCII letters; sorted.
#[rustfmt::skip]
const TURKISH: &[&str] = &[
    "acik", "acil", "adet", "ama", "ancak", "anladim", "ariza", "artik", "asla", "bak", "bakim", "bana",
    "baska", "bazi", "belki", "ben", "bence", "beni", "benim", "bilgi", "bir", "biraz", "birkac", "bize",
    "bizim", "boyle", "bu", "bugun", "buna", "bunu", "buyuk", "cevap", "cok", "cunku", "daha", "degil", "depo",
    "depoda", "diger", "dolayi", "dun", "durdu", "durum", "eksik", "evet", "fatura", "fazla", "fiyat", "gece",
    "gerek", "gibi", "gun", "gunaydin", "guzel", "hafta", "hangi", "hani", "hata", "hayir", "hem", "hemen",
    "hep", "hepsi", "herkes", "hesap", "hic", "iade", "icin", "ile", "ilk", "isim", "istiyorum", "iyi", "kac",
    "kadar", "kalip", "kalite", "kapali", "kapi", "kargo", "kim", "kimse", "kolay", "kucuk", "lutfen", "makine",
    "merhaba", "misin", "miyim", "mu", "musteri", "musun", "nasil", "neden", "nedir", "nerede", "nereye",
    "nicin", "niye", "odeme", "olan", "olarak", "oldu", "olur", "once", "onlar", "onu", "onun", "ozel", "parca",
    "saat", "sabah", "sana", "sanki", "selam", "sen", "senin", "sicak", "sifre", "simdi", "siparis", "siz",
    "size", "sizin", "soguk", "sonra", "soru", "sorun", "tamam", "tane", "tatil", "tesekkur", "tesekkurler",
    "toplanti", "tum", "ucret", "uretim", "urun", "uzere", "var", "vardiya", "ve", "veya", "yag", "yapay",
    "yardim", "yarin", "yedek", "yeni", "yeter", "yok", "yuksek", "zaman", "zaten", "zemin",
];

/// Common English words that are no Turkish ones; sorted.
#[rustfmt::skip]
const ENGLISH: &[&str] = &[
    "about", "after", "again", "all", "also", "and", "any", "are", "ask", "back", "because", "been", "before",
    "being", "broken", "by", "check", "close", "could", "day", "delivery", "did", "do", "does", "done", "down",
    "every", "find", "first", "for", "from", "get", "give", "good", "great", "had", "has", "have", "hello",
    "help", "here", "hour", "hours", "how", "if", "into", "its", "just", "know", "last", "left", "less", "let",
    "like", "long", "look", "low", "made", "make", "many", "may", "me", "more", "most", "much", "must", "my",
    "near", "need", "new", "next", "night", "not", "now", "number", "of", "office", "old", "only", "open", "or",
    "order", "other", "our", "out", "over", "people", "please", "pressure", "price", "quality", "rate", "ready",
    "replace", "right", "rules", "safety", "same", "search", "see", "send", "shall", "she", "shift", "should",
    "show", "some", "soon", "space", "start", "stop", "stopped", "such", "take", "takes", "tell", "than",
    "thank", "thanks", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those",
    "time", "to", "today", "tomorrow", "too", "tool", "two", "under", "up", "use", "used", "value", "very",
    "wait", "want", "was", "water", "we", "welcome", "well", "were", "what", "when", "where", "which", "while",
    "who", "why", "will", "with", "work", "working", "would", "year", "yes", "yesterday", "you", "your",
];

/// Endings of longer Turkish words, in ASCII letters.
#[rustfmt::skip]
const TURKISH_ENDINGS: &[&str] = &[
    "acagi", "acak", "asi", "cagi", "digi", "dir", "dugu", "dur", "durun", "ecegi", "ecek", "esi", "imiz",
    "inci", "inda", "indan", "inden", "iniz", "iyor", "ladi", "lamak", "landi", "lara", "lardan", "lari",
    "larin", "ldim", "ldum", "ledi", "lemek", "lendi", "lerden", "lere", "leri", "lerin", "ligi", "lik", "lugu",
    "luk", "madi", "mak", "mali", "masi", "medi", "mek", "meli", "mesi", "mis", "misin", "misti", "mus",
    "musun", "ndim", "rdim", "rdum", "sin", "sinda", "sinde", "siniz", "sun", "sunuz", "tigi", "tir", "tirin",
    "ttim", "ttum", "tugu", "umuz", "uncu", "unda", "unden", "unuz", "uyor", "yorsun", "yorum", "yoruz",
];

/// Endings of longer English words.
#[rustfmt::skip]
const ENGLISH_ENDINGS: &[&str] = &[
    "ally", "ight", "ing", "ings", "ment", "ness", "ough", "ould", "tion", "tions",
];

/// Letters of Turkish texts that are not in ASCII.
const TURKISH_LETTERS: &str = "çğıöşüâîû";

/// Letters that a word has before its ending counts.
const STEM: usize = 3;

/// Whether `text`, in lower case, is Turkish.
#[must_use]
pub fn is_turkish(text: &str) -> bool {
    let (mut balance, mut words) = (0i32, 0u32);
    for token in text.split(|character: char| !is_part_of_word(character)) {
        let letters = token.chars().filter(|character| character.is_alphabetic()).count();
        // A single letter, and codes such as "m8x20", are of no language.
        if letters < 2 || token.chars().any(char::is_numeric) {
            continue;
        }
        words += 1;
        balance += vote(token);
    }
    match balance.cmp(&0) {
        Ordering::Greater => true,
        Ordering::Less => false,
        Ordering::Equal => words > 0 && detect_language(text) == Lang::Tur,
    }
}

/// A combining dot is part of a word: it is what is left of İ in lower case.
fn is_part_of_word(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '\u{307}')
}

/// 1 for a Turkish word, -1 for one that is English or has a foreign letter, 0 for any other.
fn vote(word: &str) -> i32 {
    if word
        .chars()
        .any(|letter| letter.is_alphabetic() && !letter.is_ascii() && !TURKISH_LETTERS.contains(letter))
    {
        return -1;
    }
    if word.contains(['ğ', 'ı', 'ş']) {
        return 1;
    }
    let folded = ascii(word);
    let ends = |endings: &[&str]| {
        endings.iter().any(|ending| folded.len() >= STEM + ending.len() && folded.ends_with(ending))
    };
    if TURKISH.binary_search(&&*folded).is_ok() {
        1
    } else if ENGLISH.binary_search(&&*folded).is_ok() {
        -1
    } else {
        i32::from(ends(TURKISH_ENDINGS)) - i32::from(ends(ENGLISH_ENDINGS))
    }
}

/// The word as one writes it without Turkish letters.
fn ascii(word: &str) -> String {
    word.chars()
        .filter(|&character| character != '\u{307}')
        .map(|character| match character {
            'ç' => 'c',
            'ğ' => 'g',
            'ı' => 'i',
            'ö' => 'o',
            'ş' => 's',
            'ü' => 'u',
            'â' => 'a',
            'î' => 'i',
            'û' => 'u',
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_sorted_and_name_no_word_twice() {
        for list in [TURKISH, ENGLISH] {
            assert!(list.is_sorted_by(|one, next| one < next));
        }
        assert!(TURKISH.iter().all(|word| ENGLISH.binary_search(word).is_err()));
        assert!(TURKISH.iter().chain(TURKISH_ENDINGS).all(|word| ascii(word) == **word && word.is_ascii()));
    }

    #[test]
    fn short_texts_and_turkish_in_ascii_letters() {
        for text in
            ["merhaba", "merhaba dünya", "calisma saatleri", "nasil calisir", "i\u{307}ş emri", "evet"]
        {
            assert!(is_turkish(text), "{text}");
        }
        for text in [
            "",
            "hello",
            "work safety rules",
            "%85",
            "17.05.2024",
            "m8x20",
            "i",
            "dzień dobry",
            "日本語",
            "…",
            "\0",
        ] {
            assert!(!is_turkish(text), "{text:?}");
        }
    }

    #[test]
    fn codes_and_endings_alone_have_no_vote() {
        // Letters of Turkish in a code say nothing of the text around it.
        assert!(!is_turkish("iş2024") && !is_turkish("hello iş2024"));
        // An ending counts at the end of a word.
        for ending in TURKISH_ENDINGS.iter().chain(ENGLISH_ENDINGS).filter(|ending| ending.len() < STEM + 3) {
            let listed = TURKISH.contains(ending) || ENGLISH.contains(ending);
            assert!(listed || vote(ending) == 0, "{ending}");
        }
        assert_eq!((vote("abding"), vote("abing"), vote("abcmak"), vote("abmak")), (-1, 0, 1, 0));
    }

    #[test]
    fn words_hold_underscores_and_combining_dots() {
        assert_eq!((vote("i\u{307}yi"), vote("iyi")), (1, 1));
        assert!("_\u{307}ıİ2".chars().all(is_part_of_word) && !"-.' ".chars().any(is_part_of_word));
    }
}
