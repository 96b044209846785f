//! One file or folder for each kind of call, from its inputs to its result.

pub(super) mod embed;
pub(super) mod generate;
pub(super) mod openai_body;
