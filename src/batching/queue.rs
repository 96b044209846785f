//! Items that wait to be computed, and which of them make the next batch. Plain data: the lock is the worker's.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use super::chunk::Chunk;
use crate::output::OutputKind;

/// Which of the two lines a request waits in.
///
/// While both have waiters, half of every batch belongs to each: a chat message waits for at most the batch in flight,
/// and a bulk job never stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// A person is waiting: few texts.
    Interactive,
    /// Indexing and the like: part of a long list.
    Bulk,
}

/// One sequence, and what is wanted of it. Its ids are shared with the in-flight table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct QueuedSequence {
    pub(super) ids: Arc<[u32]>,
    /// The token from which on tokens have type 1.
    pub(super) second: u32,
    pub(super) kind: OutputKind,
}

/// What can be queued: cheap to clone, equal for equal results.
pub(crate) trait QueueItem: Clone + Eq + Hash + Send + 'static {
    /// Its part of a batch's budget.
    fn weight(&self) -> usize;
}

impl QueueItem for QueuedSequence {
    fn weight(&self) -> usize {
        self.ids.len()
    }
}

/// A text that a server elsewhere tokenizes.
impl QueueItem for Arc<str> {
    fn weight(&self) -> usize {
        self.len()
    }
}

/// How much one batch takes at most. A single item always fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchLimit {
    /// Of all items together.
    pub(crate) weight: usize,
    /// Items.
    pub(crate) items: usize,
}

impl BatchLimit {
    /// Any number of items of this weight together.
    pub(crate) fn of_weight(weight: usize) -> Self {
        Self { weight, items: usize::MAX }
    }

    fn half(self) -> Self {
        Self { weight: self.weight / 2, items: self.items / 2 }
    }
}

/// Where the result of an item goes: row `row` of a chunk.
#[derive(Clone)]
pub(crate) struct Waiter {
    pub(crate) chunk: Arc<Chunk>,
    pub(crate) row: usize,
}

pub(crate) struct Queue<T> {
    interactive: VecDeque<T>,
    bulk: VecDeque<T>,
    /// Every sequence that is waiting or being computed, and the callers that want it. A sequence is in a lane at most once.
    wanted: HashMap<T, Vec<Waiter>>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { interactive: VecDeque::new(), bulk: VecDeque::new(), wanted: HashMap::new() }
    }
}

impl<T: QueueItem> Queue<T> {
    /// Adds one sequence (true), or joins an equal one that is already waiting or being computed (false).
    pub(crate) fn push(&mut self, item: T, waiter: Waiter, lane: Lane) -> bool {
        if let Some(waiters) = self.wanted.get_mut(&item) {
            waiters.push(waiter);
            return false;
        }
        self.wanted.insert(item.clone(), vec![waiter]);
        match lane {
            Lane::Interactive => self.interactive.push_back(item),
            Lane::Bulk => self.bulk.push_back(item),
        }
        true
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.interactive.is_empty() && self.bulk.is_empty()
    }

    /// Sequences waiting, not counting those being computed.
    pub(crate) fn len(&self) -> usize {
        self.interactive.len() + self.bulk.len()
    }

    /// Takes the next batch, within `budget` but at least one sequence. Sequences whose callers have all left are dropped on
    /// the way; the second value has those callers, by sequence. To be dropped without the lock: the last one may free the
    /// model, and this queue with it.
    pub(crate) fn next_batch(&mut self, budget: BatchLimit) -> (Vec<T>, Vec<Vec<Waiter>>) {
        let (mut batch, mut left) = (Vec::new(), Vec::new());
        let mut used = 0;
        // Half for interactive requests (all of it when no bulk work waits), then bulk, then interactive requests again.
        let share = if self.bulk.is_empty() { budget } else { budget.half() };
        for (lane, limit) in [(Lane::Interactive, share), (Lane::Bulk, budget), (Lane::Interactive, budget)] {
            self.take(lane, limit, &mut used, &mut batch, &mut left);
        }
        (batch, left)
    }

