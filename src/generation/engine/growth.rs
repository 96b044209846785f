//! Memory of sequences as they grow: a sequence takes more when it needs more, and waits when there is none.
//!
//! The sequence that came first always goes on. When it finds no memory, the one that came last gives up its keys and
//! values. That one goes on later, from its own tokens: what it writes is the same, because the computation of a token
//! depends on nothing but the tokens before it.

use super::memory::Room;
use super::request::{FinishReason, PrefixScope};
use super::sequence::Sequence;
use super::worker::{FIRST_TOKENS, Outcome, Run, guarded};
use crate::Error;
use crate::models::decoder::{Decoder, KvCache};

impl<D: Decoder> Run<'_, D> {
    /// Gives each sequence the memory that its next step needs. Those that find none pause.
    pub(super) fn grow(&mut self) {
        let mut index = 0;
        while index < self.active.len() {
            match self.grow_one(index) {
                Ok(true) => index += 1,
                // The youngest makes room, be it this one.
                Ok(false) => self.pause(self.active.len() - 1),
                Err(error) => self.retire(index, Outcome::Fails(error)),
            }
        }
    }

    /// False when there is no memory now.
    fn grow_one(&mut self, index: usize) -> Result<bool, Error> {
        let sequence = &self.active[index];
        let next = sequence.tokens.len().min(sequence.cache.len() + self.chunk.max(1));
        let bytes = self.work.decoder.cache_bytes(next).saturating_sub(sequence.room.bytes());
        if bytes == 0 {
            return Ok(true);
        }
        let Some(more) = self.take_memory(bytes, sequence.scope, &sequence.tokens)? else {
            return Ok(false);
        };
        self.active[index].room.add(more);
        Ok(true)
    }

    /// Takes `bytes` bytes for a sequence that begins with `tokens`; kept beginnings of prompts are freed where that helps.
    /// `None` when there is no memory now.
    pub(super) fn take_memory(
        &self,
        bytes: u64,
        scope: Option<PrefixScope>,
        tokens: &[u32],
    ) -> Result<Option<Room>, Error> {
        let missing = self.shared.pool.missing(bytes);
        if missing > 0 && missing <= self.shared.pool.used().1 {
            self.prefixes.lock().make_room(missing, scope, tokens);
        }
        // The lock is free by now: other engines may be asked for memory, and they ask this one.
        guarded("memory of a request", || self.shared.pool.take(bytes))
    }

    /// Takes the memory of an active sequence; it goes on when there is enough again.
    fn pause(&mut self, index: usize) {
        let mut sequence = self.active.remove(index);
        sequence.cache.truncate(0);
        // An empty cache holds no memory.
        let _ = sequence.cache.shrink();
        sequence.room.clear();
        self.totals().paused += 1;
        // The youngest pause first: the oldest of them is in front.
        self.paused.push_front(sequence);
        self.waits_for_memory = true;
    }

    /// Ends paused sequences that were cancelled or have become late.
    pub(super) fn dismiss_paused(&mut self) {
        for index in (0..self.paused.len()).rev() {
            let sequence = &self.paused[index];
            let outcome = if sequence.cancelled() {
                Outcome::Ends(FinishReason::Cancelled)
            } else if let Some(late) = sequence.late() {
                Outcome::Fails(late.error(&self.work.settings.model))
            } else {
                continue;
            };
            if let Some(sequence) = self.paused.remove(index) {
                self.end(sequence, outcome);
            }
        }
    }

    /// Lets paused sequences go on, the oldest first. False while one waits.
    pub(super) fn resume_paused(&mut self) -> bool {
        while let Some(sequence) = self.paused.pop_front() {
            if let Some(sequence) = self.resume(sequence) {
                self.paused.push_front(sequence);
                self.waits_for_memory = true;
                return false;
            }
        }
        true
    }

    /// Gives a sequence back when there is no memory for it.
    fn resume(&mut self, mut sequence: Sequence<D::Cache>) -> Option<Sequence<D::Cache>> {
        let capacity = sequence.tokens.len() + FIRST_TOKENS.min(sequence.tokens_left());
        let bytes = self.work.decoder.cache_bytes(capacity);
        match self.take_memory(bytes, sequence.scope, &sequence.tokens) {
            Ok(Some(room)) => {
                sequence.room.add(room);
                self.active.push(sequence);
                None
            }
            Ok(None) => Some(sequence),
            Err(error) => {
                self.end(sequence, Outcome::Fails(error));
                None
            }
        }
    }
}
