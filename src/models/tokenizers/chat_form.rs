//! How a model makes prompts of messages: its chat template, and what the settings of sentence-transformers say of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use super::config::TokenizerConfig;
use super::long::Bounds;
use super::tokenizer::Tokenizer;
use crate::chat::templates::{DEFAULT, TemplateSources, WITH_TOOLS};
use crate::chat::{ChatTemplate, Conversation, MORE_TOKENS, Problem, PromptEnd, SPECIAL_TOKENS, Value};
use crate::models::json::read_json_with_nulls;
use crate::models::keys::refusal;
use crate::models::manifest::{ModelFiles, SENTENCE_CONFIGS, TEMPLATE_END, TEMPLATE_FOLDER, files_in};
use crate::{Error, Result};

/// Variables of a template.
pub(super) type Variables = Vec<(Arc<str>, Value)>;

/// What the transformer's settings of sentence-transformers say of messages.
#[derive(Debug)]
pub(super) struct SavedForm {
    pub(super) path: PathBuf,
    /// The whole file; null without one.
    pub(super) json: Json,
}

impl SavedForm {
    /// Without `modules.json`, sentence-transformers reads no such file.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn read(files: &ModelFiles) -> Result<Self> {
        let path = SENTENCE_CONFIGS.iter().find_map(|name| files.beside_weights(name));
        match path.filter(|_| !files.modules.is_empty()) {
            Some(path) => Ok(Self { json: read_json_with_nulls(&path)?, path }),
            None => Ok(Self { json: Json::Null, path: files.root.clone() }),
        }
    }

    /// Whether the file lists what the model reads, and messages are not among it.
    pub(super) fn is_pinned(&self) -> bool {
        self.json["modality_config"].is_object() && self.message().is_null()
    }

    /// How messages are computed; null where the file says nothing of them.
    pub(super) fn message(&self) -> &Json {
        &self.json["modality_config"]["message"]
    }
}

/// A template, and how messages are given to it.
#[derive(Debug)]
pub(super) struct ChatForm {
    template: ChatTemplate,
    /// Whether the content of a message is a list of parts.
    pub(super) structured: bool,
    generation_prompt: bool,
    /// Whether the template's end is put back where it was cut.
    restores_end: bool,
    variables: Variables,
}

impl ChatForm {
    /// That of the files: `source` is the template, `several` whether it is one of several, `model_type` that of `config.json`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming a setting that is not known here.
    pub(super) fn new(
        files: &ModelFiles,
        saved: &SavedForm,
        source: &str,
        several: bool,
        model_type: &str,
        tokens: Variables,
    ) -> Result<Self> {
        let format = &saved.message()["format"];
        let structured = match format.as_str() {
            Some("structured") => true,
            Some("flat") => false,
            Some("auto") => is_structured(source, several, model_type),
            None if format.is_null() => is_structured(source, several, model_type),
            _ => {
                let reason = "its \"format\" is none of \"structured\", \"flat\" and \"auto\"";
                return Err(refusal(&files.model, &saved.path, "message", saved.message(), reason));
            }
        };
        let TemplateArguments { generation_prompt, restores_end, variables } =
            TemplateArguments::read(files, saved)?;
        let template = ChatTemplate::new(&files.model, source, tokens);
        Ok(Self { template, structured, generation_prompt, restores_end, variables })
    }

    /// A template of texts without variables.
    pub(super) fn plain(model: &str, source: &str) -> Self {
        Self {
            template: ChatTemplate::new(model, source, Vec::new()),
            structured: false,
            generation_prompt: false,
            restores_end: true,
            variables: Vec::new(),
        }
    }

    /// Whether the template reads a variable that no setting gives.
    pub(super) fn misses(&self, variable: &str) -> bool {
        let given = self.variables.iter().any(|(name, _)| &**name == variable);
        !given && self.template.reads().iter().any(|name| &**name == variable)
    }

