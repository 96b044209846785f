//! Two texts as one conversation, which a language model judges: the form of sentence-transformers' `CrossEncoder` for models
//! with a chat template.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

use super::config::TokenizerConfig;
use super::long::Bounds;
use super::tokenizer::Tokenizer;
use crate::batching::Encoded;
use crate::chat::templates::{DEFAULT, TemplateSources};
use crate::chat::{ChatTemplate, Conversation, MORE_TOKENS, Problem, PromptEnd, SPECIAL_TOKENS, Value};
use crate::models::json::read_json;
use crate::models::keys::refusal;
use crate::models::manifest::{ModelFiles, SENTENCE_CONFIGS};
use crate::{Error, Result};

/// How Qwen3-Reranker's card makes a prompt of a pair.
const QWEN3: &str = "<|im_start|>system\n\
    Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
    Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n\
    <|im_start|>user\n\
    <Instruct>: {{ messages[0].content if messages[0].role == 'system' else \
    'Given a web search query, retrieve relevant passages that answer the query' }}\n\
    <Query>: {{ messages[-2].content }}\n\
    <Document>: {{ messages[-1].content }}<|im_end|>\n\
    {{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}";

/// The most tokens of a pair there.
pub(crate) const QWEN3_LENGTH: usize = 8192;

/// Variables of a template.
type Variables = Vec<(Arc<str>, Value)>;

/// A template that renders a query and a document.
#[derive(Debug)]
pub struct PairChat {
    template: ChatTemplate,
    /// Whether the content of a message is a list of parts.
    structured: bool,
    generation_prompt: bool,
    variables: Variables,
    /// Whether it is that of Qwen3-Reranker's card, not the model's own.
    pub(crate) of_card: bool,
}

/// A query, which can be paired several times.
#[derive(Debug)]
pub(crate) struct ChatQuery<'a> {
    query: &'a str,
    instruction: &'a str,
    /// The tokens of all that the prompts of this query have in common, and perhaps a few more.
    head: Vec<u32>,
}

impl PairChat {
    /// How a model makes conversations of pairs; `None` if it does not. `judges`: it is a language model of the family
    /// `model_type`, which must.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the template does not render both texts, or a setting is not known here.
    pub fn load(files: &ModelFiles, judges: bool, model_type: &str) -> Result<Option<Self>> {
        let settings = TokenizerConfig::read(files)?;
        let source = template_sources(files, &settings)?.map(|sources| sources.usual).transpose()?;
        let (path, saved) = match SENTENCE_CONFIGS.iter().find_map(|name| files.beside_weights(name)) {
            Some(path) => (path.clone(), read_json(&path)?),
            None => (files.root.clone(), Json::Null),
        };
        let modalities = &saved["modality_config"];
        // A file that lists modalities pins them.
        let pinned = modalities.is_object() && modalities["message"].is_null();
        let source = source.filter(|_| !pinned);
        if source.is_none() && !judges {
            return Ok(None);
        }
        let message = &modalities["message"];
        if message.is_object()
            && (message["method"] != "forward" || message["method_output_name"] != "logits")
        {
            let reason = "only the logits of forward are supported";
            return Err(refusal(&files.model, &path, "modality_config", message, reason));
        }
        let (generation_prompt, variables) = arguments(files, &path, &saved)?;
        let tokens = special_tokens(&settings, "");
        let own = source.map(|source| {
            let structured = match message["format"].as_str() {
                Some("structured") => true,
                Some("flat") => false,
                _ => is_structured(&source),
            };
            let template = ChatTemplate::new(&files.model, &source, tokens.clone());
            Self { template, structured, generation_prompt, variables, of_card: false }
        });
        let reason = match own.map(|own| (own.failure(), own)) {
            Some((None, own)) => return Ok(Some(own)),
            Some((Some(reason), _)) => reason,
            None => "it has none".into(),
        };
        if judges && saved.is_null() && model_type == "qwen3" {
            let template = ChatTemplate::new(&files.model, QWEN3, Vec::new());
            let (structured, generation_prompt, variables) = (false, false, Vec::new());
            return Ok(Some(Self { template, structured, generation_prompt, variables, of_card: true }));
        }
        Err(Error::Unsupported {
            model: files.model.clone(),
            reason: format!(
                "its chat template does not make a prompt of a query and a document: {reason}; a template for pairs \
                 (chat_template.jinja) renders the messages of the roles query and document"
            ),
        })
    }

