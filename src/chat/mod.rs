//! Chat templates: messages to the one text that the model was trained to continue.
//!
//! Templates are Jinja as transformers runs it, with the values and operators of Python. The interpreter is this crate's
//! own, because a prompt must be the one that the model was trained with, to the letter, or an error. Template engines for
//! Rust have values of their own (lists print as JSON, `~` writes `true`, keys hide methods), which hooks cannot change
//! everywhere, and do not bound memory, nesting or the depth of the stack.
//!
//! ```text
//! source ─ lexer ─ parser, expressions ─ names ─ Body ─┐
//! messages, tools, variables ──────────────────────────┴ render, evaluate ─ prompt
//! ```

mod ast;
mod builtins;
mod call;
mod clock;
mod continued;
mod escapes;
mod evaluate;
mod expressions;
mod filters;
mod format_method;
mod functions;
mod lexer;
pub mod limits;
mod methods;
mod names;
mod numbers;
mod operators;
mod parser;
mod parts;
mod percent;
mod pieces;
mod problem;
mod reads;
mod render;
mod sorting;
mod strings;
pub mod templates;
mod tests_of;
mod text;
mod text_filters;
mod value;

use std::sync::{Arc, OnceLock};

use ast::Body;
use continued::Marked;
pub use problem::Problem;
use problem::{ProblemKind, TemplateResult};
use value::Dict;
pub use value::Value;

use crate::{Error, Result};

/// The format of DialoGPT, for GPT-2 models without a template: each message is followed by end-of-text.
pub const TURNS_TEMPLATE: &str =
    "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}";

/// Special tokens that a model may name, and its templates write.
pub(crate) const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Variables of every template that the call and the model set.
const CALL: [&str; 2] = ["messages", "add_generation_prompt"];
/// The list of further ones.
pub(crate) const MORE_TOKENS: &str = "additional_special_tokens";

/// Whether the call or the model sets this variable of a template, so that `chat_template_kwargs` may not.
pub fn is_reserved(variable: &str) -> bool {
    CALL.contains(&variable) || SPECIAL_TOKENS.contains(&variable) || variable == MORE_TOKENS
}

/// Where the prompt of a conversation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptEnd {
    /// Behind the last message.
    Messages,
    /// Where the assistant's answer begins: `add_generation_prompt` of transformers.
    Answer,
    /// In the last message, which the answer continues: `continue_final_message` of transformers.
    LastMessage,
}

/// A conversation and what else the template is rendered with.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// A list of dicts, as the caller passed them.
    pub messages: Value,
    /// Where the prompt ends.
    pub end: PromptEnd,
    /// `tools`, `documents` and the template's own variables.
    pub variables: Vec<(Arc<str>, Value)>,
}

impl Conversation {
    /// A conversation whose next turn is the assistant's.
    pub fn new(messages: Value) -> Self {
        Self { messages, end: PromptEnd::Answer, variables: Vec::new() }
    }

    /// Turns of a role and a text.
    ///
    /// # Errors
    /// None in practice: the value is not deep.
    pub fn of(turns: &[(&str, &str)]) -> Result<Self> {
        let turn = |(role, content): &(&str, &str)| {
            Value::dict([
                (Value::text("role"), Value::text(*role)),
                (Value::text("content"), Value::text(*content)),
            ])
        };
        let messages = turns.iter().map(turn).collect::<Result<Vec<_>, _>>().and_then(Value::list);
        Ok(Self::new(messages.map_err(|problem| Error::Input(problem.message))?))
    }
}

/// Characters of a variable's name in an error.
const SHOWN: usize = 100;

/// A model's template and the special tokens that it may write.
#[derive(Debug)]
pub struct ChatTemplate {
    /// Why there is none, if it does not compile: only a chat needs it.
    body: Result<Body>,
    /// The variables that it reads and callers may set, in the order of the alphabet.
    reads: Vec<Arc<str>>,
    thinks: bool,
    /// Whether it may read a message as a list of parts alone, and whether it does, once a conversation asked.
    may_want_parts: bool,
    wants_parts: OnceLock<bool>,
    model: String,
    tokens: Vec<(Arc<str>, Value)>,
}