    /// The prompt of messages of a role and a text each, after one of the system if `instruction` is not empty. `more` are
    /// variables in addition to those of the settings, which come first.
    ///
    /// # Errors
    /// Those of the template.
    pub(super) fn render(
        &self,
        instruction: &str,
        messages: &[(&str, &str)],
        more: &[(&str, Value)],
    ) -> Result<String> {
        let message = |role: &str, text: &str| -> Result<Value, Box<Problem>> {
            let text = Value::text(text);
            let content = match self.structured {
                false => text,
                true => Value::list(vec![Value::dict([
                    (Value::text("type"), Value::text("text")),
                    (Value::text("text"), text),
                ])?])?,
            };
            Value::dict([(Value::text("role"), Value::text(role)), (Value::text("content"), content)])
        };
        let system = (!instruction.is_empty()).then_some(("system", instruction));
        let all = system.iter().chain(messages).map(|(role, text)| message(role, text));
        let all = all.collect::<Result<Vec<_>, _>>().and_then(Value::list);
        let more = more.iter().map(|(name, value)| (Arc::from(*name), value.clone()));
        self.template.render_as_given(&Conversation {
            messages: all.map_err(|problem| Error::Input(problem.message))?,
            end: if self.generation_prompt { PromptEnd::Answer } else { PromptEnd::Messages },
            variables: more.chain(self.variables.iter().cloned()).collect(),
        })
    }

    /// The ids of a rendered prompt, at most `most`, and whether some were cut. Of a prompt of `longest` tokens, which may be
    /// one that was cut, the last ones become those that `end` gives: those that the template puts after the texts.
    ///
    /// # Errors
    /// Those of the tokenizer and of `end`.
    pub(super) fn ids(
        &self,
        tokenizer: &Tokenizer,
        prompt: &str,
        most: usize,
        longest: usize,
        bounds: &mut Bounds<'_>,
        end: &mut dyn FnMut(&mut Bounds<'_>) -> Result<Arc<[u32]>>,
    ) -> Result<(Vec<u32>, bool)> {
        let mut ids = tokenizer.content(prompt, most.saturating_add(1), bounds)?;
        let truncated = ids.len() > most;
        if truncated {
            ids = tokenizer.cut(&ids, most).to_vec();
        }
        if ids.len() == longest && self.restores_end {
            let end = end(bounds)?;
            let kept = end.len().min(ids.len());
            let at = ids.len() - kept;
            ids[at..].copy_from_slice(&end[end.len() - kept..]);
        }
        Ok((ids, truncated))
    }

    /// The tokens that the template puts after texts of these roles; none where it refuses them.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub(super) fn end(
        &self,
        tokenizer: &Tokenizer,
        instruction: &str,
        roles: &[&str],
        more: &[(&str, Value)],
        bounds: &mut Bounds<'_>,
    ) -> Result<Arc<[u32]>> {
        // Fillers of different tokens: what both prompts end with is the template's.
        let mut of = |filler: &str| -> Result<Option<Vec<u32>>> {
            let messages: Vec<_> = roles.iter().map(|role| (*role, filler)).collect();
            let Ok(prompt) = self.render(instruction, &messages, more) else { return Ok(None) };
            tokenizer.content(&prompt, usize::MAX, bounds).map(Some)
        };
        let (Some(one), Some(other)) = (of("0")?, of("1 2 3 4")?) else { return Ok(Arc::default()) };
        let same = one.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b).count();
        let all = same == one.len().min(other.len());
        Ok(if all { Arc::default() } else { one[one.len() - same..].into() })
    }
}

/// What `processing_kwargs` gives to the template.
struct TemplateArguments {
    generation_prompt: bool,
    restores_end: bool,
    variables: Variables,
}

/// Arguments of transformers' `apply_chat_template` that are no variables of the template. Those of the second list change
/// nothing when they are not set.
const CALL_ARGUMENTS: [&str; 9] = [
    "conversation",
    "messages",
    "padding",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "common_kwargs",
    "truncation",
];
const UNSET_ARGUMENTS: [&str; 6] = [
    "chat_template",
    "continue_final_message",
    "max_length",
    "return_assistant_tokens_mask",
    "sanitize_control_tokens",
    "tools",
];

