//! Results beyond one vector a text: scores, sparse vectors, vectors of tokens.

use super::super::inputs::Inputs;
use super::super::instance::Manager;
use super::super::jobs::embed::{Embeddings, LookUp, OnDone, Ticket};
use super::super::options::{Check, EmbedOptions};
#[cfg(doc)]
use crate::Error;
use crate::Result;
use crate::models::heads::{ScoreActivation, ScoreConfig};
use crate::output::{Output, OutputKind};

/// What becomes of a model's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activate {
    /// What sentence-transformers' `predict` applies to them.
    Model,
    /// They become probabilities.
    Probabilities,
    /// Always this.
    Fixed(ScoreActivation),
}

impl Activate {
    fn of(self, config: &ScoreConfig) -> ScoreActivation {
        match self {
            Self::Model => config.activation,
            Self::Probabilities => config.probabilities,
            Self::Fixed(activation) => activation,
        }
    }

    /// Applies it to the logits of a call.
    fn apply(self, mut result: Embeddings) -> Embeddings {
        if let (Output::Scores(scores), Some(config)) = (&mut result.output, &result.scores) {
            let (activation, labels) = (self.of(config), scores.width().max(1));
            scores.values_mut().chunks_exact_mut(labels).for_each(|logits| activation.apply(logits));
        }
        result
    }
}

impl Manager {
    /// What `options.kind` asks for, of texts or of pairs of texts. Waits, driving the work on this thread. `activate`
    /// makes scores of logits.
    ///
    /// # Errors
    /// [`Error::Task`] for a model that gives something else; as [`Manager::embed`].
    pub fn infer(
        &self,
        inputs: impl Into<Inputs>,
        options: EmbedOptions,
        activate: Activate,
        check: Check<'_>,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Embeddings> {
        let job = self.start(inputs.into(), plain(options), LookUp::Cache, None)?;
        job.wait(check, progress).map(|result| activate.apply(result))
    }

    /// [`Manager::infer`] without waiting, as [`Manager::submit`].
    ///
    /// # Errors
    /// As [`Manager::submit`].
    pub fn submit_inference(
        &self,
        inputs: impl Into<Inputs>,
        options: EmbedOptions,
        activate: Activate,
        on_done: OnDone,
    ) -> Result<Ticket> {
        let activated: OnDone = Box::new(move |result| on_done(result.map(|result| activate.apply(result))));
        let job = self.start(inputs.into(), plain(options), LookUp::Cache, Some(activated))?;
        Ok(Ticket::new(&job))
    }

    /// The names of the labels that the model of a slot scores, as its latest load found them, also after it was unloaded. Loads
    /// nothing: empty before the first load, and for a model that scores nothing.
    ///
    /// # Errors
    /// [`Error::UnknownModel`]; as [`Manager::settings`].
    pub fn labels(&self, name: &str) -> Result<Vec<String>> {
        let info = self.parts()?.registry.entry(name)?.info();
        Ok(info.and_then(|info| info.scores.as_ref().map(|scores| scores.labels.clone())).unwrap_or_default())
    }
}

/// Options of vectors do not split the cache of other kinds.
fn plain(options: EmbedOptions) -> EmbedOptions {
    match options.kind {
        OutputKind::Dense | OutputKind::All => options,
        _ => EmbedOptions { normalize: false, truncate_dim: None, ..options },
    }
}
