//! The chat templates of a model: one, or several by name.

use std::sync::Arc;

use super::{ChatTemplate, Conversation, Value};
use crate::Result;

/// The name of the template for conversations with tools, where a model has several.
pub(crate) const WITH_TOOLS: &str = "tool_use";
/// The name of the usual one, where a model has several.
pub(crate) const DEFAULT: &str = "default";

/// The sources of a model's templates.
#[derive(Debug, Clone)]
pub struct TemplateSources {
    /// That of usual conversations, or why there is none: only a conversation that takes it needs it.
    pub usual: Result<String>,
    /// The others, by name.
    pub others: Vec<(String, String)>,
}

/// The templates of a model. Which one a conversation takes is decided as in `transformers`: the one called `tool_use` if
/// there are tools and such a template, otherwise the usual one.
#[derive(Debug)]
pub struct ChatTemplates {
    usual: ChatTemplate,
    others: Vec<(String, ChatTemplate)>,
}

impl TemplateSources {
    /// A single template.
    pub fn of(usual: impl Into<String>) -> Self {
        Self { usual: Ok(usual.into()), others: Vec::new() }
    }
}

impl ChatTemplates {
    /// Compiles `sources` for `model`. `tokens` are its special tokens by name.
    pub fn new(model: &str, sources: &TemplateSources, tokens: &[(Arc<str>, Value)]) -> Self {
        let compile = |source: &str| ChatTemplate::new(model, source, tokens.to_vec());
        let others = sources.others.iter().map(|(name, source)| (name.clone(), compile(source)));
        let usual = match &sources.usual {
            Ok(source) => compile(source),
            Err(error) => ChatTemplate::refused(model, error.clone()),
        };
        Self { usual, others: others.collect() }
    }

    /// That of usual conversations.
    pub fn usual(&self) -> &ChatTemplate {
        &self.usual
    }

    /// The one that a conversation takes.
    pub fn of(&self, conversation: &Conversation) -> &ChatTemplate {
        let tools = conversation.variables.iter().find(|(name, _)| &**name == "tools");
        let with_tools = tools.is_some_and(|(_, tools)| !matches!(tools, Value::None));
        self.named(WITH_TOOLS).filter(|_| with_tools).unwrap_or(&self.usual)
    }

    /// Their names, where there are several.
    pub fn names(&self) -> Vec<&str> {
        let usual = (!self.others.is_empty()).then_some(DEFAULT);
        usual.into_iter().chain(self.others.iter().map(|(name, _)| &**name)).collect()
    }

    /// The one of this name, where there are several.
    pub fn named(&self, name: &str) -> Option<&ChatTemplate> {
        if name == DEFAULT && !self.others.is_empty() {
            return Some(&self.usual);
        }
        self.others.iter().find(|(own, _)| own == name).map(|(_, template)| template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_and_names_choose_among_several() {
        let source = |text: &str| format!("{text} {{{{ messages[0].content }}}}");
        let others = ["tool_use", "rag"].map(|name| (name.to_owned(), source(name))).to_vec();
        let several = ChatTemplates::new("m", &TemplateSources { usual: Ok(source("usual")), others }, &[]);
        let one = ChatTemplates::new("m", &TemplateSources::of(source("usual")), &[]);
        let mut conversation = Conversation::of(&[("user", "hi")]).unwrap();
        let rendered = |templates: &ChatTemplates, of: &Conversation| templates.of(of).render(of).unwrap();
        assert_eq!(rendered(&several, &conversation), "usual hi");
        for (tools, expected) in
            [(Value::None, "usual hi"), (Value::list(Vec::new()).unwrap(), "tool_use hi")]
        {
            conversation.variables = vec![("tools".into(), tools)];
            assert_eq!(rendered(&several, &conversation), expected);
            assert_eq!(rendered(&one, &conversation), "usual hi");
        }
        for (name, expected) in [("rag", Some("rag hi")), ("default", Some("usual hi")), ("other", None)] {
            let found = several.named(name).map(|template| template.render(&conversation).unwrap());
            assert_eq!(found.as_deref(), expected, "{name}");
            assert!(one.named(name).is_none());
        }
    }
}
