//! A model before it is loaded.

use super::super::card::{generator_format, weight_format};
use super::super::instance::Manager;
use super::super::mistaken::name_kind;
use crate::Result;
use crate::compute::Isa;
use crate::generation::load;
use crate::models::{Inspected, ModelKind, Source, StaticInspection};
use crate::output::Shapes;

/// What a model is, and how it would be loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelReport {
    /// The source, in full.
    pub source: String,
    /// The adapter that changes its weights.
    pub adapter: Option<String>,
    /// `model_type` of its family.
    pub family: &'static str,
    /// What it is used for.
    pub kind: &'static str,
    /// The methods that it answers.
    pub tasks: Vec<&'static str>,
    /// Length of a token's state; `None` for a static model that is not on this machine.
    pub hidden: Option<usize>,
    /// Tokens of a text, or of prompt and answer together; `None` for a static model that reads texts of any length.
    pub max_length: Option<usize>,
    /// The algorithm of its tokenizer, or the name of its class.
    pub tokenizer: Option<String>,
    /// The number format of its files; `None` for a GGUF file, which mixes them.
    pub stored: Option<String>,
    /// The format that its weights would have in memory; `None`: that of the GGUF file.
    pub dtype: Option<&'static str>,
    /// Its weights.
    pub parameters: Option<u64>,
    /// Bytes of its weights in files.
    pub weight_bytes: Option<u64>,
    /// About how many bytes its weights would take in memory.
    pub memory_bytes: Option<u64>,
    /// Whether its weights are on this machine.
    pub local: bool,
    /// Its prompts by name.
    pub prompts: Vec<(String, String)>,
    /// The prompt of calls that ask for none.
    pub default_prompt_name: Option<String>,
}

impl Manager {
    /// What the model of `source` is, from its small files. Its weights are neither read nor downloaded.
    ///
    /// # Errors
    /// The reason why it does not run.
    pub fn inspect(
        &self,
        source: &str,
        adapter: Option<&str>,
        kind: Option<ModelKind>,
    ) -> Result<ModelReport> {
        let parts = self.parts()?;
        let options = parts.loader.resolve_options(None, adapter.map(str::to_owned).as_ref());
        let parsed = Source::parse(source)?;
        let found = Inspected::of(&parsed, &options, kind, &mut |_| Ok(()));
        let found = match name_kind(found, kind, source, &options)? {
            Inspected::Model(found) => found,
            Inspected::Static(found) => return Ok(static_report(&parsed, &found)),
        };
        let settings = &parts.settings;
        let isa = Isa::from_env()?;
        let format = match found.kind {
            ModelKind::Generator => {
                load::check(&found.config)?;
                generator_format(settings.generator_dtype, isa, None)?
            }
            _ => weight_format(settings.dtype, isa, None)?,
        };
        let description = found.config.describe();
        let mut max_length = description.context;
        if let Some(sentence) = &found.sentence {
            max_length = max_length.min(sentence.max_length);
        }
        let sentence = found.sentence.as_ref();
        let prompts = sentence.map(|sentence| sentence.prompts.clone().into_iter().collect());
        Ok(ModelReport {
            source: parsed.to_string(),
            adapter: found.files.adapter.as_ref().map(|adapter| adapter.name().to_owned()),
            family: found.config.family.model_type,
            kind: found.shapes.map_or(found.kind.name(), Shapes::kind_name),
            tasks: found.shapes.map_or_else(|| vec!["generate", "chat"], Shapes::tasks),
            hidden: Some(description.hidden),
            max_length: Some(max_length),
            tokenizer: found.tokenizer.clone(),
            stored: found.stored.clone(),
            dtype: found.config.gguf.is_none().then(|| format.name()),
            parameters: found.parameters(),
            weight_bytes: found.weight_bytes,
            memory_bytes: found.memory_bytes(format),
            local: found.local,
            prompts: prompts.unwrap_or_default(),
            default_prompt_name: sentence.and_then(|sentence| sentence.default_prompt_name.clone()),
        })
    }
}

/// The report of a static model.
fn static_report(source: &Source, found: &StaticInspection) -> ModelReport {
    let (sentence, table) = (&found.sentence, found.table.as_ref());
    ModelReport {
        source: source.to_string(),
        adapter: None,
        family: found.form,
        kind: "embedding",
        tasks: vec!["embed"],
        hidden: table.map(|table| table.width),
        max_length: found.max_length,
        tokenizer: found.tokenizer.clone(),
        stored: Some(table.map_or("?", |table| table.dtype).to_owned()),
        dtype: None,
        parameters: table.map(|table| table.parameters),
        weight_bytes: found.weight_bytes,
        memory_bytes: table.map(|table| table.memory_bytes),
        local: table.is_some(),
        prompts: sentence.prompts.clone().into_iter().collect(),
        default_prompt_name: sentence.default_prompt_name.clone(),
    }
}
