//! The methods of Python's `str`.

use std::sync::Arc;

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

use super::call::{ArgumentValues, int, text};
use super::lexer::is_space;
use super::limits::{RenderBudget, width};
use super::pieces::{is_line_end, lines, replace, split, strip, words};
use super::problem::{Problem, TemplateResult};
use super::text::is_printable;
use super::value::Value;

/// The methods that [`call`] knows.
pub(super) const METHODS: [&str; 44] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
/// Methods of `str` that are refused by name.
pub(super) const REFUSED: [&str; 3] = ["encode", "maketrans", "translate"];

/// `subject.name(given)`; `format` and `format_map` are the renderer's.
pub(super) fn call(
    subject: &Arc<str>,
    name: &'static str,
    given: ArgumentValues,
    budget: &mut RenderBudget,
) -> TemplateResult<Value> {
    budget.memory(subject.len())?;
    let s: &str = subject;
    let all = |test: &dyn Fn(char) -> TemplateResult<bool>| -> TemplateResult<Value> {
        for c in s.chars() {
            if !test(c)? {
                return Ok(Value::Bool(false));
            }
        }
        Ok(Value::Bool(!s.is_empty()))
    };
    Ok(match name {
        "capitalize" | "casefold" | "lower" | "upper" | "title" | "swapcase" => {
            given.none(name)?;
            budget.memory(s.len() * 2)?;
            Value::text(match name {
                "lower" => s.to_lowercase(),
                "upper" => s.to_uppercase(),
                "capitalize" => capitalize(s)?,
                "title" => title(s)?,
                "casefold" if s.is_ascii() => s.to_ascii_lowercase(),
                "casefold" => return Err(Problem::unsupported("casefold of a text that is not ASCII")),
                _ => s
                    .chars()
                    .map(|c| {
                        if c.is_uppercase() {
                            c.to_lowercase().to_string()
                        } else {
                            c.to_uppercase().to_string()
                        }
                    })
                    .collect::<String>(),
            })
        }
        "center" | "ljust" | "rjust" => {
            let [wide, fill] = given.bind(name, ["width", "fillchar"], 1)?;
            let fill = text(fill, " ", "the fill character")?;
            let wide = width(int(wide, 0, "the width")?, "width")?;
            if fill.chars().count() != 1 {
                return Err(Problem::failed("The fill character must be exactly one character long"));
            }
            let missing = wide.saturating_sub(s.chars().count());
            budget.memory(missing * fill.len())?;
            let left = match name {
                "ljust" => 0,
                "rjust" => missing,
                // As Python rounds.
                _ => missing / 2 + (missing & wide & 1),
            };
            Value::text(format!("{}{s}{}", fill.repeat(left), fill.repeat(missing - left)))
        }
        "count" | "find" | "index" | "rfind" | "rindex" => {
            let [part, start, end] = given.bind(name, ["sub", "start", "end"], 1)?;
            let part = text(part, "", "the text sought")?;
            let Some((offset, within)) = window(s, start, end)? else {
                return match name {
                    "index" | "rindex" => Err(Problem::failed("substring not found")),
                    "count" => Ok(Value::Int(0)),
                    _ => Ok(Value::Int(-1)),
                };
            };
            let at = match name {
                "count" if part.is_empty() => return Ok(Value::Int(within.chars().count() as i128 + 1)),
                "count" => return Ok(Value::Int(within.matches(&*part).count() as i128)),
                "find" | "index" => within.find(&*part),
                _ => within.rfind(&*part),
            };
            match at {
                Some(at) => Value::Int((offset + within[..at].chars().count()) as i128),
                None if name.ends_with("index") => return Err(Problem::failed("substring not found")),
                None => Value::Int(-1),
            }
        }
        "startswith" | "endswith" => {
            let [part, start, end] = given.bind(name, ["prefix", "start", "end"], 1)?;
            let Some((_, within)) = window(s, start, end)? else { return Ok(Value::Bool(false)) };
            let fits = |part: &Value| match part {
                Value::Text(part) if name == "startswith" => Ok(within.starts_with(&**part)),
                Value::Text(part) => Ok(within.ends_with(&**part)),
                other => Err(Problem::failed(format!(
                    "{name} first arg must be str or a tuple of str, not {}",
                    other.type_name()
                ))),
            };
            match part.unwrap_or(Value::None) {
                Value::Tuple(parts) => {
                    budget.steps(parts.items.len())?;
                    let mut found = false;
                    for part in &parts.items {
                        found = found || fits(part)?;
                    }
                    Value::Bool(found)
                }
                part => Value::Bool(fits(&part)?),
            }
        }
        "expandtabs" => {
            let [size] = given.bind(name, ["tabsize"], 0)?;
            let size = width(int(size, 8, "the tab size")?, "tab size")?;
            let mut out = String::new();
            let mut column = 0;
            for c in s.chars() {
                match c {
                    '\t' => {
                        let blanks = if size == 0 { 0 } else { size - column % size };
                        budget.memory(blanks)?;
                        out.push_str(&" ".repeat(blanks));
                        column += blanks;
                    }
                    '\n' | '\r' => {
                        out.push(c);
                        column = 0;
                    }
                    c => {
                        out.push(c);
                        column += 1;
                    }
                }
            }
            Value::text(out)
        }
        "join" => {
            let [parts] = given.bind(name, ["iterable"], 1)?;
            let parts = parts.unwrap_or(Value::None).elements(budget)?;
            let mut out = String::new();
            for (at, part) in parts.iter().enumerate() {
                let Value::Text(part) = part else {
                    return Err(Problem::failed(format!(
                        "sequence item {at}: expected str instance, {} found",
                        part.type_name()
                    )));
                };
                budget.memory(part.len() + s.len())?;
                if at > 0 {
                    out.push_str(s);
                }
                out.push_str(part);
            }
            Value::text(out)
        }
        "lstrip" | "rstrip" | "strip" => {
            let [set] = given.bind(name, ["chars"], 0)?;
            Value::text(strip(s, set, name != "rstrip", name != "lstrip", budget)?)
        }
        "partition" | "rpartition" => {
            let [separator] = given.bind(name, ["sep"], 1)?;
            let separator = text(separator, "", "the separator")?;
            if separator.is_empty() {
                return Err(Problem::failed("empty separator"));
            }
            let found =
                if name == "partition" { s.split_once(&*separator) } else { s.rsplit_once(&*separator) };
            let parts = match found {
                Some((before, after)) => [before, &*separator, after],
                None if name == "partition" => [s, "", ""],
                None => ["", "", s],
            };
            Value::tuple(parts.map(Value::text).to_vec())?
        }
        "removeprefix" | "removesuffix" => {
            let [part] = given.bind(name, ["prefix"], 1)?;
            let part = text(part, "", "the prefix or suffix")?;
            let cut = if name == "removeprefix" { s.strip_prefix(&*part) } else { s.strip_suffix(&*part) };
            Value::text(cut.unwrap_or(s))
        }
        "replace" => {
            let [old, new, count] = given.bind(name, ["old", "new", "count"], 2)?;
            let (old, new) = (text(old, "", "the old text")?, text(new, "", "the new text")?);
            Value::text(replace(s, &old, &new, int(count, -1, "the count")?, budget)?)
        }
        "split" | "rsplit" => {
            let [separator, limit] = given.bind(name, ["sep", "maxsplit"], 0)?;
            let limit = usize::try_from(int(limit, -1, "maxsplit")?).unwrap_or(usize::MAX);
            let separator = match separator {
                None | Some(Value::None) => None,
                other => Some(text(other, "", "the separator")?),
            };
            let count = match separator.as_deref() {
                None | Some("") => words(s),
                Some(separator) => s.matches(separator).count() + 1,
            };
            budget.memory(count.min(limit.saturating_add(1)) * 64)?;
            budget.steps(count.min(limit.saturating_add(1)))?;
            let pieces = split(s, separator.as_deref(), limit, name == "rsplit")?;
            Value::list(pieces.into_iter().map(Value::text).collect())?
        }
        "splitlines" => {
            let [keep] = given.bind(name, ["keepends"], 0)?;
            let count = s.matches(is_line_end).count() + 1;
            budget.memory(count * 64)?;
            budget.steps(count)?;
            let lines = lines(s, keep.is_some_and(|keep| keep.truth()));
            Value::list(lines.into_iter().map(Value::text).collect())?
        }
        "zfill" => {
            let [wide] = given.bind(name, ["width"], 1)?;
            let missing = width(int(wide, 0, "the width")?, "width")?.saturating_sub(s.chars().count());
            budget.memory(missing)?;
            let sign = usize::from(s.starts_with(['+', '-']));
            Value::text(format!("{}{}{}", &s[..sign], "0".repeat(missing), &s[sign..]))
        }
        _ => {
            given.none(name)?;
            match name {
                "isascii" => Value::Bool(s.is_ascii()),
                "isalpha" => all(&|c| Ok(is_letter(c)))?,
                "isspace" => all(&|c| Ok(is_space(c)))?,
                "isdecimal" => all(&|c| Ok(c.general_category() == GeneralCategory::DecimalNumber))?,
                "isdigit" | "isnumeric" | "isalnum" => all(&|c| match c.general_category() {
                    GeneralCategory::DecimalNumber => Ok(true),
                    GeneralCategory::OtherNumber | GeneralCategory::LetterNumber => {
                        if name == "isdigit" {
                            Err(Problem::unsupported(format!("isdigit of {c:?}")))
                        } else {
                            Ok(true)
                        }
                    }
                    _ if name == "isalnum" => Ok(is_letter(c)),
                    GeneralCategory::OtherLetter if name == "isnumeric" => {
                        Err(Problem::unsupported(format!("isnumeric of {c:?}")))
                    }
                    _ => Ok(false),
                })?,
                "isprintable" => Value::Bool(s.chars().all(is_printable)),
                "isidentifier" => {
                    let mut characters = s.chars();
                    let first = characters.next().is_some_and(|c| c == '_' || is_letter(c));
                    if !s.is_ascii() {
                        return Err(Problem::unsupported("isidentifier of a text that is not ASCII"));
                    }
                    Value::Bool(first && characters.all(|c| c == '_' || c.is_ascii_alphanumeric()))
                }
                "islower" => Value::Bool(s.chars().any(char::is_lowercase) && !s.chars().any(is_upper)),
                "isupper" => Value::Bool(s.chars().any(char::is_uppercase) && !s.chars().any(is_lower)),
                "istitle" => {
                    let (mut cased, mut found) = (false, false);
                    for c in s.chars() {
                        let (upper, lower) = (is_upper(c), is_lower(c));
                        if (upper && cased) || (lower && !cased) {
                            return Ok(Value::Bool(false));
                        }
                        cased = upper || lower;
                        found |= cased;
                    }
                    Value::Bool(found)
                }
                other => return Err(Problem::unsupported(format!("the method str.{other}"))),
            }
        }
    })
}

