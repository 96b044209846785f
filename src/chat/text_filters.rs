//! The filters that return texts.

use std::sync::Arc;

use super::call::{ArgumentValues, NamedCall, int, text};
use super::lexer::is_space;
use super::limits::width;
use super::numbers::to_float;
use super::pieces::{self, is_line_end, lines};
use super::problem::{Problem, TemplateResult};
use super::render::Renderer;
use super::sorting::path;
use super::text::{Json, repr};
use super::value::Value;
use super::{operators, percent, strings};

type TextFilterCall<'n> = NamedCall<'n, Value>;

/// A Markup is refused: operations on it would escape their operands.
fn refuse_markup(call: &TextFilterCall<'_>) -> TemplateResult<()> {
    match call.subject {
        Value::Markup(_) => Err(Problem::unsupported(format!("the filter '{}' on a Markup", call.name))),
        _ => Ok(()),
    }
}

/// [`NamedCall::bind`] of a value that is no Markup.
fn plain<const N: usize>(
    call: TextFilterCall<'_>,
    names: [&str; N],
    required: usize,
) -> TemplateResult<(Value, [Option<Value>; N])> {
    refuse_markup(&call)?;
    call.bind(names, required)
}

/// A value that must be a str.
fn subject(value: &Value, what: &str) -> TemplateResult<Arc<str>> {
    value.defined()?;
    match value {
        Value::Text(text) => Ok(text.clone()),
        other => Err(Problem::unsupported(format!("{what} of a {}", other.type_name()))),
    }
}

pub(super) fn string(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    match call.alone()? {
        value @ Value::Markup(_) => Ok(value),
        value => r.string(&value).map(Value::text),
    }
}

pub(super) fn safe(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    match call.alone()? {
        value @ Value::Markup(_) => Ok(value),
        value => Ok(Value::Markup(r.string(&value)?.into())),
    }
}

pub(super) fn escape(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    match call.subject {
        Value::Markup(_) => call.alone(),
        _ => forceescape(r, call),
    }
}

pub(super) fn forceescape(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let plain = r.string(&call.alone()?)?;
    Ok(Value::Markup(operators::escape(&plain, &mut r.budget)?.into()))
}

/// A text in other letters.
pub(super) fn recased(
    r: &mut Renderer<'_>,
    call: TextFilterCall<'_>,
    case: fn(&str) -> TemplateResult<String>,
) -> TemplateResult<Value> {
    let (value, []) = plain(call, [], 0)?;
    let subject = r.string(&value)?;
    r.budget.memory(subject.len() * 2)?;
    case(&subject).map(Value::text)
}

pub(super) fn title(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let subject = r.string(&call.alone()?)?;
    let mut out = String::new();
    let mut begins = true;
    r.budget.memory(subject.len() * 2)?;
    for c in subject.chars() {
        let breaks = c == '-' || is_space(c) || "({[<".contains(c);
        if breaks || !begins {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        begins = breaks;
    }
    if subject.contains('Σ') {
        return Err(Problem::unsupported("title of a text with Σ"));
    }
    Ok(Value::text(out))
}

pub(super) fn trim(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let (value, [set]) = plain(call, ["chars"], 0)?;
    let subject = r.string(&value)?;
    pieces::strip(&subject, set, true, true, &mut r.budget).map(Value::text)
}

pub(super) fn center(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let name = call.name;
    let (value, [wide]) = plain(call, ["width"], 0)?;
    let subject = r.string(&value)?;
    r.budget.memory(subject.len())?;
    let given = ArgumentValues::of(vec![wide.unwrap_or(Value::Int(80))]);
    strings::center(r, NamedCall { name, subject: &subject, given })
}

pub(super) fn replace(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let (value, [old, new, count]) = call.bind(["old", "new", "count"], 2)?;
    let subject = r.string(&value)?;
    let old = r.string(&old.unwrap_or(Value::None))?;
    let new = r.string(&new.unwrap_or(Value::None))?;
    let count = int(count.filter(|count| !matches!(count, Value::None)), -1, "the count")?;
    pieces::replace(&subject, &old, &new, count, &mut r.budget).map(Value::text)
}

pub(super) fn format(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    refuse_markup(&call)?;
    let NamedCall { subject, given, .. } = call;
    let subject = r.string(&subject)?;
    if !given.positional.is_empty() && !given.named.is_empty() {
        return Err(Problem::failed("can't handle positional and keyword arguments at the same time"));
    }
    let values = if given.named.is_empty() {
        Value::tuple(given.positional)?
    } else {
        let entries = given.named.into_iter().map(|(name, value)| (Value::Text(name), value));
        Value::dict_within(entries, &mut r.budget)?
    };
    percent::format(&subject, &values, &mut r.budget).map(Value::text)
}

pub(super) fn join(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let (value, [separator, attribute]) = call.bind(["d", "attribute"], 0)?;
    let separator = r.string(&separator.unwrap_or(Value::text("")))?;
    let mut items = value.elements(&mut r.budget)?;
    if let Some(attribute) = attribute.filter(|attribute| !matches!(attribute, Value::None)) {
        let looked_up = items.into_iter().map(|item| path(r, item, Some(&attribute), None));
        items = looked_up.collect::<TemplateResult<_>>()?;
    }
    let mut out = String::new();
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push_str(&separator);
        }
        let item = r.string(item)?;
        r.budget.memory(item.len() + separator.len())?;
        out.push_str(&item);
    }
    Ok(Value::text(out))
}

