//! Why a template cannot be compiled or rendered.

/// The result of everything that a template does.
pub(super) type TemplateResult<T, E = Box<Problem>> = std::result::Result<T, E>;

/// The kind of a [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// The source is not a Jinja template.
    Syntax,
    /// The template called `raise_exception`.
    Raised,
    /// An operation failed, as it does in Jinja.
    Failed,
    /// Jinja has this construct and this crate has not.
    Unsupported,
    /// The template reached one of the [`limits`](super::limits).
    Limit,
}

/// A problem and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What kind.
    pub kind: ProblemKind,
    /// What is wrong.
    pub message: String,
    /// The line of the template, from 1.
    pub line: Option<u32>,
}

impl Problem {
    fn boxed(kind: ProblemKind, message: impl Into<String>) -> Box<Self> {
        Box::new(Self { kind, message: message.into(), line: None })
    }

    pub(super) fn syntax(message: impl Into<String>, line: u32) -> Box<Self> {
        let mut problem = Self::boxed(ProblemKind::Syntax, message);
        problem.line = Some(line);
        problem
    }

    pub(super) fn raised(message: impl Into<String>) -> Box<Self> {
        Self::boxed(ProblemKind::Raised, message)
    }

    pub(super) fn failed(message: impl Into<String>) -> Box<Self> {
        Self::boxed(ProblemKind::Failed, message)
    }

    pub(super) fn unsupported(message: impl Into<String>) -> Box<Self> {
        Self::boxed(ProblemKind::Unsupported, message)
    }

    pub(super) fn limit(message: impl Into<String>) -> Box<Self> {
        Self::boxed(ProblemKind::Limit, message)
    }

    /// The same problem on `line`, unless it already has one.
    pub(super) fn on(mut self: Box<Self>, line: u32) -> Box<Self> {
        self.line.get_or_insert(line);
        self
    }
}
