//! A loaded language model at work: prompts and conversations in, text out.

use super::chat::Message;
use super::engine::{Completion, Engine, EngineSettings, EngineStats, OnEvent, Request, Stream, Ticket};
use super::load::TextModel;
use super::params::GenerationParams;
use crate::models::Bounds;
use crate::{Error, Result};

/// What to continue.
#[derive(Debug, Clone, Copy)]
pub enum Prompt<'a> {
    /// A text; the answer continues it.
    Text(&'a str),
    /// Token ids of the model's own vocabulary, read as they are; the answer continues them.
    Tokens(&'a [u32]),
    /// A conversation; the answer is the assistant's next turn.
    Chat(&'a [Message]),
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
        let mut settings = EngineSettings::new(model.name.clone(), model.ends.clone());
        change(&mut settings);
        let engine = Engine::start(model.decoder.clone(), model.tokens.clone(), settings)?;
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
        self.model.end
    }

    /// Most tokens of prompt and answer.
    pub fn context(&self) -> usize {
        self.engine.context()
    }

    /// Bytes of weights in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.model.decoder.memory_bytes()
    }

    /// Totals and the present state.
    pub fn stats(&self) -> EngineStats {
        self.engine.stats()
    }

    /// The tokens of a prompt, and the text that they were made from.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty prompt, a conversation that the template refuses, a model without a template.
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
            Prompt::Chat(messages) => {
                let template = self.model.template.as_ref().ok_or_else(|| {
                    let name = &self.model.name;
                    Error::Input(format!(
                        "model {name:?} has no chat template; give it a prompt instead of messages"
                    ))
                })?;
                self.model.tokens.encode_within(&template.render(messages)?, false, bounds)
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
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Request> {
        params.validate()?;
        let tokens = self.tokens_while(prompt, check)?;
        Ok(Request { prompt: tokens, params, continues: !matches!(prompt, Prompt::Chat(_)) })
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
        self.engine.generate(self.request(prompt, params, check)?, check)
    }

    /// The answer piece by piece. `check` is asked between the parts of a long prompt.
    ///
    /// # Errors
    /// Those of [`tokens`](Self::tokens) and [`Engine::submit`].
    pub fn stream(
        &self,
        prompt: Prompt<'_>,
        params: GenerationParams,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Stream> {
        self.engine.stream(self.request(prompt, params, check)?)
    }

    /// The answer as events on the engine's thread. `check` is asked between the parts of a long prompt.
    ///
    /// # Errors
    /// Those of [`tokens`](Self::tokens) and [`Engine::submit`].
    pub fn submit(
        &self,
        prompt: Prompt<'_>,
        params: GenerationParams,
        on_event: OnEvent,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Ticket> {
        self.engine.submit(self.request(prompt, params, check)?, on_event)
    }
}
