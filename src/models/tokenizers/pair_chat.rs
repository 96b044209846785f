//! Two texts as one conversation, which a language model judges: the form of sentence-transformers' `CrossEncoder` for models
//! with a chat template.

use super::chat_form::{ChatForm, SavedForm, has_names, special_tokens, template_sources};
use super::config::TokenizerConfig;
use super::long::Bounds;
use super::tokenizer::Tokenizer;
use crate::batching::Encoded;
use crate::models::manifest::ModelFiles;
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

/// The roles of the two texts.
const ROLES: [&str; 2] = ["query", "document"];

/// A template that renders a query and a document.
#[derive(Debug)]
pub struct PairChat {
    form: ChatForm,
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
        let saved = SavedForm::read(files)?;
        let sources = template_sources(files, &settings)?;
        let several = sources.as_ref().is_some_and(|sources| has_names(files, &settings, sources));
        let source = sources.map(|sources| sources.usual).transpose()?.filter(|_| !saved.is_pinned());
        if source.is_none() && !judges {
            return Ok(None);
        }
        let form = |source: String| {
            let tokens = special_tokens(&settings, "");
            ChatForm::new(files, &saved, &source, several, model_type, tokens)
        };
        let own = source.map(form).transpose()?.map(|form| Self { form, of_card: false });
        let reason = match own.map(|own| (own.failure(), own)) {
            Some((None, own)) => return Ok(Some(own)),
            Some((Some(reason), _)) => reason,
            None => "it has none".into(),
        };
        if judges && saved.json.is_null() && model_type == "qwen3" {
            let form = ChatForm::plain(&files.model, QWEN3);
            return Ok(Some(Self { form, of_card: true }));
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
        let [first, second] = ROLES;
        self.form.render(instruction, &[(first, query), (second, document)], &[])
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
        let end =
            &mut |bounds: &mut Bounds<'_>| self.form.end(tokenizer, query.instruction, &ROLES, &[], bounds);
        let (ids, truncated) = self.form.ids(tokenizer, &prompt, max_length, max_length, bounds, end)?;
        let same = ids.iter().zip(&query.head).take_while(|(a, b)| a == b).count();
        let second = same.min(ids.len().saturating_sub(1));
        Ok(Encoded { ids, second: u32::try_from(second).unwrap_or(u32::MAX), truncated })
    }
}