    /// Why the template cannot carry a pair, if it cannot.
    fn failure(&self) -> Option<String> {
        let render = |query, document| self.render("", query, document).map_err(|error| error.to_string());
        let found = render("alpha", "bravo").and_then(|base| {
            Ok([
                ("query", render("charlie", "bravo")? == base),
                ("document", render("alpha", "foxtrot")? == base),
            ])
        });
        match found {
            Err(reason) => Some(reason),
            Ok(roles) => {
                let lost = roles.into_iter().find(|(_, lost)| *lost)?;
                Some(format!("the {} does not reach the prompt", lost.0))
            }
        }
    }

    fn render(&self, instruction: &str, query: &str, document: &str) -> Result<String> {
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
        let mut messages = Vec::new();
        if !instruction.is_empty() {
            messages.push(message("system", instruction));
        }
        messages.extend([message("query", query), message("document", document)]);
        let messages = messages.into_iter().collect::<Result<Vec<_>, _>>().and_then(Value::list);
        self.template.render(&Conversation {
            messages: messages.map_err(|problem| Error::Input(problem.message))?,
            end: if self.generation_prompt { PromptEnd::Answer } else { PromptEnd::Messages },
            variables: self.variables.clone(),
        })
    }

    /// The part of all pairs of `query`, at most `max_length` tokens.
    ///
    /// # Errors
    /// Those of the template and of the tokenizer.
    pub(crate) fn query<'a>(
        &self,
        tokenizer: &Tokenizer,
        instruction: &'a str,
        query: &'a str,
        max_length: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<ChatQuery<'a>> {
        let [one, other] = [self.render(instruction, query, "0")?, self.render(instruction, query, "1")?];
        let same = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let same = (0..=same).rev().find(|&end| one.is_char_boundary(end)).unwrap_or(0);
        let head = tokenizer.content(&one[..same], max_length, bounds)?;
        Ok(ChatQuery { query, instruction, head })
    }

    /// The prompt of a pair, at most `max_length` tokens: its end is cut, but for what the template puts after the texts.
    ///
    /// # Errors
    /// Those of the template and of the tokenizer.
    pub(crate) fn pair(
        &self,
        tokenizer: &Tokenizer,
        query: &ChatQuery<'_>,
        document: &str,
        max_length: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<Encoded> {
        let prompt = self.render(query.instruction, query.query, document)?;
        let room = max_length.saturating_add(1);
        let mut ids = tokenizer.content(&prompt, room, bounds)?;
        let truncated = ids.len() > max_length;
        if truncated {
            ids = tokenizer.cut(&ids, max_length).to_vec();
            let end = self.end(tokenizer, query.instruction, bounds)?;
            let kept = end.len().min(ids.len());
            let at = ids.len() - kept;
            ids[at..].copy_from_slice(&end[end.len() - kept..]);
        }
        let same = ids.iter().zip(&query.head).take_while(|(a, b)| a == b).count();
        let second = same.min(ids.len().saturating_sub(1));
        Ok(Encoded { ids, second: u32::try_from(second).unwrap_or(u32::MAX), truncated })
    }

    /// The tokens that the template puts after the texts.
    fn end(&self, tokenizer: &Tokenizer, instruction: &str, bounds: &mut Bounds<'_>) -> Result<Vec<u32>> {
        // Fillers of different tokens: what both prompts end with is the template's.
        let mut of =
            |filler: &str| tokenizer.content(&self.render(instruction, filler, filler)?, usize::MAX, bounds);
        let (one, other) = (of("0")?, of("1 2 3 4")?);
        let same = one.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b).count();
        let all = same == one.len().min(other.len());
        Ok(if all { Vec::new() } else { one[one.len() - same..].to_vec() })
    }
}

