//! A template's source to tokens, with Jinja's rules for whitespace: `trim_blocks` and `lstrip_blocks` are on.

use std::sync::Arc;

use super::limits::MAX_NAME_BYTES;
use super::problem::{Problem, TemplateResult};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(Arc<str>),
    Text(String),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

/// Longest first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// Python's `\s` and `str.isspace`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

pub(super) fn trim_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

fn trim_start(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// The tokens of `source` and their lines.
pub(super) fn tokens(source: &str) -> TemplateResult<Vec<(Token, u32)>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, tokens: Vec::new(), line_starts: true };
    while lexer.at < source.len() {
        lexer.root()?;
    }
    lexer.push(Token::End);
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: u32,
    tokens: Vec<(Token, u32)>,
    /// The last tag ended with a line.
    line_starts: bool,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.source[self.at..self.at + bytes];
        self.line += passed.bytes().filter(|&b| b == b'\n').count() as u32;
        self.line_starts = passed.ends_with('\n');
        self.at += bytes;
    }

    fn fail<T>(&self, message: impl Into<String>) -> TemplateResult<T> {
        Err(Problem::syntax(message, self.line))
    }

    /// Text up to the next tag, and that tag.
    fn root(&mut self) -> TemplateResult<()> {
        let rest = self.rest();
        let mut from = 0;
        let begin = loop {
            match rest[from..].find('{') {
                None => break rest.len(),
                Some(found) => {
                    let begin = from + found;
                    if matches!(rest.as_bytes().get(begin + 1), Some(b'{' | b'%' | b'#')) {
                        break begin;
                    }
                    from = begin + 1;
                }
            }
        };
        let text = &rest[..begin];
        if begin == rest.len() {
            self.push(Token::Data(text.to_owned()));
            self.advance(begin);
            return Ok(());
        }
        let kind = rest.as_bytes()[begin + 1];
        let sign = rest.as_bytes().get(begin + 2).copied().filter(|b| matches!(b, b'-' | b'+'));
        let kept = self.stripped(text, sign, kind != b'{');
        if !kept.is_empty() {
            self.push(Token::Data(kept.to_owned()));
        }
        self.advance(begin);
        let signed = 2 + usize::from(sign.is_some());
        match kind {
            b'{' => {
                self.push(Token::VariableBegin);
                self.advance(signed);
                self.inside(false)
            }
            b'#' => {
                self.advance(signed);
                self.comment()
            }
            _ => match self.raw_begin(signed) {
                Some(length) => {
                    self.advance(length);
                    self.raw()
                }
                None => {
                    self.push(Token::BlockBegin);
                    self.advance(signed);
                    self.inside(true)
                }
            },
        }
    }

    /// `text` before a tag with this sign; `lstrip` for a tag that takes the blanks of its line.
    fn stripped<'t>(&self, text: &'t str, sign: Option<u8>, lstrip: bool) -> &'t str {
        if sign == Some(b'-') {
            return trim_end(text);
        }
        if sign != Some(b'+') && lstrip {
            let line = text.rfind('\n').map_or(0, |newline| newline + 1);
            if (line > 0 || self.line_starts) && text[line..].chars().all(is_space) {
                return &text[..line];
            }
        }
        text
    }

    /// The length of `{% raw %}` here, if it is that.
    fn raw_begin(&self, signed: usize) -> Option<usize> {
        let rest = self.rest();
        let name = trim_start(&rest[signed..]).strip_prefix("raw")?;
        let end = trim_start(name);
        let after = match end.strip_prefix("-%}") {
            Some(after) => trim_start(after),
            None => end.strip_prefix("%}")?,
        };
        Some(rest.len() - after.len())
    }

    fn raw(&mut self) -> TemplateResult<()> {
        let rest = self.rest();
        let mut from = 0;
        while let Some(found) = rest[from..].find("{%") {
            let begin = from + found;
            let sign = rest.as_bytes().get(begin + 2).copied().filter(|b| matches!(b, b'-' | b'+'));
            let name = trim_start(&rest[begin + 2 + usize::from(sign.is_some())..]);
            if let Some(after) = name.strip_prefix("endraw").and_then(|end| block_end(trim_start(end))) {
                let kept = self.stripped(&rest[..begin], sign, true);
                if !kept.is_empty() {
                    self.push(Token::Data(kept.to_owned()));
                }
                self.advance(rest.len() - after.len());
                return Ok(());
            }
            from = begin + 2;
        }
        self.fail("Missing end of raw directive")
    }

    fn comment(&mut self) -> TemplateResult<()> {
        let rest = self.rest();
        let Some(end) = rest.find("#}") else { return self.fail("Missing end of comment tag") };
        let after = &rest[end + 2..];
        let after = match rest[..end].bytes().next_back() {
            Some(b'-') => trim_start(after),
            Some(b'+') => after,
            _ => after.strip_prefix('\n').unwrap_or(after),
        };
        self.advance(rest.len() - after.len());
        Ok(())
    }

    /// The tokens inside a tag, up to its end.
    fn inside(&mut self, block: bool) -> TemplateResult<()> {
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            let rest = self.rest();
            let Some(first) = rest.chars().next() else { return Ok(()) };
            if open.is_empty() {
                let after = if block { block_end(rest) } else { variable_end(rest) };
                if let Some(after) = after {
                    self.push(if block { Token::BlockEnd } else { Token::VariableEnd });
                    self.advance(rest.len() - after.len());
                    return Ok(());
                }
            }
            if is_space(first) {
                self.advance(rest.len() - trim_start(rest).len());
            } else if let Some((value, length)) = self.number(rest)? {
                self.push(value);
                self.advance(length);
            } else if first.is_alphanumeric() || first == '_' {
                let length = rest
                    .find(|c: char| !(c.is_alphanumeric() || c == '_' || is_mark(c)))
                    .unwrap_or(rest.len());
                if first.is_numeric() {
                    return self.fail("Invalid character in identifier");
                }
                if length > MAX_NAME_BYTES {
                    let reason = format!("it has a name of more than {MAX_NAME_BYTES} bytes");
                    return Err(Problem::limit(reason).on(self.line));
                }
                self.push(Token::Name(rest[..length].into()));
                self.advance(length);
            } else if first == '"' || first == '\'' {
                let length = string_length(rest, first);
                let Some(length) = length else {
                    return self.fail(format!("unexpected char {first:?}: the string does not end"));
                };
                let text = super::escapes::unescape(&rest[1..length - 1]).map_err(|p| p.on(self.line))?;
                self.push(Token::Text(text));
                self.advance(length);
            } else if let Some(operator) = OPERATORS.iter().find(|operator| rest.starts_with(**operator)) {
                match *operator {
                    "{" => open.push("}"),
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "}" | ")" | "]" => match open.pop() {
                        Some(expected) if expected == *operator => {}
                        Some(expected) => {
                            return self.fail(format!("unexpected '{operator}', expected '{expected}'"));
                        }
                        None => return self.fail(format!("unexpected '{operator}'")),
                    },
                    _ => {}
                }
                self.push(Token::Operator(operator));
                self.advance(operator.len());
            } else {
                return self.fail(format!("unexpected char {first:?}"));
            }
        }
    }

    /// An integer or a float at the beginning of `rest`, and its length.
    fn number(&self, rest: &str) -> TemplateResult<Option<(Token, usize)>> {
        let bytes = rest.as_bytes();
        if !bytes[0].is_ascii_digit() {
            return Ok(None);
        }
        let after_dot = self.at > 0 && self.source.as_bytes()[self.at - 1] == b'.';
        let whole = digits(rest, 10);
        let fraction = if bytes.get(whole) == Some(&b'.') { digits(&rest[whole + 1..], 10) } else { 0 };
        let mut end = if fraction > 0 { whole + 1 + fraction } else { whole };
        let mut float = fraction > 0;
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let exponent = digits(rest.get(end + 1 + sign..).unwrap_or_default(), 10);
            if exponent > 0 {
                end += 1 + sign + exponent;
                float = true;
            }
        }
        if float && !after_dot {
            let value = rest[..end].replace('_', "").parse();
            return Ok(Some((Token::Float(value.unwrap_or(f64::NAN)), end)));
        }
        let radix = match bytes.get(1).map(u8::to_ascii_lowercase) {
            Some(b'x') if bytes[0] == b'0' => 16,
            Some(b'o') if bytes[0] == b'0' => 8,
            Some(b'b') if bytes[0] == b'0' => 2,
            _ => 10,
        };
        let (start, mut length) = if radix == 10 { (0, whole) } else { (2, digits(&rest[2..], radix)) };
        if radix == 10 && bytes[0] == b'0' {
            length = rest.bytes().take_while(|b| matches!(b, b'0' | b'_')).count();
        }
        let text: String = rest[start..start + length].chars().filter(|c| *c != '_').collect();
        match i128::from_str_radix(&text, radix) {
            Ok(value) => Ok(Some((Token::Int(value), start + length))),
            Err(_) if text.is_empty() => self.fail("malformed number"),
            Err(_) => Err(Problem::unsupported("an integer of more than 127 bits").on(self.line)),
        }
    }
}

