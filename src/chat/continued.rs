//! Prompts that end in the last message, which the answer continues.
//!
//! A template closes every message. So the message is rendered with a marker at its end, and the prompt is cut there, as
//! `apply_chat_template(continue_final_message=True)` of transformers does.

use std::sync::Arc;

use super::lexer::{is_space, trim_end};
use super::parts::{self, CONTENT, TEXT};
use super::problem::TemplateResult;
use super::value::{Dict, Value};

/// The space shows whether the template keeps white space at the end of a message.
const MARKER: &str = "AnswerContinuesHere ";

/// A conversation whose last message has the marker.
pub(super) struct Marked {
    pub(super) messages: Value,
    /// The text that the answer continues.
    text: Arc<str>,
}

impl Marked {
    /// The text is the content of the last message, or the last part of it that is a text. `None` if there is neither.
    pub(super) fn of(messages: &Value) -> TemplateResult<Option<Self>> {
        let (Value::List(all) | Value::Tuple(all)) = messages else { return Ok(None) };
        let Some((Value::Dict(last), before)) = all.items.split_last() else { return Ok(None) };
        let Some((content, text)) = marked_content(last)? else { return Ok(None) };
        let last = parts::with(last, CONTENT, &content)?;
        let messages = Value::list(before.iter().cloned().chain([last]).collect())?;
        Ok(Some(Self { messages, text }))
    }

    /// The prompt, from the rendered messages. `None` if they do not show the text as it is.
    pub(super) fn cut(&self, rendered: &str) -> Option<String> {
        let at = rendered.rfind(MARKER.trim_end())?;
        let (prompt, rest) = rendered.split_at(at);
        let keeps_space = rest.starts_with(MARKER);
        let shown = prompt.contains(self.text.trim_matches(is_space));
        shown.then(|| if keeps_space { prompt } else { trim_end(prompt) }.to_owned())
    }
}

/// The content of a message with the marker, and its text without.
fn marked_content(message: &Dict) -> TemplateResult<Option<(Value, Arc<str>)>> {
    let mark = |text: &Arc<str>| Value::text(format!("{text}{MARKER}"));
    match message.get_text(CONTENT) {
        Some(Value::Text(text)) => Ok(Some((mark(text), Arc::clone(text)))),
        Some(Value::List(parts) | Value::Tuple(parts)) => {
            let text_of = |part: &Value| match part {
                Value::Dict(part) => part.get_text(TEXT)?.as_text().cloned(),
                _ => None,
            };
            let mut parts = parts.items.to_vec();
            for part in parts.iter_mut().rev() {
                if let (Value::Dict(dict), Some(text)) = (&*part, text_of(part)) {
                    *part = parts::with(dict, TEXT, &mark(&text))?;
                    return Ok(Some((Value::list(parts)?, text)));
                }
            }
            Ok(None)
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ChatTemplate, Conversation, PromptEnd, Result, Value};

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn continued(source: &str, turns: &[(&str, &str)]) -> Result<String> {
        let end = PromptEnd::LastMessage;
        let conversation = Conversation { end, ..Conversation::of(turns).unwrap() };
        ChatTemplate::new("m", source, Vec::new()).render(&conversation)
    }

    #[test]
    fn the_prompt_ends_in_the_last_message() {
        let turns = [("user", "Say a number"), ("assistant", "The number is ")];
        let before = "<|im_start|>user\nSay a number<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(continued(CHATML, &turns).unwrap(), format!("{before}The number is "));
        let trimming = CHATML.replace("m.content", "m.content | trim");
        assert_eq!(continued(&trimming, &turns).unwrap(), format!("{before}The number is"));
        assert_eq!(continued(CHATML, &[turns[0], ("assistant", "")]).unwrap(), before);
        let repeated = [("user", "The number is"), ("assistant", "The number is")];
        assert!(continued(CHATML, &repeated).unwrap().ends_with("assistant\nThe number is"));
    }

    #[test]
    fn the_last_text_of_parts_is_continued() {
        let part = |kind: &str, key: &str, text: &str| {
            Value::dict([(Value::text("type"), Value::text(kind)), (Value::text(key), Value::text(text))])
                .unwrap()
        };
        let parts =
            vec![part("text", "text", "Merhaba"), part("text", "text", "dün"), part("image", "url", "x")];
        let message = Value::dict([(Value::text("content"), Value::list(parts).unwrap())]).unwrap();
        let messages = Value::list(vec![message]).unwrap();
        let conversation = Conversation { end: PromptEnd::LastMessage, ..Conversation::new(messages) };
        let source = "{% for part in messages[0].content %}[{{ part.text or part.url }}]{% endfor %}";
        let prompt = ChatTemplate::new("m", source, Vec::new()).render(&conversation).unwrap();
        assert_eq!(prompt, "[Merhaba][dün");
    }

    #[test]
    fn what_the_template_changes_is_refused() {
        for source in [
            "{{ messages[0].content }}",
            "{{ messages[-1].content | upper }}",
            "{{ messages[-1].content[:3] }}",
        ] {
            let said =
                continued(source, &[("user", "a"), ("assistant", "The number")]).unwrap_err().to_string();
            assert_eq!(
                said,
                "continue_final_message: the chat template of \"m\" does not show the last message as it is, so that \
                 no prompt ends in it; send a message of the user last"
            );
        }
        let bare =
            Value::list(vec![Value::dict([(Value::text("role"), Value::text("user"))]).unwrap()]).unwrap();
        let conversation = Conversation { end: PromptEnd::LastMessage, ..Conversation::new(bare) };
        let said = ChatTemplate::new("m", CHATML, Vec::new()).render(&conversation).unwrap_err().to_string();
        assert_eq!(said, "continue_final_message: the last message has no text to continue");
    }
}
