//! Embedding: vectors of texts and token ids.

use std::sync::Arc;

use super::super::inputs::Inputs;
use super::super::instance::Manager;
use super::super::jobs::embed::{Embeddings, Job, LookUp, OnDone, Ticket};
use super::super::jobs::openai_body::{self, OnBody};
use super::super::options::{Check, EmbedOptions};
use super::super::stats::ModelDescription;
#[cfg(doc)]
use crate::Error;
use crate::Result;
use crate::cache::CachedItem;
use crate::compute::memory::joined;
use crate::models::{Bounds, ContentId, TextChunk};
use crate::output::OutputKind;
use crate::sync::fork;
use crate::wire::Encoding;

impl Manager {
    /// The slot that a text goes to when the call names none.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn route(&self, text: &str) -> Result<&'static str> {
        Ok(self.parts()?.router.route(text))
    }

    /// The result of `text` if the cache has it; counts as a hit or a miss. Costs no allocation and loads nothing.
    ///
    /// # Errors
    /// [`Error::UnknownModel`]; [`Error::Input`] for options that do not fit the model.
    pub fn cached(&self, text: &str, options: &EmbedOptions) -> Result<Option<CachedItem>> {
        self.parts()?.embedder.cached(text, options)
    }

    /// Applies the keep-alive of a call that [`Manager::cached`] has answered to the model that `text` goes to, if it is in
    /// memory. May free the model.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn keep_for(&self, text: &str, options: &EmbedOptions) -> Result<()> {
        let parts = self.parts()?;
        let name = options.model.as_deref().unwrap_or_else(|| parts.router.route(text));
        parts.registry.entry(name)?.keep_for(options.keep_alive);
        Ok(())
    }

    /// Embeds a text that [`Manager::cached`] has just not found, and waits.
    ///
    /// # Errors
    /// As [`Manager::embed`].
    pub fn embed_missed(&self, text: &str, options: EmbedOptions, check: Check<'_>) -> Result<CachedItem> {
        let job = self.start(vec![joined(&[text])?].into(), options, LookUp::Done, None)?;
        let Embeddings { output, tokens, .. } = job.wait(check, &mut |_, _| Ok(()))?;
        Ok(CachedItem::new(output.into_item(), u32::try_from(tokens).unwrap_or(u32::MAX)))
    }

    /// Embeds texts or token ids and waits, driving the work on this thread. `progress` gets the numbers of
    /// finished and of all inputs.
    ///
    /// # Errors
    /// [`Error::Input`], [`Error::UnknownModel`], [`Error::Overloaded`], [`Error::Timeout`], [`Error::NotFinite`],
    /// whatever `check` and `progress` return, and whatever loading the model failed with.
    pub fn embed(
        &self,
        inputs: impl Into<Inputs>,
        options: EmbedOptions,
        check: Check<'_>,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Embeddings> {
        self.start(inputs.into(), options, LookUp::Cache, None)?.wait(check, progress)
    }

    /// As [`embed`](Self::embed), and what the model that gave all results computes: SHA-256 of everything that decides it, equal
    /// on every machine. It is read from the model's files once. `None` for a model of a server, for one whose files were changed
    /// after it was loaded, and where the call names no slot.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn embed_identified(
        &self,
        inputs: impl Into<Inputs>,
        options: EmbedOptions,
        check: Check<'_>,
    ) -> Result<(Embeddings, Option<ContentId>)> {
        let of_one = options.model.is_some();
        let found = self.embed(inputs, options, check, &mut |_, _| Ok(()))?;
        let content = match found.info.as_ref().filter(|_| of_one) {
            Some(info) => info.identified(check)?,
            None => None,
        };
        Ok((found, content))
    }

    /// Embeds texts or token ids without waiting: `on_done` is called once, from another thread, or from this one when
    /// everything was cached.
    ///
    /// # Errors
    /// What is known at once: [`Error::Input`], [`Error::UnknownModel`], [`Error::Overloaded`], [`Error::Closed`].
    pub fn submit(
        &self,
        inputs: impl Into<Inputs>,
        options: EmbedOptions,
        on_done: OnDone,
    ) -> Result<Ticket> {
        self.start(inputs.into(), options, LookUp::Cache, Some(on_done)).map(|job| Ticket::new(&job))
    }

    pub(super) fn start(
        &self,
        inputs: Inputs,
        options: EmbedOptions,
        look_up: LookUp,
        on_done: Option<OnDone>,
    ) -> Result<Arc<Job>> {
        Job::start(&self.parts()?.embedder, inputs, options, look_up, on_done)
    }

    /// `text` in chunks that the model reads whole, of at most `max_tokens` (`None`: as many as the model reads), each of
    /// which begins with at most `overlap` tokens of the one before it. `options` say the model and the prompt. Loads the
    /// model.
    ///
    /// # Errors
    /// [`Error::Argument`] for sizes that leave no place for text; as [`Manager::embed`].
    pub fn chunks(
        &self,
        text: &str,
        max_tokens: Option<usize>,
        overlap: usize,
        options: &EmbedOptions,
        check: Check<'_>,
    ) -> Result<Vec<TextChunk>> {
        let parts = self.parts()?;
        let name = options.model.as_deref().unwrap_or_else(|| parts.router.route(text));
        let lease = self.lease(name, options.timeout, check)?;
        let _computing = fork::computing();
        let handle = lease.encoder(name, OutputKind::Dense)?;
        let prompt = handle.info.prompt(options)?;
        let mut bounds = Bounds { max_bytes: parts.settings.max_text_bytes, check };
        handle.backend.chunks(text, prompt, max_tokens, overlap, &mut bounds)
    }

    /// What the model of an embedding slot is. Without `load`, `None` when it is not in memory.
    ///
    /// # Errors
    /// [`Error::Input`] for a slot with a loader of the host's own; as [`Manager::load`].
    pub fn describe(&self, name: &str, load: bool, check: Check<'_>) -> Result<Option<ModelDescription>> {
        let parts = self.parts()?;
        let entry = parts.registry.entry(name)?;
        let handle = if load {
            Some(self.lease(name, None, check)?.described(name)?.clone())
        } else {
            entry.slot.inspect(|model| model.described(name).cloned()).transpose()?
        };
        Ok(handle.map(|handle| {
            ModelDescription::new(name, &handle, parts.settings.profile, parts.loader.device())
        }))
    }

    /// [`Manager::submit`] with the answer as the body of OpenAI's `POST /v1/embeddings`, in which the model is called
    /// `model`, and the number of tokens that were read. A short body that the cache answers is written on this
    /// thread; another thread writes longer ones and calls `on_body`.
    ///
    /// # Errors
    /// As [`Manager::submit`].
    pub fn submit_response(
        &self,
        inputs: impl Into<Inputs>,
        options: EmbedOptions,
        model: String,
        encoding: Encoding,
        on_body: OnBody,
    ) -> Result<Ticket> {
        let dispatcher = Arc::clone(&self.parts()?.dispatcher);
        let respond = move |result| openai_body::write(result, encoding, model, dispatcher, on_body);
        self.submit(inputs, options, Box::new(respond))
    }
}
