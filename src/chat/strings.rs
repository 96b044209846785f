//! The methods of Python's `str`.

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

use super::call::{NamedCall, int, text};
use super::format_method::{format, format_map};
use super::lexer::is_space;
use super::limits::width;
use super::pieces::{self, is_line_end, lines, strip, words};
use super::problem::{Problem, TemplateResult};
use super::render::{Method, Renderer};
use super::text::is_printable;
use super::value::Value;

type StrCall<'s> = NamedCall<'s, &'s str>;

/// The methods by name.
pub(super) const METHODS: &[(&str, Method<str>)] = &[
    ("capitalize", |r, call| recased(r, call, capitalize)),
    ("casefold", |r, call| recased(r, call, casefold)),
    ("center", center),
    ("count", count),
    ("endswith", |r, call| has_edge(r, call, |s, part| s.ends_with(part))),
    ("expandtabs", expandtabs),
    ("find", |_, call| Ok(Value::Int(place(call, |s, part| s.find(part))?.unwrap_or(-1)))),
    ("format", format),
    ("format_map", format_map),
    ("index", |_, call| place(call, |s, part| s.find(part))?.map(Value::Int).ok_or_else(not_found)),
    ("isalnum", |_, call| each(call, |c| Ok(is_number(c) || is_letter(c)))),
    ("isalpha", |_, call| each(call, |c| Ok(is_letter(c)))),
    ("isascii", |_, call| Ok(Value::Bool(call.alone()?.is_ascii()))),
    ("isdecimal", |_, call| each(call, |c| Ok(is_decimal(c)))),
    ("isdigit", |_, call| each(call, is_digit)),
    ("isidentifier", |_, call| isidentifier(call.alone()?).map(Value::Bool)),
    ("islower", |_, call| Ok(Value::Bool(islower(call.alone()?)))),
    ("isnumeric", |_, call| each(call, is_numeric)),
    ("isprintable", |_, call| Ok(Value::Bool(call.alone()?.chars().all(is_printable)))),
    ("isspace", |_, call| each(call, |c| Ok(is_space(c)))),
    ("istitle", |_, call| Ok(Value::Bool(istitle(call.alone()?)))),
    ("isupper", |_, call| Ok(Value::Bool(isupper(call.alone()?)))),
    ("join", join),
    ("ljust", |r, call| padded(r, call, |_, _| 0)),
    ("lower", |r, call| recased(r, call, |s| Ok(s.to_lowercase()))),
    ("lstrip", |r, call| stripped(r, call, true, false)),
    ("partition", |_, call| partition(call, |s, by| s.split_once(by), |s| [s, "", ""])),
    ("removeprefix", |_, call| without(call, |s, part| s.strip_prefix(part))),
    ("removesuffix", |_, call| without(call, |s, part| s.strip_suffix(part))),
    ("replace", replace),
    ("rfind", |_, call| Ok(Value::Int(place(call, |s, part| s.rfind(part))?.unwrap_or(-1)))),
    ("rindex", |_, call| place(call, |s, part| s.rfind(part))?.map(Value::Int).ok_or_else(not_found)),
    ("rjust", |r, call| padded(r, call, |missing, _| missing)),
    ("rpartition", |_, call| partition(call, |s, by| s.rsplit_once(by), |s| ["", "", s])),
    ("rsplit", |r, call| split(r, call, true)),
    ("rstrip", |r, call| stripped(r, call, false, true)),
    ("split", |r, call| split(r, call, false)),
    ("splitlines", splitlines),
    ("startswith", |r, call| has_edge(r, call, |s, part| s.starts_with(part))),
    ("strip", |r, call| stripped(r, call, true, true)),
    ("swapcase", |r, call| recased(r, call, |s| Ok(swapcase(s)))),
    ("title", |r, call| recased(r, call, title)),
    ("upper", |r, call| recased(r, call, |s| Ok(s.to_uppercase()))),
    ("zfill", zfill),
];
/// Methods of `str` that are refused by name.
pub(super) const REFUSED: [&str; 3] = ["encode", "maketrans", "translate"];

/// A text in other letters.
fn recased(
    r: &mut Renderer<'_>,
    call: StrCall<'_>,
    case: fn(&str) -> TemplateResult<String>,
) -> TemplateResult<Value> {
    let s = call.alone()?;
    r.budget.memory(s.len() * 2)?;
    case(s).map(Value::text)
}

fn casefold(s: &str) -> TemplateResult<String> {
    if !s.is_ascii() {
        return Err(Problem::unsupported("casefold of a text that is not ASCII"));
    }
    Ok(s.to_ascii_lowercase())
}

fn swapcase(s: &str) -> String {
    // Of the whole text: a sigma at the end of a word has a form of its own.
    let lowercase = s.to_lowercase();
    let mut lowercase = lowercase.chars();
    let mut swapped = String::with_capacity(s.len());
    for c in s.chars() {
        let lower = lowercase.by_ref().take(c.to_lowercase().count());
        if c.is_uppercase() {
            swapped.extend(lower);
        } else {
            lower.for_each(drop);
            if c.is_lowercase() { swapped.extend(c.to_uppercase()) } else { swapped.push(c) }
        }
    }
    swapped
}

