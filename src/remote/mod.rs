//! A model that a server runs: Ollama, or any server with OpenAI's protocol.
//!
//! ```text
//! texts ─ queue ─ connection threads ─ link: breaker, retries ─ client: one HTTP request ─ rows
//! ```
//!
//! A few threads per model each have one request in flight; while they wait, the queue forms the next batches. There is no
//! delay timer: a single text is sent at once. Callers are never blocked, and no thread here uses the interpreter.

mod address;
mod breaker;
mod client;
mod encoder;
mod link;
mod protocol;
mod retry;
#[cfg(test)]
mod tests;

pub use address::{Address, KEY_VARIABLE, Protocol, shown};
pub use breaker::Circuit;
pub use encoder::RemoteEncoder;
pub use link::{Health, HealthReport, Link, RemoteSettings};

/// Reads `body` as each protocol's answer and as an error, for fuzzing.
#[doc(hidden)]
pub fn check_reply(body: &[u8]) {
    for protocol in [Protocol::OpenAi, Protocol::Ollama] {
        let _ = protocol::answer(protocol, body, 2);
    }
    let _ = protocol::complaint(body);
}