impl ChatTemplate {
    /// Compiles `source` for `model`. `tokens` are its special tokens by name, such as `bos_token`.
    ///
    /// A source that does not compile is an error of every [`render`](Self::render).
    pub fn new(model: &str, source: &str, tokens: Vec<(Arc<str>, Value)>) -> Self {
        let compiled = on_own_stack(|| {
            parser::parse(source).map(|body| {
                let reads = reads::variables(&body).into_iter().filter(|name| !is_reserved(name));
                (reads.collect::<Vec<_>>(), body)
            })
        });
        let compiled = compiled.and_then(|parsed| {
            parsed.map_err(|problem| Error::Unsupported {
                model: model.into(),
                reason: match problem.kind {
                    ProblemKind::Limit => format!("its chat template is refused: {}", located(&problem)),
                    ProblemKind::Unsupported => format!("its chat template uses {}", located(&problem)),
                    _ => format!("its chat template does not parse: {}", located(&problem)),
                },
            })
        });
        let (reads, body) = match compiled {
            Ok((reads, body)) => (reads, Ok(body)),
            Err(error) => (Vec::new(), Err(error)),
        };
        let thinks = ["<think>", "</think>"].iter().any(|marker| source.contains(marker))
            || reads.iter().any(|name| &**name == "enable_thinking");
        let (may_want_parts, wants_parts) = (source.contains(parts::TEXT), OnceLock::new());
        Self { body, reads, thinks, may_want_parts, wants_parts, model: model.into(), tokens }
    }

    /// One that refuses every conversation with `error`.
    pub fn refused(model: &str, error: Error) -> Self {
        Self { body: Err(error), ..Self::new(model, "", Vec::new()) }
    }

    /// The variables that it reads and callers may set, in the order of the alphabet.
    pub fn reads(&self) -> &[Arc<str>] {
        &self.reads
    }

    /// Whether it is one of a model that writes its thoughts, between `<think>` and `</think>`, in front of an answer.
    pub fn thinks(&self) -> bool {
        self.thinks
    }

    /// Refuses variables that the template does not read: they would change nothing.
    ///
    /// # Errors
    /// [`Error::Argument`] for `chat_template_kwargs`; that of a template that does not compile.
    pub fn check_variables(&self, variables: &[(Arc<str>, Value)]) -> Result<()> {
        let Some((name, _)) = variables.iter().find(|(name, _)| !self.reads.contains(name)) else {
            return Ok(());
        };
        self.body.as_ref().map_err(Clone::clone)?;
        let reads = match &self.reads[..] {
            [] => "it reads no variable that a caller may set".to_owned(),
            names => format!("it reads {}", names.join(", ")),
        };
        let name: String = name.chars().take(SHOWN).collect();
        let rest = format!(
            " has {name:?}, which the chat template of {:?} does not read: leave it out; {reads}",
            self.model
        );
        Err(Error::argument("chat_template_kwargs", rest))
    }

