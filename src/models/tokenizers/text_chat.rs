//! A text as a conversation of one message: the form of sentence-transformers' `SentenceTransformer`, `SparseEncoder` and
//! `MultiVectorEncoder` for models with a chat template.

use std::sync::Arc;

use serde_json::Value as Json;

use super::chat_form::{ChatForm, SavedForm, has_names, special_tokens, template_sources};
use super::config::TokenizerConfig;
use super::long::Bounds;
use super::tokenizer::Tokenizer;
use crate::chat::Value;
use crate::models::json::read_json;
use crate::models::manifest::ModelFiles;
use crate::sync::Mutex;
use crate::{Error, Result};

/// The role of a text. A prompt is a message of the system before it.
const ROLE: &str = "user";
/// The variable by which a template distinguishes queries from documents.
const TASK: &str = "task";
/// The function of templates that reads the clock.
const CLOCK: &str = "strftime_now";
/// Prompts whose template's end is kept.
const ENDS: usize = 16;

/// A template that renders a text.
#[derive(Debug)]
pub struct TextChat {
    form: ChatForm,
    model: String,
    /// Whether the template reads [`TASK`].
    reads_task: bool,
    /// What the prompt begins with where transformers' processor of texts and images adds no special tokens.
    processor_begins: Option<Option<String>>,
    /// The tokens of the template's end, by what they depend on.
    ends: Mutex<Vec<(EndKey, Arc<[u32]>)>>,
}

/// What the template's end depends on: the prompt, and whether the text is a query.
type EndKey = (String, Option<bool>);

/// What one text is encoded with.
#[derive(Debug, Clone, Copy)]
pub struct ChatText<'a> {
    /// The message of the system; none if it is empty.
    pub prompt: &'a str,
    /// The message of the user.
    pub text: &'a str,
    /// Whether it is a query or, if not, a document, where the model makes a difference.
    pub query: Option<bool>,
}

impl TextChat {
    /// How a model makes conversations of texts; `None` if it reads them as they are, or `wanted` says so. `has_sides`: it
    /// makes a difference between queries and documents.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no template, it does not render a text, its prompts depend on the day, or a setting
    /// is not known here.
    pub fn load(files: &ModelFiles, wanted: Option<bool>, has_sides: bool) -> Result<Option<Self>> {
        let saved = SavedForm::read(files)?;
        let settings = TokenizerConfig::read(files)?;
        let sources = template_sources(files, &settings)?;
        // Without modules.json, sentence-transformers lets each text go through the template that there is.
        let own = if files.modules.is_empty() { sources.is_some() } else { !saved.message().is_null() };
        if !wanted.unwrap_or(own) {
            return Ok(None);
        }
        let refused = |reason: String| Err(Error::Unsupported { model: files.model.clone(), reason });
        let Some(sources) = sources else {
            return refused(
                "its texts are to go through a chat template (the \"message\" of modality_config, or chat_template=True), and \
                 it has none; copy chat_template.jinja to its folder, or register it with chat_template=False"
                    .into(),
            );
        };
        let several = has_names(files, &settings, &sources);
        let config: Json = read_json(&files.transformer.join("config.json"))?;
        let model_type = config["model_type"].as_str().unwrap_or_default();
        let tokens = special_tokens(&settings, "");
        let form = ChatForm::new(files, &saved, &sources.usual?, several, model_type, tokens)?;
        let reads_images = !config["text_config"].is_null() || !settings.value("processor_class").is_null();
        let own = Self {
            reads_task: form.misses(TASK),
            form,
            model: files.model.clone(),
            processor_begins: reads_images.then(|| settings.word("bos_token")),
            ends: Mutex::new(Vec::new()),
        };
        match own.failure(has_sides) {
            Some(reason) => refused(format!(
                "its texts go through its chat template, which {reason}; change chat_template.jinja, or register it with \
                 chat_template=False if it was trained on texts as they are"
            )),
            None => Ok(Some(own)),
        }
    }

    /// Why no vector could be made with the template, if that is so.
    fn failure(&self, has_sides: bool) -> Option<String> {
        if self.reads_task && !has_sides {
            return Some(format!(
                "reads the variable {TASK:?}, by which queries and documents differ: that is supported for vectors of tokens \
                 alone"
            ));
        }
        let render = |prompt, text, more: &[(&str, Value)]| {
            let text = ChatText { prompt, text, query: has_sides.then_some(true) };
            self.render(text, more)
        };
        // Some templates refuse a conversation without a message of the system, and some write the date into that alone.
        let (mut failed, mut shown) = (None, false);
        for prompt in ["", "bravo"] {
            let rendered =
                render(prompt, "alpha", &[]).and_then(|one| Ok((render(prompt, "charlie", &[])?, one)));
            let (other, one) = match rendered {
                Ok(rendered) => rendered,
                Err(error) => {
                    failed.get_or_insert(error);
                    continue;
                }
            };
            if one == other && !shown {
                let form = if self.form.structured { "flat" } else { "structured" };
                return Some(format!(
                    "does not show a message of the user: the prompts of all texts are the same (a \"format\" of {form:?} in \
                     the \"message\" of modality_config may help)"
                ));
            }
            let without = [(CLOCK, Value::None)];
            if render(prompt, "alpha", &without).ok().as_ref() != Some(&one) {
                return Some(
                    "writes today's date, so that a text has another vector each day: set the variable that it takes \
                     instead, often date_string, in processing_kwargs.chat_template"
                        .into(),
                );
            }
            if !shown {
                self.warn(&one, prompt.is_empty().then(|| render("bravo", "alpha", &[]).ok()).flatten());
            }
            shown = true;
        }
        failed.filter(|_| !shown).map(|error| format!("makes no prompt of a message of the user: {error}"))
    }