/// Fills up to a width. `left` says how many of the missing characters, and of which width, stand in front.
fn padded(r: &mut Renderer<'_>, call: StrCall<'_>, left: fn(usize, usize) -> usize) -> TemplateResult<Value> {
    let (s, [wide, fill]) = call.bind(["width", "fillchar"], 1)?;
    let fill = text(fill, " ", "the fill character")?;
    let wide = width(int(wide, 0, "the width")?, "width")?;
    if fill.chars().count() != 1 {
        return Err(Problem::failed("The fill character must be exactly one character long"));
    }
    let missing = wide.saturating_sub(s.chars().count());
    r.budget.memory(missing * fill.len())?;
    let left = left(missing, wide);
    Ok(Value::text(format!("{}{s}{}", fill.repeat(left), fill.repeat(missing - left))))
}

pub(super) fn center(r: &mut Renderer<'_>, call: StrCall<'_>) -> TemplateResult<Value> {
    // As Python rounds.
    padded(r, call, |missing, wide| missing / 2 + (missing & wide & 1))
}

fn count(_: &mut Renderer<'_>, call: StrCall<'_>) -> TemplateResult<Value> {
    let (s, [part, start, end]) = call.bind(["sub", "start", "end"], 1)?;
    let part = text(part, "", "the text sought")?;
    let found = window(s, start, end)?.map_or(0, |(_, within)| {
        if part.is_empty() { within.chars().count() + 1 } else { within.matches(&*part).count() }
    });
    Ok(Value::Int(found as i128))
}

/// The character at which `find` finds a text.
fn place(call: StrCall<'_>, find: fn(&str, &str) -> Option<usize>) -> TemplateResult<Option<i128>> {
    let (s, [part, start, end]) = call.bind(["sub", "start", "end"], 1)?;
    let part = text(part, "", "the text sought")?;
    let Some((offset, within)) = window(s, start, end)? else { return Ok(None) };
    Ok(find(within, &part).map(|at| (offset + within[..at].chars().count()) as i128))
}

fn not_found() -> Box<Problem> {
    Problem::failed("substring not found")
}