pub(super) fn indent(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let (value, [wide, first, blank]) = plain(call, ["width", "first", "blank"], 0)?;
    let s = subject(&value, "indent")?;
    let indent = match wide {
        Some(Value::Text(indent)) => indent.to_string(),
        wide => " ".repeat(width(int(wide, 4, "the width")?, "width")?),
    };
    let blank = blank.is_some_and(|b| b.truth());
    let with_end = format!("{s}\n");
    r.budget.memory(with_end.matches(is_line_end).count() * 16)?;
    let parts = lines(&with_end, false);
    r.budget.memory(s.len() + (indent.len() + 1) * (parts.len() + 1))?;
    let mut out = String::new();
    if first.is_some_and(|b| b.truth()) {
        out.push_str(&indent);
    }
    for (at, line) in parts.into_iter().enumerate() {
        if at > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out.push_str(&indent);
            }
        }
        out.push_str(line);
    }
    Ok(Value::text(out))
}

pub(super) fn tojson(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let (value, [ascii, indent, separators, sort]) = call.bind(names, 0)?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Text(indent)) => Some(indent.to_string()),
        indent => Some(" ".repeat(width(int(indent, 0, "the indent")?, "width")?)),
    };
    let (item, colon) = match separators {
        None | Some(Value::None) => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
        Some(pair) => {
            let pair = pair.elements(&mut r.budget)?;
            let [item, colon] = &pair[..] else { return Err(Problem::failed("separators are two texts")) };
            (
                text(Some(item.clone()), "", "a separator")?.to_string(),
                text(Some(colon.clone()), "", "a separator")?.to_string(),
            )
        }
    };
    let json = Json {
        ascii: ascii.is_some_and(|b| b.truth()),
        indent,
        item,
        colon,
        sorted: sort.is_some_and(|b| b.truth()),
    };
    let mut out = String::new();
    json.write(&value, 0, &mut out, &mut r.budget)?;
    Ok(Value::text(out))
}

pub(super) fn truncate(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let names = ["length", "killwords", "end", "leeway"];
    let (value, [length, kill, end, leeway]) = plain(call, names, 0)?;
    let s = subject(&value, "truncate")?;
    let end = text(end, "...", "the end")?;
    let (length, leeway) = (
        int(length, 255, "the length")?,
        int(leeway.filter(|l| !matches!(l, Value::None)), 5, "the leeway")?,
    );
    let cut = length.saturating_sub(end.chars().count() as i128);
    if cut < 0 || leeway < 0 {
        return Err(Problem::failed(
            "expected a length of at least that of the end, and a leeway of at least 0",
        ));
    }
    r.budget.memory(s.len() + end.len())?;
    if s.chars().count() as i128 <= length.saturating_add(leeway) {
        return Ok(Value::Text(s));
    }
    let kept: String = s.chars().take(cut as usize).collect();
    let kept = if kill.is_some_and(|b| b.truth()) {
        &kept[..]
    } else {
        kept.rsplit_once(' ').map_or(&kept[..], |(k, _)| k)
    };
    Ok(Value::text(format!("{kept}{end}")))
}

/// Python's `\w`.
fn is_word(c: char) -> bool {
    use unicode_properties::{GeneralCategoryGroup as G, UnicodeGeneralCategory};
    c == '_' || matches!(c.general_category_group(), G::Letter | G::Number)
}