    /// Logs what is computed as sentence-transformers does, and hardly meant. `prompted` is `rendered` with a prompt.
    fn warn(&self, rendered: &str, prompted: Option<String>) {
        let model = &self.model;
        if self.form.structured && rendered.contains("[{'type': 'text', 'text': 'alpha'}]") {
            log::warn!(
                "{model}: the chat template writes the list of a message's parts, not its text; \"format\": \"flat\" in the \
                 \"message\" of modality_config gives it the text"
            );
        }
        if prompted.is_some_and(|prompted| prompted == rendered) {
            log::warn!(
                "{model}: the chat template leaves out messages of the system, so a prompt changes nothing"
            );
        }
    }

    fn render(&self, text: ChatText<'_>, more: &[(&str, Value)]) -> Result<String> {
        let more: Vec<_> = self.task(text).into_iter().chain(more.iter().cloned()).collect();
        self.form.render(text.prompt, &[(ROLE, text.text)], &more)
    }

    /// The variable by which the template distinguishes queries from documents, if it does.
    fn task(&self, text: ChatText<'_>) -> Option<(&'static str, Value)> {
        let query = text.query.filter(|_| self.reads_task)?;
        Some((TASK, Value::text(if query { "query" } else { "document" })))
    }

    /// The prompt of a text.
    ///
    /// # Errors
    /// [`Error::Input`] when the template refuses it; [`Error::Unsupported`] for one that is longer than templates make.
    fn prompt(&self, text: ChatText<'_>) -> Result<String> {
        self.render(text, &[]).map_err(|error| match error {
            Error::Input(reason) => Error::Input(format!(
                "{reason}; {:?} reads a text as a message of the role user, and a prompt as one of the role system before it",
                self.model
            )),
            other => other,
        })
    }

    /// The ids of a text, cut to at most `most`, and whether some were cut. A text of `longest` tokens may be one that is cut
    /// elsewhere.
    ///
    /// # Errors
    /// Those of the template and of the tokenizer.
    pub(crate) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: ChatText<'_>,
        most: usize,
        longest: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<(Vec<u32>, bool)> {
        let prompt = self.prompt(text)?;
        let end = &mut |bounds: &mut Bounds<'_>| self.end(tokenizer, text, bounds);
        let (ids, cut) = self.form.ids(tokenizer, &prompt, most, longest, bounds, end)?;
        if ids.is_empty() {
            let reason = format!(
                "the chat template of {:?} makes an empty prompt of a text; leave out empty texts",
                self.model
            );
            return Err(Error::Input(reason));
        }
        Ok((ids, cut))
    }

    /// The number of tokens of a text, nothing cut.
    ///
    /// # Errors
    /// As [`TextChat::encode`].
    pub(crate) fn count(
        &self,
        tokenizer: &Tokenizer,
        text: ChatText<'_>,
        bounds: &mut Bounds<'_>,
    ) -> Result<usize> {
        let tokens = tokenizer.count_within(&self.prompt(text)?, bounds)?;
        Ok(tokens.saturating_sub(tokenizer.special_tokens()))
    }

    /// The tokens that the template puts after a text.
    fn end(&self, tokenizer: &Tokenizer, text: ChatText<'_>, bounds: &mut Bounds<'_>) -> Result<Arc<[u32]>> {
        let key = (text.prompt.to_owned(), text.query.filter(|_| self.reads_task));
        if let Some((_, end)) = self.ends.lock().iter().find(|(known, _)| *known == key) {
            return Ok(Arc::clone(end));
        }
        let more: Vec<_> = self.task(text).into_iter().collect();
        let end = self.form.end(tokenizer, text.prompt, &[ROLE], &more, bounds)?;
        let mut ends = self.ends.lock();
        if ends.len() == ENDS {
            ends.remove(0);
        }
        ends.push((key, Arc::clone(&end)));
        Ok(end)
    }

    /// Refuses a template whose prompts get special tokens from transformers' processor of texts and images. A tokenizer adds
    /// none to a rendered prompt; a processor does, where the prompt begins without the token at which text begins.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub(crate) fn check_tokenizer(&self, tokenizer: &Tokenizer) -> Result<()> {
        let Some(begins) = &self.processor_begins else { return Ok(()) };
        let text = ChatText { prompt: "", text: "alpha", query: None };
        let begins_so =
            |begin: &String| self.render(text, &[]).is_ok_and(|prompt| prompt.starts_with(begin.as_str()));
        if tokenizer.special_tokens() == 0 || begins.as_ref().is_some_and(begins_so) {
            return Ok(());
        }
        Err(Error::Unsupported {
            model: self.model.clone(),
            reason: "its chat template does not begin with bos_token, so that its processor adds special tokens to prompts, \
                     which is not supported; let chat_template.jinja begin with {{ bos_token }}, if the model was trained so"
                .into(),
        })
    }
}
