//! Text generation: one prompt in, tokens out, many requests at once.
//!
//! ```text
//! prompt ─ chat template? ─ tokens ─ queue ─┐
//!                                           engine: admit → prefill → one token for each request → …
//!                                           │            logits ─ processors ─ sampler
//! pieces of text ─ stop texts ─ detokenizer ┘
//! ```

pub mod engine;
pub mod generator;
pub mod load;
pub mod params;
pub mod processors;
pub mod sampler;
mod softmax;
pub mod stop;

pub use engine::{
    Completion, Deadline, Engine, EngineSettings, EngineState, EngineTicket, Event, FinishReason,
    GenerationTotals, OnEvent, PrefixScope, SharedTotals, Stream,
};
pub use generator::{Generator, Prompt, RequestTerms};
pub use load::{ComputeTarget, Network, TextFiles, TextModel};
pub use params::GenerationParams;