/// `startswith` and `endswith`.
fn has_edge(r: &mut Renderer<'_>, call: StrCall<'_>, has: fn(&str, &str) -> bool) -> TemplateResult<Value> {
    let name = call.name;
    let (s, [part, start, end]) = call.bind(["prefix", "start", "end"], 1)?;
    let Some((_, within)) = window(s, start, end)? else { return Ok(Value::Bool(false)) };
    let fits = |part: &Value| match part {
        Value::Text(part) => Ok(has(within, part)),
        other => Err(Problem::failed(format!(
            "{name} first arg must be str or a tuple of str, not {}",
            other.type_name()
        ))),
    };
    let Some(Value::Tuple(parts)) = part else { return fits(&part.unwrap_or(Value::None)).map(Value::Bool) };
    r.budget.steps(parts.items.len())?;
    for part in &parts.items {
        if fits(part)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn expandtabs(r: &mut Renderer<'_>, call: StrCall<'_>) -> TemplateResult<Value> {
    let (s, [size]) = call.bind(["tabsize"], 0)?;
    let size = width(int(size, 8, "the tab size")?, "tab size")?;
    let mut out = String::new();
    let mut column = 0;
    for c in s.chars() {
        match c {
            '\t' => {
                let blanks = if size == 0 { 0 } else { size - column % size };
                r.budget.memory(blanks)?;
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
    Ok(Value::text(out))
}

fn join(r: &mut Renderer<'_>, call: StrCall<'_>) -> TemplateResult<Value> {
    let (s, [parts]) = call.bind(["iterable"], 1)?;
    let parts = parts.unwrap_or(Value::None).elements(&mut r.budget)?;
    let mut out = String::new();
    for (at, part) in parts.iter().enumerate() {
        let Value::Text(part) = part else {
            return Err(Problem::failed(format!(
                "sequence item {at}: expected str instance, {} found",
                part.type_name()
            )));
        };
        r.budget.memory(part.len() + s.len())?;
        if at > 0 {
            out.push_str(s);
        }
        out.push_str(part);
    }
    Ok(Value::text(out))
}

fn stripped(r: &mut Renderer<'_>, call: StrCall<'_>, left: bool, right: bool) -> TemplateResult<Value> {
    let (s, [set]) = call.bind(["chars"], 0)?;
    strip(s, set, left, right, &mut r.budget).map(Value::text)
}

/// `partition` and `rpartition`; `whole` are the parts of a text without the separator.
fn partition(
    call: StrCall<'_>,
    cut: for<'s> fn(&'s str, &str) -> Option<(&'s str, &'s str)>,
    whole: fn(&str) -> [&str; 3],
) -> TemplateResult<Value> {
    let (s, [separator]) = call.bind(["sep"], 1)?;
    let separator = text(separator, "", "the separator")?;
    if separator.is_empty() {
        return Err(Problem::failed("empty separator"));
    }
    let parts = cut(s, &separator).map_or_else(|| whole(s), |(before, after)| [before, &*separator, after]);
    Value::tuple(parts.map(Value::text).to_vec())
}

/// `removeprefix` and `removesuffix`.
fn without(call: StrCall<'_>, cut: for<'s> fn(&'s str, &str) -> Option<&'s str>) -> TemplateResult<Value> {
    let (s, [part]) = call.bind(["prefix"], 1)?;
    let part = text(part, "", "the prefix or suffix")?;
    Ok(Value::text(cut(s, &part).unwrap_or(s)))
}

fn replace(r: &mut Renderer<'_>, call: StrCall<'_>) -> TemplateResult<Value> {
    let (s, [old, new, count]) = call.bind(["old", "new", "count"], 2)?;
    let (old, new) = (text(old, "", "the old text")?, text(new, "", "the new text")?);
    let count = int(count, -1, "the count")?;
    pieces::replace(s, &old, &new, count, &mut r.budget).map(Value::text)
}

/// `split` and, from the `right`, `rsplit`.
fn split(r: &mut Renderer<'_>, call: StrCall<'_>, right: bool) -> TemplateResult<Value> {
    let (s, [separator, limit]) = call.bind(["sep", "maxsplit"], 0)?;
    let limit = usize::try_from(int(limit, -1, "maxsplit")?).unwrap_or(usize::MAX);
    let separator = match separator {
        None | Some(Value::None) => None,
        other => Some(text(other, "", "the separator")?),
    };
    let count = match separator.as_deref() {
        None | Some("") => words(s),
        Some(separator) => s.matches(separator).count() + 1,
    };
    r.budget.memory(count.min(limit.saturating_add(1)) * 64)?;
    r.budget.steps(count.min(limit.saturating_add(1)))?;
    let pieces = pieces::split(s, separator.as_deref(), limit, right)?;
    Value::list(pieces.into_iter().map(Value::text).collect())
}

fn splitlines(r: &mut Renderer<'_>, call: StrCall<'_>) -> TemplateResult<Value> {
    let (s, [keep]) = call.bind(["keepends"], 0)?;
    let count = s.matches(is_line_end).count() + 1;
    r.budget.memory(count * 64)?;
    r.budget.steps(count)?;
    let lines = lines(s, keep.is_some_and(|keep| keep.truth()));
    Value::list(lines.into_iter().map(Value::text).collect())
}

fn zfill(r: &mut Renderer<'_>, call: StrCall<'_>) -> TemplateResult<Value> {
    let (s, [wide]) = call.bind(["width"], 1)?;
    let missing = width(int(wide, 0, "the width")?, "width")?.saturating_sub(s.chars().count());
    r.budget.memory(missing)?;
    let sign = usize::from(s.starts_with(['+', '-']));
    Ok(Value::text(format!("{}{}{}", &s[..sign], "0".repeat(missing), &s[sign..])))
}

/// Whether there are characters, and each of them passes.
fn each(call: StrCall<'_>, passes: fn(char) -> TemplateResult<bool>) -> TemplateResult<Value> {
    let s = call.alone()?;
    for c in s.chars() {
        if !passes(c)? {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(!s.is_empty()))
}

fn is_decimal(c: char) -> bool {
    c.general_category() == GeneralCategory::DecimalNumber
}

fn is_number(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Number
}

fn is_digit(c: char) -> TemplateResult<bool> {
    if is_number(c) && !is_decimal(c) {
        return Err(Problem::unsupported(format!("isdigit of {c:?}")));
    }
    Ok(is_decimal(c))
}

fn is_numeric(c: char) -> TemplateResult<bool> {
    if c.general_category() == GeneralCategory::OtherLetter {
        return Err(Problem::unsupported(format!("isnumeric of {c:?}")));
    }
    Ok(is_number(c))
}

fn isidentifier(s: &str) -> TemplateResult<bool> {
    if !s.is_ascii() {
        return Err(Problem::unsupported("isidentifier of a text that is not ASCII"));
    }
    let begins = s.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic());
    Ok(begins && s.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()))
}

pub(super) fn islower(s: &str) -> bool {
    s.chars().any(char::is_lowercase) && !s.chars().any(is_upper)
}

pub(super) fn isupper(s: &str) -> bool {
    s.chars().any(char::is_uppercase) && !s.chars().any(is_lower)
}

fn istitle(s: &str) -> bool {
    let (mut cased, mut found) = (false, false);
    for c in s.chars() {
        let (upper, lower) = (is_upper(c), is_lower(c));
        if (upper && cased) || (lower && !cased) {
            return false;
        }
        cased = upper || lower;
        found |= cased;
    }
    found
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
