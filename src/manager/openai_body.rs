//! The answer of a call as the body of OpenAI's `POST /v1/embeddings`.

use std::sync::Arc;

use super::core::Core;
use super::dispatcher::Task;
use super::inputs::Inputs;
use super::job::Matrix;
use super::options::EmbedOptions;
use super::{Manager, Ticket};
use crate::sync::Mutex;
use crate::wire::{Body, Encoding};
use crate::{Error, Result};

/// Values written in one go: about a millisecond. A longer body is written in pieces on the front's thread, so that other
/// calls move along in between.
const PIECE: usize = 1 << 16;

/// Called once with a body and the tokens that were read for it.
pub type OnBody = Box<dyn FnOnce(Result<(Vec<u8>, u64)>) + Send>;

impl Manager {
    /// [`Manager::submit`] with the answer as the body of OpenAI's `POST /v1/embeddings`, in which the model is called
    /// `model`, and the number of tokens that were read. Only a body of some length that the cache knows is written
    /// here; longer ones are written, and told of, by another thread.
    ///
    /// # Errors
    /// As [`Manager::submit`].
    pub fn submit_response(
        &self,
        inputs: impl Into<Inputs>,
        options: EmbedOptions,
        model: String,
        encoding: Encoding,
        on_body: OnBody,
    ) -> Result<Ticket> {
        let core = self.core()?;
        let respond = move |result: Result<Matrix>| match result {
            Ok(matrix) => match Body::new(encoding, matrix.rows, matrix.width) {
                Ok(body) => BodyWriter { body, matrix, written: 0, model, on_body }.write(core),
                Err(error) => {
                    // The caller may want its memory to go on.
                    drop(matrix);
                    on_body(Err(error));
                }
            },
            Err(error) => on_body(Err(error)),
        };
        self.submit(inputs, options, Box::new(respond))
    }
}

/// A body on its way.
struct BodyWriter {
    body: Body,
    matrix: Matrix,
    /// Rows written.
    written: usize,
    model: String,
    on_body: OnBody,
}

impl BodyWriter {
    fn write(mut self, core: Arc<Core>) {
        if self.matrix.values.len() <= PIECE {
            self.write_piece();
            return self.finish();
        }
        let writing = Arc::new(Writing { core, page: Mutex::new(Some(self)) });
        writing.go_on();
    }

    /// Writes some rows; false: that was all.
    fn write_piece(&mut self) -> bool {
        let (rows, width) = (self.matrix.rows, self.matrix.width.max(1));
        let end = rows.min(self.written + (PIECE / width).max(1));
        let vectors = self.matrix.values.chunks_exact(width).take(end).skip(self.written);
        vectors.for_each(|vector| self.body.push(vector));
        self.written = end;
        end < rows
    }

    fn finish(self) {
        let tokens = self.matrix.tokens;
        // The numbers are not needed beside what the caller makes of the body.
        drop(self.matrix);
        (self.on_body)(Ok((self.body.finish(&self.model, tokens), tokens)));
    }
}

/// A long body on its way.
struct Writing {
    core: Arc<Core>,
    /// Taken when the caller is told.
    page: Mutex<Option<BodyWriter>>,
}

impl Writing {
    fn go_on(self: Arc<Self>) {
        let task: Arc<dyn Task> = Arc::clone(&self) as _;
        if let Err(error) = self.core.dispatcher().push(task) {
            self.fail(error);
        }
    }
}

impl Task for Writing {
    fn step(self: Arc<Self>) {
        let mut page = self.page.lock();
        if page.as_mut().is_some_and(BodyWriter::write_piece) {
            drop(page);
            return self.go_on();
        }
        let whole = page.take();
        drop(page);
        if let Some(page) = whole {
            page.finish();
        }
    }

    fn fail(self: Arc<Self>, error: Error) {
        let page = self.page.lock().take();
        if let Some(page) = page {
            (page.on_body)(Err(error));
        }
    }
}