pub(super) fn wordcount(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let (value, []) = plain(call, [], 0)?;
    let subject = r.string(&value)?;
    let mut count = 0;
    let mut inside = false;
    for c in subject.chars() {
        let word = is_word(c);
        count += i128::from(word && !inside);
        inside = word;
    }
    Ok(Value::Int(count))
}

/// The lines of one line of a text. A word that is longer than one of them is broken, if `break_long`.
fn wrapped(line: &str, wide: usize, break_long: bool) -> Vec<String> {
    let mut chunks: Vec<Vec<char>> = Vec::new();
    for c in line.chars() {
        match chunks.last_mut() {
            Some(chunk) if (chunk[0] == ' ') == (c == ' ') => chunk.push(c),
            _ => chunks.push(vec![c]),
        }
    }
    chunks.reverse();
    let mut wrapped: Vec<String> = Vec::new();
    while !chunks.is_empty() {
        if !wrapped.is_empty() && chunks.last().is_some_and(|chunk| chunk[0] == ' ') {
            chunks.pop();
        }
        let (mut current, mut length) = (Vec::<Vec<char>>::new(), 0);
        while let Some(chunk) = chunks.pop_if(|chunk| length + chunk.len() <= wide) {
            length += chunk.len();
            current.push(chunk);
        }
        if chunks.last().is_some_and(|chunk| chunk.len() > wide) {
            if break_long {
                if let Some(chunk) = chunks.last_mut() {
                    let rest = chunk.split_off(wide - length);
                    current.push(std::mem::replace(chunk, rest));
                }
            } else if current.is_empty() {
                current.extend(chunks.pop());
            }
        }
        // One that is empty counts as blanks: the blanks before it stay, as in Python.
        current.pop_if(|chunk| chunk.iter().all(|&c| c == ' '));
        if !current.is_empty() {
            wrapped.push(current.concat().into_iter().collect());
        }
    }
    wrapped
}

/// Wraps lines at blanks, as Python's `textwrap` does. It also splits words at hyphens and dashes; those are refused.
pub(super) fn wordwrap(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let (value, [wide, break_long, separator, hyphens]) = plain(call, names, 0)?;
    let s = subject(&value, "wordwrap")?;
    let wide = int(wide, 79, "the width")?;
    if wide <= 0 {
        return Err(Problem::failed(format!("invalid width {wide} (must be > 0)")));
    }
    let wide = width(wide, "width")?;
    let break_long = break_long.is_none_or(|b| b.truth());
    let separator = text(separator.filter(|s| !matches!(s, Value::None)), "\n", "the wrap string")?;
    if s.contains(['-', '—']) && hyphens.is_none_or(|b| b.truth()) {
        return Err(Problem::unsupported("wordwrap of a text with hyphens"));
    }
    let mut out: Vec<String> = Vec::new();
    r.budget.memory(s.matches(is_line_end).count() * 16)?;
    for line in lines(&s, false) {
        r.budget.memory(line.len() * 40)?;
        if line.contains(|c: char| is_space(c) && c != ' ') {
            return Err(Problem::unsupported("wordwrap of a text with other blanks than spaces"));
        }
        let wrapped = wrapped(line, wide, break_long);
        out.push(wrapped.join(&separator));
        r.budget.memory(separator.len() * (wrapped.len() + 1))?;
    }
    Ok(Value::text(out.join(&separator)))
}

