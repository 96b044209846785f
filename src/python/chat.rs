//! Conversations as Python gives them: messages, tools and a template's own variables.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use super::argument::{argument, is_mapping, items_of_mapping};
use super::errors::{to_py, wrong_type, wrong_type_of};
use super::texts::text_of;
use super::utf8::{Utf8, shortened};
use crate::Error;
use crate::chat::limits::MAX_DEPTH;
use crate::chat::{Conversation, Problem, PromptEnd, Value, is_reserved};
use crate::manager::OwnedPrompt;

/// Values in one conversation, those in lists and dicts counted each time they appear.
const MAX_VALUES: usize = 1_000_000;
/// Roles of messages to answer. Templates know a developer as the system.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// The argument `messages`, where nothing but a conversation may be given.
pub(super) fn messages<'a, 'py>(given: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyList>> {
    let wrong = |which: String, form: &str, found: &Bound<'py, PyAny>| {
        let kind = found.get_type().name()?;
        Err(wrong_type(given.py(), "messages", format!("{which} must be {form}, not {kind}")))
    };
    let Ok(messages) = given.cast::<PyList>() else {
        return wrong("messages".into(), "a list of {\"role\": ..., \"content\": ...}", given);
    };
    for (number, message) in messages.iter().enumerate() {
        if !is_mapping(&message)? {
            return wrong(format!("messages[{number}]"), "{\"role\": ..., \"content\": ...}", &message);
        }
    }
    Ok(messages)
}

/// Messages: a list of mappings, as the template understands them.
pub(super) fn conversation(messages: &Bound<'_, PyList>) -> PyResult<Conversation> {
    if messages.is_empty() {
        return Err(refused(messages.py(), &[], " must not be empty"));
    }
    Ok(Conversation::new(Values::of("messages").convert(messages, 0)?))
}

/// Messages to answer: each has a known role, and a text or parts that are texts, as over HTTP.
pub(super) fn turns(messages: &Bound<'_, PyList>) -> PyResult<Conversation> {
    let turns = PyList::empty(messages.py());
    for (number, message) in messages.iter().enumerate() {
        let Some(items) = items_of_mapping(&message)? else {
            let reason = format!(
                "prompt must be a str, a list of token ids, or a list of messages \
                 {{\"role\": ..., \"content\": ...}}, not a list of {}",
                message.get_type().name()?
            );
            return Err(wrong_type(message.py(), "prompt", reason));
        };
        turns.append(turn(&items, number)?)?;
    }
    conversation(&turns)
}

/// The message of these pairs, as the template understands it.
fn turn<'py>(items: &Bound<'py, PyList>, number: usize) -> PyResult<Bound<'py, PyDict>> {
    let py = items.py();
    let lacks = |key: &str| {
        let form = "{\"role\": ..., \"content\": ...}";
        refused(py, &[number], &format!(" has no {key}: it must be {form}"))
    };
    let turn = PyDict::from_sequence(items)?;
    let role = turn.get_item("role")?.ok_or_else(|| lacks("role"))?;
    let known = role.cast::<PyString>().ok().and_then(|role| {
        let role = role.to_string_lossy();
        ROLES.into_iter().find(|known| *known == role)
    });
    let Some(known) = known else {
        let rest = format!("[\"role\"] must be one of {}", ROLES.join(", "));
        return Err(if role.is_instance_of::<PyString>() {
            refused(py, &[number], &format!("{rest}, not {}", shortened(&role.repr()?.to_string_lossy())))
        } else {
            wrong_type_of(py, "messages", &[number], &format!("{rest}, not {}", role.get_type().name()?))
        });
    };
    if known == "developer" {
        turn.set_item("role", "system")?;
    }
    // A message that calls tools needs no text.
    let bare = known == "assistant" && turn.len() > 1;
    let Some(content) = turn.get_item("content")? else {
        return if bare { Ok(turn) } else { Err(lacks("content")) };
    };
    if let Ok(parts) = content.cast::<PyList>() {
        let texts = parts.iter().enumerate().map(|(at, part)| text_part(&part, number, at));
        turn.set_item("content", texts.collect::<PyResult<Vec<_>>>()?.join("\n"))?;
    } else if !(content.is_instance_of::<PyString>() || content.is_none() && bare) {
        let takes = "a str, or a list of {\"type\": \"text\", \"text\": ...}";
        let kind = content.get_type().name()?;
        let rest = format!("[\"content\"] must be {takes}, not {kind}");
        return Err(wrong_type_of(py, "messages", &[number], &rest));
    } else if content.is_none() && turn.get_item("tool_calls")?.is_none() {
        turn.set_item("content", "")?;
    }
    Ok(turn)
}

