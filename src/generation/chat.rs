//! Chat templates: messages to the one text that the model was trained to continue.
//!
//! Templates are Jinja as transformers runs it: blocks are trimmed, loops can break, Python's methods of strings and
//! dictionaries work, `raise_exception` and `strftime_now` exist, `tojson` escapes nothing for HTML.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// DialoGPT's turns: each followed by end-of-text, for GPT-2 models that bring no template.
pub const TURNS_TEMPLATE: &str =
    "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user" or "assistant", or what else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A compiled template and the special tokens that it may write.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    model: String,
    begin: String,
    end: String,
}

const NAME: &str = "chat template";

impl ChatTemplate {
    /// Compiles `source` for `model`; `begin` and `end` are the texts of its first and last special token ("" when it
    /// has none).
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the template does not parse.
    pub fn new(model: &str, source: &str, begin: &str, end: &str) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        });
        environment.add_function("strftime_now", |format: String| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            strftime(&format, now)
        });
        // `{% generation %}` marks the assistant's tokens for training; it prints what it holds.
        let source = ["generation", "endgeneration"].iter().fold(source.to_owned(), |text, tag| {
            text.replace(&format!("{{% {tag} %}}"), "")
                .replace(&format!("{{%- {tag} %}}"), "")
                .replace(&format!("{{%- {tag} -%}}"), "")
        });
        environment.add_template_owned(NAME, source).map_err(|e| Error::Unsupported {
            model: model.into(),
            reason: format!("its chat template does not parse: {e}"),
        })?;
        Ok(Self { environment, model: model.into(), begin: begin.into(), end: end.into() })
    }

    /// The prompt for `messages`, ending where the assistant's answer begins.
    ///
    /// # Errors
    /// [`Error::Input`] when there are no messages or the template refuses them, in the template's own words.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        if messages.is_empty() {
            return Err(Error::Input("messages is empty: a chat needs at least one".into()));
        }
        let refused = |e: minijinja::Error| {
            let line = e.line().map(|line| format!(" (line {line})")).unwrap_or_default();
            let reason = e.detail().map_or_else(|| e.to_string(), ToString::to_string);
            Error::Input(format!(
                "the chat template of {:?} refuses these messages: {reason}{line}",
                self.model
            ))
        };
        let template = self.environment.get_template(NAME).map_err(refused)?;
        template
            .render(context! {
                messages => messages,
                add_generation_prompt => true,
                bos_token => self.begin,
                eos_token => self.end,
            })
            .map_err(refused)
    }
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=…)`: separators with a space, nothing escaped for HTML.
#[allow(clippy::needless_pass_by_value, reason = "the signature that minijinja calls")]
fn to_json(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let wrong = |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let indent = " ".repeat(indent);
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty)).map_err(wrong)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(wrong)?;
        }
    }
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

/// `{"a": 1, "b": [1, 2]}` on one line, as Python prints JSON.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `strftime` in English and UTC for the fields that templates use; `now` counts seconds since 1970.
fn strftime(format: &str, now: u64) -> Result<String, minijinja::Error> {
    let (year, month, day) = civil(now / 86_400);
    let (weekday, month_name) = (DAYS[(now / 86_400 % 7) as usize], MONTHS[month - 1]);
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        out.push_str(&match characters.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('H') => format!("{:02}", now / 3600 % 24),
            Some('M') => format!("{:02}", now / 60 % 60),
            Some('S') => format!("{:02}", now % 60),
            Some('%') => "%".to_owned(),
            other => {
                let field = other.map(String::from).unwrap_or_default();
                return Err(minijinja::Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now does not know %{field}"),
                ));
            }
        });
    }
    Ok(out)
}

/// Year, month and day (both from 1) of a day counted from 1970-01-01, in the Gregorian calendar. Years are taken to
/// begin in March, so that the leap day is their last.
fn civil(days: u64) -> (u64, usize, u64) {
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    (year, month as usize, of_year - (153 * from_march + 2) / 5 + 1)
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
