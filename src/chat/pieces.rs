//! Parts of texts: what `strip`, `split`, `splitlines` and `replace` make.

use std::collections::HashSet;

use super::call::text;
use super::lexer::is_space;
use super::limits::RenderBudget;
use super::problem::{Problem, TemplateResult};
use super::value::Value;

/// `strip` by whitespace or a set of characters.
pub(super) fn strip<'s>(
    s: &'s str,
    set: Option<Value>,
    left: bool,
    right: bool,
    budget: &mut RenderBudget,
) -> TemplateResult<&'s str> {
    let set: Option<HashSet<char>> = match set {
        None | Some(Value::None) => None,
        other => {
            let set = text(other, "", "the characters to strip")?;
            budget.memory(set.len())?;
            Some(set.chars().collect())
        }
    };
    budget.text(s.len())?;
    let strips = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
    let mut rest = s;
    if left {
        rest = rest.trim_start_matches(strips);
    }
    if right {
        let kept = rest.char_indices().rev().find(|(_, c)| !strips(*c));
        rest = kept.map_or("", |(at, c)| &rest[..at + c.len_utf8()]);
    }
    Ok(rest)
}

pub(super) fn replace(
    s: &str,
    old: &str,
    new: &str,
    count: i128,
    budget: &mut RenderBudget,
) -> TemplateResult<String> {
    let limit = usize::try_from(count).unwrap_or(usize::MAX);
    let found = if old.is_empty() { s.chars().count() + 1 } else { s.matches(old).count() };
    budget.memory(s.len().saturating_add(found.min(limit).saturating_mul(new.len())))?;
    Ok(s.replacen(old, new, limit))
}

pub(super) fn split<'s>(
    s: &'s str,
    separator: Option<&str>,
    limit: usize,
    right: bool,
) -> TemplateResult<Vec<&'s str>> {
    let more = limit.saturating_add(1);
    match separator {
        Some("") => Err(Problem::failed("empty separator")),
        Some(separator) if right => {
            let mut pieces: Vec<_> = s.rsplitn(more, separator).collect();
            pieces.reverse();
            Ok(pieces)
        }
        Some(separator) => Ok(s.splitn(more, separator).collect()),
        None => {
            let mut pieces = Vec::new();
            let mut rest = s;
            loop {
                rest =
                    if right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
                if rest.is_empty() {
                    break;
                }
                if pieces.len() == limit {
                    pieces.push(if right { rest.trim_end_matches(is_space) } else { rest });
                    break;
                }
                if right {
                    let at = rest.char_indices().rev().find(|(_, c)| is_space(*c));
                    let at = at.map_or(0, |(at, c)| at + c.len_utf8());
                    pieces.push(&rest[at..]);
                    rest = &rest[..at];
                } else {
                    let at = rest.find(is_space).unwrap_or(rest.len());
                    pieces.push(&rest[..at]);
                    rest = &rest[at..];
                }
            }
            if right {
                pieces.reverse();
            }
            Ok(pieces)
        }
    }
}

/// How many words `split()` gives.
pub(super) fn words(s: &str) -> usize {
    let mut inside = false;
    let begins = |c: char| {
        let before = std::mem::replace(&mut inside, !is_space(c));
        inside && !before
    };
    s.chars().map(begins).filter(|begins| *begins).count()
}

pub(super) fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

pub(super) fn lines(s: &str, keep: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut start = 0;
    let mut characters = s.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        if !is_line_end(c) {
            continue;
        }
        let mut end = at + c.len_utf8();
        if c == '\r' && characters.next_if(|(_, next)| *next == '\n').is_some() {
            end += 1;
        }
        lines.push(&s[start..if keep { end } else { at }]);
        start = end;
    }
    if start < s.len() {
        lines.push(&s[start..]);
    }
    lines
}