/// Marks continue an identifier, as in Python.
fn is_mark(c: char) -> bool {
    use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};
    !c.is_ascii() && c.general_category_group() == GeneralCategoryGroup::Mark
}

/// The length of digits with single underscores between them.
fn digits(text: &str, radix: u32) -> usize {
    let mut length = 0;
    for (at, byte) in text.bytes().enumerate() {
        if char::from(byte).is_digit(radix) {
            length = at + 1;
        } else if byte != b'_' || at != length {
            break;
        }
    }
    length
}

/// The length of the string literal at the beginning of `rest`, quotes included.
fn string_length(rest: &str, quote: char) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        if c == quote {
            return Some(at + 1);
        }
        if c == '\\' {
            characters.next()?;
        }
    }
    None
}

/// What follows `%}` with its sign, when `rest` begins with that.
fn block_end(rest: &str) -> Option<&str> {
    if let Some(after) = rest.strip_prefix("+%}") {
        return Some(after);
    }
    if let Some(after) = rest.strip_prefix("-%}") {
        return Some(trim_start(after));
    }
    rest.strip_prefix("%}").map(|after| after.strip_prefix('\n').unwrap_or(after))
}

fn variable_end(rest: &str) -> Option<&str> {
    match rest.strip_prefix("-}}") {
        Some(after) => Some(trim_start(after)),
        None => rest.strip_prefix("}}"),
    }
}
