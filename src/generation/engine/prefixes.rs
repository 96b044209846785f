//! Caches of finished sequences, kept for prompts that begin alike: the turns of a chat, a common system prompt.

use crate::Result;
use crate::models::decoder::Cache;

/// A prompt that shares fewer tokens than this computes them: a cache of its own costs as much.
const WORTH_REUSING: usize = 8;

struct Kept<C> {
    tokens: Vec<u32>,
    cache: C,
}

/// Least recently used first; bounded by count and bytes.
pub(super) struct Prefixes<C> {
    kept: Vec<Kept<C>>,
    most: usize,
    most_bytes: u64,
}

impl<C: Cache> Prefixes<C> {
    pub(super) fn new(most: usize, most_bytes: u64) -> Self {
        Self { kept: Vec::new(), most, most_bytes }
    }

    /// A cache that holds the longest known beginning of `prompt`, always short of its last token, whose logits are
    /// needed. A sequence that the prompt continues gives its cache away; of one that it leaves midway the common part
    /// is copied, so that the other conversation keeps its own.
    pub(super) fn find(&mut self, prompt: &[u32], capacity: usize) -> Result<Option<C>> {
        let usable = &prompt[..prompt.len() - 1];
        let common = |kept: &Kept<C>| kept.tokens.iter().zip(usable).take_while(|(a, b)| a == b).count();
        let best = self.kept.iter().map(common).enumerate().max_by_key(|&(_, length)| length);
        let Some((index, length)) = best.filter(|&(_, length)| length >= WORTH_REUSING) else {
            return Ok(None);
        };
        let mut kept = self.kept.remove(index);
        if kept.tokens.len() - length < WORTH_REUSING {
            kept.cache.truncate(length);
            kept.cache.reserve(capacity)?;
            return Ok(Some(kept.cache));
        }
        let copy = kept.cache.fork(length, capacity)?;
        self.kept.push(kept);
        Ok(Some(copy))
    }

    /// Keeps the cache of a finished sequence without the room that its answer did not use; `tokens` begin with those
    /// that it holds. The oldest make room.
    pub(super) fn keep(&mut self, mut tokens: Vec<u32>, mut cache: C) {
        tokens.truncate(cache.len());
        if tokens.len() < WORTH_REUSING || self.most == 0 || cache.shrink().is_err() {
            return;
        }
        // What the new sequence begins with needs no place of its own.
        self.kept.retain(|kept| !tokens.starts_with(&kept.tokens));
        self.kept.push(Kept { tokens, cache });
        while self.kept.len() > self.most || (self.bytes() > self.most_bytes && !self.kept.is_empty()) {
            self.kept.remove(0);
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.kept.iter().map(|kept| kept.cache.bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counted {
        len: usize,
        capacity: usize,
    }

    impl Cache for Counted {
        fn len(&self) -> usize {
            self.len
        }
        fn truncate(&mut self, len: usize) {
            self.len = len;
        }
        fn reserve(&mut self, capacity: usize) -> Result<()> {
            self.capacity = self.capacity.max(capacity);
            Ok(())
        }
        fn fork(&self, len: usize, capacity: usize) -> Result<Self> {
            Ok(Self { len, capacity })
        }
        fn shrink(&mut self) -> Result<()> {
            self.capacity = self.len;
            Ok(())
        }
        fn bytes(&self) -> u64 {
            self.capacity as u64
        }
    }

    fn cache(len: usize) -> Counted {
        Counted { len, capacity: len }
    }

    fn found(prefixes: &mut Prefixes<Counted>, prompt: &[u32]) -> Option<usize> {
        prefixes.find(prompt, 100).unwrap().map(|cache| cache.len)
    }

    #[test]
    fn a_continued_conversation_takes_its_cache() {
        let mut prefixes = Prefixes::new(4, 1000);
        let turn: Vec<u32> = (0..20).collect();
        prefixes.keep(turn, cache(19));
        let next: Vec<u32> = (0..30).collect();
        assert_eq!(found(&mut prefixes, &next), Some(19));
        assert_eq!(found(&mut prefixes, &next), None, "it was given away");
    }

    #[test]
    fn the_same_prompt_again_leaves_one_token_to_compute() {
        let mut prefixes = Prefixes::new(4, 1000);
        let prompt: Vec<u32> = (0..20).collect();
        prefixes.keep(prompt.clone(), cache(20));
        assert_eq!(found(&mut prefixes, &prompt), Some(19));
    }

    #[test]
    fn a_common_beginning_is_copied() {
        let mut prefixes = Prefixes::new(4, 1000);
        prefixes.keep((0..60).collect(), cache(60));
        let other: Vec<u32> = (0..20).chain(100..110).collect();
        assert_eq!(found(&mut prefixes, &other), Some(20));
        assert_eq!(found(&mut prefixes, &(0..70).collect::<Vec<_>>()), Some(60), "the first is still whole");
    }

    #[test]
    fn count_and_bytes_are_bounded_and_the_oldest_goes() {
        let mut prefixes = Prefixes::new(2, 50);
        for start in [100, 200, 300] {
            prefixes.keep((start..start + 20).collect(), cache(20));
        }
        assert_eq!((prefixes.kept.len(), prefixes.bytes()), (2, 40));
        assert_eq!(found(&mut prefixes, &(100..130).collect::<Vec<_>>()), None);
        prefixes.keep((0..45).collect(), cache(45));
        assert_eq!((prefixes.kept.len(), prefixes.bytes()), (1, 45));
        prefixes.keep((400..460).collect(), cache(60));
        assert_eq!(prefixes.bytes(), 0, "what exceeds the bound alone is not kept");
    }

    #[test]
    fn unused_room_is_given_back() {
        let mut prefixes = Prefixes::new(2, 1000);
        prefixes.keep((0..20).collect(), Counted { len: 20, capacity: 900 });
        assert_eq!(prefixes.bytes(), 20);
    }

    #[test]
    fn short_beginnings_are_not_worth_it() {
        let mut prefixes = Prefixes::new(2, 50);
        prefixes.keep((0..5).collect(), cache(5));
        prefixes.keep((0..20).collect(), cache(20));
        assert_eq!(prefixes.kept.len(), 1);
        let other: Vec<u32> = (0..7).chain(50..60).collect();
        assert_eq!(found(&mut prefixes, &other), None);
        assert_eq!(found(&mut prefixes, &[3]), None);
    }
}