    fn take(
        &mut self,
        lane: Lane,
        limit: BatchLimit,
        used: &mut usize,
        batch: &mut Vec<T>,
        left: &mut Vec<Vec<Waiter>>,
    ) {
        let line = match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Bulk => &mut self.bulk,
        };
        while let Some(item) = line.front() {
            let abandoned =
                self.wanted.get(item).is_none_or(|waiters| waiters.iter().all(|w| w.chunk.is_cancelled()));
            if abandoned {
                left.push(self.wanted.remove(item).unwrap_or_default());
                line.pop_front();
                continue;
            }
            let full = *used + item.weight() > limit.weight || batch.len() >= limit.items;
            if full && !batch.is_empty() {
                break;
            }
            *used += item.weight();
            batch.extend(line.pop_front());
        }
    }

    /// The callers that want `item` now. It stays wanted.
    pub(crate) fn waiters(&self, item: &T) -> &[Waiter] {
        self.wanted.get(item).map_or(&[], Vec::as_slice)
    }

    /// The callers that want a sequence which has been computed, or has failed. It is no longer in flight afterwards.
    pub(crate) fn complete(&mut self, item: &T) -> Vec<Waiter> {
        self.wanted.remove(item).unwrap_or_default()
    }

    /// Empties the queue, and returns every caller that still waits.
    pub(crate) fn drain(&mut self) -> Vec<Waiter> {
        self.interactive.clear();
        self.bulk.clear();
        self.wanted.drain().flat_map(|(_, waiters)| waiters).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::chunk::Cancel;
    use super::*;

    fn tokens(id: u32, length: usize) -> QueuedSequence {
        QueuedSequence { ids: vec![id; length].into(), second: length as u32, kind: OutputKind::Dense }
    }

    fn waiter(cancel: &Cancel) -> Waiter {
        let shape = crate::output::Shape::Dense { width: 1 };
        Waiter { chunk: Chunk::new(1, shape, cancel.clone(), Box::new(|_| {}), None, None).unwrap(), row: 0 }
    }

    #[test]
    fn equal_sequences_are_computed_once_while_in_flight() {
        let (mut queue, keep) = (Queue::default(), Cancel::default());
        assert!(queue.push(tokens(1, 4), waiter(&keep), Lane::Interactive));
        assert!(!queue.push(tokens(1, 4), waiter(&keep), Lane::Bulk));
        assert_eq!(queue.next_batch(BatchLimit::of_weight(100)).0.len(), 1);
        // Being computed: a third caller joins, nothing is queued again.
        queue.push(tokens(1, 4), waiter(&keep), Lane::Interactive);
        assert!(queue.is_empty());
        assert_eq!(queue.complete(&tokens(1, 4)).len(), 3);
        // Done: the next one starts afresh.
        queue.push(tokens(1, 4), waiter(&keep), Lane::Interactive);
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn a_sequence_is_dropped_only_when_all_its_callers_left() {
        let mut queue = Queue::default();
        let (gone, here) = (Cancel::default(), Cancel::default());
        queue.push(tokens(1, 4), waiter(&gone), Lane::Interactive);
        queue.push(tokens(2, 4), waiter(&gone), Lane::Interactive);
        queue.push(tokens(2, 4), waiter(&here), Lane::Interactive);
        gone.cancel();
        let (batch, left) = queue.next_batch(BatchLimit::of_weight(100));
        assert_eq!((batch, left.iter().map(Vec::len).collect()), (vec![tokens(2, 4)], vec![1]));
        assert_eq!(queue.complete(&tokens(2, 4)).len(), 2);
        assert!(queue.wanted.is_empty());
    }

    #[test]
    fn a_chat_message_does_not_stand_behind_a_bulk_job() {
        let (mut queue, keep) = (Queue::default(), Cancel::default());
        for id in 0..100 {
            queue.push(tokens(id, 10), waiter(&keep), Lane::Bulk);
        }
        queue.push(tokens(1000, 10), waiter(&keep), Lane::Interactive);
        let (batch, _) = queue.next_batch(BatchLimit::of_weight(100));
        assert_eq!(batch[0], tokens(1000, 10));
        assert_eq!(batch.len(), 10);
    }

    #[test]
    fn a_flood_of_messages_does_not_stop_a_bulk_job() {
        let (mut queue, keep) = (Queue::default(), Cancel::default());
        for id in 0..100 {
            queue.push(tokens(id, 10), waiter(&keep), Lane::Interactive);
        }
        queue.push(tokens(1000, 10), waiter(&keep), Lane::Bulk);
        let (batch, _) = queue.next_batch(BatchLimit::of_weight(100));
        assert!(batch.contains(&tokens(1000, 10)));
        assert_eq!(batch.len(), 10);
    }

    #[test]
    fn a_sequence_longer_than_the_budget_makes_a_batch_of_its_own() {
        let (mut queue, keep) = (Queue::default(), Cancel::default());
        queue.push(tokens(1, 500), waiter(&keep), Lane::Bulk);
        queue.push(tokens(2, 1), waiter(&keep), Lane::Bulk);
        assert_eq!(queue.next_batch(BatchLimit::of_weight(100)).0, [tokens(1, 500)]);
        assert_eq!(queue.next_batch(BatchLimit::of_weight(100)).0, [tokens(2, 1)]);
    }

    #[test]
    fn each_lane_keeps_the_order_of_arrival() {
        for lane in [Lane::Interactive, Lane::Bulk] {
            let (mut queue, keep) = (Queue::default(), Cancel::default());
            for id in 0..5 {
                queue.push(tokens(id, 10), waiter(&keep), lane);
            }
            let batch = |queue: &mut Queue<QueuedSequence>| queue.next_batch(BatchLimit::of_weight(20)).0;
            assert_eq!(batch(&mut queue), [tokens(0, 10), tokens(1, 10)], "{lane:?}");
            assert_eq!(batch(&mut queue), [tokens(2, 10), tokens(3, 10)], "{lane:?}");
            assert_eq!(batch(&mut queue), [tokens(4, 10)], "{lane:?}");
        }
    }

    #[test]
    fn draining_empties_both_lanes_and_names_every_waiter() {
        let (mut queue, keep) = (Queue::default(), Cancel::default());
        for lane in [Lane::Interactive, Lane::Bulk] {
            queue.push(tokens(lane as u32, 4), waiter(&keep), lane);
            queue.push(tokens(lane as u32, 4), waiter(&keep), lane);
            queue.push(tokens(2 + lane as u32, 4), waiter(&keep), lane);
        }
        assert_eq!(queue.next_batch(BatchLimit { weight: 100, items: 1 }).0.len(), 1);
        assert_eq!(queue.drain().len(), 6);
        assert!(queue.is_empty() && queue.wanted.is_empty());
        let (batch, left) = queue.next_batch(BatchLimit::of_weight(100));
        assert!(batch.is_empty() && left.is_empty());
    }

    proptest! {
        /// Whatever arrives in whatever order: every sequence comes out exactly once, batches keep to their budget,
        /// and every waiter is answered exactly once.
        #[test]
        fn nothing_is_lost_or_computed_twice(
            arrivals in prop::collection::vec((0u32..40, 1usize..30, any::<bool>()), 0..if cfg!(miri) { 40 } else { 200 }),
            budget in 1usize..100,
            items in 1usize..20,
        ) {
            let limits = BatchLimit { weight: budget, items };
            let (mut queue, keep) = (Queue::default(), Cancel::default());
            let mut distinct = std::collections::HashSet::new();
            for (id, length, bulk) in &arrivals {
                distinct.insert((*id, *length));
                let lane = if *bulk { Lane::Bulk } else { Lane::Interactive };
                queue.push(tokens(*id, *length), waiter(&keep), lane);
            }
            let (mut computed, mut answered) = (std::collections::HashSet::new(), 0);
            while !queue.is_empty() {
                let (batch, _) = queue.next_batch(limits);
                prop_assert!(!batch.is_empty());
                let total: usize = batch.iter().map(|t| t.ids.len()).sum();
                prop_assert!(total <= budget || batch.len() == 1);
                prop_assert!(batch.len() <= items);
                for sequence in batch {
                    prop_assert!(computed.insert((sequence.ids[0], sequence.ids.len())));
                    answered += queue.complete(&sequence).len();
                }
            }
            prop_assert_eq!(computed, distinct);
            prop_assert_eq!(answered, arrivals.len());
        }
    }
}