impl TemplateArguments {
    fn read(files: &ModelFiles, saved: &SavedForm) -> Result<Self> {
        let mut all = Self { generation_prompt: false, restores_end: true, variables: Vec::new() };
        let given = saved.json["processing_kwargs"]["chat_template"].as_object();
        for (key, value) in given.into_iter().flatten() {
            let refused = |reason: &str| Err(refusal(&files.model, &saved.path, key, value, reason));
            let unset = value.is_null() || *value == false;
            match (&**key, value) {
                (key, _) if unset && UNSET_ARGUMENTS.contains(&key) => {}
                (key, _) if UNSET_ARGUMENTS.contains(&key) || CALL_ARGUMENTS.contains(&key) => {
                    return refused("only variables of the template are supported");
                }
                ("add_generation_prompt", Json::Null) => {}
                ("add_generation_prompt", Json::Bool(flag)) => all.generation_prompt = *flag,
                ("restore_suffix", Json::Bool(flag)) => all.restores_end = *flag,
                ("add_generation_prompt" | "restore_suffix", _) => {
                    return refused("true or false is expected");
                }
                _ => match variable(value) {
                    Some(variable) => all.variables.push((key.as_str().into(), variable)),
                    None => {
                        return refused("the order of its entries, which is not kept, may change the prompt");
                    }
                },
            }
        }
        Ok(all)
    }
}

/// A JSON value as a template's; `None` for an object of several entries, whose order is not kept here.
fn variable(json: &Json) -> Option<Value> {
    Some(match json {
        Json::Null => Value::None,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::String(text) => Value::text(text.as_str()),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Value::Int(whole.into()),
            (None, Some(whole)) => Value::Int(whole.into()),
            (None, None) => Value::Float(number.as_f64()?),
        },
        Json::Array(items) => Value::list(items.iter().map(variable).collect::<Option<_>>()?).ok()?,
        Json::Object(entries) if entries.len() > 1 => return None,
        Json::Object(entries) => {
            let entry = |(key, value): (&String, &Json)| Some((Value::text(key.as_str()), variable(value)?));
            Value::dict(entries.iter().map(entry).collect::<Option<Vec<_>>>()?).ok()?
        }
    })
}

/// Families whose templates sentence-transformers knows to want texts.
const FLAT: [&str; 4] = ["apertus", "deepseek_v3", "gpt_oss", "seed_oss"];

/// Whether sentence-transformers takes a template for one that wants lists of parts.
fn is_structured(source: &str, several: bool, model_type: &str) -> bool {
    const PARTS: [&str; 5] = ["content[0]", ".type", "'type'", "\"type\"", "message.content["];
    !FLAT.contains(&model_type)
        && (several || source.is_empty() || PARTS.iter().any(|part| source.contains(part)))
}

/// Whether transformers keeps a model's templates by their names, though it may be a single one.
pub(super) fn has_names(files: &ModelFiles, settings: &TokenizerConfig, sources: &TemplateSources) -> bool {
    let listed = template_files(files).is_empty() && settings.value("chat_template").is_array();
    listed || !sources.others.is_empty() || sources.usual.is_err()
}

/// The files of templates with their names, in order. The name of a file in the folder of templates is that of its template;
/// one called `default` comes before `chat_template.jinja`, as in transformers.
fn template_files(files: &ModelFiles) -> Vec<(String, PathBuf)> {
    let folder = files.transformer.join(TEMPLATE_FOLDER);
    let names = if files.is_gguf() { Vec::new() } else { files_in(&folder) };
    let named = |file: String| Some((file.strip_suffix(TEMPLATE_END)?.to_owned(), folder.join(&file)));
    let mut found: Vec<_> = names.into_iter().filter_map(named).collect();
    // The one that conversations with tools take comes first.
    found.sort_by_key(|(name, _)| name != WITH_TOOLS);
    if let Some(path) = files.beside_weights("chat_template.jinja")
        && found.iter().all(|(name, _)| name != DEFAULT)
    {
        found.push((DEFAULT.to_owned(), path));
    }
    found
}

