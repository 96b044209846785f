//! What one caller waits for: some rows of a matrix, filled as batches complete.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sync::Mutex;
use crate::{Error, Result};

/// Called once, on the worker thread, with the chunk's rows or the first error. It must be quick and must not call back
/// into the batcher.
pub(super) type Done = Box<dyn FnOnce(Result<Rows>) + Send>;

/// What a chunk came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// One vector a sequence: `[sequences, width]`, row-major.
    pub values: Vec<f32>,
    /// Tokens that the model read, by sequence.
    pub tokens: Vec<u32>,
}

/// A caller's flag that it no longer wants its rows. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Sets the flag: sequences that nobody else wants will not be computed.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the caller has left.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Rows that one caller is waiting for.
pub struct Chunk {
    width: usize,
    cancel: Cancel,
    gathered: Mutex<Gathered>,
}

struct Gathered {
    rows: Rows,
    missing: usize,
    /// Taken when the caller has been told; later rows have nowhere to go.
    done: Option<Done>,
}

impl Chunk {
    /// A chunk of `sequences` rows of `width`. With no sequences `done` is called at once.
    pub(crate) fn new(sequences: usize, width: usize, cancel: Cancel, done: Done) -> Arc<Self> {
        let chunk = Arc::new(Self {
            width,
            cancel,
            gathered: Mutex::new(Gathered {
                rows: Rows { values: vec![0.0; sequences * width], tokens: vec![0; sequences] },
                missing: sequences,
                done: Some(done),
            }),
        });
        if sequences == 0 {
            chunk.finish(Ok(()));
        }
        chunk
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Stores the vector of sequence `row`, made of so many tokens; the last one completes the chunk.
    pub(crate) fn deliver(&self, row: usize, vector: &[f32], tokens: u32) {
        let complete = {
            let mut gathered = self.gathered.lock();
            gathered.rows.values[row * self.width..(row + 1) * self.width].copy_from_slice(vector);
            gathered.rows.tokens[row] = tokens;
            gathered.missing -= 1;
            gathered.missing == 0
        };
        if complete {
            self.finish(Ok(()));
        }
    }

    /// Tells the caller of a failure, at once and only once.
    pub(crate) fn fail(&self, error: Error) {
        self.finish(Err(error));
    }

    fn finish(&self, outcome: Result<()>) {
        let (done, rows) = {
            let mut gathered = self.gathered.lock();
            let Some(done) = gathered.done.take() else { return };
            // After a failure other rows of this chunk may still arrive: they need the buffer's length.
            let rows = if outcome.is_ok() { std::mem::take(&mut gathered.rows) } else { Rows::default() };
            (done, rows)
        };
        let told = catch_unwind(AssertUnwindSafe(|| done(outcome.map(|()| rows))));
        if let Err(payload) = told {
            // The worker must live on; the caller's own drop guards speak for the caller.
            log::error!("{}", Error::panic("a reply", payload.as_ref()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn chunk(sequences: usize) -> (Arc<Chunk>, mpsc::Receiver<Result<Rows>>) {
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |result| sender.send(result).unwrap());
        (Chunk::new(sequences, 2, Cancel::default(), done), receiver)
    }

    #[test]
    fn rows_may_arrive_in_any_order() {
        let (chunk, done) = chunk(2);
        chunk.deliver(1, &[3.0, 4.0], 5);
        assert!(done.try_recv().is_err());
        chunk.deliver(0, &[1.0, 2.0], 6);
        let rows = Rows { values: vec![1.0, 2.0, 3.0, 4.0], tokens: vec![6, 5] };
        assert_eq!(done.try_recv().unwrap(), Ok(rows));
    }

    #[test]
    fn an_empty_chunk_is_done_at_once() {
        let (_, done) = chunk(0);
        assert_eq!(done.try_recv().unwrap(), Ok(Rows::default()));
    }

    #[test]
    fn a_failure_is_told_once_and_late_rows_do_no_harm() {
        let (chunk, done) = chunk(2);
        chunk.fail(Error::Cancelled);
        chunk.fail(Error::Closed);
        chunk.deliver(0, &[1.0, 2.0], 6);
        chunk.deliver(1, &[1.0, 2.0], 7);
        assert_eq!(done.try_recv().unwrap(), Err(Error::Cancelled));
        assert!(done.try_recv().is_err());
    }
}