pub(super) fn striptags(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let (value, []) = plain(call, [], 0)?;
    let mut rest = r.string(&value)?;
    r.budget.memory(rest.len() * 2)?;
    for (open, close) in [("<!--", "-->"), ("<", ">")] {
        let mut out = String::new();
        let mut from = 0;
        while let Some(start) = rest[from..].find(open).map(|at| from + at) {
            let Some(end) = rest[start..].find(close).map(|at| start + at) else { break };
            out.push_str(&rest[from..start]);
            from = end + close.len();
        }
        out.push_str(&rest[from..]);
        rest = out;
    }
    if rest.contains('&') {
        return Err(Problem::unsupported("striptags of a text with '&'"));
    }
    Ok(Value::text(rest.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")))
}

fn quoted(source: &str, query: bool, out: &mut String) {
    for byte in source.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(byte.into()),
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

/// The pairs that `urlencode` joins; `None` of a value that is quoted as one text.
fn pairs(r: &mut Renderer<'_>, value: &Value) -> TemplateResult<Option<Vec<(Value, Value)>>> {
    match value {
        Value::Dict(dict) => Ok(Some(dict.entries().to_vec())),
        Value::List(_) | Value::Tuple(_) | Value::View(..) => {
            let mut pairs = Vec::new();
            for pair in value.elements(&mut r.budget)? {
                let pair = pair.elements(&mut r.budget)?;
                let [key, item] = &pair[..] else { return Err(Problem::failed("urlencode takes pairs")) };
                pairs.push((key.clone(), item.clone()));
            }
            Ok(Some(pairs))
        }
        Value::Undefined(_) | Value::Range(..) | Value::Iter(_) => {
            Err(Problem::unsupported("urlencode of this value"))
        }
        _ => Ok(None),
    }
}

pub(super) fn urlencode(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let (value, []) = plain(call, [], 0)?;
    let mut out = String::new();
    let Some(pairs) = pairs(r, &value)? else {
        let text = r.string(&value)?;
        r.budget.memory(text.len() * 3)?;
        quoted(&text, false, &mut out);
        return Ok(Value::text(out));
    };
    for (at, (key, item)) in pairs.iter().enumerate() {
        let (key, item) = (r.string(key)?, r.string(item)?);
        r.budget.memory((key.len() + item.len()) * 3 + 2)?;
        if at > 0 {
            out.push('&');
        }
        quoted(&key, true, &mut out);
        out.push('=');
        quoted(&item, true, &mut out);
    }
    Ok(Value::text(out))
}

pub(super) fn filesizeformat(_: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let (value, [binary]) = plain(call, ["binary"], 0)?;
    value.defined()?;
    let bytes = to_float(&value).filter(|bytes| bytes.is_finite());
    let bytes = bytes.ok_or_else(|| Problem::failed("filesizeformat of no number"))?;
    Ok(Value::text(file_size(bytes, binary.is_some_and(|b| b.truth()))))
}

fn file_size(bytes: f64, binary: bool) -> String {
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return "1 Byte".into();
    }
    if bytes < base {
        return format!("{} Bytes", bytes.trunc() as i128);
    }
    let mut unit = base;
    let mut name = "";
    for prefix in if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    } {
        unit *= base;
        name = prefix;
        if bytes < unit {
            break;
        }
    }
    format!("{:.1} {name}", base * bytes / unit)
}

pub(super) fn xmlattr(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    let (value, [space]) = plain(call, ["autospace"], 0)?;
    let Value::Dict(dict) = &value else { return Err(Problem::failed("xmlattr of no mapping")) };
    let mut out = String::new();
    for (key, item) in dict.entries() {
        if matches!(item, Value::None | Value::Undefined(_)) {
            continue;
        }
        let Value::Text(key) = key else {
            return Err(Problem::failed("expected string or bytes-like object"));
        };
        if key.contains(|c: char| is_space(c) || "/>=".contains(c)) {
            return Err(Problem::failed(format!("Invalid character in attribute name: '{key}'")));
        }
        let text = match item {
            Value::Markup(text) => text.to_string(),
            other => {
                let text = r.string(other)?;
                operators::escape(&text, &mut r.budget)?
            }
        };
        let blank = if out.is_empty() && !space.as_ref().is_none_or(Value::truth) { "" } else { " " };
        let attribute = format!("{blank}{}=\"{text}\"", operators::escape(key, &mut r.budget)?);
        r.budget.memory(attribute.len())?;
        out.push_str(&attribute);
    }
    Ok(Value::text(out))
}

/// Python's `pformat`, for values that fit in one line.
pub(super) fn pprint(r: &mut Renderer<'_>, call: TextFilterCall<'_>) -> TemplateResult<Value> {
    fn nested_dict(value: &Value) -> bool {
        match value {
            Value::Dict(dict) => dict.entries().len() > 1,
            Value::List(items) | Value::Tuple(items) => items.items.iter().any(nested_dict),
            _ => false,
        }
    }
    let (value, []) = plain(call, [], 0)?;
    if nested_dict(&value) || value.is_undefined() {
        return Err(Problem::unsupported("pprint of a dict of more than one key, which it sorts"));
    }
    let text = repr(&value, &mut r.budget)?;
    if text.chars().count() > 79 && !matches!(value, Value::Int(_) | Value::Float(_)) {
        return Err(Problem::unsupported("pprint of a value that does not fit one line"));
    }
    Ok(Value::text(text))
}
