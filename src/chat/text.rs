//! Values to text: Python's `str` and `repr`, and JSON.

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::limits::RenderBudget;
use super::problem::{Problem, TemplateResult};
use super::value::Value;

/// `str(value)`.
pub(super) fn string(value: &Value, budget: &mut RenderBudget) -> TemplateResult<String> {
    let mut out = String::new();
    match value {
        Value::Text(text) | Value::Markup(text) => {
            budget.memory(text.len())?;
            out.push_str(text);
        }
        Value::Undefined(_) => {}
        other => repr_into(other, &mut out, budget)?,
    }
    Ok(out)
}

/// `repr(value)`.
pub(super) fn repr(value: &Value, budget: &mut RenderBudget) -> TemplateResult<String> {
    let mut out = String::new();
    repr_into(value, &mut out, budget)?;
    Ok(out)
}

fn repr_into(value: &Value, out: &mut String, budget: &mut RenderBudget) -> TemplateResult<()> {
    budget.memory(8)?;
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(value) => out.push_str(&value.to_string()),
        Value::Float(value) => out.push_str(&float(*value)),
        Value::Text(text) => quoted(text, out, budget)?,
        Value::Markup(text) => {
            out.push_str("Markup(");
            quoted(text, out, budget)?;
            out.push(')');
        }
        Value::List(items) => {
            out.push('[');
            sequence(&items.items, out, budget)?;
            out.push(']');
        }
        Value::Tuple(items) => {
            out.push('(');
            sequence(&items.items, out, budget)?;
            out.push_str(if items.items.len() == 1 { ",)" } else { ")" });
        }
        Value::View(kind, items) => {
            out.push_str(kind);
            out.push_str("([");
            sequence(&items.items, out, budget)?;
            out.push_str("])");
        }
        Value::Dict(dict) => {
            out.push('{');
            for (at, (key, value)) in dict.entries().iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                repr_into(key, out, budget)?;
                out.push_str(": ");
                repr_into(value, out, budget)?;
            }
            out.push('}');
        }
        Value::Range(start, stop, 1) => out.push_str(&format!("range({start}, {stop})")),
        Value::Range(start, stop, step) => out.push_str(&format!("range({start}, {stop}, {step})")),
        Value::Iter(_) | Value::Method(_) | Value::Function(_) | Value::Object(_) => {
            return Err(Problem::unsupported(format!(
                "the text of a {}, which holds an address",
                value.type_name()
            )));
        }
    }
    Ok(())
}

fn sequence(items: &[Value], out: &mut String, budget: &mut RenderBudget) -> TemplateResult<()> {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        repr_into(item, out, budget)?;
    }
    Ok(())
}

/// Whether Python prints the character as it is in a `repr`.
pub(super) fn is_printable(c: char) -> bool {
    use GeneralCategory as G;
    match c {
        ' '..='~' => true,
        _ if c.is_ascii() => false,
        _ => !matches!(
            c.general_category(),
            G::Control
                | G::Format
                | G::Surrogate
                | G::PrivateUse
                | G::Unassigned
                | G::LineSeparator
                | G::ParagraphSeparator
                | G::SpaceSeparator
        ),
    }
}

fn quoted(text: &str, out: &mut String, budget: &mut RenderBudget) -> TemplateResult<()> {
    budget.memory(text.len())?;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => match c as u32 {
                code @ ..0x100 => out.push_str(&format!("\\x{code:02x}")),
                code @ ..0x1_0000 => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
    Ok(())
}

/// `repr` of a float: the fewest digits that give it back.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// How `json.dumps` is to write.
pub(super) struct Json {
    pub(super) ascii: bool,
    pub(super) indent: Option<String>,
    pub(super) item: String,
    pub(super) colon: String,
    pub(super) sorted: bool,
}

impl Json {
    /// `json.dumps(value, …)`.
    pub(super) fn write(
        &self,
        value: &Value,
        level: usize,
        out: &mut String,
        budget: &mut RenderBudget,
    ) -> TemplateResult<()> {
        budget.memory(8)?;
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Int(value) => out.push_str(&value.to_string()),
            Value::Float(value) => out.push_str(&json_float(*value)),
            Value::Text(text) | Value::Markup(text) => self.quoted(text, out, budget)?,
            Value::List(items) | Value::Tuple(items) => {
                out.push('[');
                for (at, item) in items.items.iter().enumerate() {
                    self.separate(at, level + 1, out, budget)?;
                    self.write(item, level + 1, out, budget)?;
                }
                self.close(items.items.is_empty(), level, out, budget)?;
                out.push(']');
            }
            Value::Dict(dict) => {
                let mut entries: Vec<&(Value, Value)> = dict.entries().iter().collect();
                if self.sorted {
                    let texts: Option<Vec<_>> = entries.iter().map(|(key, _)| key.as_text()).collect();
                    if texts.is_none() {
                        return Err(Problem::unsupported(
                            "tojson(sort_keys=True) of keys that are no strings",
                        ));
                    }
                    budget.steps(entries.len() * 8)?;
                    entries.sort_by(|a, b| a.0.as_text().cmp(&b.0.as_text()));
                }
                out.push('{');
                for (at, (key, value)) in entries.into_iter().enumerate() {
                    self.separate(at, level + 1, out, budget)?;
                    match key {
                        Value::Text(text) | Value::Markup(text) => self.quoted(text, out, budget)?,
                        Value::None => out.push_str("\"null\""),
                        Value::Bool(key) => out.push_str(if *key { "\"true\"" } else { "\"false\"" }),
                        Value::Int(key) => out.push_str(&format!("\"{key}\"")),
                        Value::Float(key) => out.push_str(&format!("\"{}\"", json_float(*key))),
                        other => {
                            return Err(Problem::failed(format!(
                                "keys must be str, int, float, bool or None, not {}",
                                other.type_name()
                            )));
                        }
                    }
                    out.push_str(&self.colon);
                    self.write(value, level + 1, out, budget)?;
                }
                self.close(dict.entries().is_empty(), level, out, budget)?;
                out.push('}');
            }
            other => {
                return Err(Problem::failed(format!(
                    "Object of type {} is not JSON serializable",
                    other.type_name()
                )));
            }
        }
        Ok(())
    }

    fn separate(
        &self,
        at: usize,
        level: usize,
        out: &mut String,
        budget: &mut RenderBudget,
    ) -> TemplateResult<()> {
        if at > 0 {
            budget.memory(self.item.len())?;
            out.push_str(&self.item);
        }
        self.line(level, out, budget)
    }

    fn close(
        &self,
        empty: bool,
        level: usize,
        out: &mut String,
        budget: &mut RenderBudget,
    ) -> TemplateResult<()> {
        if empty { Ok(()) } else { self.line(level, out, budget) }
    }

    fn line(&self, level: usize, out: &mut String, budget: &mut RenderBudget) -> TemplateResult<()> {
        if let Some(indent) = &self.indent {
            budget.memory(1 + indent.len() * level)?;
            out.push('\n');
            for _ in 0..level {
                out.push_str(indent);
            }
        }
        Ok(())
    }

    fn quoted(&self, text: &str, out: &mut String, budget: &mut RenderBudget) -> TemplateResult<()> {
        budget.memory(text.len())?;
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
        Ok(())
    }
}

fn json_float(value: f64) -> String {
    match value {
        _ if value.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        _ => float(value),
    }
}
