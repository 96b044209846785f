//! Text generation.

use super::super::instance::Manager;
use super::super::jobs::generate::{
    self, GenerateOptions, GenerationTicket, GeneratorLease, OwnedPrompt, TextStream,
};
use super::super::model::LoadedModel;
use super::super::options::Check;
use super::super::stats::GeneratorDescription;
use crate::chat::Conversation;
use crate::generation::{Completion, GenerationParams, OnEvent};
#[cfg(doc)]
use crate::generation::{Event, Generator};
use crate::sync::fork;
use crate::{Error, Result};

impl Manager {
    /// The generator of a slot, loaded if need be.
    ///
    /// # Errors
    /// [`Error::NoGenerator`] when the slot has another kind of model; as [`Manager::load`].
    pub fn generator(&self, options: &GenerateOptions, check: Check<'_>) -> Result<GeneratorLease> {
        generate::lease(&self.parts()?.registry, options, check)
    }

    /// What the generator of a slot is. Without `load`, `None` when it is not in memory; that is no use of it.
    ///
    /// # Errors
    /// As [`Manager::generator`].
    pub fn describe_generator(
        &self,
        name: &str,
        load: bool,
        check: Check<'_>,
    ) -> Result<Option<GeneratorDescription>> {
        if !load {
            let entry = self.parts()?.registry.entry(name)?;
            let look = |model: &LoadedModel| Ok(GeneratorDescription::new(name, model.generator(name)?));
            return entry.slot.inspect(look).transpose();
        }
        let options = GenerateOptions { model: Some(name.to_owned()), ..GenerateOptions::default() };
        let lease = self.generator(&options, check)?;
        Ok(Some(GeneratorDescription::new(name, lease.generator()?)))
    }

    /// The whole answer to `prompt`, without the prompt.
    ///
    /// # Errors
    /// [`Error::Input`] for a prompt or parameters that do not fit; those of [`Manager::generator`] and `check`.
    pub fn generate(
        &self,
        prompt: &OwnedPrompt,
        params: GenerationParams,
        options: &GenerateOptions,
        check: Check<'_>,
    ) -> Result<Completion> {
        let mut stream = self.stream(prompt, params, options, check)?;
        while stream.next(check)?.is_some() {}
        stream.completion().cloned().ok_or(Error::Cancelled)
    }

    /// The prompt that a generator's chat template makes of a conversation; `source` replaces its own template.
    ///
    /// # Errors
    /// [`Error::Input`], [`Error::Unsupported`] as [`Generator::chat_text`]; those of [`Manager::generator`] and `check`.
    pub fn chat_text(
        &self,
        conversation: &Conversation,
        source: Option<&str>,
        options: &GenerateOptions,
        check: Check<'_>,
    ) -> Result<String> {
        let lease = self.generator(options, check)?;
        let _computing = fork::computing();
        lease.generator()?.chat_text(conversation, source)
    }

    /// The answer to `prompt` piece by piece.
    ///
    /// # Errors
    /// As [`Manager::generate`].
    pub fn stream(
        &self,
        prompt: &OwnedPrompt,
        params: GenerationParams,
        options: &GenerateOptions,
        check: Check<'_>,
    ) -> Result<TextStream> {
        generate::stream(&self.parts()?.registry, prompt, params, options, check)
    }

    /// The answer to `prompt` as events on another thread, the loading of the model included: `on_event` gets pieces,
    /// then one [`Event::Done`]. That is [`Error::Timeout`] when it all takes too long; a load goes on.
    ///
    /// # Errors
    /// What is known at once: wrong parameters, [`Error::UnknownModel`], [`Error::Closed`].
    pub fn submit_generation(
        &self,
        prompt: OwnedPrompt,
        params: GenerationParams,
        options: &GenerateOptions,
        on_event: OnEvent,
    ) -> Result<GenerationTicket> {
        let parts = self.parts()?;
        generate::submit(&parts.registry, &parts.dispatcher, prompt, params, options, on_event)
    }
}
