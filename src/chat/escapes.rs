//! The escapes of string literals, as Python reads them.

use super::problem::{Problem, TemplateResult};

/// The text of a literal between its quotes.
pub(super) fn unescape(literal: &str) -> TemplateResult<String> {
    let mut out = String::with_capacity(literal.len());
    let mut rest = literal;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else { break };
        rest = &rest[c.len_utf8()..];
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            'x' => rest = code(rest, 2, &mut out)?,
            'u' => rest = code(rest, 4, &mut out)?,
            'U' => rest = code(rest, 8, &mut out)?,
            'N' => return Err(Problem::unsupported("\\N{…} in a string")),
            '0'..='7' => {
                let more = rest.bytes().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let value =
                    rest[..more].bytes().fold(c as u32 - 48, |value, b| value * 8 + u32::from(b - b'0'));
                out.push(char::from_u32(value).unwrap_or_default());
                rest = &rest[more..];
            }
            // Jinja writes other characters as escapes before it reads escapes: this one is then no escape any more.
            c if !c.is_ascii() => match c as u32 {
                value @ ..0x100 => out.push_str(&format!("\\x{value:02x}")),
                value @ ..0x1_0000 => out.push_str(&format!("\\u{value:04x}")),
                value => out.push_str(&format!("\\U{value:08x}")),
            },
            c => {
                out.push('\\');
                out.push(c);
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn code<'t>(rest: &'t str, digits: usize, out: &mut String) -> TemplateResult<&'t str> {
    let hex = rest.get(..digits).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    let value = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let Some(value) = value else { return Err(Problem::failed("a truncated escape in a string")) };
    match char::from_u32(value) {
        Some(c) => out.push(c),
        None => return Err(Problem::unsupported(format!("the code point {value:#x} in a string"))),
    }
    Ok(&rest[digits..])
}
