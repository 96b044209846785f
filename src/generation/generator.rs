//! A loaded language model at work: prompts and conversations in, text out.

use super::chat::Message;
use super::engine::{Completion, Engine, EngineSettings, EngineStats, OnEvent, Request, Stream, Ticket};
use super::load::TextModel;
use super::params::GenerationParams;
use crate::{Error, Result};

/// What to continue.
#[derive(Debug, Clone, Copy)]
pub enum Prompt<'a> {
    /// A text; the answer continues it.
    Text(&'a str),
    /// A conversation; the answer is the assistant's next turn.
    Chat(&'a [Message]),
}

/// A running text generator.
#[derive(Debug)]
pub struct Generator {
    model: TextModel,
    engine: Engine,
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
        Ok(Self { model, engine })
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
        match prompt {
            Prompt::Text("") => Err(Error::Input("the prompt is empty".into())),
            Prompt::Text(text) => self.model.tokens.encode(text, true),
            Prompt::Chat(messages) => {
                let template = self.model.template.as_ref().ok_or_else(|| {
                    let name = &self.model.name;
                    Error::Input(format!(
                        "model {name:?} has no chat template; give it a prompt instead of messages"
                    ))
                })?;
                self.model.tokens.encode(&template.render(messages)?, false)
            }
        }
    }

    fn request(&self, prompt: Prompt<'_>, params: GenerationParams) -> Result<Request> {
        params.validate()?;
        Ok(Request { prompt: self.tokens(prompt)?, params, continues: matches!(prompt, Prompt::Text(_)) })
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
        self.engine.generate(self.request(prompt, params)?, check)
    }

    /// The answer piece by piece.
    ///
    /// # Errors
    /// Those of [`tokens`](Self::tokens) and [`Engine::submit`].
    pub fn stream(&self, prompt: Prompt<'_>, params: GenerationParams) -> Result<Stream> {
        self.engine.stream(self.request(prompt, params)?)
    }

    /// The answer as events on the engine's thread.
    ///
    /// # Errors
    /// Those of [`tokens`](Self::tokens) and [`Engine::submit`].
    pub fn submit(&self, prompt: Prompt<'_>, params: GenerationParams, on_event: OnEvent) -> Result<Ticket> {
        self.engine.submit(self.request(prompt, params)?, on_event)
    }
}
