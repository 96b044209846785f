//! `"%s" % values` and `"{}".format(values)`: Python's ways to write values into a text.

use super::limits::{RenderBudget, width};
use super::problem::{Problem, TemplateResult};
use super::text::{repr, string};
use super::value::Value;

/// How a value is written.
#[derive(Debug, Clone, Default)]
struct FormatSpec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl FormatSpec {
    /// `prefix` (sign and base) and `body`, filled up to the width.
    fn pad(
        &self,
        prefix: &str,
        body: &str,
        align: char,
        budget: &mut RenderBudget,
    ) -> TemplateResult<String> {
        let length = prefix.chars().count() + body.chars().count();
        let missing = self.width.saturating_sub(length);
        let fill = self.fill.unwrap_or(' ');
        budget.memory(prefix.len() + body.len() + missing * fill.len_utf8())?;
        let of = |count: usize| fill.to_string().repeat(count);
        Ok(match self.align.unwrap_or(align) {
            '<' => format!("{prefix}{body}{}", of(missing)),
            '^' => format!("{}{prefix}{body}{}", of(missing / 2), of(missing - missing / 2)),
            '=' => format!("{prefix}{}{body}", of(missing)),
            _ => format!("{}{prefix}{body}", of(missing)),
        })
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        }
    }

    fn float(&self, value: f64, kind: char, budget: &mut RenderBudget) -> TemplateResult<(String, String)> {
        let precision = self.precision.unwrap_or(6);
        budget.memory(400 + precision)?;
        // What exact digits cost to compute.
        budget.steps(precision.min(1100) / 4)?;
        let (negative, value) = (value.is_sign_negative() && !value.is_nan(), value.abs());
        let mut body = if value.is_nan() {
            "nan".into()
        } else if value.is_infinite() {
            "inf".into()
        } else {
            match kind.to_ascii_lowercase() {
                'f' => format!("{value:.*}", self.precision.unwrap_or(6)),
                'e' => exponent(value, self.precision.unwrap_or(6)),
                '%' => format!("{:.*}%", self.precision.unwrap_or(6), value * 100.0),
                _ => general(value, self.precision.unwrap_or(6).max(1), self.alternate),
            }
        };
        if self.alternate && kind.eq_ignore_ascii_case(&'f') && self.precision == Some(0) {
            body.push('.');
        }
        if kind.is_ascii_uppercase() {
            body = body.to_ascii_uppercase();
        }
        if let Some(separator) = self.grouping {
            let end = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
            body = grouped(&body[..end], separator, 3) + &body[end..];
        }
        Ok((self.sign(negative).into(), body))
    }

    fn int(&self, value: i128, kind: char) -> (String, String) {
        let magnitude = value.unsigned_abs();
        let (base, digits) = match kind {
            'x' => ("0x", format!("{magnitude:x}")),
            'X' => ("0X", format!("{magnitude:X}")),
            'o' => ("0o", format!("{magnitude:o}")),
            'b' => ("0b", format!("{magnitude:b}")),
            _ => ("", magnitude.to_string()),
        };
        let prefix = format!("{}{}", self.sign(value < 0), if self.alternate { base } else { "" });
        let digits = match self.grouping {
            Some(separator) => grouped(&digits, separator, if base.is_empty() { 3 } else { 4 }),
            None => digits,
        };
        (prefix, digits)
    }
}

fn grouped(digits: &str, separator: char, size: usize) -> String {
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(digit);
    }
    out
}

