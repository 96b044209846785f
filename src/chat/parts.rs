//! Templates of models that read pictures as well, which know the content of a message as a list of parts alone, such as
//! `{"type": "text", "text": "Merhaba"}`. Jinja reads the keys of a text's characters as undefined: without an error,
//! the prompt would hold none of it.

use std::sync::Arc;

use super::problem::TemplateResult;
use super::value::{Dict, Value};

/// The key of a part's text: a template without this word reads no parts.
pub(super) const TEXT: &str = "text";

/// Whether a template puts texts into the prompt as parts, and not as they are; `None` where neither form reaches it, as
/// with variables that it refuses.
pub(super) fn are_wanted(render: &dyn Fn(&Value) -> TemplateResult<String>) -> Option<bool> {
    // Some templates refuse a conversation without a system message.
    [&["user"][..], &["system", "user"]].into_iter().find_map(|roles| wanted_by(roles, render))
}

fn wanted_by(roles: &[&str], render: &dyn Fn(&Value) -> TemplateResult<String>) -> Option<bool> {
    // Whether the prompt depends on the text. A template that refuses a text in one form may take it in the other.
    let reaches = |form: &dyn Fn(&Value) -> TemplateResult<Value>| -> TemplateResult<bool> {
        let prompt = |text: &str| render(&form(&conversation(roles, text)?)?);
        Ok(prompt("alpha")? != prompt("charlie")?)
    };
    if reaches(&|messages| Ok(messages.clone())).unwrap_or(false) {
        return Some(false);
    }
    reaches(&of_texts).unwrap_or(false).then_some(true)
}

/// Whether a message has a text for its content.
pub(super) fn has_texts(messages: &Value) -> bool {
    let (Value::List(messages) | Value::Tuple(messages)) = messages else { return false };
    messages.items.iter().any(|message| content(message).is_some())
}

/// These messages, with each text as a list of one part.
pub(super) fn of_texts(messages: &Value) -> TemplateResult<Value> {
    let (Value::List(items) | Value::Tuple(items)) = messages else { return Ok(messages.clone()) };
    let message = |message: &Value| match (message, content(message)) {
        (Value::Dict(dict), Some(text)) => {
            let part = Value::dict([entry("type", TEXT), entry(TEXT, text.clone())])?;
            with(dict, CONTENT, &Value::list(vec![part])?)
        }
        _ => Ok(message.clone()),
    };
    Value::list(items.items.iter().map(message).collect::<TemplateResult<_>>()?)
}

/// The key of what a message says.
pub(super) const CONTENT: &str = "content";

/// The dict with another value in the place of that of `key`.
pub(super) fn with(dict: &Dict, key: &str, value: &Value) -> TemplateResult<Value> {
    let is_it = |known: &Value| known.as_text().is_some_and(|known| &**known == key);
    let entries = dict.entries().iter();
    Value::dict(
        entries.map(|(known, old)| (known.clone(), if is_it(known) { value.clone() } else { old.clone() })),
    )
}

fn content(message: &Value) -> Option<&Arc<str>> {
    let Value::Dict(message) = message else { return None };
    message.get_text(CONTENT)?.as_text()
}

/// A message of each role, of which the user's has `text`.
fn conversation(roles: &[&str], text: &str) -> TemplateResult<Value> {
    let message = |&role: &&str| {
        let content = if role == "user" { text } else { "bravo" };
        Value::dict([entry("role", role), entry(CONTENT, content)])
    };
    Value::list(roles.iter().map(message).collect::<TemplateResult<_>>()?)
}

fn entry(key: &str, value: impl Into<Arc<str>>) -> (Value, Value) {
    (Value::text(key), Value::text(value))
}

#[cfg(test)]
mod tests {
    use super::super::{ChatTemplate, Conversation, Value};

    /// That of SmolVLM, in short.
    const OF_PARTS: &str = "{% for message in messages %}{{ message.role }}:{% for line in message.content %}\
        {% if line['type'] == 'text' %}{{ line['text'] }}{% elif line['type'] == 'image' %}<image>{% endif %}\
        {% endfor %};{% endfor %}";

    #[test]
    fn texts_reach_a_template_that_reads_parts_alone() {
        let rendered = |source: &str| {
            let conversation = Conversation::of(&[("user", "Merhaba"), ("assistant", "Selam")]).unwrap();
            ChatTemplate::new("m", source, Vec::new()).render(&conversation).unwrap()
        };
        assert_eq!(rendered(OF_PARTS), "user:Merhaba;assistant:Selam;");
        for as_they_are in [
            "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %} {% endfor %}",
            "{% for m in messages %}{{ m.content }}{# text #} {% endfor %}",
        ] {
            assert_eq!(rendered(as_they_are), "Merhaba Selam ");
        }
        // Neither form reaches this prompt.
        assert_eq!(rendered("text of {{ messages | length }}"), "text of 2");
    }

    #[test]
    fn a_call_that_fails_does_not_decide_for_the_next_one() {
        let source = format!("{{% if strict %}}{{{{ raise_exception('no') }}}}{{% endif %}}{OF_PARTS}");
        let template = ChatTemplate::new("m", &source, Vec::new());
        let mut conversation = Conversation::of(&[("user", "Merhaba")]).unwrap();
        conversation.variables = vec![("strict".into(), Value::Bool(true))];
        assert!(template.render(&conversation).is_err());
        conversation.variables.clear();
        assert_eq!(template.render(&conversation).unwrap(), "user:Merhaba;");
    }

    #[test]
    fn a_template_that_asks_for_a_system_message_is_probed_with_one() {
        let source = format!(
            "{{% if messages[0].role != 'system' %}}{{{{ raise_exception('system first') }}}}{{% endif %}}{OF_PARTS}"
        );
        let conversation = Conversation::of(&[("system", "Kısa yanıt ver"), ("user", "Merhaba")]).unwrap();
        let rendered = ChatTemplate::new("m", &source, Vec::new()).render(&conversation).unwrap();
        assert_eq!(rendered, "system:Kısa yanıt ver;user:Merhaba;");
    }

    #[test]
    fn a_template_that_refuses_texts_gets_parts() {
        let source = "{% if messages[0].content is string %}{{ raise_exception('parts, please') }}{% endif %}\
            {{ messages[0].content[0].text }}";
        let template = ChatTemplate::new("m", source, Vec::new());
        let of = |text| template.render(&Conversation::of(&[("user", text)]).unwrap()).unwrap();
        assert_eq!(of("Merhaba"), "Merhaba");
        assert_eq!(of("İyi günler"), "İyi günler");
    }
}