    /// The prompt for a conversation.
    ///
    /// A template that reads messages as lists of parts alone, and would lose plain texts in silence, gets each text as
    /// a list of one part.
    ///
    /// # Errors
    /// [`Error::Input`] when there are no messages, or the template refuses them or fails, in its own words, or does not
    /// show the message to continue;
    /// [`Error::Unsupported`] when it does not compile, uses what this crate does not have or reaches one of the
    /// [`limits`].
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        if !conversation.messages.truth() {
            return Err(Error::Input("messages is empty: a chat needs at least one".into()));
        }
        if conversation.end != PromptEnd::LastMessage {
            return self.render_messages(&conversation.messages, conversation, true);
        }
        let refused = |reason: &str| Error::Input(format!("continue_final_message: {reason}"));
        let marked = Marked::of(&conversation.messages).map_err(|problem| refused(&problem.message))?;
        let marked = marked.ok_or_else(|| refused("the last message has no text to continue"))?;
        marked.cut(&self.render_messages(&marked.messages, conversation, true)?).ok_or_else(|| {
            refused(&format!(
                "the chat template of {:?} does not show the last message as it is, so that no prompt ends in it; send a \
                 message of the user last",
                self.model
            ))
        })
    }

    /// The prompt for a conversation whose messages have the form that the caller chose: texts stay texts. No message is
    /// continued.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_as_given(&self, conversation: &Conversation) -> Result<String> {
        let rendered = self.try_render(&conversation.messages, conversation, false)?;
        rendered.map_err(|problem| match problem.kind {
            // The template renders shorter texts: that was tried when the model was loaded.
            ProblemKind::Limit => Error::Input(format!(
                "the chat template of {:?} is stopped: {}; shorten the text, or split it",
                self.model,
                located(&problem)
            )),
            _ => self.problem(&problem),
        })
    }

    /// The template's text for these messages and the other variables of a conversation. `adapts`: texts become lists of parts
    /// where the template reads these alone.
    fn render_messages(&self, messages: &Value, conversation: &Conversation, adapts: bool) -> Result<String> {
        self.try_render(messages, conversation, adapts)?.map_err(|problem| self.problem(&problem))
    }

    /// The same, with what stops the template.
    fn try_render(
        &self,
        messages: &Value,
        conversation: &Conversation,
        adapts: bool,
    ) -> Result<TemplateResult<String>> {
        let body = self.body.as_ref().map_err(Clone::clone)?;
        on_own_stack(|| self.render_within(body, messages, conversation, adapts))
    }

    fn render_within(
        &self,
        body: &Body,
        messages: &Value,
        conversation: &Conversation,
        adapts: bool,
    ) -> TemplateResult<String> {
        let render = |messages: &Value| {
            let variables = self.variables(messages, conversation)?;
            render::render(body, &variables)
        };
        let in_parts = || match self.wants_parts.get() {
            Some(wanted) => *wanted,
            None => {
                let found = parts::are_wanted(&render);
                found.is_some_and(|wanted| *self.wants_parts.get_or_init(|| wanted))
            }
        };
        if adapts && self.may_want_parts && parts::has_texts(messages) && in_parts() {
            return render(&parts::of_texts(messages)?);
        }
        render(messages)
    }

    fn variables(&self, messages: &Value, conversation: &Conversation) -> TemplateResult<Dict> {
        let mut dict = Dict::default();
        let mut budget = limits::RenderBudget::new();
        let mut set = |name: &Arc<str>, value: &Value| {
            dict.insert(Value::Text(name.clone()), value.clone(), &mut budget)
        };
        for (name, value) in &self.tokens {
            set(name, value)?;
        }
        set(&"tools".into(), &Value::None)?;
        set(&"documents".into(), &Value::None)?;
        for (name, value) in &conversation.variables {
            set(name, value)?;
        }
        set(&"messages".into(), messages)?;
        set(&"add_generation_prompt".into(), &Value::Bool(conversation.end == PromptEnd::Answer))?;
        Ok(dict)
    }

    fn problem(&self, problem: &Problem) -> Error {
        let reason = located(problem);
        match problem.kind {
            ProblemKind::Limit => Error::Unsupported {
                model: self.model.clone(),
                reason: format!("its chat template is stopped: {reason}"),
            },
            ProblemKind::Unsupported => Error::Unsupported {
                model: self.model.clone(),
                reason: format!("its chat template uses {reason}, which is not supported"),
            },
            _ => Error::Input(format!(
                "the chat template of {:?} refuses these messages: {reason}",
                self.model
            )),
        }
    }
}

fn located(problem: &Problem) -> String {
    match problem.line {
        Some(line) => format!("{} (line {line})", problem.message),
        None => problem.message.clone(),
    }
}

/// Runs `work` on a stack whose size is known: the caller's may be small, and templates nest.
fn on_own_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    let failed = |reason: String| Error::Internal { place: "chat template".into(), reason };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("mm-chat-template".into())
            .stack_size(limits::STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|e| failed(format!("no thread to render on: {e}")))?;
        thread.join().map_err(|_| failed("rendering panicked".into()))
    })
}

#[cfg(test)]
mod tests;
