//! What a template may cost. A template is a program that comes with a model: each of these bounds ends it with an
//! error that names the bound.

use super::problem::{Problem, TemplateResult};
use crate::size::size_text;

/// Bytes of a template's source.
pub const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Levels of nested expressions and of nested statements.
pub const MAX_NESTING: usize = 200;
/// Steps of one rendering: each expression, statement and element that is touched is one.
pub const MAX_STEPS: u64 = 4_000_000;
/// Bytes of all strings and lists that one rendering makes, those no longer used included.
pub const MAX_MEMORY_BYTES: u64 = 256 << 20;
/// Bytes of a rendered prompt.
pub const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// Levels of lists and dictionaries inside each other.
pub const MAX_DEPTH: usize = 128;
/// Levels of calls, statements and expressions that are under way at once.
pub const MAX_CALL_LEVELS: usize = 1000;
/// Elements of a `range`, as Jinja's sandbox has it.
pub const MAX_RANGE: i128 = 100_000;
/// Widths, precisions and indents.
pub const MAX_WIDTH: usize = 100_000;
/// Bytes of a name.
pub const MAX_NAME_BYTES: usize = 1000;
/// Parameters of a macro, and named arguments of a call.
pub const MAX_NAMED: usize = 1000;
/// Levels of macros and call blocks inside each other.
pub const MAX_MACROS: usize = 20;
/// The stack of the thread that compiles and renders.
pub(super) const STACK_BYTES: usize = 32 << 20;

/// What one rendering has left.
#[derive(Debug)]
pub(super) struct RenderBudget {
    steps: u64,
    memory: u64,
}

impl RenderBudget {
    pub(super) fn new() -> Self {
        Self { steps: MAX_STEPS, memory: MAX_MEMORY_BYTES }
    }

    /// Takes `count` steps.
    pub(super) fn steps(&mut self, count: usize) -> TemplateResult<()> {
        match self.steps.checked_sub(count as u64) {
            Some(left) => {
                self.steps = left;
                Ok(())
            }
            None => Err(Problem::limit(format!("it takes more than {MAX_STEPS} steps"))),
        }
    }

    /// Takes the steps of reading `bytes` of text.
    pub(super) fn text(&mut self, bytes: usize) -> TemplateResult<()> {
        self.steps(1 + bytes / 256)
    }

    /// Takes `bytes` of new memory, before it is allocated.
    pub(super) fn memory(&mut self, bytes: usize) -> TemplateResult<()> {
        match self.memory.checked_sub(bytes as u64) {
            Some(left) => {
                self.memory = left;
                self.text(bytes)
            }
            None => {
                Err(Problem::limit(format!("it makes more than {} of values", size_text(MAX_MEMORY_BYTES))))
            }
        }
    }
}

/// A width, precision or indent that a template asks for.
pub(super) fn width(value: i128, what: &str) -> TemplateResult<usize> {
    let value = usize::try_from(value.max(0)).unwrap_or(usize::MAX);
    if value > MAX_WIDTH {
        return Err(Problem::limit(format!("it asks for a {what} of more than {MAX_WIDTH}")));
    }
    Ok(value)
}