fn text_part(part: &Bound<'_, PyAny>, number: usize, at: usize) -> PyResult<String> {
    let items = items_of_mapping(part)?;
    let part_of = items.map(|items| PyDict::from_sequence(&items)).transpose()?;
    let found = |key: &str| part_of.as_ref().map(|part| part.get_item(key)).transpose().map(Option::flatten);
    let is_text = found("type")?.is_some_and(|kind| kind.eq("text").unwrap_or(false));
    match found("text")?.filter(|_| is_text).as_ref().map(|text| text.cast::<PyString>()) {
        Some(Ok(text)) => Ok(text_of(text, None)?.to_owned()),
        _ => Err(refused(
            part.py(),
            &[number],
            &format!(
                "[\"content\"][{at}] must be {{\"type\": \"text\", \"text\": ...}}: other content is \
                 not supported"
            ),
        )),
    }
}

fn refused(py: Python<'_>, place: &[usize], rest: &str) -> PyErr {
    to_py(py, &Error::item("messages", place, rest))
}

/// Arguments of `apply_chat_template` in transformers that change what it returns, which is a text here. Their off-values are
/// taken: callers pass `tokenize=False`.
const OTHER_RESULTS: [&str; 7] = [
    "max_length",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "truncation",
];

/// Where a prompt ends, by the arguments of `apply_chat_template`.
pub(super) fn prompt_end(py: Python<'_>, answer: Option<bool>, continues: bool) -> PyResult<PromptEnd> {
    match (answer, continues) {
        (Some(true), true) => {
            let reason = ": add_generation_prompt begins an answer, and continue_final_message continues the last \
                          message; leave one of them out";
            Err(to_py(py, &Error::argument("continue_final_message", reason)))
        }
        (_, true) => Ok(PromptEnd::LastMessage),
        (None | Some(true), false) => Ok(PromptEnd::Answer),
        (Some(false), false) => Ok(PromptEnd::Messages),
    }
}

/// Has the answer continue the last message.
pub(super) fn continue_last(prompt: &mut OwnedPrompt, given: &Bound<'_, PyAny>) -> PyResult<()> {
    const NAME: &str = "continue_final_message";
    if !argument::<bool>(NAME, given)? {
        return Ok(());
    }
    let OwnedPrompt::Chat(conversation) = prompt else {
        let rest = ": a text and token ids are continued anyway; leave it out";
        return Err(to_py(given.py(), &Error::argument(NAME, rest)));
    };
    conversation.end = PromptEnd::LastMessage;
    Ok(())
}

/// Adds `tools`, `documents` and what else the template may name.
pub(super) fn add_variables(conversation: &mut Conversation, variables: &Bound<'_, PyDict>) -> PyResult<()> {
    for name in OTHER_RESULTS {
        if let Some(value) = variables.get_item(name)? {
            if value.is_truthy()? {
                let reason =
                    format!("={} is not supported: the result is a text; leave it out", value.repr()?);
                return Err(to_py(variables.py(), &Error::argument(name, reason)));
            }
            variables.del_item(name)?;
        }
    }
    add(conversation, "variables", variables)
}

fn add(
    conversation: &mut Conversation,
    argument: &'static str,
    variables: &Bound<'_, PyDict>,
) -> PyResult<()> {
    let mut values = Values::of(argument);
    for (name, value) in variables {
        let name: Utf8 = name.extract()?;
        conversation.variables.push((String::from(name).into(), values.convert(&value, 0)?));
    }
    Ok(())
}

