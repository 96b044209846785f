//! Patterns of `tokenizer.json` in the dialect of the engine that runs them.
//!
//! The models were trained with the `tokenizers` package, whose patterns are Oniguruma's in the syntax of Ruby. Here they run
//! on fancy-regex, where some of the same signs mean something else. What differs is written in other words, and what
//! cannot be is refused: Kosako, "Oniguruma Regular Expressions Version 6.9", doc/RE, and its Unicode tables.

use std::borrow::Cow;

use serde_json::Value;

/// Characters of words in a class.
const WORD_IN_CLASS: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}";
/// The same elsewhere.
const WORD: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}²³¹¼½¾";

/// Classes in brackets, `[:name:]`, and their characters.
const CLASSES: [(&str, &str); 14] = [
    ("alnum", r"\p{Alphabetic}\p{Nd}"),
    ("alpha", r"\p{Alphabetic}"),
    ("ascii", r"\x00-\x7f"),
    ("blank", r"\p{Zs}\t"),
    ("cntrl", r"\p{Cc}"),
    ("digit", r"\p{Nd}"),
    ("graph", r"\P{White_Space}&&\P{Cc}&&\P{Cn}"),
    ("lower", r"\p{Lowercase}"),
    ("print", r"[\P{White_Space}\p{Zs}]&&\P{Cc}&&\P{Cn}"),
    ("punct", r"\p{P}\p{S}"),
    ("space", r"\p{White_Space}"),
    ("upper", r"\p{Uppercase}"),
    ("word", WORD_IN_CLASS),
    ("xdigit", "0-9A-Fa-f"),
];

/// Letters that Oniguruma takes for one, such as ß for ss, where case is ignored.
const FOLDED: [&str; 8] = ["ss", "ff", "fi", "fl", "st", "i\u{307}", "\u{2bc}n", "j\u{30c}"];

/// Translates the patterns inside of `json`, a part of a `tokenizer.json`.
///
/// # Errors
/// What cannot be translated, and where.
pub(super) fn translate_all(json: &mut Value) -> Result<(), String> {
    match json {
        Value::Object(entries) => entries.iter_mut().try_for_each(|(key, value)| match value {
            Value::String(pattern) if key == "Regex" => {
                if let Cow::Owned(translated) = translate(pattern)? {
                    *pattern = translated;
                }
                Ok(())
            }
            value => translate_all(value),
        }),
        Value::Array(values) => values.iter_mut().try_for_each(translate_all),
        _ => Ok(()),
    }
}

/// `pattern` with the same matches on fancy-regex.
///
/// # Errors
/// What cannot be translated.
fn translate(pattern: &str) -> Result<Cow<'_, str>, String> {
    let mut out = Translation { rest: pattern, out: String::with_capacity(pattern.len()), depth: 0 };
    out.run().map_err(|what| format!("the pattern {pattern:?} has {what}, which is not understood here"))?;
    Ok(if out.out == pattern { Cow::Borrowed(pattern) } else { Cow::Owned(out.out) })
}

struct Translation<'a> {
    rest: &'a str,
    out: String,
    /// Brackets of classes inside each other.
    depth: usize,
}

