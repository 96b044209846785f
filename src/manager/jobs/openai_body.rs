//! The answer of a call as the body of OpenAI's `POST /v1/embeddings`.

use std::sync::Arc;

use super::super::dispatcher::{Dispatcher, Task};
use super::embed::Embeddings;
use crate::output::{Dense, Output};
use crate::sync::Mutex;
use crate::wire::{Encoding, VectorBody};
use crate::{Error, Result};

/// Values written at a time: about a millisecond. The dispatcher writes a longer body in pieces, and serves other calls
/// in between.
const PIECE: usize = 1 << 16;

/// Called once with a body and the tokens that were read for it.
pub type OnBody = Box<dyn FnOnce(Result<(Vec<u8>, u64)>) + Send>;

/// Writes the body of a result, and calls `on_body`.
pub(in super::super) fn write(
    result: Result<Embeddings>,
    encoding: Encoding,
    model: String,
    dispatcher: Arc<Dispatcher>,
    on_body: OnBody,
) {
    match result {
        Ok(Embeddings { output: Output::Dense(vectors), tokens, .. }) => {
            match VectorBody::new(encoding, vectors.rows(), vectors.width()) {
                Ok(body) => {
                    BodyWriter { body, vectors, tokens, written: 0, model, on_body }.write(dispatcher);
                }
                Err(error) => {
                    // `on_body` may need the memory.
                    drop(vectors);
                    on_body(Err(error));
                }
            }
        }
        Ok(_) => on_body(Err(Error::internal("embeddings", "the result is no vectors"))),
        Err(error) => on_body(Err(error)),
    }
}

/// A body that is being written.
struct BodyWriter {
    body: VectorBody,
    vectors: Dense,
    tokens: u64,
    /// Rows written.
    written: usize,
    model: String,
    on_body: OnBody,
}

impl BodyWriter {
    fn write(mut self, dispatcher: Arc<Dispatcher>) {
        if self.vectors.values().len() <= PIECE {
            self.write_piece();
            return self.finish();
        }
        let writing = Arc::new(Writing { dispatcher, writer: Mutex::new(Some(self)) });
        writing.go_on();
    }

    /// Writes some rows; false: that was all.
    fn write_piece(&mut self) -> bool {
        let (rows, width) = (self.vectors.rows(), self.vectors.width().max(1));
        let end = rows.min(self.written + (PIECE / width).max(1));
        (self.written..end).for_each(|row| self.body.push(self.vectors.row(row)));
        self.written = end;
        end < rows
    }

    fn finish(self) {
        // Not needed any more.
        drop(self.vectors);
        (self.on_body)(Ok((self.body.finish(&self.model, self.tokens), self.tokens)));
    }
}

/// A long body that the dispatcher writes piece by piece.
struct Writing {
    dispatcher: Arc<Dispatcher>,
    /// Taken when it is complete, or has failed.
    writer: Mutex<Option<BodyWriter>>,
}

impl Writing {
    fn go_on(self: Arc<Self>) {
        let task: Arc<dyn Task> = Arc::clone(&self) as _;
        if let Err(error) = self.dispatcher.push(task) {
            self.fail(error);
        }
    }
}

impl Task for Writing {
    fn step(self: Arc<Self>) {
        let mut writer = self.writer.lock();
        if writer.as_mut().is_some_and(BodyWriter::write_piece) {
            drop(writer);
            return self.go_on();
        }
        let whole = writer.take();
        drop(writer);
        if let Some(writer) = whole {
            writer.finish();
        }
    }

    fn fail(self: Arc<Self>, error: Error) {
        let writer = self.writer.lock().take();
        if let Some(writer) = writer {
            (writer.on_body)(Err(error));
        }
    }
}