fn is_letter(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Letter
}

fn is_upper(c: char) -> bool {
    c.is_uppercase() || c.general_category() == GeneralCategory::TitlecaseLetter
}

fn is_lower(c: char) -> bool {
    c.is_lowercase()
}

/// The title case of a character.
fn title_case(c: char) -> TemplateResult<String> {
    Ok(match c {
        'Ǆ' | 'ǅ' | 'ǆ' => "ǅ".into(),
        'Ǉ' | 'ǈ' | 'ǉ' => "ǈ".into(),
        'Ǌ' | 'ǋ' | 'ǌ' => "ǋ".into(),
        'Ǳ' | 'ǲ' | 'ǳ' => "ǲ".into(),
        'ß' => "Ss".into(),
        'ა'..='ჿ' => c.to_string(),
        c if c.to_uppercase().count() == 1 => c.to_uppercase().to_string(),
        c => return Err(Problem::unsupported(format!("the title case of {c:?}"))),
    })
}

pub(super) fn capitalize(s: &str) -> TemplateResult<String> {
    let mut characters = s.chars();
    let Some(first) = characters.next() else { return Ok(String::new()) };
    // Together, so that a final sigma sees what stands before it.
    let lower = s.to_lowercase();
    let skipped = first.to_lowercase().map(char::len_utf8).sum::<usize>();
    Ok(title_case(first)? + lower.get(skipped..).unwrap_or_default())
}