impl Translation<'_> {
    fn run(&mut self) -> Result<(), String> {
        while let Some(c) = self.rest.chars().next() {
            match c {
                '\\' => self.escape()?,
                '[' if self.depth > 0 && self.rest.starts_with("[:") => self.class()?,
                '[' => self.open(),
                ']' if self.depth > 0 => {
                    self.depth -= 1;
                    self.copy(1);
                }
                _ if self.depth > 0 => self.copy(c.len_utf8()),
                // Oniguruma's are those of lines, and no line begins after the last line's end.
                '^' => self.replace(1, r"(?:\A|(?m:^)(?!\z))"),
                '$' => self.replace(1, "(?m:$)"),
                '(' if self.rest.starts_with("(?") => self.group()?,
                _ => self.copy(c.len_utf8()),
            }
        }
        Ok(())
    }

    fn copy(&mut self, bytes: usize) {
        let (copied, rest) = self.rest.split_at(bytes);
        self.out.push_str(copied);
        self.rest = rest;
    }

    fn replace(&mut self, bytes: usize, by: &str) {
        self.out.push_str(by);
        self.rest = &self.rest[bytes..];
    }

    /// A class begins. A bracket that closes stands for itself there.
    fn open(&mut self) {
        self.depth += 1;
        self.copy(1);
        if self.rest.starts_with('^') {
            self.copy(1);
        }
        if self.rest.starts_with(']') {
            self.replace(1, r"\]");
        }
    }

    fn escape(&mut self) -> Result<(), String> {
        let mut chars = self.rest.chars().skip(1);
        let (Some(escaped), next) = (chars.next(), chars.next()) else { return Err("a lone \\".into()) };
        let word = if self.depth > 0 { WORD_IN_CLASS } else { WORD };
        match escaped {
            'w' => self.replace(2, &format!("[{word}]")),
            'W' => self.replace(2, &format!("[^{word}]")),
            'b' if self.depth == 0 => {
                self.replace(2, &format!("(?:(?<=[{WORD}])(?![{WORD}])|(?<![{WORD}])(?=[{WORD}]))"));
            }
            'B' if self.depth == 0 => {
                self.replace(2, &format!("(?:(?<=[{WORD}])(?=[{WORD}])|(?<![{WORD}])(?![{WORD}]))"));
            }
            // There, a letter without braces is itself.
            'p' | 'P' if next != Some('{') => return Err(format!("\\{escaped} without braces")),
            'p' | 'P' => {
                let end = self.rest.find('}').ok_or_else(|| format!("\\{escaped} without an end"))?;
                self.copy(end + 1);
            }
            _ => self.copy(1 + escaped.len_utf8()),
        }
        Ok(())
    }

    /// `[:name:]` or `[:^name:]` in a class.
    fn class(&mut self) -> Result<(), String> {
        let end = self.rest.find(":]").ok_or("[: without an end")?;
        let name = &self.rest[2..end];
        let (not, name) = name.strip_prefix('^').map_or(("", name), |name| ("^", name));
        let found = CLASSES.iter().find(|(known, _)| *known == name);
        let (_, members) = found.ok_or_else(|| format!("the class [:{name}:]"))?;
        // Of an intersection, the whole is negated.
        self.replace(end + 2, &format!("[{not}[{members}]]"));
        Ok(())
    }

    /// A group that begins with a question mark: its options differ.
    fn group(&mut self) -> Result<(), String> {
        let options = &self.rest[2..];
        let end = options.find(|c: char| !(c.is_ascii_alphabetic() || c == '-')).unwrap_or(options.len());
        if end == 0 || !options[end..].starts_with([':', ')']) {
            self.copy(2);
            return Ok(());
        }
        let options = &options[..end];
        if let Some(option) = options.chars().find(|option| !"im-".contains(*option)) {
            return Err(format!("the option (?{option})"));
        }
        if options.split('-').next().is_some_and(|on| on.contains('i')) {
            let folded = self.rest.to_lowercase();
            if let Some(letters) = FOLDED.iter().find(|letters| folded.contains(**letters)) {
                return Err(format!("{letters:?} where case is ignored"));
            }
        }
        // With it, a point is any character, as with `s` here.
        let options = options.replace('m', "s");
        self.replace(2 + end, &format!("(?{options}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;
    use tokenizers::pre_tokenizers::split::Split;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    #[derive(Deserialize)]
    struct References {
        texts: Vec<String>,
        cases: Vec<Case>,
        refused: Vec<String>,
    }

    #[derive(Deserialize)]
    struct Case {
        pattern: String,
        lengths: Vec<Vec<usize>>,
    }

    fn references() -> References {
        serde_json::from_str(include_str!("../../../tests/fixtures/regexes.json")).unwrap()
    }

    fn split(pattern: &str) -> Result<Split, String> {
        let mut json =
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        translate_all(&mut json)?;
        serde_json::from_value(json).map_err(|error| error.to_string())
    }

    #[test]
    fn patterns_split_where_oniguruma_does() {
        let References { texts, cases, .. } = references();
        assert!(cases.len() > 60);
        for Case { pattern, lengths } in cases {
            let split = split(&pattern).unwrap();
            for (text, expected) in texts.iter().zip(lengths) {
                let mut pieces = PreTokenizedString::from(text.as_str());
                split.pre_tokenize(&mut pieces).unwrap();
                let found: Vec<_> = pieces
                    .get_splits(OffsetReferential::Original, OffsetType::Char)
                    .into_iter()
                    .map(|(_, (start, end), _)| end - start)
                    .collect();
                assert_eq!(found, expected, "{pattern} in {text:?}");
            }
        }
    }

    #[test]
    fn what_has_no_translation_is_refused() {
        for pattern in references().refused {
            assert!(split(&pattern).is_err(), "{pattern}");
        }
        let error = translate(r"a\pL").unwrap_err();
        assert!(error.contains(r"\p without braces"), "{error}");
    }

    #[test]
    fn usual_patterns_stay_as_they_are() {
        for pattern in
            [crate::models::tokenizers::gguf::QWEN2, " {2,}", r"\p{N}", r"\s+(?!\S)", "(?i:'s|'t)", ""]
        {
            assert!(matches!(translate(pattern), Ok(Cow::Borrowed(same)) if same == pattern), "{pattern}");
        }
    }
}