/// The chat templates of a model's own, if it has any: files, or entries of its `tokenizer_config.json`, which count without
/// files alone.
///
/// # Errors
/// [`Error::Io`] when a file cannot be read.
pub(crate) fn template_sources(
    files: &ModelFiles,
    settings: &TokenizerConfig,
) -> Result<Option<TemplateSources>> {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", &e));
    let found = template_files(files);
    if !found.is_empty() {
        let all = found.iter().map(|(name, path)| Ok((name.clone(), read(path)?))).collect::<Result<_>>()?;
        return Ok(Some(named_sources(all, &files.transformer.join(TEMPLATE_FOLDER))));
    }
    let value = settings.value("chat_template");
    let Some(entries) = value.as_array().filter(|entries| !entries.is_empty()) else {
        return Ok(value.as_str().map(TemplateSources::of));
    };
    let named =
        |entry: &Json| Some((entry["name"].as_str()?.to_owned(), entry["template"].as_str()?.to_owned()));
    let all = entries.iter().filter_map(named).collect();
    Ok(Some(named_sources(all, &files.transformer.join("tokenizer_config.json"))))
}

/// Templates by their names, of the file or folder `path`.
fn named_sources(mut others: Vec<(String, String)>, path: &Path) -> TemplateSources {
    let usual = match others.iter().position(|(name, _)| name == DEFAULT) {
        Some(at) => Ok(others.remove(at).1),
        None => {
            let names: Vec<_> = others.iter().map(|(name, _)| name.as_str()).collect();
            let reason = format!("none of its chat templates is called {DEFAULT:?}; it has {names:?}");
            Err(Error::invalid_file(path, reason))
        }
    };
    TemplateSources { usual, others }
}

/// The special tokens that `tokenizer_config.json` names, and the end of text.
pub(crate) fn special_tokens(settings: &TokenizerConfig, end: &str) -> Vec<(Arc<str>, Value)> {
    let text = |name: &str| match settings.word(name) {
        None if name == "eos_token" && !end.is_empty() => Some(end.to_owned()),
        found => found,
    };
    let mut tokens: Vec<(Arc<str>, Value)> =
        SPECIAL_TOKENS.into_iter().filter_map(|name| Some((name.into(), Value::text(text(name)?)))).collect();
    let more: Vec<_> = settings.additional().into_iter().map(|token| Value::text(token.content)).collect();
    if !more.is_empty() {
        tokens.extend(Value::list(more).ok().map(|list| (MORE_TOKENS.into(), list)));
    }
    tokens
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_words_of_a_template_tell_lists_of_parts_from_texts() {
        for (source, several, model_type, structured) in [
            ("{{ message.content }}", false, "llama", false),
            ("{{ messages[0]['role'] }}{{ content | trim }}", false, "llama", false),
            ("{{ messages[0].content[0].text }}", false, "llama", true),
            ("{% if part['type'] == 'text' %}", false, "gemma3", true),
            ("{% if part.type == 'text' %}", false, "qwen2", true),
            ("{% set t = part[\"type\"] %}", false, "qwen2", true),
            ("{{ message.content[1] }}", false, "qwen2", true),
            ("", false, "qwen2", true),
            // sentence-transformers looks at no text where there are several.
            ("{{ message.content }}", true, "llama", true),
            ("{% if part.type == 'text' %}", true, "gpt_oss", false),
            ("{% if part.type == 'text' %}", false, "seed_oss", false),
        ] {
            assert_eq!(
                is_structured(source, several, model_type),
                structured,
                "{source} {several} {model_type}"
            );
        }
    }

    #[test]
    fn variables_are_those_of_python() {
        let rendered = |json: &Json| {
            let template = ChatTemplate::new("m", "{{ given }}", Vec::new());
            let conversation = Conversation {
                messages: Value::list(vec![]).unwrap(),
                end: PromptEnd::Messages,
                variables: vec![("given".into(), variable(json)?)],
            };
            Some(template.render_as_given(&conversation).unwrap())
        };
        for (given, expected) in [
            (json!(null), "None"),
            (json!(true), "True"),
            (json!("a"), "a"),
            (json!(3), "3"),
            (json!(-3), "-3"),
            (json!(u64::MAX), "18446744073709551615"),
            (json!(1.0), "1.0"),
            (json!([1, "a", null, [false]]), "[1, 'a', None, [False]]"),
            (json!({"a": [1.5]}), "{'a': [1.5]}"),
            (json!({}), "{}"),
        ] {
            assert_eq!(rendered(&given).as_deref(), Some(expected), "{given}");
        }
        for unordered in [json!({"a": 1, "b": 2}), json!([{"a": {"c": 1, "b": 2}}])] {
            assert_eq!(rendered(&unordered), None, "{unordered}");
        }
    }
}