/// `1.5e+06`.
fn exponent(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// C's `%g`.
fn general(value: f64, precision: usize, alternate: bool) -> String {
    let text = exponent(value, precision - 1);
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    let power: i64 = power.parse().unwrap_or(0);
    let trimmed = |digits: &str| {
        let keep = alternate || !digits.contains('.');
        if keep { digits.to_owned() } else { digits.trim_end_matches('0').trim_end_matches('.').to_owned() }
    };
    if power < -4 || power >= precision as i64 {
        return format!("{}e{}", trimmed(digits), &text[digits.len() + 1..]);
    }
    trimmed(&format!("{value:.*}", usize::try_from(precision as i64 - 1 - power).unwrap_or(0)))
}

/// `format % values`.
pub(super) fn format(format: &str, values: &Value, budget: &mut RenderBudget) -> TemplateResult<String> {
    let single = [values.clone()];
    let (arguments, mut mapped) = match values {
        Value::Tuple(items) => (&items.items[..], false),
        other => (&single[..], matches!(other, Value::Dict(_) | Value::List(_))),
    };
    let mut arguments = arguments.iter();
    let mut out = String::new();
    let mut rest = format;
    budget.memory(format.len())?;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        budget.steps(1)?;
        let mut named = None;
        if let Some(after) = rest.strip_prefix('(') {
            let end = after.find(')').ok_or_else(|| Problem::failed("incomplete format key"))?;
            let Value::Dict(dict) = values else { return Err(Problem::failed("format requires a mapping")) };
            let value = dict.get_text(&after[..end]);
            named = Some(
                value
                    .ok_or_else(|| Problem::failed(format!("no key '{}' to format", &after[..end])))?
                    .clone(),
            );
            mapped = true;
            rest = &after[end + 1..];
        }
        let mut spec = FormatSpec::default();
        let mut left = false;
        while let Some(flag) = rest.chars().next().filter(|c| "#0- +".contains(*c)) {
            match flag {
                '#' => spec.alternate = true,
                '0' => spec.zero = true,
                '-' => left = true,
                ' ' if spec.sign == Some('+') => {}
                sign => spec.sign = Some(sign),
            }
            rest = &rest[1..];
        }
        let few = || Problem::failed("not enough arguments for format string");
        let mut number = |rest: &mut &str| -> TemplateResult<Option<i128>> {
            if let Some(after) = rest.strip_prefix('*') {
                *rest = after;
                let value = arguments.next().ok_or_else(few)?;
                return value.as_int().map(Some).ok_or_else(|| Problem::failed("* wants int"));
            }
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, after) = rest.split_at(digits);
            *rest = after;
            Ok(if digits == 0 { None } else { Some(number.parse().unwrap_or(i128::MAX)) })
        };
        let wide = number(&mut rest)?.unwrap_or(0);
        left |= wide < 0;
        spec.width = width(wide.saturating_abs(), "width")?;
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            spec.precision = Some(width(number(&mut rest)?.unwrap_or(0), "precision")?);
        }
        rest = rest.trim_start_matches(['h', 'l', 'L']);
        let kind = rest.chars().next().ok_or_else(|| Problem::failed("incomplete format"))?;
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => arguments.next().ok_or_else(few)?.clone(),
        };
        let numeric = !matches!(kind, 's' | 'r' | 'a' | 'c');
        spec.align = if left { Some('<') } else { None };
        let wants = |what: &str| {
            Problem::failed(format!("%{kind} format: {what} is required, not {}", value.type_name()))
        };
        let (prefix, body) = match kind {
            's' | 'r' | 'a' => {
                let text = if kind == 's' { string(&value, budget)? } else { repr(&value, budget)? };
                if kind == 'a' && !text.is_ascii() {
                    return Err(Problem::unsupported("%a of a text that is not ASCII"));
                }
                (String::new(), text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect())
            }
            'c' => match &value {
                Value::Text(text) if text.chars().count() == 1 => (String::new(), text.to_string()),
                other => match other.as_int().and_then(|code| char::from_u32(u32::try_from(code).ok()?)) {
                    Some(c) => (String::new(), c.to_string()),
                    None => return Err(Problem::failed("%c requires int or char")),
                },
            },
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
                value.defined()?;
                let whole = match &value {
                    Value::Float(value)
                        if "diu".contains(kind) && value.is_finite() && value.abs() < 1e38 =>
                    {
                        Some(value.trunc() as i128)
                    }
                    other => other.as_int(),
                };
                let (prefix, digits) = spec.int(whole.ok_or_else(|| wants("an integer"))?, kind);
                let zeros = spec.precision.unwrap_or(0).saturating_sub(digits.len());
                budget.memory(zeros)?;
                (prefix, "0".repeat(zeros) + &digits)
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                value.defined()?;
                spec.float(value.as_float().ok_or_else(|| wants("a real number"))?, kind, budget)?
            }
            other => return Err(Problem::failed(format!("unsupported format character '{other}'"))),
        };
        if numeric && spec.zero && !left {
            spec.align = Some('=');
            spec.fill = Some('0');
        }
        out.push_str(&spec.pad(&prefix, &body, '>', budget)?);
    }
    out.push_str(rest);
    if !mapped && arguments.next().is_some() {
        return Err(Problem::failed("not all arguments converted during string formatting"));
    }
    Ok(out)
}

/// One field of `str.format`: finds its value.
pub(super) type Lookup<'l> = dyn FnMut(&str, &mut RenderBudget) -> TemplateResult<Value> + 'l;