fn title(s: &str) -> TemplateResult<String> {
    let lower = s.to_lowercase();
    let mut out = String::new();
    let mut cased = false;
    let mut at = 0;
    for c in s.chars() {
        let length = if c == 'Σ' { 2 } else { c.to_lowercase().map(char::len_utf8).sum::<usize>() };
        if cased {
            out.push_str(lower.get(at..at + length).unwrap_or_default());
        } else {
            out.push_str(&title_case(c)?);
        }
        at += length;
        cased = is_upper(c) || is_lower(c);
    }
    Ok(out)
}

/// `s[start:end]` and how many characters stand before it; `None` when `start` lies behind the end.
fn window(s: &str, start: Option<Value>, end: Option<Value>) -> TemplateResult<Option<(usize, &str)>> {
    let bound = |value: Option<Value>| -> TemplateResult<Option<i128>> {
        match value {
            None | Some(Value::None) => Ok(None),
            other => int(other, 0, "a slice index").map(Some),
        }
    };
    let (start, end) = (bound(start)?, bound(end)?);
    if start.is_none() && end.is_none() {
        return Ok(Some((0, s)));
    }
    let length = s.chars().count() as i128;
    let place = |value: i128| if value < 0 { (value + length).max(0) } else { value };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(length)).min(length));
    if start > end {
        return Ok(None);
    }
    let byte = |index: i128| s.char_indices().nth(index as usize).map_or(s.len(), |(byte, _)| byte);
    Ok(Some((start as usize, &s[byte(start)..byte(end)])))
}
