//! A loaded language model at work: prompts and conversations in, text out.

use std::sync::Arc;

use super::engine::{
    Completion, Deadline, Engine, EngineSettings, EngineState, EngineTicket, GenerationTotals, OnEvent,
    PrefixScope, Request, Stream,
};
use super::load::{Network, TextModel};
use super::params::GenerationParams;
use crate::chat::{ChatTemplate, Conversation, PromptEnd};
use crate::models::Bounds;
use crate::{Error, Result};

/// Characters of a caller's text in an error.
const SHOWN: usize = 100;

/// Whether a text reads as the name of a template or of its file.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "_-./".contains(c))
}

/// What to continue.
#[derive(Debug, Clone, Copy)]
pub enum Prompt<'a> {
    /// A text; the answer continues it.
    Text(&'a str),
    /// Token ids of the model's own vocabulary, read as they are; the answer continues them.
    Tokens(&'a [u32]),
    /// A conversation; the answer is the assistant's next turn.
    Chat(&'a Conversation),
}

/// The settings of a request, in addition to its text.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestTerms {
    /// Whose requests may reuse its computation; see [`Request::scope`].
    pub scope: Option<PrefixScope>,
    /// When its caller stops waiting.
    pub deadline: Option<Deadline>,
}

/// A running text generator.
#[derive(Debug)]
pub struct Generator {
    model: TextModel,
    engine: Engine,
    /// Bytes of a prompt at most.
    max_bytes: usize,
}

impl Generator {
    /// Starts the engine of `model`; `change` may adjust its settings.
    ///
    /// # Errors
    /// Those of [`Engine::start`].
    pub fn start(model: TextModel, change: impl FnOnce(&mut EngineSettings)) -> Result<Self> {
        let mut settings = EngineSettings::new(model.name.clone(), model.eos_ids.clone());
        settings.suppressed_ids.clone_from(&model.suppressed_ids);
        change(&mut settings);
        let tokens = Arc::clone(&model.tokens);
        let engine = match &model.network {
            Network::Cpu(decoder) => Engine::start(Arc::clone(decoder), tokens, settings)?,
            Network::Candle(decoder) => Engine::start(Arc::clone(decoder), tokens, settings)?,
            #[cfg(feature = "cuda")]
            Network::Cuda(decoder) => Engine::start(Arc::clone(decoder), tokens, settings)?,
        };
        Ok(Self { model, engine, max_bytes: usize::MAX })
    }

    /// Refuses prompts of more than `max_bytes` bytes.
    pub fn limit_prompts(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
    }

    /// The model.
    pub fn model(&self) -> &TextModel {
        &self.model
    }

    /// The end-of-text token.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.model.eos_id
    }

    /// Most tokens of prompt and answer.
    pub fn context(&self) -> usize {
        self.engine.context()
    }

    /// Bytes of weights in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.model.network.memory_bytes()
    }

    /// Of those, bytes on a device with a memory of its own.
    pub fn device_bytes(&self) -> u64 {
        self.model.network.device_bytes()
    }

    /// Bytes of keys and values for each token of a prompt and its answer.
    pub fn token_bytes(&self) -> u64 {
        self.engine.token_bytes()
    }

    /// The engine's settings.
    pub fn settings(&self) -> &EngineSettings {
        self.engine.settings()
    }

    /// What the generators that count together have done.
    pub fn totals(&self) -> GenerationTotals {
        self.engine.totals()
    }

    /// What it does now.
    pub fn state(&self) -> EngineState {
        self.engine.state()
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty prompt, a conversation that the template refuses, a model without a template;
    /// [`Error::Argument`] for a conversation's variable that the template does not read.
    pub fn tokens(&self, prompt: Prompt<'_>) -> Result<Vec<u32>> {
        self.tokens_while(prompt, &mut || Ok(()))
    }

    /// The same; an error of `check`, which is asked between the parts of a long prompt, ends it.
    ///
    /// # Errors
    /// As [`tokens`](Self::tokens), and that of `check`.
    pub fn tokens_while(
        &self,
        prompt: Prompt<'_>,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<u32>> {
        let bounds = &mut Bounds { max_bytes: self.max_bytes, check };
        match prompt {
            Prompt::Text("") => Err(Error::Input("the prompt is empty".into())),
            Prompt::Text(text) => self.model.tokens.encode_within(text, true, bounds),
            Prompt::Tokens(ids) => Ok(ids.to_vec()),
            Prompt::Chat(conversation) => {
                if let Some(templates) = &self.model.templates {
                    templates.of(conversation).check_variables(&conversation.variables)?;
                }
                self.model.tokens.encode_within(&self.chat_text(conversation, None)?, false, bounds)
            }
        }
    }

    /// The prompt that the chat template makes of a conversation; `source` replaces the model's own template, or names one
    /// where it has several.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`]; [`Error::Input`] for a model without a template; [`Error::Argument`] for a
    /// `source` that is neither.
    pub fn chat_text(&self, conversation: &Conversation, source: Option<&str>) -> Result<String> {
        let templates = self.model.templates.as_ref();
        let named = source.and_then(|name| templates?.named(name));
        match (named.or_else(|| Some(templates?.of(conversation)).filter(|_| source.is_none())), source) {
            (Some(template), _) => template.render(conversation),
            (None, None) => Err(Error::Input(format!(
                "model {:?} has no chat template; give it a prompt instead of messages",
                self.model.name
            ))),
            // As a template, a name would write itself, and nothing of the messages.
            (None, Some(source)) if is_name(source) => {
                let names = templates.map(|templates| templates.names().join(", ")).unwrap_or_default();
                let has = if names.is_empty() { "none".to_owned() } else { names };
                let given: String = source.chars().take(SHOWN).collect();
                Err(Error::argument(
                    "chat_template",
                    format!(
                        "={given:?}: model {:?} has no template of this name (it has: {has}), and as the \
                         source of a template it would not contain the messages",
                        self.model.name
                    ),
                ))
            }
            (None, Some(source)) => {
                let tokens = self.model.special_tokens.clone();
                ChatTemplate::new(&self.model.name, source, tokens).render(conversation)
            }
        }
    }

    /// The number of tokens of `text`.
    ///
    /// # Errors
    /// As [`tokens`](Self::tokens); [`Error::Input`] beyond `bounds`.
    pub fn count(&self, text: &str, bounds: &mut Bounds<'_>) -> Result<usize> {
        Ok(self.model.tokens.encode_within(text, true, bounds)?.len())
    }

    fn request(
        &self,
        prompt: Prompt<'_>,
        params: GenerationParams,
        terms: RequestTerms,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Request> {
        params.validate()?;
        let RequestTerms { scope, deadline } = terms;
        let in_time = || match deadline {
            Some(late) if late.is_over() => Err(late.error(&self.model.name)),
            _ => Ok(()),
        };
        let tokens = self.tokens_while(prompt, &mut || check().and_then(|()| in_time()))?;
        let continues = match prompt {
            Prompt::Chat(conversation) => conversation.end == PromptEnd::LastMessage,
            Prompt::Text(_) | Prompt::Tokens(_) => true,
        };
        Ok(Request { prompt: tokens, params, continues, scope, deadline })
    }

    /// The whole answer, without the prompt. `check` as in [`Engine::generate`].
    ///
    /// # Errors
    /// Those of [`tokens`](Self::tokens) and [`Engine::generate`].
    pub fn generate(
        &self,
        prompt: Prompt<'_>,
        params: GenerationParams,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Completion> {
        self.engine.generate(self.request(prompt, params, RequestTerms::default(), check)?, check)
    }

    /// The answer piece by piece. The engine keeps `held` until it has done with the request. `check` is asked between
    /// the parts of a long prompt.
    ///
    /// # Errors
    /// Those of [`tokens`](Self::tokens) and [`Engine::submit`].
    pub fn stream(
        &self,
        prompt: Prompt<'_>,
        params: GenerationParams,
        terms: RequestTerms,
        held: impl Send + 'static,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Stream> {
        self.engine.stream_holding(self.request(prompt, params, terms, check)?, held)
    }

    /// The answer as events on the engine's thread. `check` is asked between the parts of a long prompt.
    ///
    /// # Errors
    /// Those of [`tokens`](Self::tokens) and [`Engine::submit`].
    pub fn submit(
        &self,
        prompt: Prompt<'_>,
        params: GenerationParams,
        terms: RequestTerms,
        on_event: OnEvent,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<EngineTicket> {
        self.engine.submit(self.request(prompt, params, terms, check)?, on_event)
    }
}
