//! Conversations as Python gives them: messages, tools and a template's own variables.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple};

use super::errors::{to_py, wrong_type};
use super::texts::text_of;
use super::utf8::Utf8;
use crate::Error;
use crate::generation::Conversation;
use crate::generation::chat::limits::MAX_DEPTH;
use crate::generation::chat::{Problem, Value};

/// Values in one conversation, those in lists and dicts counted each time they appear.
const MAX_VALUES: usize = 1_000_000;

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
        if !is_mapping(&message) {
            return wrong(format!("messages[{number}]"), "{\"role\": ..., \"content\": ...}", &message);
        }
    }
    Ok(messages)
}

/// Messages: a list of mappings, as the template understands them.
pub(super) fn conversation(messages: &Bound<'_, PyList>) -> PyResult<Conversation> {
    if messages.is_empty() {
        let error = Error::argument("messages", "messages must not be empty");
        return Err(to_py(messages.py(), &error));
    }
    for message in messages {
        if !is_mapping(&message) {
            let reason = format!(
                "prompt must be a str, a list of token ids, or a list of messages \
                 {{\"role\": ..., \"content\": ...}}, not a list of {}",
                message.get_type().name()?
            );
            return Err(wrong_type(message.py(), "prompt", reason));
        }
    }
    Ok(Conversation::new(Values::default().convert(messages, 0)?))
}

/// Adds `tools`, `documents` and what else the template may name.
pub(super) fn add_variables(conversation: &mut Conversation, variables: &Bound<'_, PyDict>) -> PyResult<()> {
    let mut values = Values::default();
    for (name, value) in variables {
        let name: Utf8 = name.extract()?;
        conversation.variables.push((String::from(name).into(), values.convert(&value, 0)?));
    }
    Ok(())
}

fn is_mapping(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyDict>() || value.cast::<PyMapping>().is_ok()
}

#[derive(Default)]
struct Values {
    count: usize,
}

impl Values {
    fn convert(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<Value> {
        let py = value.py();
        let wrong =
            |problem: Box<Problem>| to_py(py, &Error::Input(format!("messages: {}", problem.message)));
        self.count += 1;
        if self.count > MAX_VALUES {
            return Err(to_py(py, &Error::Input(format!("messages hold more than {MAX_VALUES} values"))));
        }
        if depth > MAX_DEPTH {
            return Err(to_py(py, &Error::Input(format!("messages nest more than {MAX_DEPTH} levels deep"))));
        }
        if value.is_none() {
            Ok(Value::None)
        } else if let Ok(text) = value.cast::<PyString>() {
            Ok(Value::text(text_of(text, None)?))
        } else if let Ok(value) = value.cast::<PyBool>() {
            Ok(Value::Bool(value.is_true()))
        } else if value.is_instance_of::<PyInt>() {
            let number = value.extract().map_err(|_| {
                to_py(py, &Error::Input("messages hold an integer of more than 127 bits".into()))
            })?;
            Ok(Value::Int(number))
        } else if let Ok(value) = value.cast::<PyFloat>() {
            Ok(Value::Float(value.value()))
        } else if let Ok(list) = value.cast::<PyList>() {
            let items = list.iter().map(|item| self.convert(&item, depth + 1)).collect::<PyResult<_>>()?;
            Value::list(items).map_err(wrong)
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            let items = tuple.iter().map(|item| self.convert(&item, depth + 1)).collect::<PyResult<_>>()?;
            Value::tuple(items).map_err(wrong)
        } else if let Ok(mapping) = value.cast::<PyMapping>() {
            let mut entries = Vec::new();
            for pair in mapping.items()?.iter() {
                let (key, item): (Bound<'_, PyAny>, Bound<'_, PyAny>) = pair.extract()?;
                entries.push((self.convert(&key, depth + 1)?, self.convert(&item, depth + 1)?));
            }
            Value::dict(entries).map_err(wrong)
        } else {
            let reason = format!(
                "messages may hold None, bool, int, float, str, lists, tuples and mappings, not {}",
                value.get_type().name()?
            );
            Err(wrong_type(py, "prompt", reason))
        }
    }
}
