//! Results beyond one vector a text: scores, sparse vectors, vectors of tokens.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::argument::{argument, unexpected};
use super::errors::OrRaise;
use super::handle::Handle;
use super::options::set_option;
use super::submit::{PyTicket, Traced, reply, started};
use super::texts::{copied, inputs, texts};
use super::tracing::{self, Call, CallOutcome};
use super::utf8::Utf8;
use super::vectors::results;
use crate::Error;
use crate::manager::{Activate, EmbedOptions, Embeddings, Inputs, Pairs};
use crate::models::heads::ScoreActivation;
use crate::output::OutputKind;

/// Names of the keywords.
const KEYWORDS: &str = "activation prompt prompt_name normalize truncate timeout keep_alive user";

/// What a call gives to a model, and what it asks for.
pub(super) struct InferenceCall {
    inputs: Inputs,
    options: EmbedOptions,
    activate: Activate,
}

impl InferenceCall {
    /// `kind`: scores, sparse, multi, queries, states or all. `second`: the second texts of pairs; one `first` text goes
    /// with each of them. `keywords`: those of [`KEYWORDS`].
    pub(super) fn new(
        kind: &str,
        first: &Bound<'_, PyAny>,
        second: Option<&Bound<'_, PyAny>>,
        model: Option<String>,
        keywords: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let py = first.py();
        let kind = match kind {
            "scores" => Ok(OutputKind::Scores),
            "sparse" => Ok(OutputKind::Sparse),
            "multi" => Ok(OutputKind::Multi),
            "queries" => Ok(OutputKind::Queries),
            "states" => Ok(OutputKind::States),
            "all" => Ok(OutputKind::All),
            other => Err(Error::argument(
                "kind",
                format!("={other:?}: expected scores, sparse, multi, queries, states or all"),
            )),
        };
        let mut options = EmbedOptions { model, kind: kind.or_raise(py)?, ..EmbedOptions::default() };
        let mut activate = Activate::Model;
        for (name, value) in keywords.into_iter().flatten().filter(|(_, value)| !value.is_none()) {
            let name: Utf8 = name.extract()?;
            let known = KEYWORDS.split_whitespace();
            let has = known.clone().any(|known| known == &*name);
            if &*name == "activation" {
                activate = match &*argument::<Utf8>("activation", &value)? {
                    "probabilities" => Activate::Probabilities,
                    name => Activate::Fixed(ScoreActivation::parse(name).or_raise(py)?),
                };
            } else if !(has && set_option(&mut options, &name, &value)?) {
                return Err(unexpected("this call", &name, known));
            }
        }
        let inputs = match second {
            None => inputs("texts", first)?.0,
            Some(second) => pairs(first, second)?,
        };
        Ok(Self { inputs, options, activate })
    }

    fn begin(&mut self, py: Python<'_>) -> PyResult<Option<Arc<Call>>> {
        let operation = match self.options.kind {
            OutputKind::Scores => "score",
            _ => "embeddings",
        };
        let call = tracing::begin(py, operation, self.options.model.as_deref(), self.inputs.len())?;
        self.options.trace = Call::trace(call.as_ref());
        Ok(call)
    }

    /// The results of all inputs, and the tokens that were read. Waits.
    pub(super) fn wait(
        mut self,
        py: Python<'_>,
        handle: &Handle,
        progress: Option<&Py<PyAny>>,
    ) -> PyResult<(Py<PyAny>, u64)> {
        let call = self.begin(py)?;
        let found = handle.enter_reporting(py, progress, |manager, check, report| {
            manager.infer(self.inputs, self.options, self.activate, check, report)
        });
        converted(py, Call::end_with(call.as_ref(), py, found, CallOutcome::of)?)
    }

    /// The same without waiting: `on_done(results, tokens, error)`.
    pub(super) fn submit(
        mut self,
        handle: &Arc<Handle>,
        owner: &Bound<'_, PyAny>,
        on_done: Py<PyAny>,
    ) -> PyResult<PyTicket> {
        let call = self.begin(owner.py())?;
        let traced = Traced { call: call.clone(), outcome: CallOutcome::of };
        let reply = reply(owner, on_done, traced, |py, result: PyResult<Embeddings>| {
            match result.and_then(|found| converted(py, found)) {
                Ok((results, tokens)) => (results, tokens, py.None()).into_pyobject(py),
                Err(error) => (py.None(), 0, error.into_value(py)).into_pyobject(py),
            }
        });
        started(owner.py(), handle, call, |manager| {
            manager.submit_inference(self.inputs, self.options, self.activate, Box::new(reply))
        })
    }
}

fn converted(py: Python<'_>, found: Embeddings) -> PyResult<(Py<PyAny>, u64)> {
    Ok((results(py, found.output)?, found.tokens))
}

/// A query with each of several documents, or texts with those of the same number: pairs, which the argument `texts` gives.
fn pairs(first: &Bound<'_, PyAny>, second: &Bound<'_, PyAny>) -> PyResult<Inputs> {
    if let Ok(query) = first.cast::<PyString>() {
        let query = copied(query, Some(("query", &[])))?;
        let documents = texts("documents", second, |number| vec![number])?;
        return Ok(Inputs::Pairs(Pairs::of_query(query, documents)));
    }
    let firsts = texts("texts", first, |number| vec![number, 0])?;
    let seconds = texts("texts", second, |number| vec![number, 1])?;
    Pairs::new(firsts, seconds).map(Inputs::Pairs).or_raise(first.py())
}