/// Adds the variables of the argument `chat_template_kwargs`, without those that the call or the model sets.
pub(super) fn add_kwargs(prompt: &mut OwnedPrompt, given: &Bound<'_, PyAny>) -> PyResult<()> {
    const NAME: &str = "chat_template_kwargs";
    let py = given.py();
    let Some(items) = items_of_mapping(given)? else {
        let kind = given.get_type().name()?;
        let rest = format!(" must be a mapping of the template's variables to values, not {kind}");
        return Err(wrong_type_of(py, NAME, &[], &rest));
    };
    let variables = PyDict::from_sequence(&items)?;
    if variables.is_empty() {
        return Ok(());
    }
    let OwnedPrompt::Chat(conversation) = prompt else {
        let rest =
            ": a text and token ids do not go through the chat template; give messages, or leave it out";
        return Err(to_py(py, &Error::argument(NAME, rest)));
    };
    for name in variables.keys() {
        if !name.is_instance_of::<PyString>() {
            let rest = format!(" must have str as names, not {}", name.get_type().name()?);
            return Err(wrong_type_of(py, NAME, &[], &rest));
        }
        if is_reserved(&argument::<Utf8>(NAME, &name)?) {
            let rest = format!("[{}]: the call or the model sets this variable; leave it out", name.repr()?);
            return Err(to_py(py, &Error::argument(NAME, rest)));
        }
    }
    add(conversation, NAME, &variables)
}

struct Values {
    /// The argument that they are of.
    argument: &'static str,
    count: usize,
}

impl Values {
    fn of(argument: &'static str) -> Self {
        Self { argument, count: 0 }
    }

    fn refused(&self, py: Python<'_>, reason: &str) -> PyErr {
        to_py(py, &Error::argument(self.argument, reason))
    }

    fn convert(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<Value> {
        let py = value.py();
        let argument = self.argument;
        let wrong =
            |problem: Box<Problem>| to_py(py, &Error::argument(argument, format!(": {}", problem.message)));
        self.count += 1;
        if self.count > MAX_VALUES {
            return Err(self.refused(py, &format!(" hold more than {MAX_VALUES} values")));
        }
        if depth > MAX_DEPTH {
            return Err(self.refused(py, &format!(" nest more than {MAX_DEPTH} levels deep")));
        }
        if value.is_none() {
            Ok(Value::None)
        } else if let Ok(text) = value.cast::<PyString>() {
            Ok(Value::text(text_of(text, None)?))
        } else if let Ok(value) = value.cast::<PyBool>() {
            Ok(Value::Bool(value.is_true()))
        } else if value.is_instance_of::<PyInt>() {
            let wide = |_| self.refused(py, " hold an integer of more than 127 bits");
            let number = value.extract().map_err(wide)?;
            Ok(Value::Int(number))
        } else if let Ok(value) = value.cast::<PyFloat>() {
            Ok(Value::Float(value.value()))
        } else if let Ok(list) = value.cast::<PyList>() {
            let items = list.iter().map(|item| self.convert(&item, depth + 1)).collect::<PyResult<_>>()?;
            Value::list(items).map_err(wrong)
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            let items = tuple.iter().map(|item| self.convert(&item, depth + 1)).collect::<PyResult<_>>()?;
            Value::tuple(items).map_err(wrong)
        } else if let Some(items) = items_of_mapping(value)? {
            let mut entries = Vec::new();
            for pair in items.iter() {
                let (key, item): (Bound<'_, PyAny>, Bound<'_, PyAny>) = pair.extract()?;
                entries.push((self.convert(&key, depth + 1)?, self.convert(&item, depth + 1)?));
            }
            Value::dict(entries).map_err(wrong)
        } else if let Ok(value) = value.extract::<bool>() {
            Ok(Value::Bool(value)) // numpy.bool_
        } else if let Some(number) = scalar(value)? {
            self.convert(&number, depth)
        } else {
            let reason = format!(
                "{argument} may hold None, bool, int, float, str, lists, tuples and mappings, not {}",
                value.get_type().name()?
            );
            Err(wrong_type(py, if argument == "messages" { "prompt" } else { argument }, reason))
        }
    }
}

/// A number of numpy as Python's own: what its `item` returns.
fn scalar<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let of_numpy = value.get_type().module().is_ok_and(|module| module == "numpy");
    if !of_numpy || value.getattr_opt("ndim")?.is_none_or(|ndim| !ndim.eq(0).unwrap_or(false)) {
        return Ok(None);
    }
    let item = value.call_method0("item")?;
    let is_number = item.is_instance_of::<PyInt>() || item.is_instance_of::<PyFloat>();
    Ok(is_number.then_some(item))
}