/// What `processing_kwargs` gives to the template: whether the answer's beginning is rendered, and variables.
fn arguments(files: &ModelFiles, path: &std::path::Path, saved: &Json) -> Result<(bool, Variables)> {
    let (mut generation_prompt, mut variables) = (false, Vec::new());
    for (key, value) in saved["processing_kwargs"]["chat_template"].as_object().into_iter().flatten() {
        let given = match value {
            Json::Null => continue,
            Json::Bool(flag) if key == "add_generation_prompt" => {
                generation_prompt = *flag;
                continue;
            }
            // The end of the template is put back where it was cut: so it is here.
            Json::Bool(true) if key == "restore_suffix" => continue,
            Json::Bool(flag) => Value::Bool(*flag),
            Json::String(text) => Value::text(text.as_str()),
            Json::Number(number) if number.is_i64() => Value::Int(number.as_i64().unwrap_or_default().into()),
            _ => Value::Undefined("".into()),
        };
        let sizes = ["max_length", "truncation", "padding", "tokenize", "return_tensors", "restore_suffix"];
        if matches!(given, Value::Undefined(_)) || sizes.contains(&key.as_str()) {
            let reason = "only variables of the template are supported";
            return Err(refusal(&files.model, path, key, value, reason));
        }
        variables.push((key.as_str().into(), given));
    }
    Ok((generation_prompt, variables))
}

/// Whether sentence-transformers takes a template for one that wants lists of parts.
fn is_structured(source: &str) -> bool {
    ["content[0]", ".type", "'type'", "\"type\"", "message.content["].iter().any(|part| source.contains(part))
}

/// Templates that lie in a folder of their own, by the names that `transformers` and Cohere's models give them.
pub(crate) const FURTHER_TEMPLATES: [&str; 2] = ["tool_use", "rag"];

/// The chat templates of a model's own, if it has any: files, or entries of its `tokenizer_config.json`.
///
/// # Errors
/// [`Error::Io`] when a file cannot be read.
pub(crate) fn template_sources(
    files: &ModelFiles,
    settings: &TokenizerConfig,
) -> Result<Option<TemplateSources>> {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", &e));
    if let Some(path) = files.beside_weights("chat_template.jinja") {
        let mut others = Vec::new();
        for name in FURTHER_TEMPLATES {
            if let Some(path) = files.beside_weights(&format!("additional_chat_templates/{name}.jinja")) {
                others.push((name.to_owned(), read(&path)?));
            }
        }
        return Ok(Some(TemplateSources { usual: Ok(read(&path)?), others }));
    }
    let value = settings.value("chat_template");
    let Some(entries) = value.as_array().filter(|entries| !entries.is_empty()) else {
        return Ok(value.as_str().map(TemplateSources::of));
    };
    let named =
        |entry: &Json| Some((entry["name"].as_str()?.to_owned(), entry["template"].as_str()?.to_owned()));
    let mut others: Vec<_> = entries.iter().filter_map(named).collect();
    let usual = match others.iter().position(|(name, _)| name == DEFAULT) {
        Some(at) => Ok(others.remove(at).1),
        None => {
            let names: Vec<_> = others.iter().map(|(name, _)| name.as_str()).collect();
            let reason = format!("none of its chat templates is called {DEFAULT:?}; it has {names:?}");
            Err(Error::invalid_file(files.transformer.join("tokenizer_config.json"), reason))
        }
    };
    Ok(Some(TemplateSources { usual, others }))
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