/// `format.format(…)`; `field` gives the value of a replacement field, such as `0`, `name` or `name.a[0]`.
pub(super) fn braces(
    format: &str,
    field: &mut Lookup<'_>,
    budget: &mut RenderBudget,
) -> TemplateResult<String> {
    let mut out = String::new();
    let mut rest = format;
    let mut automatic = Some(0);
    while let Some(at) = rest.find(['{', '}']) {
        budget.steps(1)?;
        out.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
            continue;
        }
        if brace == "}" {
            return Err(Problem::failed("Single '}' encountered in format string"));
        }
        let end = rest.find('}').ok_or_else(|| Problem::failed("expected '}' before end of string"))?;
        let inside = &rest[..end];
        if inside.contains('{') {
            return Err(Problem::unsupported("a nested field in a format"));
        }
        rest = &rest[end + 1..];
        let (name, spec) = inside.split_once(':').unwrap_or((inside, ""));
        let (name, conversion) = name.split_once('!').map_or((name, None), |(name, c)| (name, Some(c)));
        let mut name = name.to_owned();
        if name.is_empty() || name.starts_with(['.', '[']) {
            let at = automatic.ok_or_else(|| {
                Problem::failed("cannot switch from manual field specification to automatic field numbering")
            })?;
            automatic = Some(at + 1);
            name = format!("{at}{name}");
        } else if name.starts_with(|c: char| c.is_ascii_digit()) {
            if automatic.is_some_and(|at| at > 0) {
                return Err(Problem::failed(
                    "cannot switch from automatic field numbering to manual field specification",
                ));
            }
            automatic = None;
        }
        let value = field(&name, budget)?;
        let value = match conversion {
            None => value,
            Some("s") => Value::text(string(&value, budget)?),
            Some("r") => Value::text(repr(&value, budget)?),
            Some(other) => {
                return Err(Problem::unsupported(format!("the conversion '!{other}' in a format")));
            }
        };
        out.push_str(&formatted(&value, spec, budget)?);
    }
    out.push_str(rest);
    Ok(out)
}

/// `format(value, spec)`.
fn formatted(value: &Value, source: &str, budget: &mut RenderBudget) -> TemplateResult<String> {
    if source.is_empty() {
        return string(value, budget);
    }
    let invalid =
        || Problem::failed(format!("Invalid format specifier '{source}' for {}", value.type_name()));
    let mut spec = FormatSpec::default();
    let mut characters: Vec<char> = source.chars().collect();
    characters.reverse();
    let is_align = |c: &char| "<>=^".contains(*c);
    if characters.len() > 1 && is_align(&characters[characters.len() - 2]) {
        spec.fill = characters.pop();
        spec.align = characters.pop();
    } else if characters.last().is_some_and(is_align) {
        spec.align = characters.pop();
    }
    if characters.last().is_some_and(|c| "+- ".contains(*c)) {
        spec.sign = characters.pop();
    }
    if characters.last() == Some(&'z') {
        return Err(Problem::unsupported("'z' in a format"));
    }
    if characters.last() == Some(&'#') {
        characters.pop();
        spec.alternate = true;
    }
    let number = |characters: &mut Vec<char>| {
        let mut digits = String::new();
        while let Some(digit) = characters.pop_if(|c| c.is_ascii_digit()) {
            digits.push(digit);
        }
        (!digits.is_empty()).then(|| digits.parse().unwrap_or(i128::MAX))
    };
    if characters.last() == Some(&'0') {
        spec.zero = true;
    }
    spec.width = width(number(&mut characters).unwrap_or(0), "width")?;
    spec.grouping = characters.pop_if(|c| matches!(c, ',' | '_'));
    if characters.pop_if(|c| *c == '.').is_some() {
        spec.precision = Some(width(number(&mut characters).ok_or_else(invalid)?, "precision")?);
    }
    spec.kind = characters.pop();
    if !characters.is_empty() {
        return Err(invalid());
    }
    let text = value.as_text();
    if spec.zero && spec.fill.is_none() {
        spec.fill = Some('0');
        if text.is_none() && spec.align.is_none() {
            spec.align = Some('=');
        }
    }
    if spec.zero && spec.grouping.is_some() {
        return Err(Problem::unsupported("zeros and separators in one format"));
    }
    if let Some(text) = text {
        if !matches!(spec.kind, None | Some('s'))
            || spec.sign.is_some()
            || spec.grouping.is_some()
            || spec.align == Some('=')
        {
            return Err(invalid());
        }
        let body: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
        return spec.pad("", &body, '<', budget);
    }
    let (prefix, body) = match (value, spec.kind) {
        (Value::Bool(_), None) => return Err(Problem::unsupported("a format of a bool")),
        (Value::Int(_) | Value::Bool(_), None | Some('d' | 'x' | 'X' | 'o' | 'b')) => {
            if spec.precision.is_some() {
                return Err(Problem::failed("Precision not allowed in integer format specifier"));
            }
            spec.int(value.as_int().unwrap_or(0), spec.kind.unwrap_or('d'))
        }
        (
            Value::Int(_) | Value::Bool(_) | Value::Float(_),
            Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')),
        ) => spec.float(value.as_float().unwrap_or(0.0), kind, budget)?,
        (Value::Float(number), None)
            if spec.precision.is_none() && spec.grouping.is_none() && !spec.alternate =>
        {
            (spec.sign(number.is_sign_negative()).into(), super::text::float(number.abs()))
        }
        (Value::Int(_) | Value::Float(_), _) => {
            return Err(Problem::unsupported(format!("the format '{source}' of a {}", value.type_name())));
        }
        _ => {
            return Err(Problem::failed(format!(
                "unsupported format string passed to {}.__format__",
                value.type_name()
            )));
        }
    };
    spec.pad(&prefix, &body, '>', budget)
}
